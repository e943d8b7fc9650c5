"""The messages between this process and a session child: requests, progress, pieces, results and failures.

On the pipes each is one JSON object a line, {"id", "method", "params"} there and {"id", "kind", ...} back. A field that
was not set is not on the line: the child's own default applies.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_studio.data.messages import ChatMessage
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

TRANSFORMERS, VLLM = "transformers", "vllm"  # what generates answers

Report = JsonObject
"""A description of prepared data (`data.report.describe`) or of one of its rows (`data.report.preview`)."""


class Message(BaseModel):
    """Fields that are checked when a message is made, on either side of the pipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def from_fields(cls, fields: JsonObject) -> "Message":
        """The message with these fields of a line."""
        return cls.model_validate(fields)

    def to_fields(self) -> JsonObject:
        """The fields as they stand on a line."""
        return self.model_dump(exclude_unset=True)


class Progress(Message):
    """How far a request is; `done` of `total` rows, bytes or adapters, 0 where that is not known. An analysis of data
    also sends the `sheets` of a workbook, `sample`, the report on the first rows of a large file, and `unread`, the
    first rows of a file that can't be used as it is read.
    """

    phase: str
    done: int = 0
    total: int = 0
    rows_per_second: float = 0.0
    seconds_left: float | None = None
    sample: Report | None = None
    unread: JsonObject | None = None
    sheets: list[str] | None = None


class Piece(Message):
    """New text of each column, and how many tokens each has so far; of a batch, of those at `positions`."""

    texts: list[str]
    tokens: list[int]
    positions: list[int] = []


class Waiting(Message):
    """Nothing came for a second. Only on this side of the pipe, where `Session.stream` was asked for a beat."""


class Failure(Message):
    """The request failed. `last`: the child ends itself after it. `internal`: through no fault of the request."""

    message: str
    hint: str = ""
    last: bool = False
    internal: bool = False


class Result(Message):
    """The last answer to a request that did not fail."""


class Done(Result):
    """A result without fields."""


class Inspected(Result):
    """The report on prepared data. Its "kind" is called "file_kind" on a line, which has a kind of its own."""

    report: Report

    @classmethod
    def from_fields(cls, fields: JsonObject) -> "Inspected":
        return cls(report=fields)

    def to_fields(self) -> JsonObject:
        return self.report


class PreviewedRow(Inspected):
    """One row, from record to trained tokens."""


class FirstRows(Inspected):
    """The report on the first rows, and the largest token id among them."""

    largest_id: int

    @classmethod
    def from_fields(cls, fields: JsonObject) -> "FirstRows":
        report = dict(fields)
        return cls(largest_id=report.pop("largest_id"), report=report)

    def to_fields(self) -> JsonObject:
        return {**self.report, "largest_id": self.largest_id}


class TriedReading(Result):
    """What a mapping makes of the first rows (`data.preview.tried`); `of` is how many were tried."""

    words: str
    rows: list[JsonObject]
    failed: int
    first_failure: list[JsonObject] = []
    marked_bad: int
    of: int


class SavedRows(Result):
    """How many rows were written."""

    rows: int


class SavedCopy(SavedRows):
    """How many rows a cleaned copy has, and how many were removed."""

    removed: int


class SplitDocuments(Result):
    """The chunks of documents, all of them in the file that was asked for. `documents` has name, chunks, tokens and
    notes of each that could be read, `problems` message and hint for each that could not."""

    chunks: int
    tokens: int
    prompt_tokens: int
    documents: list[JsonObject]
    problems: list[tuple[str, str]] = []


class FetchedConfig(Result):
    """A model's config.json."""

    numbers: JsonObject


class ModelFacts(Result):
    """What the checks before a start want to know of a model. A problem is a message and a hint."""

    embeddings: int
    positions: int | None = None
    parameters: int
    problem: tuple[str, str] | None = None
    trainable: int | None = None
    adapter_problem: tuple[str, str] | None = None


