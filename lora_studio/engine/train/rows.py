"""The rows of a run: prepared, compared with those that it began with, as the trainer's table and batches, and the
labels that the model predicts for them.

Labels come from the evaluation's own forward pass. Top-1 tokens are computed only at the answer's positions: no second
pass, and no logits elsewhere. Up to the first token that differs from the row's answer they equal greedy generation;
later ones are ignored. So an answer counts as correct exactly when greedy generation produces it.
"""

import hashlib
import json
import mmap
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import PreTrainedTokenizerBase

from lora_studio.config.sections import Config
from lora_studio.data.dataset import Prepared, prepare
from lora_studio.data.examples import Examples, Pairs
from lora_studio.data.messages import IGNORED
from lora_studio.data.preview import Question, questions
from lora_studio.data.report import reading
from lora_studio.engine import ranks
from lora_studio.engine.evaluate.tasks import label_of, label_scores
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.runtime import EventLog, data_progress
from lora_studio.engine.train_script import EpochOrder
from lora_studio.errors import OtherRowsError, StudioError
from lora_studio.jobs.events import DataPrepared, Warned
from lora_studio.units import count
from lora_studio.workspace import RunFolder, write_atomically

AT_ONCE = 1 << 25  # logits that are in memory together
SUGGESTED = 8  # questions that the chat can suggest
_END_OF_THINKING = "</think>"

Decode = Callable[[list[int]], str]
Batch = dict[str, torch.Tensor]
"""The model's inputs: input_ids, labels, attention_mask, each [rows, tokens]."""


class LabelMeter:
    """Collects expected and predicted labels over an evaluation. `decode` decodes ids without special tokens."""

    def __init__(self, labels: Sequence[str], decode: Decode) -> None:
        self.labels = tuple(labels)
        self.decode = decode
        self.expected: list[str] = []
        self.given: list[str | None] = []
        self._hidden: torch.Tensor | None = None
        self._model: Any = None

    def watch(self, model: Any) -> None:
        """Keeps the last hidden states of every forward pass of a causal language model in evaluation."""
        self._model = model
        model.base_model.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._hidden = None if torch.is_grad_enabled() else output.last_hidden_state

    def begin(self) -> None:
        """Clears the previous evaluation."""
        self.expected, self.given = [], []

    def add(self, inputs: Batch) -> None:
        """Adds the batch of the last forward pass."""
        assert self._hidden is not None, "no pass was watched"
        hidden, self._hidden = self._hidden, None
        labels = inputs["labels"].cpu().numpy()
        positions = inputs["position_ids"].cpu().numpy() if "position_ids" in inputs else None
        for row, start, stop in answer_spans(labels, positions):
            answer = labels[row, start:stop].tolist()
            label = label_of(self.decode(answer), self.labels)
            if label is None:
                continue
            thought = thinking_tokens(answer, self.decode)
            likeliest = self._likeliest(hidden[row, start + thought - 1 : stop - 1])
            self.expected.append(label)
            self.given.append(given_label(answer[thought:], likeliest, self.labels, self.decode))

    def put_together(self) -> None:
        """Adds what the other processes of the run collected on their shares of the rows."""
        parts = ranks.collect((self.expected, self.given))
        self.expected = [label for expected, _ in parts for label in expected]
        self.given = [label for _, given in parts for label in given]

    def _likeliest(self, hidden: torch.Tensor) -> list[int]:
        head = self._model.get_output_embeddings()
        rows = max(1, AT_ONCE // head.weight.shape[0])
        ids = list[int]()
        for piece in hidden.split(rows):
            ids += head(piece.to(head.weight.dtype)).argmax(-1).tolist()
        return ids

    def scores(self) -> dict[str, float]:
        """Accuracy, macro F1 and the share of unanswered rows; empty if no row had a label."""
        return label_scores(self.expected, self.given)


def answer_spans(labels: np.ndarray, positions: np.ndarray | None = None) -> Iterator[tuple[int, int, int]]:
    """Batch row, start and stop of each example's last trained span, which is its answer. `labels` are [batch,
    sequence]; in packed rows, `positions` restart with each example."""
    for row, values in enumerate(labels):
        begins = np.flatnonzero(positions[row] == 0).tolist() if positions is not None else [0]
        for begin, end in zip(begins, [*begins[1:], len(values)], strict=True):
            trained = np.flatnonzero(values[begin:end] != IGNORED)
            if not len(trained):
                continue
            breaks = np.flatnonzero(np.diff(trained) > 1)
            first = trained[breaks[-1] + 1] if len(breaks) else trained[0]
            if begin + first > 0:
                yield row, begin + int(first), begin + int(trained[-1]) + 1


def thinking_tokens(answer: list[int], decode: Decode) -> int:
    """The number of reasoning tokens in an answer."""
    if _END_OF_THINKING not in decode(answer):
        return 0
    return next(size for size in range(1, len(answer) + 1) if _END_OF_THINKING in decode(answer[:size]))


def given_label(answer: list[int], likeliest: list[int], labels: Sequence[str], decode: Decode) -> str | None:
    """The label of an answer up to and including the first token that the model would not have generated."""
    same = next((at for at, pair in enumerate(zip(answer, likeliest, strict=True)) if pair[0] != pair[1]), len(answer))
    text = decode([*answer[:same], *likeliest[same : same + 1]])
    return label_of(text, labels, whole=same == len(answer))


def labelled_rows(rows: Sequence[Any], labels: Sequence[str], decode: Decode) -> int:
    """The number of examples whose answer gives a label. Raises `StudioError` if there are none."""
    labelled, answers = 0, list[str]()
    for example in rows:
        for _, start, stop in answer_spans(np.array([example.labels])):
            answers.append(decode(example.labels[start:stop]))
            labelled += label_of(answers[-1], labels) is not None
    if not labelled:
        examples = "; ".join(f"“{answer.strip()[:60]}”" for answer in dict.fromkeys(answers[:3]))
        raise StudioError(
            f"No answer among the {len(rows):,} validation rows is one of the labels {', '.join(labels)}.",
            f"The answers start like this: {examples}. Set evaluation.labels accordingly, or leave it empty.",
        )
    return labelled


@dataclass(frozen=True)
class TrainingRows:
    """Prepared rows with their tokenizer, the meter of labels if labels are named, and the validation questions."""

    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    meter: LabelMeter | None
    questions: list[Question]


def prepare_rows(run: RunFolder, config: Config, log: EventLog, *, resumed: bool) -> TrainingRows:
    """Prepares the rows with the function that the preview uses.

    Raises `OtherRowsError` for a resumed run whose rows changed, unless a person accepted the new ones.
    """
    log.phase("data")
    tokenizer = load_tokenizer(config.model.name, config.model.revision)
    with ranks.first_alone():  # the others read what the first has prepared
        prepared = prepare(
            **config.data.model_dump(),
            tokenizer=tokenizer,
            goal=config.training.goal,
            cache_folder=run.cache,
            on_progress=data_progress(log),
        )
    tokenizer.chat_template = prepared.template.source  # goes with every save
    data = data_event(prepared)
    before = log.state()
    if resumed and not before.other_rows:
        check_same_rows(run, before.data, data)
    if resumed and (words := other_rows(before.data, data)):
        log.emit(
            Warned(time.time(), f"As requested, the run continues with different rows than it started with: {words}.")
        )
    log.emit(data)
    for message in prepared.ignored:
        log.emit(Warned(time.time(), message))
    if ranks.world().is_first:
        write_suggestions(run, config, prepared)
    meter = label_meter(config, prepared, tokenizer, log)
    return TrainingRows(prepared, tokenizer, meter, questions_to_ask(config, prepared))


def write_suggestions(run: RunFolder, config: Config, prepared: Prepared) -> None:
    """Keeps a few validation questions beside the run, each with its system prompt, for the chat to suggest."""
    try:
        validation = questions(prepared, SUGGESTED, seed=config.data.split_seed, longest=config.data.max_length)
    except StudioError:
        return  # no validation row asks something: the chat has nothing to suggest
    suggestions = []
    for question in validation:
        first = {str(message["role"]): str(message["content"]) for message in reversed(question.messages)}
        if "user" in first:
            suggestions.append({"question": first["user"], "system": first.get("system", "")})
    write_atomically(run.questions, json.dumps(suggestions, ensure_ascii=False))


def data_event(prepared: Prepared) -> DataPrepared:
    """The event on the prepared data."""
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
        rows_digest=rows_digest(prepared),
    )


