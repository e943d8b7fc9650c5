"""`prepare()`: read, convert, split, encode: the one path from a file to examples for both preview and training."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lora_studio.config.sections import Data
from lora_studio.data.cache import Cache
from lora_studio.data.chat_templates import Template, choose_template
from lora_studio.data.encode import Encoder
from lora_studio.data.examples import Examples, Pairs, PairStore, Unpaired, examples_of
from lora_studio.data.mapping import Format, MappingValues
from lora_studio.data.memory_limit import limited
from lora_studio.data.messages import BadRow
from lora_studio.data.pipeline import Conversations, EncodedSource, Preparation, tokenizer_key
from lora_studio.data.quality import sample_rows, split
from lora_studio.data.sources import Source, open_source
from lora_studio.data.store import BadRows, Progress
from lora_studio.errors import StudioError
from lora_studio.models.hub import is_dataset_name
from lora_studio.workspace import shipped_data

_CODE_VERSION = 2
_SAMPLE_ROWS = 400
_LARGE_BYTES = 1 << 22
_NAMED_ROWS = 5
_NOT_IN_FINGERPRINT = {"train_file", "validation_file", "mapping", "bad_rows"}  # or in the sources' own
NOTHING_LEFT = "no trained token is left after truncation to the max length"
NOTHING_TO_COMPARE = "no two answers are left to compare after truncation to the max length"
SplitRules = tuple[float, int, int | None, int | None]
"""The validation fraction, the seed, and the most rows to train on and to measure on."""


@dataclass
class PreparedRows:
    """The rows of a data set as tokens, split, before any cut to length. Nothing of its size is held in memory.

    `selected` are indices into the rows of `part` to train on, and into those of the validation part to measure on.
    `sampled` is the number of rows that were read, None for the whole file.
    """

    encoder: Encoder
    part: EncodedSource
    validation_part: EncodedSource | None
    selected: tuple[np.ndarray, np.ndarray]
    assumptions: list[str]
    source_fingerprint: str
    cache: Cache
    sampled: int | None
    goal: str

    @property
    def template(self) -> Template:
        return self.encoder.template

    @property
    def format(self) -> Format:
        return self.part.format

    @property
    def bad_rows(self) -> BadRows:
        return self.part.bad_rows

    @property
    def conversations(self) -> Conversations:
        """The training file's usable rows in the file's order, those of the validation split included."""
        return self.part.conversations

    @property
    def ignored(self) -> list[str]:
        """What became of answers labelled bad that are not trained, in sentences."""
        return [] if self.part.unpaired else _marks(self.part, self.validation_part)


@dataclass
class Cut:
    """The examples of a data set at the length and in the way of `settings`. `dropped` rows keep no trained token.

    Rows to learn from by comparison are `Pairs`; rows marked bad are neither usable nor bad.
    """

    settings: Data
    train: Examples | Pairs
    validation: Examples | Pairs
    dropped: list[BadRow]
    fingerprint: str


@dataclass
class Prepared(Cut, PreparedRows):
    """A data set ready for training, with all that a view of it needs."""


def resolve_source(name_or_path: str) -> Path:
    """The training file of a shipped data set, or the path. Raises StudioError for a name that is neither."""
    shipped = shipped_data()
    if name_or_path in shipped:
        return shipped[name_or_path].train
    path = Path(name_or_path).expanduser()
    if os.path.exists(path) or path.suffix or len(path.parts) > 1:
        return path
    names = ", ".join(shipped)
    raise StudioError(f"There is no file or dataset {name_or_path!r}.", f"Give a file's path, or one of: {names}.")


def open_data(name: str, encoding: str | None = None) -> Source:
    """Opens a shipped data set, a path, or a data set of the Hub."""
    return open_source(name if is_dataset_name(name) else resolve_source(name), encoding)


@limited()
def prepare(
    train_file: str,
    tokenizer: Any,
    *,
    validation_file: str | None = None,
    mapping: MappingValues | None = None,
    goal: str = "answers",
    bad_rows: str = "skip",
    cache_folder: Path | None = None,
    on_progress: Progress | None = None,
    on_sample: Callable[[Prepared], None] | None = None,
    **settings: Any,
) -> Prepared:
    """Examples of a file, split into training and validation; `settings` are those of the config's data section.

    `goal` is what is to be learned from: see `formats.detect_format`.
    `on_progress(phase, done, total)` is called in the phases lookup, read, convert, encode and split, counted in rows
    (`total` is 0 or a guess while a file is read); what it raises ends the work. Before anything that takes long,
    `on_sample` gets what the first rows of a large file come to (phase first). What was read and encoded is kept in
    `cache_folder` and found there again.
    Raises StudioError where nothing can be trained, and for a single bad row where `bad_rows` is "stop".
    """
    data = _settings(settings)
    report = on_progress or (lambda phase, done, total: None)
    work, sources = _preparation(
        train_file,
        validation_file,
        tokenizer,
        data,
        mapping=mapping,
        goal=goal,
        cache=Cache(cache_folder),
        report=report,
    )
    if on_sample and not _is_small(sources):
        work.before_slow = FirstLook(work, sources, data, on_sample)
    return _accepted(_prepared(work, sources, data), bad_rows)


@limited()
def look_at_first(
    train_file: str,
    tokenizer: Any,
    *,
    validation_file: str | None = None,
    mapping: MappingValues | None = None,
    goal: str = "answers",
    bad_rows: str = "skip",
    **settings: Any,
) -> Prepared:
    """Prepares the first rows of a file only, quickly for any size. `sampled` is None for a file read whole.

    Takes and raises what `prepare` does. A file whose first rows are all bad is read whole.
    """
    data = _settings(settings)
    work, sources = _preparation(train_file, validation_file, tokenizer, data, mapping=mapping, goal=goal)
    sample = None if _is_small(sources) else _first_rows(work, sources, data)
    return _accepted(sample or _prepared(work, sources, data), bad_rows)


class FirstLook:
    """Prepares the first rows once and hands them to `on_sample`, before the work that takes long."""

    def __init__(
        self, work: Preparation, sources: list[Source], data: Data, on_sample: Callable[[Prepared], None]
    ) -> None:
        self._work, self._sources, self._data = work, sources, data
        self._on_sample: Callable[[Prepared], None] | None = on_sample

    def __call__(self) -> None:
        on_sample, self._on_sample = self._on_sample, None
        sample = _first_rows(self._work, self._sources, self._data) if on_sample else None
        if on_sample and sample:
            on_sample(sample)


def _settings(settings: Mapping[str, Any]) -> Data:
    """Settings of the config's data section, with its defaults. They were checked where they were entered."""
    unknown = settings.keys() - Data.model_fields.keys()
    if unknown:
        raise TypeError(f"unknown data settings: {', '.join(sorted(unknown))}")
    return Data.model_construct(**settings)


