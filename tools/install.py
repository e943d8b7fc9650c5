"""Installs requirements files into this Python's environment with one line of progress, for `make run` and its like.

Runs before anything is installed, so it uses the standard library alone. pip's whole output is kept in a log.
"""

import argparse
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

LOCK = Path(__file__).parent.parent / "requirements-cpu.lock"
_PIN = re.compile(r"^([A-Za-z0-9_.-]+)==", re.MULTILINE)
_FILE = re.compile(
    r"\s*(?:Downloading|Using cached) (?:\S*/)?([A-Za-z0-9_.]+?)-\d\S*?\.(?:whl|tar\.gz)(?: \((.+)\))?\s*$"
)
TAIL = 15  # lines of pip's output that are shown where it fails


class Progress:
    """What pip's output says about how far it is, of about `total` packages."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._names: set[str] = set()

    def of_line(self, line: str) -> str:
        """The state after a line of output, in words; "" for a line that changes nothing."""
        if line.startswith("Collecting "):
            name = re.split(r"[\s=<>!~;\[(]", line.removeprefix("Collecting ").strip())[0]
            self._names.add(name.lower())
            return f"Looking up {min(len(self._names), self.total)} of about {self.total}: {name}"
        if match := _FILE.match(line):
            return f"Downloading {match[1].replace('_', '-')}" + (f", {match[2]}" if match[2] else "")
        if line.startswith("Installing collected packages:"):
            return f"Unpacking {line.count(',') + 1} packages, about a minute"
        return ""


def package_count(requirements: Path) -> int:
    """About how many packages a file brings: those of the lock file, and what the file itself adds."""
    names = _PIN.findall(LOCK.read_text(encoding="utf-8")) + _PIN.findall(requirements.read_text(encoding="utf-8"))
    return len({name.lower().replace("_", "-") for name in names})


def size_words(system: str, machine: str) -> str:
    """About how much is downloaded. For Linux PyPI has the CUDA build of torch, which brings NVIDIA's libraries."""
    if system == "Linux" and machine == "x86_64":
        return "0.5 GB to download, several GB with the CUDA build of torch that PyPI has for Linux"
    return "0.5 GB to download"


def install(requirements: Path, log_file: Path) -> int:
    """Runs pip and returns its exit code."""
    progress = Progress(package_count(requirements))
    size = size_words(platform.system(), platform.machine())
    print(f"Installing {requirements}: about {progress.total} packages, {size}.", flush=True)
    print("This happens once and takes one to ten minutes, as the connection is fast or slow.", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check", "-r"]
    began, tail = time.monotonic(), deque[str](maxlen=TAIL)
    pip = subprocess.Popen(
        [*command, str(requirements)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert pip.stdout is not None
    with log_file.open("w", encoding="utf-8") as log:
        for line in pip.stdout:
            log.write(line)
            tail.append(line)
            if words := progress.of_line(line):
                _show(words, time.monotonic() - began)
    code = pip.wait()
    if sys.stdout.isatty():
        print("\r\x1b[K", end="")
    if code:
        print("".join(tail), end="", file=sys.stderr)
        print(f"The installation failed. All of pip's output is in {log_file}.", file=sys.stderr)
    else:
        print(f"Installed in {time.monotonic() - began:.0f} s.", flush=True)
    return code


def _show(words: str, seconds: float) -> None:
    """One line that is written over on a terminal; elsewhere only the steps that take long."""
    if sys.stdout.isatty():
        line = f"{seconds:4.0f} s  {words}"[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[K{line}", end="", flush=True)
    elif " MB" in words or words.startswith("Unpacking"):
        print(f"{seconds:4.0f} s  {words}", flush=True)


def main() -> int:
    """Installs the file that is named."""
    parser = argparse.ArgumentParser(description="Install a requirements file with progress.")
    parser.add_argument("requirements", type=Path)
    parser.add_argument("--log", type=Path, default=Path(sys.prefix) / "install.log", help="where pip's output is kept")
    args = parser.parse_args()
    return install(args.requirements, args.log)


if __name__ == "__main__":
    sys.exit(main())
