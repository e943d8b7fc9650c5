"""The life of a worker: exit codes, the event log, the stop signal, a full disk.

No torch: a worker handles signals and reports before it imports anything slow, and its last event always says why it
ended.
"""

import argparse
import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

from lora_studio.engine.guard import guarded as guarded
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject, finite
from lora_studio.jobs.events import (
    Event,
    Finished,
    PhaseStarted,
    Progress,
    Reason,
    RunState,
    StepLogged,
    fold,
    fold_lines,
    to_line,
)
from lora_studio.models.hardware import CPU_ONLY, one_gpu
from lora_studio.workspace import JobFolder, RunFolder, write_atomically

Folder = TypeVar("Folder", bound=JobFolder)

# A stop waits so long for the end of a step; after that the batches added up for it so far are given away.
STEP_SECONDS = 3.0


class Stopped(BaseException):
    """The user asked for a stop. Not an `Exception`, so that libraries which catch those do not swallow it."""


class StopSignal:
    """`asked` is true once a stop was requested. Until `finish_step_first` the signal handler itself raises `Stopped`.

    `cut_short` is true once it did: libraries may swallow it or convert it to an error while loading, and any later
    error counts as the stop. Where several processes train together (`share`), `heard` says that this one was asked;
    they agree on `asked` between two batches (`engine.ranks`), so that all of them stop at the same one.
    """

    def __init__(self) -> None:
        self.asked = self.heard = self.cut_short = False
        self._shared = self._overdue = self._only_together = False
        self._asked_at = 0.0
        self._at_once = True

    def listen(self) -> None:
        """From now on SIGTERM and Ctrl-C request a stop instead of killing the process."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def share(self, number: int | None = None) -> None:
        """From now on this is one of several processes that stop together. With a `number` that signal requests the
        stop, and SIGTERM ends the process: whoever watches over all of them sends it when another one has died."""
        self._shared = True
        if number is not None:
            signal.signal(number, self._on_signal)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        self.asked = self.asked or self._at_once or not self._shared
        self._asked_at = self._asked_at or time.monotonic()
        if self._at_once:
            self._at_once = False  # a second signal must not interrupt the tidying up
            self.cut_short = True
            raise Stopped

    def only_together(self) -> None:
        """From now on a stop that this process heard counts once all have agreed on it."""
        self._only_together = True

    def check(self) -> None:
        """Raises `Stopped` if a stop was requested."""
        if self.asked or (self.heard and not self._only_together):
            raise Stopped

    @property
    def is_overdue(self) -> bool:
        """Whether a stop was requested so long ago that finishing the step would take too long."""
        return self.heard and time.monotonic() - self._asked_at > STEP_SECONDS

    def agree(self, *, asked: bool, overdue: bool) -> None:
        """What several processes came to, each having told what it heard."""
        self.asked, self._overdue = self.asked or asked, overdue

    def check_long_step(self) -> None:
        """Between two batches of a step: raises `Stopped` if finishing the step would take too long."""
        if self._overdue if self._shared else self.is_overdue:
            raise Stopped

    def finish_step_first(self) -> None:
        """Training begins: a signal only sets the flag, and the callback stops after the step."""
        self._at_once = False
        if not self._shared:  # the first step agrees on it
            self.check()

    def end_at_once(self) -> None:
        """Training is over: a signal raises again."""
        self._at_once, self._only_together = True, False
        self.check()


PROGRESS_SECONDS = 0.5
WRITE_SECONDS = 0.5
FREQUENT = (StepLogged, Progress)
"""Events of which many may come in a second; they hold numbers alone."""
COUNTED = {"read": "rows read", "convert": "rows recognised", "encode": "rows tokenized"}
"""Slow steps of the preparation, and the units they count."""


class EventLog:
    """Writes one event per line, in the order of `emit`.

    An event is in the file before `emit` returns, but for logged steps and progress, of which there may be fifty a
    second: they wait for the next other event or for `WRITE_SECONDS`, and are written together by a thread. A process
    that is killed loses no more than those; `state` knows them.

    Events of an earlier worker are read once, here. From then on only this process writes the file, and it folds each
    event as it writes it. Of several processes of a run the first writes; the others (`writes=False`) fold alone.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        before = path.read_bytes() if path.is_file() else b""
        self.path = path
        self._file = path.open("ab", buffering=0) if writes else None
        self._unwritten = b"\n" if before and not before.endswith(b"\n") else b""  # after half a line of a crash
        self._state = fold_lines(before.decode("utf-8", errors="replace").split("\n"))
        self._lock = threading.RLock()  # progress comes from other threads; again in a signal's handler
        self._waiting: list[Event] = []
        self._failed = False
        self._shown = 0.0

    def emit(self, event: Event) -> None:
        """Raises `OSError` where the file can't be written; the next call tries again with all that is waiting."""
        with self._lock:
            self._waiting.append(event)
            if self._failed or not isinstance(event, FREQUENT):
                self._write()
            elif len(self._waiting) == 1:
                timer = threading.Timer(WRITE_SECONDS, self._write_in_thread)
                timer.daemon = True
                timer.start()

    def _write_in_thread(self) -> None:
        try:
            self._write()
        except OSError:
            self._failed = True  # the next `emit` or `state` says so, where the error ends the work

    def _write(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            lines = []
            for event in waiting:
                lines.append(to_line(event).encode("utf-8", errors="replace"))  # reasons may hold half a character
                if isinstance(event, FREQUENT):
                    fold([event], self._state)  # nothing but numbers, which their line does not change
                else:
                    fold_lines([lines[-1].decode("utf-8")], self._state)  # what every other reader sees
            self._unwritten += b"".join(lines) if self._file else b""
            while self._file and self._unwritten:  # a disk that fills up takes a part
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
            self._failed = False

    def phase(self, phase: str, total: int = 0, unit: str = "") -> None:
        self._shown = 0.0
        self.emit(PhaseStarted(time.time(), phase, total, unit))

    def progress(self, done: int, total: int) -> None:
        """At most two lines a second, and always the last one."""
        now = time.time()
        if now - self._shown >= PROGRESS_SECONDS or done == total:
            self._shown = now
            self.emit(Progress(now, done, total))

    def state(self) -> RunState:
        """The state folded from the events so far, all of them written: a live view that changes as further ones are
        written."""
        self._write()
        return self._state


class JsonLines:
    """Appends objects to a JSONL file, one a line; they are flushed before `add` returns. A torn last line, as a killed
    process leaves it, is cut off first."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "JsonLines":
        if self._path.is_file():
            whole = self._path.read_bytes()
            if not whole.endswith(b"\n"):
                os.truncate(self._path, whole.rfind(b"\n") + 1)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, rows: Sequence[JsonObject]) -> None:
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._file.flush()


def data_progress(log: EventLog) -> Callable[[str, int, int], None]:
    """The progress callback of `prepare`: each step that counts rows begins the phase anew, so that it has a speed."""
    step = ""

    def tell(name: str, done: int, total: int) -> None:
        nonlocal step
        if name != step and name in COUNTED:
            log.phase("data", total, COUNTED[name])
        step = name
        log.progress(done, total)

    return tell


@contextmanager
def repeating(action: Callable[[], None], seconds: float) -> Iterator[None]:
    """Inside, a thread calls `action` every so many seconds, while a library works that tells nothing of itself."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, name="repeating", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(seconds)  # not for ever: a driver may not answer


DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 130


@dataclass(frozen=True)
class Child(Generic[Folder]):
    """A worker's job: its folder, whether it resumes, its stop signal, its events."""

    folder: Folder
    resume: bool
    stop: StopSignal
    log: EventLog


def begin(
    arguments: Sequence[str] | None,
    module: str,
    kind: Callable[[Path], Folder],
    noun: str,
    request_file: Callable[[Folder], Path],
    *,
    resumes: bool = True,
    writes: bool = True,
) -> Child[Folder] | None:
    """Installs the signal handlers and opens the folder that the command names; removes the result of an earlier
    worker.

    `request_file` is the file with the request. If it is missing, the result is None and stderr says so. With
    `writes=False` another process of the same job writes its events and its result.
    """
    parser = argparse.ArgumentParser(prog=module)
    parser.add_argument("folder", type=Path)
    if resumes:
        parser.add_argument("--resume", action="store_true")
    options = vars(parser.parse_args(arguments))
    stop = StopSignal()
    stop.listen()
    folder = kind(options["folder"].resolve())
    if not request_file(folder).is_file():
        print(f"{folder.path} is not a {noun} folder: it has no {request_file(folder).name}.", file=sys.stderr)
        return None
    if writes:
        folder.complete.unlink(missing_ok=True)
    return Child(folder, resumes and options["resume"], stop, EventLog(folder.events, writes=writes))


@dataclass(frozen=True, slots=True)
class Ending:
    """An exit code with its state, one of `events.FINAL_STATES`, the reason, and details that only the worker knows."""

    code: int
    state: str
    reason: Reason
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Explained:
    """An error that ended the work: its kind, a sentence, and a hint."""

    reason: Reason
    message: str
    hint: str


def ending_of(work: Callable[[], None], stop: StopSignal, *, explain: Callable[[Exception], Explained]) -> Ending:
    """Does the work and returns how it ended; `explain` describes unexpected errors."""
    when_stopped = Ending(STOPPED, "stopped", Reason.STOPPED)
    try:
        work()
        return Ending(DONE, "done", Reason.COMPLETED)
    except Stopped:
        return when_stopped
    except StudioError as error:
        return Ending(WRONG_INPUT, "failed", Reason.REFUSED, error.message, error.hint)
    except Exception as error:  # the end of the process: nothing else can say what happened
        ending = when_stopped
        if not stop.cut_short:
            explained = explain(error)
            ending = Ending(FAILED, "failed", explained.reason, explained.message, explained.hint)
        log_traceback()  # not before: on a full disk nothing can be said until room is made
        return ending


def unexpected(work: str, error: Exception, hint: str) -> Explained:
    """An unexpected error in one sentence."""
    first = str(error).strip().partition("\n")[0][:300]
    return Explained(Reason.INTERNAL_ERROR, f"{work} failed: {type(error).__name__}: {first}", hint)


def emit_finished(log: EventLog, ending: Ending, step: int = 0) -> int:
    """Writes the last event and returns the exit code."""
    log.emit(Finished(time.time(), ending.state, step, ending.message, ending.hint, ending.reason))
    print(f"{ending.state}: {ending.message} {ending.hint}".strip(": "), flush=True)
    return ending.code


def finish_run(run: RunFolder, log: EventLog, ending: Ending, result: JsonObject) -> int:
    """Writes complete.json, then the last event, so that readers of the event find the file."""
    state = log.state()
    numbers = {
        "run": run.id,
        "state": ending.state,
        "steps": state.step,
        "total_steps": state.total_steps,
        "train_loss": state.steps[-1].loss if state.steps else None,
        "eval_loss": state.evaluations[-1].loss if state.evaluations else None,
        "adapter": None,
        "reason": ending.reason,
        "message": ending.message,
        "hint": ending.hint,
        "seconds": state.seconds_at(time.time()),
        **result,
    }
    write_atomically(run.complete, json.dumps(finite(numbers), indent=2) + "\n")
    explained = replace(ending, message=numbers["message"])
    return emit_finished(log, explained, numbers["steps"])


def leave(code: int) -> None:
    """Ends the process without waiting for threads of libraries, which must not keep a stopped child alive."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def see_one_gpu() -> None:
    """From now on this process uses the first of the GPUs that it may use. It has not imported torch yet."""
    os.environ.update(one_gpu(os.environ))


def see_no_gpu() -> None:
    """From now on this process uses the CPU alone. It has not imported torch yet."""
    os.environ.update(CPU_ONLY)


MEMORY_SIGNS = (
    "out of memory",  # CUDA, HIP, XPU and MPS all say so, with their name before it
    "outofmemory",
    "out_of_memory",
    "can't allocate memory",
    "not enough memory",
    "blas_status_alloc_failed",
    "invalid buffer size",  # MPS, for a tensor larger than Metal allows
    "error_out_of_device_memory",
    "error_out_of_host_memory",
    "error_out_of_resources",
)
"""Parts of messages, in lower case, of allocators, matrix libraries and drivers that have no memory left."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. torch's error is known by its name, because torch is not imported here; the CPU's
    allocator and cuBLAS raise a RuntimeError that only its text tells apart."""
    kinds, text = {kind.__name__ for kind in type(error).__mro__}, str(error).lower()
    return not kinds.isdisjoint(("MemoryError", "OutOfMemoryError")) or any(sign in text for sign in MEMORY_SIGNS)


DEVICE_FAULTS = (
    "cuda error",
    "cudaerror",
    "hip error",
    "cublas_status_",
    "hipblas_status_",
    "cudnn_status_",
    "device-side assert",
    "ur_result_error_device_lost",
)
"""Parts of messages, in lower case, after which a process can't use its GPU any more ("sticky" errors of CUDA)."""


def lost_device(error: BaseException) -> bool:
    """Whether this process can do no more on its GPU. A lack of memory is no such fault."""
    text = str(error).lower()
    return not is_out_of_memory(error) and any(sign in text for sign in DEVICE_FAULTS)


NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORDS = (
    "No space left on device",
    "StorageFull",
    "Disk quota exceeded",
    "File too large",
    "FileTooLarge",
    "iostream error",
)
FULL_BYTES = 1 << 20


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error came from a full disk (or quota) under `folder`."""
    return tells_of_full_disk(error) or shutil.disk_usage(folder).free < FULL_BYTES


def tells_of_full_disk(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that a disk or a quota is full."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NUMBERS:
            return True
        if any(words in str(cause) for words in WORDS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def log_traceback() -> None:
    """Writes the error that is handled to the log; where the log's disk is full, that is no error of its own."""
    with contextlib.suppress(OSError):
        traceback.print_exc()


def make_room(run: RunFolder) -> None:
    """Removes partly written files, so that the run's last events fit on the disk."""
    whole = run.checkpoint_folders()
    for folder in [*run.checkpoints.glob("checkpoint-*"), run.unfinished_adapter]:
        if folder not in whole:
            shutil.rmtree(folder, ignore_errors=True)


def words(run: RunFolder) -> tuple[str, str]:
    """The message and hint for a full disk."""
    whole = run.checkpoint_folders()
    advice = f"{whole[-1].name} is complete. Resume continues from it." if whole else "No checkpoint was saved yet."
    return (
        f"The disk of {run.path.parent} is full: the run could not write any more.",
        f"Delete runs or other files, or lower training.save_total_limit in a new run. {advice}",
    )