def _preparation(
    train_file: str,
    validation_file: str | None,
    tokenizer: Any,
    data: Data,
    *,
    mapping: MappingValues | None,
    goal: str,
    cache: Cache | None = None,
    report: Progress = lambda phase, done, total: None,
) -> tuple[Preparation, list[Source]]:
    """How rows are made, and the sources of the training file and of the validation file."""
    template = choose_template(tokenizer, data.prompt_style)
    encoder = Encoder(
        tokenizer,
        template,
        max_length=data.max_length,
        truncation=data.truncation,
        train_on=data.train_on,
        enable_thinking=data.enable_thinking,
    )
    day = date.today().isoformat() if template.writes_date else None
    key = [tokenizer_key(tokenizer), [template.source, day], data.train_on, data.enable_thinking]
    sources = [open_data(name, data.encoding) for name in (train_file, validation_file) if name]
    work = Preparation(encoder, key, data.system_prompt, mapping, cache or Cache(None), report, goal=goal)
    return work, sources


def _is_small(sources: list[Source]) -> bool:
    """Whether reading all takes no longer than a sample; never for data sets of the Hub, whose size is unknown."""
    size = sum(path.stat().st_size for source in sources for path in source.files)
    return size < _LARGE_BYTES and all(source.files for source in sources)


