"""The typed things that happen in a run, their one-line form, and the fold that turns them into a state.

A worker appends events to `events.jsonl`; every view of a run (page, terminal, tests) is `fold` over those lines. Only
this module knows the line format. A torn last line, as a crash leaves it, is ignored.
"""

import dataclasses
import functools
import json
import math
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from lora_studio.models.hub import Charge

PHASES = ("start", "data", "download", "model", "train", "evaluate", "save", "compare", "vllm", "answer", "measure")
START_PHASES = ("start", "data", "model")
"""What comes before the first step, without downloads."""
FINAL_STATES = ("done", "stopped", "failed")


class Reason(StrEnum):
    """Why a job ended. `jobs.kinds.ending_words` puts it into words for page and terminal."""

    # written by the worker itself
    COMPLETED = "completed"
    STOPPED = "stopped"
    REFUSED = "refused"  # what was asked for can't be done: the event's message says why
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    DIVERGED = "diverged"
    ADAPTER_GONE = "adapter_gone"
    INTERNAL_ERROR = "internal_error"
    # written by whoever starts workers
    DEQUEUED = "dequeued"
    PRUNED = "pruned"  # in the weaker half of its group
    # worked out from outside, for a worker that wrote no `Finished`
    NEVER_STARTED = "never_started"
    RECORD_DAMAGED = "record_damaged"
    CANCELLED = "cancelled"
    OVER_QUOTA = "over_quota"
    ENDED_BY_FORCE = "ended_by_force"
    STOPPED_EARLY = "stopped_early"
    STOPPED_SILENTLY = "stopped_silently"
    MEMORY_KILL = "memory_kill"  # the system counted a kill for want of memory
    KILLED = "killed"
    VANISHED = "vanished"
    CRASHED = "crashed"
    EXITED = "exited"
    # said by a target beside this machine
    CANCELLED_ELSEWHERE = "cancelled_elsewhere"  # there, not in the studio
    OUT_OF_TIME = "out_of_time"
    PREEMPTED = "preempted"
    NODE_FAILED = "node_failed"
    NOT_SHARED = "not_shared"  # the job's folder does not exist there

    @property
    def by_the_system(self) -> bool:
        """Whether the system killed the worker, which it does where memory runs out."""
        return self in (Reason.MEMORY_KILL, Reason.KILLED)


_EARLIER_WORDS = (
    ("Taken out of the queue.", Reason.DEQUEUED),
    (" ran out of memory", Reason.OUT_OF_MEMORY),
    ("The memory is not enough", Reason.OUT_OF_MEMORY),
    ("The disk that holds ", Reason.DISK_FULL),
    ("The training ended there", Reason.DIVERGED),
    ("The adapter was deleted while it was exported", Reason.ADAPTER_GONE),
    (" ended with an error: ", Reason.INTERNAL_ERROR),
)
"""By what words workers of earlier versions, which wrote no reason, told of each."""


def _earlier_reason(state: str, message: str) -> Reason:
    """The reason of an end that was written without one; only here are words read."""
    if state == "done":
        return Reason.COMPLETED
    usual = Reason.STOPPED if state == "stopped" else Reason.REFUSED
    return next((reason for words, reason in _EARLIER_WORDS if words in message), usual)


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A worker took the run up; a resumed run has one of these for each start.

    `device` is the device's name, `device_kind` one of `accelerators.DEVICE_KINDS` ("cpu", "cuda", "mps", …).
    `processes` train together; the first of them writes.
    """

    time: float
    pid: int
    device: str
    dtype: str
    resumed_from_step: int = 0
    device_kind: str = ""
    processes: int = 1

    def __post_init__(self) -> None:
        if not self.device_kind and isinstance(self.device, str):  # written by an earlier version
            object.__setattr__(self, "device_kind", "cpu" if "cpu" in self.device.lower() else "cuda")


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """One of `PHASES` begins; `total` counts `unit` (rows, steps, batches), 0 where it is not known."""

    time: float
    phase: str
    total: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of the running phase's `total` units are finished."""

    time: float
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class DataPrepared:
    """What the model will see: rows after the split, rows refused or dropped, tokens an epoch.

    `reading` says how the file was read, what was assumed and what its first row trains; runs of earlier versions have
    none.
    """

    time: float
    train_rows: int
    validation_rows: int
    bad_rows: int
    dropped_rows: int
    tokens: int
    trained_tokens: int
    fingerprint: str
    prompt_style: str
    rows_digest: str = ""  # of tokens and labels of every row, in their order
    reading: str = ""


