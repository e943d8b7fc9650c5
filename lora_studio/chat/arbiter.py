"""The way to the engine, for everybody who has the page open and every program that asks: loaded when needed, asked
before it is loaded where memory is short.

Whoever asks has a turn; questions of programs that wait together share one, and are answered in one batch. Those that
come meanwhile join it, as long as nobody else waits.
"""

import contextlib
import contextvars
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora_studio.config.fields import SettingValues
from lora_studio.data.messages import ChatMessage
from lora_studio.errors import EngineError, StudioError
from lora_studio.evaluate.job import check_engine
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import TRAIN, Kind
from lora_studio.jobs.protocol import (
    TRANSFORMERS,
    BatchColumn,
    ColumnPrompt,
    Ended,
    Generate,
    GenerateBatch,
    Generated,
    JoinBatch,
    Loaded,
    ModelSelection,
    Piece,
    Progress,
    Request,
    Score,
    Scored,
    Waiting,
)
from lora_studio.jobs.queue import shortage
from lora_studio.jobs.session import DeadOnArrivalError, Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.accelerators import AUTO
from lora_studio.models.hardware import Device, environment_of
from lora_studio.models.memory import MemoryVerdict, model_bytes
from lora_studio.units import duration, size

LOADING = {
    "base": "Loading base model",
    "adapters": "Loading adapters",
    "vllm": "Starting vLLM",
    "agreement": "Comparing the answers of vLLM and transformers",
}
WAIT_SECONDS = 0.4
KEPT_SECONDS = 600.0
"""How long a base that was used on the page is not put out of memory for a program's request."""

RESERVED_TOKENS = 2048
"""Tokens of a conversation whose keys and values are reckoned with."""


@dataclass(frozen=True, slots=True)
class Status:
    """Why no answer comes yet, and how far that is; `total` 0 where it is not known. `waiting`: somebody else is being
    answered."""

    label: str
    done: int = 0
    total: int = 0
    remark: str = ""
    waiting: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """The wanted base and adapters are in memory now."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The memory is free."""


Answer = Status | Ready | Unloaded | Progress | Piece | Ended | Waiting | Generated | Scored
Answers = Generator[Answer, None, None]
WAITING = Status("Another question is being answered; yours is next", waiting=True)
PROGRAMS = "programs"
"""Who has the turn while questions of programs are answered."""
MAX_BATCH, MAX_BATCH_ADAPTERS, MAX_JOINED = 16, 8, 512
"""Questions that are answered at once, the adapters that they ask, and the questions of a batch in all."""
GATHER_SECONDS = 0.02
"""How long a batch waits for further questions."""


class ConsentError(StudioError):
    """The memory will hardly do: a person has to say whether to go on."""

    def __init__(self, verdict: MemoryVerdict, run: str | None) -> None:
        super().__init__(shortage(verdict, run), "Load it anyway on the page, or choose a smaller base.")


class HeldError(StudioError):
    """Another base is in memory, and a person on the page talks to it."""


class BusyError(StudioError):
    """So much of one person waits already that there would be no turn for others."""


@dataclass(eq=False)
class _Question:
    """A program's question while it waits and is answered. `context` is that of its asker, whose rights count.

    `alone`: it is answered in no batch with others. `left`: nobody waits for the answer any more.
    """

    who: str
    selection: ModelSelection
    prompt: BatchColumn
    context: contextvars.Context
    answers: "queue.SimpleQueue[Answer | StudioError]" = field(default_factory=queue.SimpleQueue)
    begun: bool = False
    alone: bool = False
    left: bool = False
    done: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """What questions of one batch share: who asks, and the base."""
        return self.who.split(" ")[:-1], self.selection.of_base

    def end(self, last: Answer | StudioError) -> None:
        """Hands out the last answer; nothing after it."""
        if not self.done:
            self.answers.put(last)
            self.done = True


def _first_of(questions: Sequence[_Question]) -> list[_Question]:
    """As many as are answered at once, with as many adapters as are held at once."""
    batch: list[_Question] = []
    adapters: set[str | None] = set()
    for question in questions[:MAX_BATCH]:
        if batch and (question.alone or batch[0].alone):
            break
        if len(adapters | {question.prompt.adapter}) <= MAX_BATCH_ADAPTERS:
            adapters.add(question.prompt.adapter)
            batch.append(question)
    return batch


