"""The way to the engine, for everybody who has the page open and every program that asks: one at a time, loaded when
needed, asked before it is loaded where memory is short.
"""

import contextlib
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.access.guests import origin
from lora_studio.chat import device
from lora_studio.chat.choices import Wanted
from lora_studio.errors import StudioError
from lora_studio.jobs.kinds import TRAIN
from lora_studio.jobs.protocol import (
    ColumnPrompt,
    Generate,
    Generated,
    Loaded,
    Piece,
    Progress,
    Request,
    Score,
    Scored,
    Waiting,
)
from lora_studio.jobs.session import DeadOnArrivalError, Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui import html

LOADING = {"base": "Loading the base model", "adapters": "Loading the adapters"}
WAIT_SECONDS = 0.4
KEPT_SECONDS = 600.0
"""How long a base that was used on the page is not put out of memory for a program's request."""


@dataclass(frozen=True, slots=True)
class Status:
    """Why no answer comes yet, as markup. `waiting`: somebody else is being answered."""

    words: str
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """The wanted base and adapters are in memory now."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The memory is free."""


Answer = Status | Ready | Unloaded | Progress | Piece | Waiting | Generated | Scored
Answers = Generator[Answer, None, None]


class ConsentError(StudioError):
    """The memory will hardly do: a person has to say whether to go on. `words` is the question as markup."""

    def __init__(self, found: device.Verdict, run: str | None) -> None:
        super().__init__(device.shortage(found, run), "Load it on the page anyway, or choose a smaller base.")
        self.words = device.question(found, run)


class HeldError(StudioError):
    """Another base is in memory, and a person on the page talks to it."""


class BusyError(StudioError):
    """So much of one person waits already that there would be no turn for others."""


def asker(kind: str, visitor: str, which: str) -> str:
    """A name for whoever asks: the kind of window to the engine, whose it is, and which of theirs."""
    return f"{kind} {visitor} {which}"


def _person(who: str) -> str:
    """What those who ask and may be one person have in common; "" where visitors are not told apart."""
    return origin(who.split(" ")[1]) if who.count(" ") == 2 else ""


