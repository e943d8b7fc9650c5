"""What the program of an export's target is given, and what it gives back.

A target's program is a function `export(work, *, SETTINGS) -> Outcome` in a module `export_NAME.py`; its settings are
those of the target in export_targets.py, as plain arguments. It writes into `work.out` and nowhere else.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_studio.engine.runtime import EventLog, Stop
from lora_studio.errors import StudioError
from lora_studio.files import bytes_in
from lora_studio.jobs.events import RunState, Warned, read_state
from lora_studio.models.adapters import read_card
from lora_studio.workspace import RunFolder, model_source, safe_name

BLOCK, LOOK_SECONDS = 1 << 22, 0.5


@dataclass(frozen=True)
class Work:
    """An adapter to take away: its folder, its run where it has one, and `out`, the empty folder for the result.

    `title` is the adapter's, `name` the same as a file name; `final` is where `out` will be moved to when all is done;
    `trial` says whether the result is to be tried.
    """

    adapter: Path
    run: RunFolder | None
    out: Path
    final: Path
    title: str
    trial: bool
    log: EventLog
    stop: Stop

    @property
    def name(self) -> str:
        """The title as a file name."""
        return plain_name(self.title)

    @property
    def card(self) -> dict[str, Any]:
        """What training noted beside the adapter: base, revision, quantization, system prompt."""
        return read_card(self.adapter).values

    def of_run(self) -> RunFolder:
        """The run, for targets that need one. Raises `StudioError` where it was deleted meanwhile."""
        if self.run is None or not self.run.config.is_file():
            raise StudioError("The run of this adapter is not there any more.", "Choose another one.")
        return self.run

    def state(self) -> RunState:
        """What the run's events come to."""
        return read_state(self.of_run().events)

    def warn(self, words: str) -> None:
        """Something that a person should know and that does not end the export."""
        self.log.emit(Warned(time.time(), words))

    @contextmanager
    def growing(self, phase: str, total: int) -> Iterator[None]:
        """A phase in which a library writes into `out`: progress is how much lies there, of about `total` bytes."""
        self.log.phase(phase, total, "bytes")
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK_SECONDS):
                self.log.progress(min(bytes_in(self.out), total), total)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


@dataclass(frozen=True)
class Outcome:
    """What came out: a sentence on how it is used, a command to copy, a link, and how the trial went.

    `same` says whether the result answered as the adapter did; None where it was not tried or need not be the same.
    `missing` names what was asked for and could not be made here; "" where all of it was.
    """

    words: str
    command: str = ""
    link: str = ""
    tried: str = ""
    same: bool | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    missing: str = ""


def base_to_name(work: Work, base_name: str, *, keep_local: bool = False) -> str:
    """What a result calls the base: the name given, else its own. Raises `StudioError` for a folder of this machine."""
    own = str(work.card.get("base_model") or "")
    if base_name.strip():
        return base_name.strip()
    if is_local(own) and not keep_local:
        raise StudioError(
            f"The base of this adapter is a folder of this machine, which nobody else has: {own}.",
            "Say what others call it with the setting base_name (--base-name OWNER/NAME).",
        )
    return own


def is_local(name: str) -> bool:
    """Whether a model's or data set's name is a path of this machine."""
    return name.startswith((".", "/", "~", "\\")) or (name != "" and os.path.exists(model_source(name)) and "/" in name)


def blocks(path: Path) -> Iterator[bytes]:
    """A file's content, piece by piece."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def copy_files(work: Work, files: Sequence[Path], target: Path) -> None:
    """Copies files into a folder with progress in bytes, and stops in between when asked to."""
    total, done = sum(path.stat().st_size for path in files), 0
    work.log.phase("copy", total, "bytes")
    target.mkdir(parents=True, exist_ok=True)
    for path in files:
        with (target / path.name).open("wb") as copy:
            for block in blocks(path):
                copy.write(block)
                done += len(block)
                work.log.progress(done, total)
                work.stop.check()


def plain_name(title: str) -> str:
    """A title as the name of a file or of a served model: letters, digits, dot, dash and underscore."""
    return safe_name(title.replace("/", " "), "adapter")