def _hand_out(batch: Sequence[_Question], answer: Answer) -> None:
    """An answer of the engine to those whom it is for."""
    if isinstance(answer, Ended):
        question = batch[answer.position]
        ended = answer.answer
        question.end(Generated(columns=[ended]) if ended else StudioError(answer.message, answer.hint))
    elif isinstance(answer, Piece):
        for position, text, tokens in zip(answer.positions, answer.texts, answer.tokens, strict=True):
            if text:
                batch[position].answers.put(Piece(texts=[text], tokens=[tokens]))
    else:
        for question in batch:
            question.answers.put(answer)


def asker(kind: str, visitor: str, which: str) -> str:
    """A name for whoever asks: the kind of window to the engine, whose it is, and which of theirs."""
    return f"{kind} {visitor} {which}"


class Engine:
    """Shared by all. `loaded` is what the session holds in memory, `choice` the `compute.device` that answers the next
    question: auto, or a device that the owner chose. `batch_engine` generates the answers to programs and prompt sets.

    At most `max_waiting` questions of one person wait; None for any number. `person_of` gives what user names have in
    common that may belong to one person.
    """

    def __init__(
        self,
        session: Session,
        supervisor: Supervisor,
        max_waiting: int | None = None,
        person_of: Callable[[str], str] = str,
    ) -> None:
        self._session, self._supervisor = session, supervisor
        self._max_waiting, self._person_of = max_waiting, person_of
        self._turn = threading.Lock()
        self._naming = threading.Lock()
        self._holder = ""
        self._waiting: set[str] = set()
        self._loading, self._given_up = False, False  # whether the holder waits for a base, and whether not any more
        self._loaded: Loaded | None = None
        self._loaded_for: ModelSelection | None = None
        self._page: tuple[object, float] = (None, 0.0)  # the base that a person used last, and when
        self._device_id = ""
        self.choice, self.batch_engine = AUTO, TRANSFORMERS
        self._questions: list[_Question] = []  # of programs, those that wait, the oldest first
        self._batch_now: list[_Question] = []
        self._batch_name, self._answering_programs = "", False
        self._joinable = False  # whether the batch has begun, and takes further questions
        supervisor.chat_device = self._occupied

    def choose_engine(self, name: str) -> None:
        """Lets that engine answer programs and prompt sets. Raises `StudioError` where it is not at hand."""
        check_engine(name, gpu=self.device.is_gpu)
        self.batch_engine = name

    @property
    def loaded(self) -> Loaded | None:
        """What is in memory; nothing once the child has ended."""
        return self._loaded if self._session.running else None

    def holds(self, selection: ModelSelection) -> bool:
        """Whether this base and these adapters can answer at once."""
        loaded_models = self._loaded_for
        if self.loaded is None or loaded_models is None or not self._stays:
            return False
        return loaded_models.of_base == selection.of_base and set(selection.adapters) <= set(loaded_models.adapters)

    def _occupied(self) -> str:
        """Id of the device on which a model is in memory, or being loaded; "" while there is none."""
        return self._device_id if self._session.running and (self._loaded is not None or self._loading) else ""

    @property
    def device(self) -> Device:
        """The device that answers: it stays while a model is in memory; the next is the one that was chosen, where that
        is there, else one that no job holds."""
        allocation, occupied = self._supervisor.allocation(), self._occupied()
        here = next((device for device in allocation.offered if device.id == occupied), None)
        choices = [device.choice for device in allocation.offered]
        return here or allocation.for_session(self._device_id, self.choice if self.choice in choices else AUTO)

    @property
    def _stays(self) -> bool:
        """Whether what is in memory may answer where it is; another device may have been chosen since."""
        offered = self._supervisor.devices()
        device = next((device for device in offered if device.id == self._device_id), None)
        return self.choice == AUTO or device is None or device.choice == self.choice

    @property
    def run(self) -> str | None:
        """Title of the run that trains on the same device now."""
        device = self.device
        busy = [run for run in self._supervisor.runs() if run.state in ("running", "stopping") and _on(device, run)]
        if busy:
            return busy[0].title or busy[0].id
        return "another visitor's run" if self.works_beside(TRAIN) else None

    def works_beside(self, kind: Kind) -> bool:
        """Whether a job of that kind works on the same device now."""
        device = self.device
        return any(_on(device, job) for job in self._supervisor.working(kind))

    def load(self, who: str, selection: ModelSelection, *, force: bool = False) -> Answers:
        """Brings base and adapters into memory; yields `Status` meanwhile."""
        yield from self._in_turn(who, self._on_page(selection, self._ready(selection, force=force)))

    def answer(
        self, who: str, selection: ModelSelection, columns: Sequence[ColumnPrompt], settings: SettingValues
    ) -> Answers:
        """Pieces and the result of all columns, after whatever has to be waited for and loaded."""
        request = Generate(columns=list(columns), settings=settings)
        yield from self._in_turn(who, self._on_page(selection, self._answered(selection, request)))

    def answer_all(self, who: str, selection: ModelSelection, prompts: Sequence[BatchColumn]) -> Answers:
        """`Ended` for each of many prompts that know nothing of each other, by the engine for such."""
        selection = replace(selection, engine=self.batch_engine)
        request = GenerateBatch(batch=secrets.token_hex(8), columns=list(prompts))
        yield from self._in_turn(who, self._on_page(selection, self._answered(selection, request)))

    def answer_program(
        self,
        who: str,
        selection: ModelSelection,
        column: ColumnPrompt,
        settings: SettingValues,
        stop: Sequence[str] = (),
    ) -> Answers:
        """One column's answer to a program. Those of a user on one base are answered in one batch.

        Raises `HeldError` where that would take the base from a person's chat. `stop` are texts that end the answer,
        beside those of the settings.
        """
        prompt = BatchColumn(adapter=column.adapter, messages=column.messages, settings=settings, stop=list(stop))
        question = _Question(who, replace(selection, engine=self.batch_engine), prompt, contextvars.copy_context())
        with self._naming:
            self._check_waiting(who)
            self._waiting.add(who)
            self._questions.append(question)
            self._join()
            if not self._answering_programs:
                self._answering_programs = True
                threading.Thread(target=self._answer_programs, name="programs", daemon=True).start()
        try:
            while True:
                try:
                    answer = question.answers.get(timeout=WAIT_SECONDS)
                except queue.Empty:
                    if question.begun:
                        continue
                    if who not in self._waiting:
                        raise StudioError("Stopped before it started.", "Ask again at any time.") from None
                    yield WAITING
                    continue
                if isinstance(answer, StudioError):
                    raise answer
                yield answer
                if isinstance(answer, Generated):
                    return
        finally:
            self.stop(who)

    def _answer_programs(self) -> None:
        """Answers the questions of programs batch by batch, until none waits."""
        try:
            while True:
                with self._naming:
                    if not self._questions:
                        self._answering_programs = False
                        return
                    oldest = self._questions[0]
                # In its asker's name: a batch holds the questions of one user, who may read all that it needs.
                oldest.context.run(self._answer_batch, oldest)
        except BaseException:
            self._answering_programs = False  # the next question starts another thread
            raise

    def _answer_batch(self, oldest: "_Question") -> None:
        batch: list[_Question] = []
        last: StudioError = EngineError("The answer was interrupted.")
        try:
            with contextlib.closing(self._in_turn(PROGRAMS, self._batch(oldest, batch))) as answers:
                for answer in answers:
                    _hand_out(batch, answer)
                    with self._naming:
                        if all(question.left or question.done for question in batch):
                            self._joinable = False
                            break
                        self._joinable = self._joinable or isinstance(answer, Piece | Ended)
                        self._join()
            with self._naming:
                self._put_back(batch)  # those that joined when it had just ended
        except StudioError as error:
            last = error
        finally:
            for question in batch:
                question.end(last)

    def _join(self) -> None:
        """Lets questions that wait join the batch that is being answered, in their order, up to one that can't. Nobody
        joins while others wait: their turn comes when the batch ends."""
        waiting = {question.who for question in self._questions}
        while self._joinable and self._questions and self._waiting <= waiting:
            question, batch = self._questions[0], self._batch_now
            open_places = MAX_BATCH - sum(not (other.done or other.left) for other in batch)
            alike = question.key == batch[0].key and self.holds(question.selection)
            if open_places < 1 or not alike or len(batch) >= MAX_JOINED:
                return
            self._begin([question])
            batch.append(question)
            self._session.join(JoinBatch(batch=self._batch_name, columns=[question.prompt]))

    def _begin(self, questions: Sequence["_Question"]) -> None:
        for question in questions:
            self._questions.remove(question)
            self._waiting.discard(question.who)
            question.begun = True

    def _put_back(self, batch: list["_Question"]) -> None:
        """Lets those of a batch that got no answer wait for another one, before all others."""
        waiting = [question for question in batch if not (question.done or question.left)]
        batch[:] = [question for question in batch if question.done or question.left]
        for question in waiting:
            self._waiting.add(question.who)
            question.begun = False
        self._questions[:0] = waiting

    def _batch(self, oldest: "_Question", batch: list["_Question"]) -> Answers:
        """The answers to all questions that wait and go together with the oldest; `batch` receives them."""
        time.sleep(GATHER_SECONDS)  # whoever was just answered comes back with the next question
        with self._naming:
            alike = [question for question in self._questions if question.key == oldest.key]
            batch += _first_of(alike)
            self._begin(batch)
            self._batch_now = batch
        try:
            if batch:
                yield from self._together(batch)
        finally:
            with self._naming:
                self._batch_now, self._joinable = [], False

    def _together(self, batch: list["_Question"]) -> Answers:
        """All of them at once; alone where they cannot be loaded together, so that each hears of its own."""
        begun = False
        try:
            for answer in self._at_once(batch):
                begun = begun or isinstance(answer, Piece | Ended)
                yield answer
        except (EngineError, HeldError):
            raise
        except StudioError:
            if begun or len(batch) == 1:
                raise
            with self._naming:
                for question in batch:
                    question.alone = True
                self._put_back(batch)

    def _at_once(self, batch: Sequence["_Question"]) -> Answers:
        adapters = dict(adapter for question in batch for adapter in question.selection.adapters)
        selection = replace(batch[0].selection, adapters=tuple(adapters.items()))
        self._batch_name = secrets.token_hex(8)
        request = GenerateBatch(batch=self._batch_name, columns=[question.prompt for question in batch])
        with contextlib.closing(self._behind_the_page(selection, self._answered(selection, request))) as answers:
            yield from answers

    def score(self, who: str, selection: ModelSelection, messages: Sequence[ChatMessage], text: str) -> Answers:
        """How likely base and adapters find each token of a text."""
        request = Score(adapters=[name for name, _ in selection.adapters], messages=list(messages), answer=text)
        yield from self._in_turn(who, self._on_page(selection, self._answered(selection, request)))

    def stop(self, who: str) -> None:
        """Ends this one's answer or waiting, nobody else's. A base that is being loaded ends with its child."""
        with self._naming:
            self._questions = [question for question in self._questions if question.who != who]
            question = next((question for question in self._batch_now if question.who == who), None)
            if question is not None:
                if question.done or question.left:
                    return
                question.left = True
                if not all(other.left or other.done for other in self._batch_now):
                    self._session.stop_column(self._batch_name, self._batch_now.index(question))
                    return
            elif self._holder != who:
                self._waiting.discard(who)
                return
            self._given_up, self._joinable = True, False
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

    def _person(self, who: str) -> str:
        """Who may be the same person as others that ask; "" where users are not told apart."""
        return self._person_of(who.split(" ")[1]) if who.count(" ") == 2 else ""

    def _check_waiting(self, who: str) -> None:
        """Raises `BusyError` where too much of this person waits already."""
        person = self._person(who)
        waiting = sum(self._person(other) == person for other in self._waiting) if person else 0
        if self._max_waiting and waiting >= self._max_waiting:
            raise BusyError(
                f"{self._max_waiting} questions from you, or from your address, are already waiting.",
                "Try again in a moment.",
            )

    def _in_turn(self, who: str, work: Answers) -> Answers:
        with self._naming:
            self._check_waiting(who)
            self._waiting.add(who)
        try:
            with contextlib.closing(work):
                while not self._turn.acquire(timeout=WAIT_SECONDS):
                    if who not in self._waiting:
                        raise StudioError(
                            "Stopped before it started.", "Another question was being answered. Ask again."
                        )
                    yield WAITING
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

    def _on_page(self, selection: ModelSelection, work: Answers) -> Answers:
        """What a person asks for: the base is kept for them from now on."""
        try:
            yield from work
        finally:
            self._page = selection.of_base, time.monotonic()

    def _behind_the_page(self, selection: ModelSelection, work: Answers) -> Answers:
        loaded_models, (theirs, used) = self._loaded_for if self.loaded else None, self._page
        recent = time.monotonic() - used < KEPT_SECONDS
        if loaded_models and recent and theirs == loaded_models.of_base != selection.of_base:
            raise HeldError(
                f"The chat on the page holds {loaded_models.base}; "
                f"{selection.base if selection.base != loaded_models.base else selection.engine} would replace it.",
                f"Use a model on {loaded_models.base}, or unload it on the Chat tab. It is replaced after "
                f"{KEPT_SECONDS / 60:.0f} minutes without a question.",
            )
        yield from work

    def _answered(self, selection: ModelSelection, request: Request[Any]) -> Answers:
        try:
            yield from self._asked(selection, request)
        except DeadOnArrivalError:  # the engine was killed after its last answer: a new one loads and answers
            self._loaded, self._loaded_for = None, None
            yield from self._asked(selection, request)

    def _asked(self, selection: ModelSelection, request: Request[Any]) -> Answers:
        try:
            yield from self._ready(selection)
        except StudioError:
            if not self._given_up:
                raise
        if self._given_up:
            raise StudioError("Stopped before it started.", "Ask again at any time.")
        with contextlib.closing(self._session.stream(request)) as answers:
            yield from answers

    def _ready(self, selection: ModelSelection, *, force: bool = False) -> Answers:
        """Loads what is wanted unless it is what is in memory."""
        if self.holds(selection):
            return
        loaded = self.loaded
        same_base = (
            loaded is not None and self._loaded_for is not None and self._loaded_for.of_base == selection.of_base
        ) and self._stays
        next_device = self._supervisor.allocation().for_session
        device = self.device if same_base else next_device(self._device_id, self.choice)
        if not force and not same_base:
            given_back = loaded.memory_bytes if loaded and device.id == self._device_id else 0
            verdict = chat_verdict(selection, device, given_back)
            if not verdict.fits:
                raise ConsentError(verdict, self.run)
        yield Status("Starting the worker" if loaded is None else "Loading")
        self._loaded, self._loaded_for, self._loading = None, None, not same_base
        self._session.move_to(environment_of([device], os.environ))
        self._device_id = device.id
        try:
            with contextlib.closing(self._session.stream(selection.request())) as answers:
                for answer in answers:
                    if isinstance(answer, Loaded):
                        self._loaded, self._loaded_for = answer, selection
                        yield Ready()
                    elif isinstance(answer, Progress):
                        yield _loading(answer)
        except GeneratorExit:
            if self._loaded is None:  # nobody waits any more: what it goes on loading would hold memory unseen
                self._session.end()
            raise
        finally:
            self._loading = False