def rows_digest(prepared: Prepared) -> str:
    """A fingerprint of the training and validation rows: tokens and labels of every row, in order.

    It does not depend on file names or versions. Empty for a template that writes the current date.
    """
    if prepared.template.writes_date:
        return ""
    return ":".join(_digest(rows) for rows in (prepared.train, prepared.validation))


def _digest(rows: Examples | Pairs) -> str:
    columns: dict[str, tuple[hashlib.blake2b, hashlib.blake2b]] = {}
    for table in rows.tables() if len(rows) else ():
        for name, column in zip(table.schema.names, table.columns, strict=True):
            values, lengths = columns.setdefault(name, (hashlib.blake2b(), hashlib.blake2b()))
            if pa.types.is_boolean(column.type):
                values.update(column.to_numpy(zero_copy_only=False).tobytes())
                continue
            values.update(np.ascontiguousarray(column.values.to_numpy().astype("<i4", copy=False)).data)
            lengths.update(np.ascontiguousarray(np.diff(column.offsets.to_numpy()).astype("<i4", copy=False)).data)
    every = "".join(hasher.hexdigest() for name in sorted(columns) for hasher in columns[name])
    return hashlib.sha256(every.encode()).hexdigest()[:32]


def other_rows(before: DataPrepared | None, now: DataPrepared) -> str:
    """How a run's original rows differ from its current ones, in words; "" if they are the same.

    Runs of earlier versions logged a fingerprint of files and program, and counts: the counts decide if it changed.
    """
    if before is None or before.fingerprint == now.fingerprint:
        return ""
    numbers = [(event.train_rows, event.validation_rows, event.tokens, event.trained_tokens) for event in (before, now)]
    if before.rows_digest and now.rows_digest:
        same = before.rows_digest == now.rows_digest
    else:
        same = numbers[0][:2] == numbers[1][:2] if not now.rows_digest else numbers[0] == numbers[1]
    if same:
        return ""
    descriptions = [
        f"{count(rows, 'row')} of {count(tokens, 'token')} and {count(validation, 'validation row')}"
        for rows, validation, tokens, _ in numbers
    ]
    then, now_has = descriptions
    return f"{then} then, {'as many now, but different ones' if then == now_has else f'{now_has} now'}"