def _first_rows(work: Preparation, sources: list[Source], data: Data) -> Prepared | None:
    """The first rows of the sources, prepared; None if none of them is usable, as later rows may be."""
    try:
        sample = _prepared(work.first_rows(_SAMPLE_ROWS), sources, data)
    except StudioError:
        return None
    return replace(sample, sampled=len(sample.conversations))


def _accepted(prepared: Prepared, bad_rows: str) -> Prepared:
    error = refusal(prepared)
    if bad_rows == "stop" and error:
        raise error
    return prepared


def refusal(prepared: Prepared) -> StudioError | None:
    """The error for `bad_rows: stop`, with counts by reason and the first bad rows; None without bad rows."""
    parts = [part for part in (prepared.part, prepared.validation_part) if part]
    bad = sum(len(part.bad_rows) for part in parts)
    if not bad:
        return None
    reasons: Counter[str] = Counter()
    for part in parts:
        reasons.update(part.bad_rows.reasons())
    counted = "; ".join(f"{reason}: {times:,}" for reason, times in reasons.most_common())
    first = [
        f"{Path(part.name).name}, row {row.row:,}: {row.reason}" + (f" ({row.field})" if row.field else "")
        for part, row in islice(((part, row) for part in parts for row in part.bad_rows), _NAMED_ROWS)
    ]
    more = f"\n… and {bad - len(first):,} more" if bad > len(first) else ""
    return StudioError(
        f"{bad:,} {'row' if bad == 1 else 'rows'} are invalid ({counted}), and data.bad_rows is set to stop "
        "the work:\n" + "\n".join(first) + more,
        "Fix these rows or remove them from the file. Or set data.bad_rows to skip, which leaves invalid rows out.",
    )


def _prepared(work: Preparation, sources: list[Source], data: Data) -> Prepared:
    rules: SplitRules = (data.validation_fraction, data.split_seed, data.max_samples, data.max_eval_samples)
    validation_part = None
    if len(sources) > 1:
        limit = data.max_eval_samples
        validation_part = work.part(
            sources[1],
            (lambda group: sample_rows(len(group), data.split_seed, limit)) if limit else None,
            [data.split_seed, limit] if limit else None,
        )
        rules = (0.0, data.split_seed, data.max_samples, None)
    is_limited = data.max_samples is not None

    def choose(group: np.ndarray) -> np.ndarray:
        return np.sort(np.concatenate(split(group, *rules)))

    part = work.part(sources[0], choose if is_limited else None, rules if is_limited else None)
    if validation_part:
        _check_alike(part, validation_part)
    work.report("split", 0, 0)
    rows = PreparedRows(
        encoder=work.encoder,
        part=part,
        validation_part=validation_part,
        selected=_selected(part, validation_part, rules),
        assumptions=_assumptions(part, work.encoder.template, validation_part),
        source_fingerprint=_source_fingerprint(part, validation_part, work),
        cache=work.cache,
        sampled=None,
        goal=work.goal,
    )
    return Prepared(**vars(rows), **vars(_cut(rows, data, work.report)))


def _check_alike(part: EncodedSource, validation_part: EncodedSource) -> None:
    """Raises StudioError where only one of the two files holds pairs, or good and bad answers."""
    unlike = {
        "preference pairs": [
            isinstance(source.rows, PairStore) and not source.unpaired for source in (part, validation_part)
        ],
        "answers labelled good or bad": [source.unpaired for source in (part, validation_part)],
    }
    for kind, (train, validation) in unlike.items():
        if train != validation:
            raise StudioError(
                f"Of the training and validation file, only one contains {kind}.", "Use two files of the same kind."
            )


