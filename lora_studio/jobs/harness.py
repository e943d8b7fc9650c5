"""lm-evaluation-harness, where it is installed: the command that measures an adapter on public benchmarks, its start.

A package of its own, not one of ours: it fetches its questions from the Hugging Face Hub. It runs in its own session
and writes to a log, as evaluations do.
"""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.jobs.launchers.interface import last_lines
from lora_studio.jobs.launchers.local import child_environment
from lora_studio.workspace import Workspace, model_source

PACKAGE = "lm_eval"
TASKS = "hellaswag, arc_easy"


def installed() -> bool:
    """Whether this Python can run it."""
    return importlib.util.find_spec(PACKAGE) is not None


def command(adapter: Path, base: str, quantization: str, tasks: str, results: Path | str = "results") -> list[str]:
    """The words of the command. Raises `StudioError` for names that are no tasks."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names or not all(name.replace("_", "").replace("-", "").isalnum() for name in names):
        raise StudioError(f"{tasks!r} are no names of tasks.", f"Give names with commas between them, such as {TASKS}.")
    for part in (base, str(adapter)):
        if "," in part:  # where lm_eval's next argument begins: an adapter's own files say what its base is called
            raise StudioError(f"lm_eval can't be given a name with a comma: {part!r}.", "Name base and folder without.")
    bits = {"4bit": ",load_in_4bit=True", "8bit": ",load_in_8bit=True"}.get(quantization, "")
    model = f"pretrained={model_source(base)},peft={adapter},tokenizer={adapter}{bits}"
    words = ["--model", "hf", "--model_args", model, "--tasks", ",".join(names), "--apply_chat_template"]
    return [PACKAGE, *words, "--batch_size", "auto", "--output_path", str(results)]


def in_a_shell(words: Sequence[str]) -> str:
    """The command as it can be typed."""
    return shlex.join(words)


@dataclass
class Harness:
    """The one benchmark that may run at a time."""

    workspace: Workspace
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.workspace.logs_folder / "lm_eval.log"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, words: Sequence[str]) -> None:
        """Runs the command with this Python. Raises `StudioError` where it can't."""
        self.workspace.check_may("run benchmarks")
        if not installed():
            raise StudioError("lm-evaluation-harness is not installed.", "Install it: pip install lm_eval")
        if self.running:
            raise StudioError("A benchmark is running already.", "Wait for it, or stop it first.")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.workspace.logs_folder,
                env=child_environment(self.workspace.tokens(self.workspace.maker)),
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ends it and all it started."""
        if self.process is not None and self.running:
            os.killpg(self.process.pid, signal.SIGTERM)

    def said(self) -> str:
        """The end of what it printed, with how it ended."""
        if self.process is None:
            return ""
        code = self.process.poll()
        end = "" if code is None else "\nDone." if code == 0 else f"\nEnded with exit code {code}."
        return last_lines(self.log, 40) + end
