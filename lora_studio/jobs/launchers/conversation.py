"""A process that is talked to over its pipes, for session children: it ends with whoever started it."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_studio.jobs.launchers.local import child_environment


class ProcessPipes:
    """A child with lines of text in both directions. It has a session of its own: Ctrl-C is the parent's to handle."""

    def __init__(self, command: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None) -> None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=child_environment(env),
                start_new_session=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.input, self.output = self._process.stdin, self._process.stdout

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal); None while it lives."""
        return self._process.poll()

    def kill(self) -> None:
        """Ends the child, and what it started, by force."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until the child is gone; False where it still is there after so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