@dataclass(frozen=True, slots=True)
class RowsRead:
    """What an evaluation will ask: rows that can be asked, rows refused, rows left out."""

    time: float
    rows: int
    bad_rows: int
    dropped_rows: int
    fingerprint: str
    prompt_style: str


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """The base with its fresh adapter is in memory; `attention` says which attention was taken, and why, and
    `attn_implementation` its name in transformers. `padding_free`: batches have no padding."""

    time: float
    parameters: int
    trainable_parameters: int
    memory_bytes: int
    attention: str = ""
    attn_implementation: str = ""
    padding_free: bool = False

    def __post_init__(self) -> None:
        if not self.attn_implementation and isinstance(self.attention, str):  # written by an earlier version
            object.__setattr__(self, "attn_implementation", self.attention.partition(",")[0].partition(":")[0])


@dataclass(frozen=True, slots=True)
class MemoryEstimated:
    """What the run is expected to need, by part, before it takes it; `measurable_bytes` is what PyTorch's own counter
    would see of that. `reason` says why checkpointing is on or off, where the run chose."""

    time: float
    total_bytes: int
    measurable_bytes: int
    available_bytes: int
    parts: dict[str, int] = field(default_factory=dict)
    gradient_checkpointing: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StepLogged:
    """Means since the last of these; `tokens` counts real (unpadded) tokens of the whole run so far.

    Entropy in nats a token; memory held now, by tensors alone (GPU), at most so far, and what could be held; load of
    the device in percent. `metrics` is what a method brings beyond that, such as DPO's reward_margin.
    """

    time: float
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    token_accuracy: float | None = None
    tokens: int = 0
    tokens_per_second: float = 0.0
    memory_bytes: int = 0
    entropy: float | None = None
    memory_allocated_bytes: int = 0
    memory_peak_bytes: int = 0
    memory_available_bytes: int = 0
    device_load: float | None = None
    device_celsius: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Loss (nats a trained token) on the validation rows, and other metrics by name."""

    time: float
    step: int
    epoch: float
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QuestionsAsked:
    """The questions answered after each evaluation, what the rows answer, and what the base does; `right` says where
    that is the same answer."""

    time: float
    questions: list[str]
    references: list[str]
    answers: list[str]
    right: list[bool]


@dataclass(frozen=True, slots=True)
class QuestionsAnswered:
    """What the adapter answers to these questions after `step` steps."""

    time: float
    step: int
    epoch: float
    answers: list[str]
    right: list[bool]


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """`name` is the checkpoint's folder under `checkpoints/`."""

    time: float
    step: int
    name: str
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Extended:
    """The run is to make `epochs` more than its config says; written between two of its workers, by who starts it."""

    time: float
    epochs: float


@dataclass(frozen=True, slots=True)
class OtherRowsAccepted:
    """The run is to go on with what its data files hold now; written between two of its workers, by who starts it."""

    time: float


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that does not end the run but that a person should know."""

    time: float
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a worker's life; `state` is one of `FINAL_STATES`.

    `message` and `hint` hold what only the worker knows beyond the reason, such as the words of an error.
    """

    time: float
    state: str
    step: int = 0
    message: str = ""
    hint: str = ""
    reason: Reason | None = None

    def __post_init__(self) -> None:
        if self.reason is None and isinstance(self.message, str):  # written by an earlier version
            object.__setattr__(self, "reason", _earlier_reason(self.state, self.message))


Event = (
    RunStarted
    | PhaseStarted
    | Progress
    | DataPrepared
    | RowsRead
    | ModelLoaded
    | MemoryEstimated
    | StepLogged
    | Evaluated
    | QuestionsAsked
    | QuestionsAnswered
    | CheckpointSaved
    | Extended
    | OtherRowsAccepted
    | Warned
    | Finished
)
_TYPES: dict[str, type] = {cls.__name__: cls for cls in get_args(Event)}
_NAMES = {cls: tuple(item.name for item in dataclasses.fields(cls)) for cls in _TYPES.values()}


def to_line(event: Event) -> str:
    """One JSON object and a line feed. Numbers that JSON has no word for (NaN, infinity) become strings."""
    cls = type(event)
    values = {name: _plain(getattr(event, name)) for name in _NAMES[cls]}  # `asdict` copies, for most of the time
    return json.dumps({"event": cls.__name__, **values}, ensure_ascii=False) + "\n"