def chat_bytes(selection: ModelSelection, device: str) -> int | None:
    """Memory of a base with these adapters and a conversation in each column."""
    tokens = RESERVED_TOKENS * (1 + len(selection.adapters))
    folders = [folder for _, folder in selection.adapters]
    return model_bytes(selection.base, selection.revision, selection.quantization, folders, device, tokens)


def _on(device: Device, job: RunState) -> bool:
    """Whether a job works on a device; of one that needs none, whether that is the CPU."""
    return device.title in job.devices if job.devices else not device.is_gpu


def chat_verdict(selection: ModelSelection, device: Device, loaded_models: int = 0) -> MemoryVerdict:
    """`loaded_models` is what a chat holds there now that goes when this one is loaded."""
    return MemoryVerdict(chat_bytes(selection, device.kind), device.memory_free + loaded_models, device)


def _loading(progress: Progress) -> Status:
    """How far the loading is; a base that is not on this machine yet is fetched first."""
    if progress.phase != "download":
        return Status(LOADING.get(progress.phase, "Loading"))
    done, total, seconds_left = progress.done, max(1, progress.total), progress.seconds_left
    remark = f"{size(done)} of {size(total)}"
    if seconds_left:
        remark += f", {size(progress.rows_per_second)}/s, {duration(seconds_left)} left"
    return Status("Downloading base model, percent", 100 * done // total, 100, remark)