def check_same_rows(run: RunFolder, before: DataPrepared | None, now: DataPrepared) -> None:
    """Raises `OtherRowsError` if the rows have changed since the checkpoint was written."""
    if words := other_rows(before, now):
        raise OtherRowsError(
            f"The rows differ from those this run started with: {words}.",
            "Put the files back as they were to go on; or start a new run with the rows that are there now (it can "
            "continue from this run's adapter); or go on knowingly with other rows: "
            f"`train --resume {run.id} --other-rows`, on the page Resume with these rows.",
        )


def label_meter(config: Config, prepared: Prepared, tokenizer: Any, log: EventLog) -> LabelMeter | None:
    """Measures accuracy and F1 if labels are configured. Raises `StudioError` if no validation row has one."""
    labels, rows = config.evaluation.label_names, prepared.validation.answers
    if not labels:
        return None
    check_rows_to_measure(prepared, "accuracy and F1 of evaluation.labels")

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    labelled = labelled_rows(rows, labels, decode)
    if labelled < len(rows):
        words = (
            f"{len(rows) - labelled:,} of {len(rows):,} validation rows have an answer that is not one of the labels"
        )
        log.emit(Warned(time.time(), f"{words} {', '.join(labels)}; accuracy and F1 ignore them."))
    return LabelMeter(labels, decode)


def questions_to_ask(config: Config, prepared: Prepared) -> list[Question]:
    """The validation questions for sample generations; empty if none are configured."""
    count = config.evaluation.gen_eval_samples
    if not count:
        return []
    check_rows_to_measure(prepared, "sample generations (evaluation.gen_eval_samples)")
    return questions(prepared, count, seed=config.data.split_seed, longest=config.data.max_length)


def check_rows_to_measure(prepared: Prepared, noun: str) -> None:
    if not prepared.validation:
        raise StudioError(
            f"No validation rows are left for {noun}.",
            "Increase data.validation_fraction, or set a data.validation_file.",
        )


def as_dataset(examples: Examples | Pairs, folder: Path) -> Dataset:
    """The trainer's table, memory-mapped from an unnamed file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = examples.tables()
    first = next(tables)
    with tempfile.TemporaryFile(dir=folder) as file:
        with pa.ipc.new_stream(file, first.schema) as stream:
            for table in chain([first], tables):
                stream.write_batch(table)
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    rows = pa.ipc.open_stream(pa.BufferReader(pa.py_buffer(mapped))).read_all()
    return Dataset(InMemoryTable(rows), fingerprint=secrets.token_hex(8))


class RankBatches(torch.utils.data.Sampler[list[int]]):
    """This process's share of the batches that one process would make of the same order: of each `world.size` one.

    So a step has the same rows with any number of processes. All have as many batches: one without rows is empty.
    """

    def __init__(self, order: torch.utils.data.Sampler[int], batch_size: int, world: ranks.World) -> None:
        self.order, self.batch_size, self.world = order, batch_size, world

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.order, EpochOrder):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        rows: Any = self.order
        return -(-len(rows) // (self.batch_size * self.world.size))

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        for turn in range(len(self)):
            start = (turn * self.world.size + self.world.rank) * self.batch_size
            yield rows[start : start + self.batch_size]


class RankLoader(torch.utils.data.DataLoader[Any]):
    """The batches of `RankBatches`. An empty one becomes `blank`: a row that trains nothing, so that all keep step."""

    def __init__(
        self, dataset: Any, batches: RankBatches, collate: Callable[[list[Any]], Batch], pin: bool, workers: int
    ) -> None:
        def with_blank(rows: list[Any]) -> Batch:
            return collate(rows) if rows else blank(collate([dataset[0]]))

        super().__init__(dataset, batch_sampler=batches, collate_fn=with_blank, pin_memory=pin, num_workers=workers)

    def set_epoch(self, epoch: int) -> None:
        shares: Any = self.batch_sampler
        shares.set_epoch(epoch)


def blank(batch: Batch) -> Batch:
    """The batch without a trained token."""
    if "labels" in batch:
        return {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}
    return {name: torch.zeros_like(of) if name.endswith("completion_mask") else of for name, of in batch.items()}


def is_blank(batch: Batch) -> bool:
    return not bool((batch["labels"] != IGNORED).any() if "labels" in batch else batch["completion_mask"].any())


def tokens_of(batch: Batch) -> int:
    """The tokens of a batch, as trl counts them."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["position_ids"].shape[1]
