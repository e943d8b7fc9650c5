"""The rows of a test file as each column is asked them, and the answers to a batch of them beside the expected ones.

The reference is a row's last answer, of preference pairs the chosen one. Each adapter is prompted as it was trained,
with its own template, system prompt and thinking setting; the base like the first adapter, in its own template if it
has one. Rows of plain text or tokens are not answered but scored. Files are read by `data.dataset.prepare`, so every
format that can be trained on can be evaluated.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from transformers import PreTrainedTokenizerBase

from lora_studio.config.sections import Generation
from lora_studio.data.dataset import Prepared, prepare
from lora_studio.data.examples import Example, Examples, Pairs, Unpaired
from lora_studio.data.mapping import MappingValues
from lora_studio.data.messages import Conversation
from lora_studio.data.preview import Question, missing_columns, question_of
from lora_studio.engine.chat.generate import Answer, Column, Generating, generate, generation_config
from lora_studio.engine.chat.logprobs import loglikelihoods
from lora_studio.engine.evaluate.tasks import READING, AnswerVerdict, Task, judge
from lora_studio.engine.models.multi_adapter import LoadedModel
from lora_studio.engine.models.source import adapter_tokenizer
from lora_studio.engine.models.weights import known_tokens
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.adapters import read_card

NO_LIMIT = 1 << 20
TOO_LONG = "the prompt leaves no room for an answer"
NO_QUESTION = "the row has no prompt with a text answer"
MARKED_BAD = "the answer is labelled bad, so there is no reference answer"
MAX_BAD = 500
"""Answers labelled bad that each expected answer is compared with."""
NOTHING = Answer("", 0, 0.0, 0.0, 0.0, "")
READ = ("text", "tokenised")
"""Formats whose rows are scored, not answered."""


@dataclass(frozen=True, slots=True)
class Voice:
    """How a column is prompted: chat template, system prompt and thinking. `tokenizer` is None for the base's."""

    template: str | None
    system_prompt: str | None
    enable_thinking: bool | None
    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of(cls, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> "Voice":
        """How an adapter is prompted, according to the files beside its weights."""
        card = read_card(folder)
        return cls(card.template or None, card.values.get("system_prompt"), card.enable_thinking, tokenizer)


def voices_of(columns: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, Voice]:
    """How each column is prompted, by its adapter's folder ("" for the base): the base like the first adapter, with its
    own tokenizer."""
    adapters = {}
    for name, folder in columns.items():
        if folder:
            card = read_card(Path(folder))
            own, _ = adapter_tokenizer(Path(folder), tokenizer, known_tokens(Path(folder), card.base, card.revision))
            adapters[name] = Voice.of(Path(folder), None if own is tokenizer else own)
    first = replace(next(iter(adapters.values())), tokenizer=None)
    return {name: adapters.get(name, first) for name in columns}


def fitting_mapping(data: str, mapping: JsonObject | None, encoding: str | None) -> tuple[JsonObject | None, list[str]]:
    """A run's column mapping, and the columns of it that a file lacks; None where it lacks any."""
    lacking = missing_columns(data, mapping, encoding) if mapping else []
    return None if lacking else mapping, lacking


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A row by its number in the file: each column's prompt, its tokens with the answer, and the reference.

    `rejected` are answers that the row's own should be likelier than: that of its pair, or all that are labelled bad.
    """

    row: int
    asked: Mapping[str, Question]
    examples: Mapping[str, Example | None]
    rejected: Mapping[str, Sequence[Example]] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        return next(iter(self.asked.values())).reference


@dataclass(frozen=True)
class AskedFile:
    """The rows to answer or to score, and how many were left out, by reason."""

    rows: list[AskedRow]
    left_out: dict[str, int]
    prepared: Prepared

    @property
    def only_read(self) -> bool:
        """Whether the rows contain no questions."""
        return self.prepared.format.name in READ


def read_asked_file(
    data: str,
    tokenizer: PreTrainedTokenizerBase,
    voices: Mapping[str, Voice],
    *,
    mapping: MappingValues | None = None,
    encoding: str | None = None,
    split: Mapping[str, Any] | None = None,
    most: int | None = None,
    longest: int | None = None,
    cache_folder: Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> AskedFile:
    """The first `most` rows of a file that every column can answer. `longest` is the model's context length in tokens;
    `mapping` is the column mapping and `encoding` the text encoding; None detects them. With a `split`, the settings by
    which a run divided the file, these are its validation rows.

    Raises `StudioError` if no row is left.
    """
    read: dict[Voice, tuple[Prepared, dict[int, Question], dict[int, Example]]] = {}
    worse: dict[Voice, Callable[[int], Sequence[Example]]] = {}
    for voice in dict.fromkeys(voices.values()):
        its = voice.tokenizer or tokenizer
        own = its.chat_template
        its.chat_template = voice.template or tokenizer.chat_template
        prepared = prepare(
            data,
            its,
            mapping=mapping,
            encoding=encoding,
            cache_folder=cache_folder,
            on_progress=on_progress,
            **(split or {"goal": "any", "validation_fraction": 0.0}),
            system_prompt=voice.system_prompt,
            enable_thinking=voice.enable_thinking,
            max_length=NO_LIMIT,
            train_on="last_turn",
        )
        its.chat_template = own
        worse[voice] = _rejected(prepared)
        if prepared.format.name in READ:
            read[voice] = prepared, _readings(_rows(prepared), its), _examples(prepared, longest)
        else:
            read[voice] = prepared, _questions(_rows(prepared)), _examples(prepared)
    prepared, questions, _ = read[next(iter(voices.values()))]
    shared = [row for row in questions if all(row in own for _, own, _ in read.values())]
    rows = [
        AskedRow(
            row,
            {name: read[voice][1][row] for name, voice in voices.items()},
            {name: read[voice][2].get(row) for name, voice in voices.items()},
            {name: rejected for name, voice in voices.items() if (rejected := worse[voice](row))},
        )
        for row in shared[:most]
    ]
    fitting = [row for row in rows if longest is None or prompt_tokens(row) < longest]
    labelled_bad = sum(chat.label is False for chat in _rows(prepared))
    left_out = {
        "the row is invalid": 0 if split else len(prepared.bad_rows),
        MARKED_BAD: labelled_bad or (0 if split else prepared.part.marked_bad),
        NO_QUESTION: sum(1 for _ in _rows(prepared)) - labelled_bad - len(shared),
        TOO_LONG: len(rows) - len(fitting),
    }
    if not fitting:
        raise _nothing_to_answer(data, prepared, labelled_bad if not questions else 0)
    return AskedFile(fitting, {reason: count for reason, count in left_out.items() if count}, prepared)


def _nothing_to_answer(data: str, prepared: Prepared, labelled_bad: int) -> StudioError:
    """The error for a file without a row to answer; `labelled_bad` of its rows are the reason, where they are all."""
    name = Path(data).name
    if labelled_bad:
        return StudioError(
            f"No answer in {name} is labelled good: {labelled_bad:,} are labelled bad.",
            "Label good answers true. If the label means something else, ignore that column to use every row.",
        )
    return StudioError(
        f"{name} has no row to answer.",
        f"The columns were mapped as follows: {prepared.format.words} Use a file of prompts with answers.",
    )


def _rows(prepared: Prepared) -> Iterable[Conversation]:
    """The rows that are evaluated, in the file's order: all of them, or the validation rows of a split."""
    if not prepared.settings.validation_fraction:
        return prepared.conversations
    positions = np.asarray(prepared.part.rows.position)[prepared.selected[1]]
    return prepared.conversations.at(np.sort(positions))


def _questions(rows: Iterable[Conversation]) -> dict[int, Question]:
    numbered = ((chat.row, question) for chat in rows for question in question_of(chat))
    return {row: question for row, question in numbered if question.reference.strip()}


def _readings(rows: Iterable[Conversation], tokenizer: PreTrainedTokenizerBase) -> dict[int, Question]:
    """Each row's text, for rows without a question."""
    return {
        chat.row: Question(
            [], chat.text if chat.text is not None else str(tokenizer.decode(list(chat.input_ids or ())))
        )
        for chat in rows
    }


def _examples(prepared: Prepared, longest: int | None = None) -> dict[int, Example]:
    """Each row's tokens with its last answer as the trained part, truncated to the model's context length; duplicate
    rows share an example."""
    answers = (example.first(longest) for example in _part(prepared).answers)
    return {example.row: example for example in answers}


def _part(prepared: Prepared) -> Examples | Pairs:
    """The examples of the rows that are evaluated."""
    return prepared.validation if prepared.settings.validation_fraction else prepared.train


def _rejected(prepared: Prepared) -> Callable[[int], Sequence[Example]]:
    """The rejected answers of a row by its number; of labelled rows the same for all, at most `MAX_BAD` of them."""
    part = _part(prepared)
    if isinstance(part, Pairs):
        by_row = {example.row: (example,) for example in part.sides[1]}
        return lambda row: by_row.get(row, ())
    if not isinstance(part, Unpaired):
        return lambda row: ()
    places = np.flatnonzero(~part.desirable)
    if len(places) > MAX_BAD:
        places = places[np.linspace(0, len(places) - 1, MAX_BAD).astype(int)]
    bad = tuple(part[int(at)] for at in places)
    return lambda row: bad


def prompt_tokens(row: AskedRow) -> int:
    """The length in tokens of a row's longest prompt over its columns."""
    return max(
        (len(example.input_ids) - example.trained_tokens for example in row.examples.values() if example), default=0
    )


def answer_batch(
    loaded: LoadedModel,
    batch: Sequence[AskedRow],
    columns: Mapping[str, str | None],
    task: Task,
    settings: Generation,
    *,
    seed: int,
    rejected: Mapping[str, dict[int, np.ndarray]],
    enable_thinking: bool | None = None,
    stop: Callable[[], bool] = lambda: False,
    ask: Generating | None = None,
) -> list[JsonObject]:
    """The rows of a batch with all columns' answers, as `predictions.jsonl` holds them; none once `stop` returns true.

    `columns` maps the name of each column to its adapter, None for the base. `rejected` has a dictionary for each
    column, in which measurements of rejected answers that rows share are kept from batch to batch. `ask` answers in the
    place of `generate`.
    """
    values = settings.model_dump(exclude={"seed", "stop_strings", "enable_thinking"})
    answers: Sequence[Answer] = [NOTHING] * (len(batch) * len(columns))
    if task.kind != READING.kind:
        answers = (ask or generate)(
            loaded,
            [Column(adapter, row.asked[name].messages) for row in batch for name, adapter in columns.items()],
            generation_config(loaded, **values),
            seed=seed,
            enable_thinking=enable_thinking if settings.enable_thinking is None else settings.enable_thinking,
            stop_strings=settings.stop_texts,
            stop=stop,
        )
    if stop():
        return []
    expected = {name: _expected_scores(loaded, adapter, name, batch) for name, adapter in columns.items()}
    for name, adapter in columns.items():
        _add_preference(loaded, adapter, name, batch, expected[name], rejected[name])
    queue = iter(answers)
    done: list[JsonObject] = []
    for place, row in enumerate(batch):
        results = {name: _prediction(task, next(queue), row.reference, expected[name][place]) for name in columns}
        prompt = next(iter(row.asked.values())).messages
        done.append({"row": row.row, "prompt": prompt, "reference": row.reference, **results})
    return done


class ExpectedScore(TypedDict):
    """The log-likelihood of the expected answer under a column: summed loss in nats, and tokens; None if it was not
    scored. `preferred` is the share of the row's rejected answers that are less likely, per token."""

    loss: float | None
    right_tokens: int | None
    expected_tokens: int | None
    preferred: NotRequired[float]


class ColumnPrediction(ExpectedScore):
    """A column's entry in a row of `predictions.jsonl`."""

    answer: str
    right: bool | None
    score: float
    given: str | None
    tokens: int
    finish: str


def _prediction(task: Task, answer: Answer, reference: str, expected: ExpectedScore) -> ColumnPrediction:
    verdict = judge(task, answer.text, reference)
    loss, tokens = expected["loss"], expected["expected_tokens"]
    if task.kind == READING.kind and loss is not None and tokens:
        verdict = AnswerVerdict(False, math.exp(-loss / tokens))
    return {
        "answer": answer.text,
        "right": verdict.right,
        "score": round(verdict.score, 4),
        "given": verdict.given,
        "tokens": answer.tokens,
        "finish": answer.finish,
        **expected,
    }


def _expected_scores(
    loaded: LoadedModel, adapter: str | None, name: str, batch: Sequence[AskedRow]
) -> list[ExpectedScore]:
    """A column's scores for the expected answers of a batch; empty for rows that cannot be scored."""
    scored = [(place, row.examples[name]) for place, row in enumerate(batch)]
    scorable = [(place, example) for place, example in scored if example is not None and example.trained_tokens]
    limit = loaded.longest_text and loaded.longest_text - loaded.virtual_tokens(adapter)
    scorable = [(place, example) for place, example in scorable if limit is None or len(example.input_ids) <= limit]
    results: list[ExpectedScore] = [{"loss": None, "right_tokens": None, "expected_tokens": None} for _ in batch]
    scores = loglikelihoods(loaded, adapter, [example for _, example in scorable])
    for (place, _), score in zip(scorable, scores, strict=True):
        results[place] = {
            "loss": score.loss,
            "right_tokens": score.right_tokens,
            "expected_tokens": score.expected_tokens,
        }
    return results


def _add_preference(
    loaded: LoadedModel,
    adapter: str | None,
    name: str,
    batch: Sequence[AskedRow],
    scores: Sequence[ExpectedScore],
    measured: dict[int, np.ndarray],
) -> None:
    """Adds to a column's scores how often the expected answer is likelier, per token, than a rejected one.

    Equal ones count half, so that the mean over labelled rows is the Mann-Whitney statistic. `measured` are the nats a
    token of the column's rejected answers, by the identity of their sequence: of labelled rows all share one.
    """
    for row, expected in zip(batch, scores, strict=True):
        rejected, loss, tokens = row.rejected.get(name), expected["loss"], expected["expected_tokens"]
        if not rejected or loss is None or not tokens:
            continue
        if id(rejected) not in measured:
            losses = loglikelihoods(loaded, adapter, rejected)
            measured[id(rejected)] = np.array([score.loss / max(score.expected_tokens, 1) for score in losses])
        nats, own = measured[id(rejected)], loss / tokens
        expected["preferred"] = float(((nats > own) + 0.5 * (nats == own)).mean())


def thinking_of(voices: Sequence[Voice]) -> bool | None:
    """The thinking setting that all adapters share; None leaves it to each."""
    settings = {voice.enable_thinking for voice in voices}
    return settings.pop() if len(settings) == 1 else None
