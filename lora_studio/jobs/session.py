"""Talks to a session child (`lora_studio.engine.chat.session`) over its pipes: one JSON object a line, each way.

The child holds what is heavy, and ending it gives all of that back. A short child of another kind counts a file's rows,
because the process behind the page opens no data file.
"""

import functools
import itertools
import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from lora_studio.errors import EngineError, StudioError
from lora_studio.files import absolute, split_sheet
from lora_studio.jobs.launchers import last_lines
from lora_studio.jobs.launchers.local import ProcessPipes, child_environment, python_module
from lora_studio.jobs.protocol import (
    Ended,
    Failure,
    JoinBatch,
    JsonObject,
    Piece,
    Progress,
    R,
    Request,
    Rest,
    Result,
    Stop,
    StopColumn,
    Waiting,
    WarmUp,
)

_CLOSE_SECONDS = 2.0
_BEAT_SECONDS = 1.0
_DEAD_ON_ARRIVAL_SECONDS = 2.0
MAX_ANSWER_CHARACTERS = 1 << 26
"""Of one line that the child writes: this process holds all of it, several times over."""


class DeadOnArrivalError(EngineError):
    """The child had ended before it could take up the request: whoever loads what it held can ask again."""


@dataclass(frozen=True, slots=True)
class Patience:
    """When a request of a reading child is ended, in seconds: after so long without a sign of it, in all, and after
    whoever asked has gone. None is no end.
    """

    quiet: float | None = None
    whole: float | None = None
    abandoned: float | None = None


READING = Patience(quiet=180.0, abandoned=3.0)
"""For a look at data: each of its phases says how far it is, and nobody waits for a look that was left."""
READING_OF_VISITORS = replace(READING, quiet=60.0, whole=300.0)
"""The same for those who share the reader with its owner."""
_TOO_LONG = "A row may be huge or malicious. Check the file, or try a part of it."


def _overdue(patience: Patience, whole: float, quiet: float) -> str:
    """What a request took too long for; "" while it may go on."""
    if patience.quiet is not None and quiet > patience.quiet:
        return f"no response for {patience.quiet:.0f} s"
    if patience.whole is not None and whole > patience.whole:
        return f"not finished after {patience.whole:.0f} s"
    return ""