def _selected(
    part: EncodedSource, validation_part: EncodedSource | None, rules: SplitRules
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the rows of the part to train on, and into those of the part to measure on."""
    place = np.full(len(part.all_groups), -1, np.int64)
    place[np.searchsorted(part.all_positions, part.rows.position)] = np.arange(len(part.rows))
    train, validation = (place[side][place[side] >= 0] for side in split(part.all_groups, *rules))
    return train, np.arange(len(validation_part.rows)) if validation_part else validation


def recut(
    prepared: Prepared, *, max_length: int, truncation: str, report: Progress = lambda phase, done, total: None
) -> Prepared:
    """The same data at another length or way of cutting, without reading or tokenising again."""
    data = prepared.settings.model_copy(update={"max_length": max_length, "truncation": truncation})
    return replace(prepared, **vars(_cut(prepared, data, report)))


def _cut(rows: PreparedRows, data: Data, report: Progress) -> Cut:
    """Truncates rows by the settings of `data`. Raises StudioError if no training example is left."""
    stores = (rows.part.rows, (rows.validation_part or rows.part).rows)
    cut = []
    for store, selected in zip(stores, rows.selected, strict=True):
        report("split", 0, 0)
        cut.append(examples_of(store, selected, data.max_length, data.truncation, unpaired=rows.part.unpaired))
    train, validation = cut
    report("split", 0, 0)
    if not len(train):
        raise StudioError(
            f"No row keeps a trained token at a max length of {data.max_length:,} tokens.",
            "Increase data.max_length, or set data.truncation to keep_answer.",
        )
    if rows.goal == "unpaired" and isinstance(train, Unpaired):
        _check_both_labels(train, rows.part)
    dropped = [
        BadRow(row, NOTHING_TO_COMPARE if isinstance(store, PairStore) else NOTHING_LEFT, f"{length} tokens")
        for store, examples in zip(stores, (train, validation), strict=True)
        for row, length in examples.dropped
    ]
    rules = data.model_dump(exclude=_NOT_IN_FINGERPRINT)
    if data.encoding is None:
        del rules["encoding"]  # keeps the fingerprints of runs older than this setting
    if rows.part.unpaired:
        rules["unpaired"] = True
    whole = json.dumps([rows.source_fingerprint, _CODE_VERSION, rules], sort_keys=True)
    return Cut(data, train, validation, dropped, hashlib.sha256(whole.encode()).hexdigest())


def _check_both_labels(train: Unpaired, part: EncodedSource) -> None:
    """Raises StudioError for training rows of one label alone, from which KTO can learn nothing but that one."""
    good, bad = train.counts
    if good and bad:
        return
    label, missing = ("good", "bad") if good else ("bad", "good")
    raise StudioError(
        f"KTO needs good and bad answers, but all {good or bad:,} training rows of {Path(part.name).name} are "
        f"labelled {label}.",
        f"Add answers labelled {missing}" + (", or set training.method to sft." if good else "."),
    )


def _assumptions(part: EncodedSource, template: Template, validation_part: EncodedSource | None) -> list[str]:
    notes = list(part.records.assumptions)
    if part.format.question:
        notes.append(f"The columns can be mapped in several ways. {part.format.question} The mapping above is used.")
    notes += part.omissions
    notes += _marks(part, validation_part)
    resting = part.facts["resting"]
    if resting:
        notes.append(f"{resting} rows contain answers that the file excludes from training.")
    if template.writes_date:
        notes.append(f"The chat template writes today's date into every row ({date.today().isoformat()}).")
    if validation_part:
        bad = len(validation_part.bad_rows)
        rows = f"{len(validation_part.conversations)} rows" + (f", {bad} invalid rows skipped" if bad else "")
        notes.append(
            f"The validation file {Path(validation_part.name).name} has {rows}: {validation_part.format.words}"
        )
        notes += [f"Validation file: {sentence}" for sentence in validation_part.records.assumptions]
    return notes


def _marks(part: EncodedSource, validation_part: EncodedSource | None) -> list[str]:
    own, other = part.marks, validation_part.marks if validation_part else ""
    return [*([own] if own else []), *([f"Validation file: {other}"] if other else [])]


def _source_fingerprint(part: EncodedSource, validation_part: EncodedSource | None, work: Preparation) -> str:
    """Fingerprint of the files' bytes, the mapping, the tokenizer and the template."""
    parts = [part, *([validation_part] if validation_part else [])]
    contents = [item.digests or item.name for item in parts]
    return hashlib.sha256(
        json.dumps([contents, work.mapping, work.encoder_key[:2]], sort_keys=True).encode()
    ).hexdigest()
