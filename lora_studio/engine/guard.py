"""Ends a program that a worker or a session started as soon as that process is gone, however it went.

A process that is killed can't end what it started, and its programs start more: vLLM's engine outlives the server that
started it (vllm-project/vllm#55510) and holds the GPU's memory. So this file is run as a program between the two. It
reads a pipe whose other end the worker holds. A worker that wants the program to end writes there, and the program is
asked; where the pipe ends without a word, the worker is dead, and all is ended at once: the next job may be waiting for
the GPU. Standard library alone: it is run by its path, isolated, and starts in a hundredth of a second.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

PATIENCE = 15.0
"""Seconds between asking a program to end and ending it with all that it started."""
NOT_STARTED = 127
END = b"e"


@contextlib.contextmanager
def guarded(words: Sequence[str], *, patience: float = PATIENCE, **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Starts a program. It ends when the context is left, and when this process ends before that.

    `options` are those of `Popen`. The process in the context is the guard: it ends with the program, with its exit
    code (128 and more: that signal). Raises `FileNotFoundError` where there is no such program.
    """
    if shutil.which(words[0]) is None:
        raise FileNotFoundError(f"There is no program {words[0]}.")
    theirs, ours = os.pipe()
    with open(ours, "wb", buffering=0) as held:
        try:
            command = [sys.executable, "-I", "-S", __file__, str(theirs), str(patience), *words]
            guard = subprocess.Popen(command, pass_fds=[theirs], start_new_session=True, **options)
        finally:
            os.close(theirs)
        try:
            yield guard
        finally:
            with contextlib.suppress(BrokenPipeError):  # it ended already
                held.write(END)
            guard.wait()


class _AskedError(Exception):
    """SIGTERM: the machine shuts down, or somebody ends this process."""


def _ask(number: int, frame: FrameType | None) -> None:
    raise _AskedError


def _leave_with(program: "subprocess.Popen[bytes]") -> None:
    """Waits for the program, ends what it left behind, and takes its exit code."""
    code = program.wait()
    _end_all(program)
    os._exit(code if code >= 0 else 128 - code)


def _end_all(program: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where none but zombies are left
        os.killpg(program.pid, signal.SIGKILL)


def main(pipe: int, patience: float, words: Sequence[str]) -> None:
    """Runs the program, and ends with it. The program has a session of its own, and all that it starts is in it."""
    try:
        program = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{words[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        sys.exit(NOT_STARTED)
    threading.Thread(target=_leave_with, args=(program,), daemon=True).start()
    asked = END
    with contextlib.suppress(_AskedError):
        signal.signal(signal.SIGTERM, _ask)
        asked = os.read(pipe, 1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if asked:
        program.terminate()
        time.sleep(patience)
    _end_all(program)
    threading.Event().wait()  # the other thread leaves


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