class Engine:
    """Shared by all. `loaded` is what the child said it holds. Of one visitor so many questions wait as `most_waiting`
    says; any number where that is None."""

    def __init__(self, session: Session, supervisor: Supervisor, most_waiting: int | None = None) -> None:
        self._session, self._supervisor, self._most_waiting = session, supervisor, most_waiting
        self._turn = threading.Lock()
        self._naming = threading.Lock()
        self._holder = ""
        self._waiting: set[str] = set()
        self._loading, self._given_up = False, False  # whether the holder waits for a base, and whether not any more
        self._loaded: Loaded | None = None
        self._loaded_for: Wanted | None = None
        self._page: tuple[object, float] = (None, 0.0)  # the base that a person used last, and when

    @property
    def loaded(self) -> Loaded | None:
        """What is in memory; nothing once the child has ended."""
        return self._loaded if self._session.running else None

    def holds(self, wanted: Wanted) -> bool:
        """Whether this base and these adapters can answer at once."""
        held = self._loaded_for
        if self.loaded is None or held is None:
            return False
        return held.of_base == wanted.of_base and set(wanted.adapters) <= set(held.adapters)

    @property
    def run(self) -> str | None:
        """Title of the run that trains now."""
        busy = [run for run in self._supervisor.runs() if run.state in ("running", "stopping")]
        if busy:
            return busy[0].title or busy[0].id
        return "another visitor's run" if self._supervisor.working(TRAIN) else None

    def load(self, who: str, wanted: Wanted, *, insist: bool = False) -> Answers:
        """Brings base and adapters into memory; yields `Status` meanwhile."""
        yield from self._in_turn(who, self._on_page(wanted, self._ready(wanted, insist=insist)))

    def answer(self, who: str, wanted: Wanted, columns: Sequence[ColumnPrompt], settings: dict[str, Any]) -> Answers:
        """Pieces and the result of all columns, after whatever has to be waited for and loaded."""
        request = Generate(columns=list(columns), settings=settings)
        yield from self._in_turn(who, self._on_page(wanted, self._answered(wanted, request)))

    def answer_program(
        self, who: str, wanted: Wanted, column: ColumnPrompt, settings: dict[str, Any], stop: Sequence[str] = ()
    ) -> Answers:
        """One column's answer to a program. Raises `HeldError` where that would take the base from a person's chat.

        `stop` are texts that end the answer, beside those of the settings.
        """
        request = Generate(columns=[column], settings=settings, stop=list(stop))
        yield from self._in_turn(who, self._behind_the_page(wanted, self._answered(wanted, request)))

    def score(self, who: str, wanted: Wanted, messages: Sequence[dict[str, Any]], text: str) -> Answers:
        """How likely base and adapters find each token of a text."""
        request = Score(adapters=[name for name, _ in wanted.adapters], messages=list(messages), answer=text)
        yield from self._in_turn(who, self._on_page(wanted, self._answered(wanted, request)))

    def stop(self, who: str) -> None:
        """Ends this one's answer or waiting, nobody else's. A base that is being loaded ends with its child."""
        with self._naming:
            if self._holder != who:
                self._waiting.discard(who)
                return
            self._given_up = True
            if not self._loading:
                self._session.stop()
                return
        self._session.close()

    def unload(self, who: str, *, at_once: bool = False) -> Answers:
        """Ends the engine's child: its memory is free for certain. Whoever is being answered is waited for, unless it
        is to be done `at_once` or they are the one who asks."""
        with self._naming:
            waits = self._holder not in ("", who) and not at_once
        if waits:
            yield from self._in_turn(who, self._unloaded())
        else:
            yield from self._unloaded()

    def _unloaded(self) -> Answers:
        self._session.close()
        self._loaded, self._loaded_for = None, None
        yield Unloaded()

    def _in_turn(self, who: str, work: Answers) -> Answers:
        with self._naming:
            person = _person(who)
            if (
                self._most_waiting
                and person
                and self._most_waiting <= sum(_person(one) == person for one in self._waiting)
            ):
                raise BusyError(
                    f"{self._most_waiting} questions of yours, or of your address, wait already.",
                    "Ask again in a moment.",
                )
            self._waiting.add(who)
        try:
            with contextlib.closing(work):
                while not self._turn.acquire(timeout=WAIT_SECONDS):
                    if who not in self._waiting:
                        raise StudioError("Stopped before it began.", "Somebody else was being answered. Ask again.")
                    yield Status(html.progress("Somebody else is being answered; yours comes next"), waiting=True)
                try:
                    with self._naming:
                        self._waiting.discard(who)
                        self._holder, self._given_up = who, False
                    yield from work
                finally:
                    with self._naming:
                        self._holder = ""
                    self._turn.release()
        finally:
            self._waiting.discard(who)

    def _on_page(self, wanted: Wanted, work: Answers) -> Answers:
        """What a person asks for: the base is kept for them from now on."""
        try:
            yield from work
        finally:
            self._page = wanted.of_base, time.monotonic()

    def _behind_the_page(self, wanted: Wanted, work: Answers) -> Answers:
        held, (theirs, used) = self._loaded_for if self.loaded else None, self._page
        recent = time.monotonic() - used < KEPT_SECONDS
        if held is not None and held.of_base == theirs and recent and held.of_base != wanted.of_base:
            raise HeldError(
                f"The chat on the page holds {held.base}, and {wanted.base} would have to take its place.",
                f"Ask for a model on {held.base}, or unload it on the Chat tab; after "
                f"{KEPT_SECONDS / 60:.0f} minutes without a question there it makes room.",
            )
        yield from work

    def _answered(self, wanted: Wanted, request: Request[Any]) -> Answers:
        try:
            yield from self._asked(wanted, request)
        except DeadOnArrivalError:  # the engine was killed after its last answer: a new one loads and answers
            self._loaded, self._loaded_for = None, None
            yield from self._asked(wanted, request)

    def _asked(self, wanted: Wanted, request: Request[Any]) -> Answers:
        try:
            yield from self._ready(wanted)
        except StudioError:
            if not self._given_up:
                raise
        if self._given_up:
            raise StudioError("Stopped before it began.", "Ask again when you like.")
        with contextlib.closing(self._session.stream(request)) as answers:
            yield from answers

    def _ready(self, wanted: Wanted, *, insist: bool = False) -> Answers:
        """Loads what is wanted unless it is what is in memory."""
        if self.holds(wanted):
            return
        held = self.loaded
        same_base = held is not None and self._loaded_for is not None and self._loaded_for.of_base == wanted.of_base
        if not insist and not same_base:
            found = device.verdict(wanted, held.memory_bytes if held else 0)
            if not found.fits:
                raise ConsentError(found, self.run)
        yield Status(html.progress("Starting the engine" if held is None else "Loading"))
        self._loaded, self._loaded_for, self._loading = None, None, not same_base
        try:
            with contextlib.closing(self._session.stream(wanted.request())) as answers:
                for answer in answers:
                    if isinstance(answer, Loaded):
                        self._loaded, self._loaded_for = answer, wanted
                        yield Ready()
                    elif isinstance(answer, Progress):
                        yield Status(_loading(answer))
        finally:
            self._loading = False


def _loading(progress: Progress) -> str:
    """How far the loading is; a base that is not on this machine yet is fetched first."""
    if progress.phase != "download":
        return html.progress(LOADING.get(progress.phase, "Loading"))
    done, total, left = progress.done, max(1, progress.total), progress.seconds_left
    parts = [f"{html.size(done)} of {html.size(total)}"]
    parts += [f"{html.size(progress.rows_per_second)} a second, {html.duration(left)} left"] if left else []
    return html.progress("Downloading the base model, percent", 100 * done // total, 100, remark=", ".join(parts))