class Mixed(Result):
    """What to know of a mix of adapters that was written."""

    notes: list[str] = []


class ModuleNames(Result):
    """Last parts of the names of a model's modules: linear ones, and those that can be trained whole."""

    linear: list[str]
    whole: list[str]


class Loaded(Result):
    """What is in memory: the base, its adapters, and how the first adapter was trained."""

    base: str
    adapters: list[str] = []
    device: str
    dtype: str
    quantization: str = "none"
    memory_bytes: int
    system_prompt: str | None = None
    mixes: bool
    notes: list[str] = []


class ColumnAnswer(Message):
    """A column's answer. `finish` is "eos", "stop_string", "length" or "stopped"; `tokens` counts the end token."""

    text: str
    tokens: int
    seconds: float = 0.0
    first_token_seconds: float
    tokens_per_second: float
    finish: str
    prompt_tokens: int = 0


class Generated(Result):
    """The answers of all columns, in the order of the request."""

    columns: list[ColumnAnswer]


class Ended(Message):
    """A column of a batch ended: its answer, or what was wrong with its request."""

    position: int
    answer: ColumnAnswer | None = None
    message: str = ""
    hint: str = ""


class Scored(Result):
    """Log-probabilities (nats) of an answer's tokens under the base and each adapter, and KL(adapter || base)."""

    texts: list[str]
    base: list[float]
    adapters: dict[str, list[float]]
    divergence: dict[str, list[float]]
    mean_divergence: dict[str, float]


R = TypeVar("R", bound=Result)


def _arguments(form: type[BaseModel]) -> tuple[Any, ...]:
    return form.__pydantic_generic_metadata__["args"]


class Request(Message, Generic[R]):
    """A request whose result is an `R`. `tokenless`: it is answered without this machine's token for the Hub."""

    method: ClassVar[str]
    result: ClassVar[type[Result]]

    tokenless: bool = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """The result's type is the parameter of the generic class, as `Loaded` in `Load(Request[Loaded])`."""
        for form in cls.__mro__[1:]:
            if issubclass(form, Request) and isinstance(result := (*_arguments(form), None)[0], type):
                cls.result = result
                return

    def line(self, number: int) -> JsonObject:
        """The request as it is written to the child."""
        return {"id": number, "method": self.method, "params": self.to_fields()}

    def parse_answer(self, line: JsonObject) -> Progress | Piece | Ended | Failure | R:
        """An answer to this request, from its line. Raises `ValueError` where the line is none."""
        fields = {name: value for name, value in line.items() if name not in ("id", "kind")}
        if line["kind"] == "result":
            return cast(R, self.result.from_fields(fields))
        if line["kind"] not in _KINDS:
            raise ValueError(f"There is no kind of answer {line['kind']!r}.")
        return cast(Progress | Piece | Ended | Failure, _KINDS[line["kind"]].from_fields(fields))


_KINDS: dict[str, type[Message]] = {"progress": Progress, "piece": Piece, "ended": Ended, "error": Failure}


def kind_of(answer: Message) -> str:
    """The kind that stands on an answer's line."""
    return next((kind for kind, form in _KINDS.items() if isinstance(answer, form)), "result")


class DataRequest(Request[R]):
    """Data and whose tokenizer encodes it. The settings are those of the config's data section."""

    train_file: str
    model: str = "demo"
    revision: str | None = None
    goal: str | None = None
    validation_file: str | None = None
    validation_fraction: float | None = None
    split_seed: int | None = None
    max_samples: int | None = None
    max_eval_samples: int | None = None
    prompt_style: str | None = None
    system_prompt: str | None = None
    enable_thinking: bool | None = None
    max_length: int | None = None
    truncation: str | None = None
    bad_rows: str | None = None
    train_on: str | None = None
    encoding: str | None = None
    mapping: JsonObject | None = None

    def settings(self) -> JsonObject:
        """The parameters of `data.dataset.prepare` that were set, beside the tokenizer and what follows its work."""
        return self.model_dump(exclude_unset=True, exclude={"model", "revision", "tokenless"})