def from_line(line: str) -> Event | None:
    """The event of a line; None for a torn line or an event of a newer version."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    cls = _TYPES.get(str(values.pop("event", "")))
    if cls is None:
        return None
    known = _NAMES[cls]
    if cls is Finished:
        values["reason"] = reason_named(values.get("reason"))
    try:
        event: Event = cls(**{name: _number(value) for name, value in values.items() if name in known})
    except TypeError:
        return None
    return event if of_right_kinds(event) else None


def reason_named(name: Any) -> Reason | None:
    """The reason of that name; None where there is none, as for one of a newer version."""
    return next((reason for reason in Reason if reason == name), None)


_KINDS: dict[Any, tuple[type, ...]] = {
    int: (int, float),
    float: (int, float),
    str: (str,),
    bool: (bool,),
    list: (list, tuple),
    dict: (dict,),
}


@functools.cache
def _kinds_of(cls: type) -> dict[str, tuple[type, ...]]:
    """The types that a value of each field may have; fields of other kinds are left out."""
    found: dict[str, tuple[type, ...]] = {}
    for name, hint in get_type_hints(cls).items():
        parts = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        allowed = [_KINDS.get(get_origin(part) or part, (part,)) for part in parts]
        if all(isinstance(kind, type) for kinds in allowed for kind in kinds):
            found[name] = tuple(kind for kinds in allowed for kind in kinds)
    return found


def of_right_kinds(value: Any) -> bool:
    """Whether every field of an event or a state holds what its type says: out of a damaged file it may not."""
    cls: Any = type(value)
    return all(isinstance(getattr(value, name), kinds) for name, kinds in _kinds_of(cls).items())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _number(inner) for name, inner in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value


@dataclass
class RunState:
    """All that a view needs of a run. `state` is "queued", "running", "stopping" or one of `FINAL_STATES`.

    "queued" is a run without events; the supervisor says "stopping" while a stop is under way, and "failed" for a
    worker that vanished. Where a state is told to be in short, it has only the last of the steps and no answers.
    `kind` is the kind of job. Of an end, `reason` says why, `message` and `hint` what only the worker knew of it; of a
    worker that ended without a word, `exit_code` is how (negative: by that signal) and `last_output` the error that its
    log ends with, where both are known. `saved` says whether there is a whole checkpoint to go on from. `start_seconds`
    is what the worker took last for libraries, data and model, without downloads. `devices` are those that its worker
    holds. `processes` train together now; accumulation as configured is for the `first_processes` of the run's start.
    `target` is where it runs. `waiting` says why a queued job does not start yet; what waits in the queue of its target
    is queued as well, with the time at which the target expects to start it. `restarts` counts how often the target
    took it back and began it again. `charge` is what a rented machine costs.
    """

    id: str = ""
    title: str = ""
    state: str = "queued"
    created: float = 0.0
    started: float | None = None
    start_seconds: float = 0.0
    resumed: float | None = None
    pauses: list[tuple[float, float]] = field(default_factory=list)
    finished: float | None = None
    pid: int | None = None
    device: str = ""
    dtype: str = ""
    phase: str = ""
    phase_started: float | None = None
    phase_unit: str = ""
    phase_done: int = 0
    phase_total: int = 0
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    extra_epochs: float = 0.0
    other_rows: bool = False
    data: DataPrepared | None = None
    model: ModelLoaded | None = None
    memory: MemoryEstimated | None = None
    steps: list[StepLogged] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    questions: QuestionsAsked | None = None
    answers: list[QuestionsAnswered] = field(default_factory=list)
    checkpoints: list[CheckpointSaved] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    message: str = ""
    hint: str = ""
    seconds: float = 0.0
    last_event: float | None = None
    events: int = 0
    kind: str = "train"
    device_kind: str = ""
    reason: Reason | None = None
    exit_code: int | None = None
    last_output: str = ""
    saved: bool = False
    test_rows: RowsRead | None = None
    waiting: str = ""
    devices: list[str] = field(default_factory=list)
    target: str = "local"
    expected_start: float | None = None
    restarts: int = 0
    processes: int = 1
    first_processes: int = 1
    charge: Charge | None = None

    @property
    def final(self) -> bool:
        """Whether no more events will come unless the run is resumed."""
        return self.state in FINAL_STATES

    @property
    def best(self) -> Evaluated | None:
        """The evaluation with the lowest loss, of those whose loss is a number."""
        measured = (evaluation for evaluation in self.evaluations if math.isfinite(evaluation.loss))
        return min(measured, key=lambda evaluation: evaluation.loss, default=None)

    def seconds_at(self, time: float) -> float:
        """Seconds that the run had worked at a time; the pause before a resume is no work."""
        idle = sum(min(end, time) - begin for begin, end in self.pauses if begin < time)
        return max(0.0, time - self.started - idle) if self.started is not None else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the speed of the last twenty steps logged since the start; None before two were."""
        recent = [item for item in self.steps[-20:] if item.time >= (self.resumed or 0.0)]
        begins = self.phase in (*START_PHASES, "download")  # again, after a resume
        if self.final or begins or len(recent) < 2 or recent[-1].step <= recent[0].step:
            return None
        per_step = (recent[-1].time - recent[0].time) / (recent[-1].step - recent[0].step)
        return max(0.0, (self.total_steps - self.step) * per_step)