class _Child:
    """One process and the thread that sorts its answers by the request they belong to."""

    def __init__(self, command: Sequence[str], log_path: Path, env: Mapping[str, str] | None) -> None:
        self._process = ProcessPipes(command, log_path, env)
        self._writing = threading.Lock()
        self._answers: dict[int, queue.SimpleQueue[JsonObject | None]] = {}
        self._dispatching = threading.Lock()
        self._ended = False
        self.closed_on_purpose = False
        self.nonsense = ""
        self.abandoned = False  # whether it was ended because it went on with what nobody waited for
        self._reader = threading.Thread(target=self._read, name="session answers", daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        return self._process.exit_code is None

    @property
    def exit_code(self) -> int | None:
        return self._process.exit_code

    def send(self, number: int, request: Request[Any]) -> "queue.SimpleQueue[JsonObject | None]":
        """Writes a request; its answers come into the queue, and None when the child ends."""
        answers: queue.SimpleQueue[JsonObject | None] = queue.SimpleQueue()
        with self._dispatching:
            if self._ended:
                answers.put(None)
                return answers
            self._answers[number] = answers
        self.post(number, request)
        return answers

    def post(self, number: int, request: Request[Any]) -> None:
        """Writes a request whose answer nobody waits for."""
        try:
            with self._writing:
                self._process.input.write(json.dumps(request.line(number)) + "\n")
                self._process.input.flush()
        except (BrokenPipeError, ValueError):
            return  # the child is gone: the reader tells whoever waits

    def forget(self, request_id: int) -> None:
        """Answers to that request are thrown away from now on."""
        with self._dispatching:
            self._answers.pop(request_id, None)

    def end(self) -> None:
        """Ends the child by force."""
        self._process.kill()

    def wait(self) -> None:
        """Until the child that said its last word is gone."""
        self._process.wait(_CLOSE_SECONDS)

    def close(self) -> None:
        """Ends the child and waits until it is gone: first by closing its input, then by force."""
        self.closed_on_purpose = True
        if self._writing.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._process.input.close()
            except BrokenPipeError:
                pass  # it died with a request half written
            finally:
                self._writing.release()
        if not self._process.wait(_CLOSE_SECONDS):
            self._process.kill()
            self._process.wait()
        self._reader.join(_CLOSE_SECONDS)

    def _read(self) -> None:
        with self._process.output as lines:
            while line := lines.readline(MAX_ANSWER_CHARACTERS):
                try:
                    answer = json.loads(line)
                except (json.JSONDecodeError, RecursionError):
                    self.nonsense = line.strip()[:200]
                    self.end()
                    break
                with self._dispatching:
                    waiting = self._answers.get(answer["id"])
                if waiting is not None:
                    waiting.put(answer)
        self._process.wait()
        with self._dispatching:
            self._ended = True
            for waiting in self._answers.values():
                waiting.put(None)


class Session:
    """One session child. Safe to use from many threads; requests are answered one after the other.

    `check` sees the parameters of every request before it is sent, and raises `StudioError` for what may not be asked.
    `tokenless` says whether the request is answered without this machine's token for the Hub. `patience` says when a
    request is ended; a child with patience holds nothing that could be lost, and starts anew with the next request.
    """

    def __init__(
        self,
        log_path: Path,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        check: Callable[[Mapping[str, Any]], None] | None = None,
        tokenless: Callable[[], bool] = lambda: False,
        patience: Callable[[], Patience] | None = None,
    ) -> None:
        self._log_path = log_path
        self._env = env
        self._check = check
        self._tokenless = tokenless
        self._patience = patience
        self._command = list(command or python_module("lora_studio.engine.chat.session"))
        self._child: _Child | None = None
        self._starting = threading.Lock()
        self._one_request = threading.Lock()
        self._ids = itertools.count(1)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether a child is alive, and with it what it loaded."""
        child = self._child
        return child is not None and child.running

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._one_request.locked()

    def move_to(self, env: Mapping[str, str]) -> None:
        """From now on a child has these variables, which say which device it sees; one that has others is ended."""
        if env != self._env:
            self.close()
            self._env = env

    def warm_up(self) -> None:
        """Starts the child, and lets it import what its first request would wait for."""
        if not self.running:
            self._living_child().post(next(self._ids), WarmUp())

    def stream(
        self, request: Request[R], *, beat: bool = False
    ) -> Generator[Progress | Piece | Ended | Waiting | R, None, None]:
        """Yields progress and pieces as they come and the result last.

        Leaving the iteration early stops the request. With `beat`, `Waiting` comes every second in which nothing else
        does, so that the caller can leave. Raises `StudioError` for a failure and when the child died.
        """
        if self._check is not None:
            self._check(request.to_fields())
        if self._tokenless():
            request = request.model_copy(update={"tokenless": True})
        with self._one_request:
            try:
                yield from self._answers_to(request, beat)
            except DeadOnArrivalError:
                if self._patience is None:  # what it had loaded is gone as well
                    raise
                yield from self._answers_to(request, beat)

    def _answers_to(
        self, request: Request[R], beat: bool
    ) -> Generator[Progress | Piece | Ended | Waiting | R, None, None]:
        child, number = self._living_child(), next(self._ids)
        patience, sent = self._patience() if self._patience else Patience(), time.monotonic()
        lines = child.send(number, request)
        heard, late, answered, done = sent, "", False, False
        try:
            while not done:
                try:
                    line = lines.get(timeout=_BEAT_SECONDS)
                except queue.Empty:
                    now = time.monotonic()
                    if late := _overdue(patience, now - sent, now - heard):
                        child.end()
                    elif beat:
                        yield Waiting()
                    continue
                heard = time.monotonic()
                if line is None:
                    done = True
                    early = not answered and (heard - sent < _DEAD_ON_ARRIVAL_SECONDS or child.abandoned)
                    raise self._death(child, late, early)
                answered = True
                try:
                    answer = request.parse_answer(line)
                except (KeyError, ValueError):
                    child.end()
                    child.wait()
                    raise EngineError(f"The worker process did not answer {request.method!r}.") from None
                done = isinstance(answer, Failure | Result)
                if isinstance(answer, Failure):
                    if answer.last:
                        child.wait()
                    raise (EngineError if answer.internal else StudioError)(answer.message, answer.hint)
                if late := _overdue(patience, heard - sent, 0.0):
                    child.end()
                yield answer
        finally:
            child.forget(number)
            if not done:
                self._left(child, patience)

    def _left(self, child: _Child, patience: Patience) -> None:
        """Nobody waits for the answer any more: the child is asked to stop, and ended where it does not hear."""
        child.post(next(self._ids), Stop())
        if patience.abandoned is None:
            return
        idle = next(self._ids)
        answers = child.send(idle, Rest())

        def end() -> None:
            try:
                answers.get(timeout=patience.abandoned)
                child.forget(idle)
            except queue.Empty:
                child.abandoned = True
                child.end()

        threading.Thread(target=end, name="abandoned request", daemon=True).start()

    def call(self, request: Request[R], on_progress: Callable[[Progress], None] | None = None) -> R:
        """The result of a request; `on_progress` gets the progress before it."""
        for answer in self.stream(request):
            if isinstance(answer, Result):
                return answer
            if on_progress is not None and isinstance(answer, Progress):
                on_progress(answer)
        raise EngineError("The worker process ended without a result.")

    def stop(self) -> None:
        """Ends the running request early, from any thread; what it has so far comes as its result."""
        child = self._child
        if child is not None and self._one_request.locked():
            child.post(next(self._ids), Stop())

    def stop_column(self, batch: str, position: int) -> None:
        """Ends one column of the batch that is being answered, from any thread."""
        child = self._child
        if child is not None and self._one_request.locked():
            child.post(next(self._ids), StopColumn(batch=batch, position=position))

    def join(self, request: JoinBatch) -> None:
        """Hands further requests to the batch that is being answered, from any thread; they name no file to check."""
        child = self._child
        if child is not None and self._one_request.locked():
            child.post(next(self._ids), request)

    def end(self) -> None:
        """The same as `close`, by force and without waiting: for whoever may not wait, such as a page that is gone."""
        child = self._child
        if child is not None:
            child.closed_on_purpose = True
            child.end()

    def close(self) -> None:
        """Ends the child, and with it whatever it holds. The next request starts a new one."""
        with self._starting:
            child, self._child = self._child, None
        if child is not None:
            child.close()

    def _living_child(self) -> _Child:
        with self._starting:
            if self._child is None or not self._child.running:
                self._child = _Child(self._command, self._log_path, self._env)
            return self._child

    def _death(self, child: _Child, late: str, early: bool) -> EngineError:
        if child.closed_on_purpose:
            return EngineError("The session was closed before it answered.", "Ask again to start a new session.")
        if late:
            return EngineError(f"The request was cancelled: {late}.", _TOO_LONG)
        if child.nonsense:
            return EngineError(f"The worker process wrote an invalid answer: {child.nonsense!r}.")
        code, tail = child.exit_code, last_lines(self._log_path, 5)
        why = ": the system killed it, usually because it is out of memory" if code == -signal.SIGKILL else ""
        if code == -signal.SIGABRT and "memory allocation of" in tail:  # a tokenizer's last words
            why = ": it needed more memory than allowed"
        tail = "" if why else tail  # who is killed says nothing of it
        return (DeadOnArrivalError if early else EngineError)(
            f"The worker process ended unexpectedly{why}.",
            "The next request starts a new process." + (f" Its log ends with:\n{tail}" if tail else ""),
        )


MAX_COUNTED_BYTES = 64_000_000  # larger files are counted by the run itself, the form stays quick
WALL_SECONDS = 30.0
WAIT_SECONDS = 2.0  # for a file that somebody else has counted now
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class FileSummary:
    """Usable rows of a file, how they are read, and its size; None, "" and 0 where that is not known."""

    rows: int | None = None
    reading: str = ""
    octets: int = 0


def count_rows(
    name: str | Path, goal: str = "answers", mapping: Mapping[str, Any] | None = None, encoding: str | None = None
) -> FileSummary:
    """The rows of a file, or of its sheet, for a goal; nothing where it is not there, can't be read, or takes too long
    here."""
    options = json.dumps({"goal": goal, "mapping": mapping, "encoding": encoding}, sort_keys=True)
    path = Path(split_sheet(name)[0]).expanduser()
    try:
        stamp = path.stat()
    except (OSError, ValueError):  # also a name that no file can bear
        return FileSummary()
    if not path.is_file() or stamp.st_size > MAX_COUNTED_BYTES:
        return FileSummary()
    if not _one_at_a_time.acquire(timeout=WAIT_SECONDS):
        return FileSummary()
    try:
        return _count(absolute(str(name)), stamp.st_mtime_ns, stamp.st_size, options)
    except subprocess.TimeoutExpired:  # a machine that is busy now; asked again, it may have the time
        return FileSummary()
    finally:
        _one_at_a_time.release()


@functools.lru_cache(maxsize=64)
def _count(name: str, _changed: int, size: int, options: str) -> FileSummary:
    command = [*python_module("lora_studio.data.preview"), name, options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WALL_SECONDS, env=child_environment())
    if ended.returncode:
        return FileSummary()
    answer = json.loads(ended.stdout)
    return FileSummary(answer["rows"] or None, answer["reading"], size)