class Inspect(DataRequest[Inspected]):
    """Analyzes data as training reads it. The fields here are those of `data.report.Look`."""

    method: ClassVar[str] = "inspect"

    cache_folder: str | None = None
    show_examples: int | None = None
    percentiles: list[float] | None = None
    per_device_train_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    processes: int | None = None

    _VIEW: ClassVar = {
        "show_examples",
        "percentiles",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "processes",
    }

    def settings(self) -> JsonObject:
        return {name: value for name, value in super().settings().items() if name not in {*self._VIEW, "cache_folder"}}

    def view(self) -> JsonObject:
        """What the report shows and counts with; none of it changes the data."""
        return self.model_dump(exclude_unset=True, include=self._VIEW)


class Preview(Request[PreviewedRow]):
    """One row of inspected data: of those of the request `of`, else of those last inspected. `window` is the page of a
    long row; None is where training begins."""

    method: ClassVar[str] = "preview"

    row_index: int
    window: int | None = None
    of: Inspect | None = None


class SaveBadRows(Request[SavedRows]):
    """Writes all bad rows of inspected data into the file `path`."""

    method: ClassVar[str] = "save_bad_rows"

    path: str
    of: Inspect | None = None


class SaveCleaned(Request[SavedCopy]):
    """Writes a copy of inspected data without duplicates, and without near-duplicates if `near`, into `path`."""

    method: ClassVar[str] = "save_cleaned"

    path: str
    near: bool = False
    of: Inspect | None = None


class TryReading(Request[TriedReading]):
    """Tries a mapping on the first rows, before the whole file is read by it."""

    method: ClassVar[str] = "try_reading"

    train_file: str
    encoding: str | None = None
    mapping: JsonObject | None = None


class Split(Request[SplitDocuments]):
    """Reads documents and writes their chunks as JSONL into the file `path`. The tokenizer of `model` counts the tokens
    of the chunks, and of the `prompt` that goes with each."""

    method: ClassVar[str] = "split"

    documents: list[str]
    model: str
    revision: str | None = None
    chunk_size: int
    chunk_overlap: int
    prompt: str = ""
    path: str


class LookAtFirst(DataRequest[FirstRows]):
    """The first rows as training would see them."""

    method: ClassVar[str] = "look_at_first"


class FetchConfig(Request[FetchedConfig]):
    """Fetches the model's config.json into this machine's cache, and nothing else of it."""

    method: ClassVar[str] = "fetch_config"

    model: str
    revision: str | None = None


class LookAtModel(Request[ModelFacts]):
    """Counts a model on this machine. `lora` are the settings of a fresh adapter, `adapter` the folder of one to
    continue from."""

    method: ClassVar[str] = "look_at_model"

    model: str
    revision: str | None = None
    lora: JsonObject
    seed: int
    adapter: str | None = None
    quantization: str = "none"


class Modules(Request[ModuleNames]):
    """Names of a model's modules, from its config alone."""

    method: ClassVar[str] = "modules"

    model: str | None = None
    revision: str | None = None


class Mix(Request[Mixed]):
    """Writes a mix of adapters (`models.mixing.Mix`) into the new folder `out`. `adapters` are folders by their names,
    `weights` and `runs` belong to them in this order."""

    method: ClassVar[str] = "mix"

    base: str
    revision: str | None = None
    adapters: dict[str, str]
    weights: list[float]
    runs: list[str]
    combination_type: str
    density: float | None = None
    seed: int | None = None
    out: str


class Load(Request[Loaded]):
    """Base and adapters into memory. What is not set is taken from the first adapter's card. `adapters` are folders by
    the names that columns call them; `engine` is what answers for them."""

    method: ClassVar[str] = "load"

    base: str | None = None
    revision: str | None = None
    quantization: str | None = None
    dtype: str | None = None
    adapters: dict[str, str] = {}
    engine: str = TRANSFORMERS