def fold(events: Iterable[Event], state: RunState | None = None) -> RunState:
    """Applies events in order to `state` (changed in place) or to a new one."""
    state = state if state is not None else RunState()
    for event in events:
        _apply(state, event)
        state.events += 1
        state.last_event = event.time
    return state


def fold_lines(lines: Iterable[str], state: RunState | None = None) -> RunState:
    """The same for events in their line form; what is torn or of a newer version is passed over."""
    return fold((event for event in map(from_line, lines) if event is not None), state)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of an events file, one at a time; none where it is not there yet.

    Only a line feed ends a line: an event's words may hold other characters that Python takes for one.
    """
    try:
        file = path.open(encoding="utf-8", errors="replace", newline="\n")
    except FileNotFoundError:
        return
    with file:
        yield from file


def read_state(path: Path) -> RunState:
    """What an events file amounts to; a queued run where it is not there yet."""
    return fold_lines(read_lines(path))


def _apply(state: RunState, event: Event) -> None:
    match event:
        case RunStarted():
            _restart(state, event)
        case PhaseStarted():
            if event.phase == "start":
                _take_up(state, event.time)
                state.start_seconds = 0.0
            elif state.phase in START_PHASES and state.phase_started is not None:
                state.start_seconds += max(0.0, event.time - state.phase_started)
            state.phase, state.phase_started, state.phase_unit = event.phase, event.time, event.unit
            state.phase_done, state.phase_total = 0, event.total
            if event.phase == "train" and event.total:
                state.total_steps = event.total
        case Progress():
            state.phase_done, state.phase_total = event.done, event.total
        case DataPrepared():
            state.data, state.other_rows = event, False
        case RowsRead():
            state.test_rows = event
        case ModelLoaded():
            state.model = event
        case MemoryEstimated():
            state.memory = event
        case StepLogged():
            state.steps.append(event)
            state.step, state.total_steps, state.epoch = event.step, event.total_steps, event.epoch
            if state.phase == "train":
                state.phase_done, state.phase_total = event.step, event.total_steps
        case Evaluated():
            state.evaluations.append(event)
        case QuestionsAsked():
            state.questions = event
        case QuestionsAnswered():
            state.answers.append(event)
        case CheckpointSaved():
            state.checkpoints = [item for item in state.checkpoints if item.name != event.name] + [event]
        case Extended():
            state.extra_epochs += event.epochs
        case OtherRowsAccepted():
            state.other_rows = True
        case Warned():
            state.warnings.append(event.message)
        case Finished():
            state.state, state.finished, state.seconds = event.state, event.time, state.seconds_at(event.time)
            state.reason = event.reason
            state.message, state.hint = event.message, event.hint
            state.step = max(state.step, event.step)


def _take_up(state: RunState, time: float) -> None:
    """A worker begins. What lies between it and the one before, which may have vanished without a word, is a pause."""
    if state.started is not None:
        state.pauses.append((state.finished or state.last_event or time, time))
    state.started, state.finished = time if state.started is None else state.started, None


def _restart(state: RunState, event: RunStarted) -> None:
    """A resumed run forgets what lies behind the checkpoint that it goes on from: those steps are made anew."""
    state.state, state.pid, state.device, state.dtype = "running", event.pid, event.device, event.dtype
    state.device_kind, state.processes = event.device_kind, event.processes
    if not event.resumed_from_step:
        state.first_processes = event.processes
    state.started = state.started if state.started is not None else event.time
    state.resumed = event.time
    state.finished, state.reason, state.message, state.hint = None, None, "", ""
    state.step = event.resumed_from_step
    state.steps = [item for item in state.steps if item.step <= event.resumed_from_step]
    state.evaluations = [item for item in state.evaluations if item.step <= event.resumed_from_step]
    state.answers = [item for item in state.answers if item.step <= event.resumed_from_step]
    state.checkpoints = [item for item in state.checkpoints if item.step <= event.resumed_from_step]
