"""What can be checked of the image without Docker: `python -m tests.docker_check`, or `make docker-check`.

Hadolint reads the Dockerfile. Then its steps are followed below a temporary folder: what it installs goes into a clean
virtual environment, what it copies into a folder, and its command runs as its user, who may write below the home folder
alone. The page has to answer the health check, chat and train, and nothing may be written elsewhere. Only the step that
makes the user is left out; run by root the user is 1000, else whoever runs it. Takes minutes.
"""

import fnmatch
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio_client
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parent.parent
PASSWORD = "of the check alone"
PATIENCE = 300.0
KEPT = ("PIP_", "http", "HTTP", "no_proxy", "NO_PROXY", "SSL_", "REQUESTS_")  # how this machine reaches package indexes
BUILD_ARGS = {"TORCH_INDEX": os.environ.get("TORCH_INDEX", "https://pypi.org/simple")}


class Image:
    """The image's file system below a folder, and what ENV, ARG, WORKDIR and USER came to so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root
        self.user = 0
        self.environment = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
        self.environment |= {
            "PATH": f"{root / 'venv/bin'}:/usr/bin:/bin",
            "HOME": str(root / "root"),
            "LANG": "C.UTF-8",
        }
        self.health: list[str] = []
        self.command: list[str] = []

    def inside(self, path: str) -> Path:
        """Where a path of the image is."""
        return self.root / path.lstrip("/") if path.startswith("/") else self.folder / path

    def step(self, instruction: str, value: str) -> None:
        """Follows one line of the Dockerfile."""
        print(f"{instruction} {value[:100]}", flush=True)
        match instruction:
            case "FROM":
                subprocess.run([_python(), "-m", "venv", str(self.root / "venv")], check=True)
            case "ARG":
                name, _, default = value.partition("=")
                self.environment[name] = BUILD_ARGS.get(name, default)
            case "ENV":
                pairs = (part.partition("=") for part in shlex.split(value))
                self.environment |= {name: str(self.inside(to)) if to[:1] == "/" else to for name, _, to in pairs}
            case "WORKDIR":
                self.folder = self.inside(value)
                self.folder.mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(*value.split())
            case "RUN":
                self._run(value)
            case "USER":
                self.user = int(value)
            case "HEALTHCHECK":
                self.health = json.loads(value.partition("CMD ")[2])
            case "CMD":
                self.command = json.loads(value)
            case "VOLUME" | "EXPOSE" | "COMMENT":
                pass
            case _:
                raise AssertionError(f"This check does not know {instruction}.")

    def _copy(self, *names: str) -> None:
        *sources, to = names
        for source in sources:
            assert f"!{source}" in _let_through(), f".dockerignore keeps {source} out"
            target = self.inside(to) / source if to.endswith("/") else self.inside(to)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(ROOT / source, target)

    def _run(self, command: str) -> None:
        if command.startswith("useradd"):
            assert "--uid 1000" in command, "Spaces run as user 1000"
            (self.root / "home/studio").mkdir(parents=True)
            if os.geteuid() == 0:
                os.chown(self.root / "home/studio", 1000, 1000)
            print("  left out: there is no image to make a user in")
            return
        subprocess.run(["sh", "-e", "-c", command], check=True, cwd=self.folder, env=self.environment)

    def as_user(self, command: list[str]) -> list[str]:
        """A command as the image's user, where this process may become somebody else."""
        if os.geteuid() != 0:
            return command
        who = str(self.user)
        return ["setpriv", "--reuid", who, "--regid", who, "--clear-groups", "--no-new-privs", *command]


def _python() -> str:
    """A Python that every user may run."""
    found = Path(sys.base_prefix, "bin/python3").resolve()
    open_to_all = all(folder.stat().st_mode & 1 for folder in found.parents)
    return str(found) if open_to_all else "/usr/bin/python3"


def _let_through() -> list[str]:
    return (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def main() -> None:
    """Every check; ends with a word, or with what is wrong."""
    hadolint = Path(sys.executable).parent / "hadolint"
    subprocess.run([str(hadolint), str(ROOT / "Dockerfile")], check=True)
    print("hadolint finds nothing to say.")
    with tempfile.TemporaryDirectory(prefix="lora-studio-image-") as folder:
        os.chmod(folder, 0o755)
        image = Image(Path(folder).resolve())
        for line in DockerfileParser(str(ROOT)).structure:
            image.step(line["instruction"], line["value"])
        assert image.user == 1000
        began = time.time()
        with _running(image) as url:
            _use(url)
        strangers = list(_written_elsewhere(image, began))
        assert not strangers, f"written outside the home folder: {strangers}"
        print("The page started, chatted and trained, and wrote below its home folder alone.", flush=True)


@contextmanager
def _running(image: Image) -> Iterator[str]:
    """The command of the image, until the page answers the health check; the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    built = {name: value for name, value in image.environment.items() if not name.startswith(KEPT)}
    environment = built | {"LORA_STUDIO_PORT": str(port), "LORA_STUDIO_PASSWORD": PASSWORD}
    page = subprocess.Popen(image.as_user(image.command), cwd=image.folder, env=environment, start_new_session=True)
    try:
        begun = time.monotonic()
        asking = ["timeout", "10", *image.as_user(image.health)]
        while subprocess.run(asking, cwd=image.folder, env=environment, stderr=subprocess.DEVNULL).returncode:
            assert page.poll() is None, f"the page ended with {page.returncode}"
            assert time.monotonic() - begun < PATIENCE, "the page does not answer its health check"
            time.sleep(0.5)
        print(f"The health check answers {time.monotonic() - begun:.1f} s after the start.", flush=True)
        yield f"http://127.0.0.1:{port}"
    finally:
        page.terminate()
        page.wait(60)


def _use(url: str) -> None:
    """A question and a short training: both start children, which write as well."""
    client = gradio_client.Client(url, auth=("check", PASSWORD), verbose=False)
    assert "Rome" in client.predict("What is the capital of Italy?", api_name="/chat")
    run = client.predict("demo", {"training.max_steps": 2}, api_name="/start_run")
    end = time.monotonic() + PATIENCE
    while run["state"] in ("queued", "running"):
        assert time.monotonic() < end, "the training does not end"
        time.sleep(1)
        run = client.predict(run["run"], api_name="/run_status")
    assert run["state"] == "done", run


def _written_elsewhere(image: Image, since: float) -> Iterator[str]:
    """Files that are newer than the start: below the image by anybody, elsewhere by the image's user."""
    home = image.environment["HOME"]
    places = [(str(image.root), [])]
    if os.geteuid() == 0:
        places.append(("/", ["-uid", str(image.user)]))
    for place, whose in places:
        command = ["find", place, "-xdev", "-type", "f", "-newermt", f"@{since}", *whose]
        for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
            if not fnmatch.fnmatch(line, f"{home}/*"):
                yield line


if __name__ == "__main__":
    main()