@dataclass(frozen=True, slots=True)
class ModelSelection:
    """What a session is to hold: a base, and on it the folders of adapters by the names that columns call them; and
    the engine that answers."""

    base: str
    revision: str | None = None
    quantization: str = "none"
    adapters: tuple[tuple[str, Path], ...] = ()
    engine: str = TRANSFORMERS

    @property
    def of_base(self) -> tuple[str, str | None, str, str]:
        """What two of them share that need no other base in memory."""
        return self.base, self.revision, self.quantization, self.engine

    def request(self) -> Load:
        """The request that brings it into memory."""
        return Load(
            base=self.base or None,
            revision=self.revision,
            quantization=self.quantization,
            adapters={name: str(folder) for name, folder in self.adapters},
            engine=self.engine,
        )


class ColumnPrompt(Message):
    """What a column is asked: `adapter` names who answers, None the base."""

    adapter: str | None = None
    messages: list[ChatMessage]


class Generate(Request[Generated]):
    """All columns answer at once. `settings` are those of the generation section; `stop` are further texts that end an
    answer, which may have several lines."""

    method: ClassVar[str] = "generate"

    columns: list[ColumnPrompt]
    settings: JsonObject = {}
    stop: list[str] = []


class BatchColumn(ColumnPrompt):
    """A request of a batch, with its own settings of the generation section and its own stop texts."""

    settings: JsonObject = {}
    stop: list[str] = []


class GenerateBatch(Request[Done]):
    """Requests that know nothing of each other are answered in one batch; each ends by itself, with `Ended`."""

    method: ClassVar[str] = "generate_batch"

    batch: str
    columns: list[BatchColumn]


class JoinBatch(GenerateBatch):
    """Further requests for the batch that is being answered, whose positions count on; answered at once. Those that
    come too late get no answer before the batch has its result."""

    method: ClassVar[str] = "join_batch"


class StopColumn(Request[Done]):
    """Ends one column of a batch early, if that is what is being answered; answered at once."""

    method: ClassVar[str] = "stop_column"

    batch: str
    position: int


class Score(Request[Scored]):
    """How base and adapters predict a given answer, token by token."""

    method: ClassVar[str] = "score"

    adapters: list[str]
    messages: list[ChatMessage]
    answer: str


class Unload(Request[Done]):
    """Forgets the model. Only the end of the child is certain to give all memory back."""

    method: ClassVar[str] = "unload"


class WarmUp(Request[Done]):
    """Imports what the first request would wait for."""

    method: ClassVar[str] = "warm_up"


class Rest(Request[Done]):
    """Answered as soon as nothing else is being done."""

    method: ClassVar[str] = "rest"


class Stop(Request[Done]):
    """Ends the running request early; answered at once."""

    method: ClassVar[str] = "stop"


_REQUESTS: tuple[type[Request[Any]], ...] = (
    Inspect,
    Preview,
    SaveBadRows,
    SaveCleaned,
    LookAtFirst,
    TryReading,
    Split,
    FetchConfig,
    LookAtModel,
    Load,
    Generate,
    GenerateBatch,
    JoinBatch,
    Score,
    Modules,
    Mix,
    Unload,
    WarmUp,
    Rest,
    Stop,
    StopColumn,
)
_BY_METHOD = {request.method: request for request in _REQUESTS}
READING = (Inspect, Preview, SaveBadRows, SaveCleaned, LookAtFirst, TryReading, Split)
"""Requests that read files of other people, which may take only so much memory."""


def parse_request(line: JsonObject) -> Request[Any]:
    """The request of a line. Raises `StudioError` for an unknown method and for fields that are not right."""
    method = line["method"]
    if method not in _BY_METHOD:
        raise StudioError(f"There is no method {method!r}.", f"There are: {', '.join(_BY_METHOD)}.")
    try:
        return _BY_METHOD[method].model_validate(line.get("params", {}))
    except ValidationError as error:
        raise StudioError(f"The fields of {method!r} are not right: {error}.") from None
