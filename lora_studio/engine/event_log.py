"""Appends to a run's `events.jsonl`. No torch here: the worker can report before it imports anything slow."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.events import DataPrepared, Event, PhaseStarted, Progress, RunState, fold_lines, to_line

if TYPE_CHECKING:
    from lora_studio.data.dataset import Prepared

PROGRESS_SECONDS = 0.5
COUNTED = {"read": "rows read", "convert": "rows recognised", "encode": "rows tokenized"}
"""Steps of the preparation that take long with many rows, and what they count."""


class EventLog:
    """Writes one event a line; every line is handed to the system before `emit` returns.

    What an earlier worker wrote is read once, here: from then on this process alone writes the file, and folds each
    line as it writes it.
    """

    def __init__(self, path: Path) -> None:
        before = path.read_bytes() if path.is_file() else b""
        self.path = path
        self._file = path.open("ab")
        if before and not before.endswith(b"\n"):
            self._file.write(b"\n")  # a crash left half a line: what follows must not be glued to it
        self._state = fold_lines(before.decode("utf-8", errors="replace").split("\n"))
        self._writing = threading.RLock()  # progress comes from other threads; again in a signal's handler
        self._shown = 0.0

    def emit(self, event: Event) -> None:
        line = to_line(event).encode("utf-8", errors="replace")  # reasons of bad rows may hold half a character
        with self._writing:
            self._file.write(line)
            self._file.flush()
            fold_lines([line.decode("utf-8")], self._state)  # the line, not the event: what every other reader sees

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
        """What the events so far amount to: a live view, which goes on with what is emitted."""
        return self._state


def data_progress(log: EventLog) -> Callable[[str, int, int], None]:
    """What `prepare` tells of its steps: each that counts rows begins the phase anew, so that it has a speed."""
    step = ""

    def tell(name: str, done: int, total: int) -> None:
        nonlocal step
        if name != step and name in COUNTED:
            log.phase("data", total, COUNTED[name])
        step = name
        log.progress(done, total)

    return tell


def data_event(prepared: "Prepared", rows_digest: str = "") -> DataPrepared:
    """What became of the data, and how it was read. `rows_digest` is that of `resuming.rows_digest`."""
    from lora_studio.data.row_view import reading  # the data is prepared: what this imports is there

    return DataPrepared(
        time=time.time(),
        train_rows=len(prepared.train),
        validation_rows=len(prepared.validation),
        bad_rows=len(prepared.bad_rows),
        dropped_rows=len(prepared.dropped),
        tokens=int(prepared.train.length.sum()),
        trained_tokens=int(prepared.train.trained.sum()),
        fingerprint=prepared.fingerprint,
        prompt_style=prepared.template.name,
        reading=reading(prepared),
        rows_digest=rows_digest,
    )
