"""prepare(): read, convert, split, encode. The one path from a file to examples that preview and training share."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lora_studio.data.cache import Cache
from lora_studio.data.encode import Encoder
from lora_studio.data.examples import Examples, Pairs, examples_of
from lora_studio.data.mapping import Format
from lora_studio.data.memory_limit import limited
from lora_studio.data.pipeline import Conversations, Part, Preparation, Progress, tokenizer_key
from lora_studio.data.prompt_styles import Template, choose_template
from lora_studio.data.quality import some, split
from lora_studio.data.readers.hub import is_hub_name
from lora_studio.data.rows import BadRow
from lora_studio.data.sources import Source, open_source
from lora_studio.data.store import BadRows
from lora_studio.data.template_coverage import sentences
from lora_studio.errors import StudioError
from lora_studio.workspace import shipped_data

_CODE_VERSION = 2
_SAMPLE_ROWS = 400
_LARGE_BYTES = 1 << 22
_NAMED_ROWS = 5
NOTHING_LEFT = "the cut to the longest length leaves no trained token"
NOTHING_TO_COMPARE = "the cut to the longest length leaves no two answers to compare"


@dataclass(frozen=True)
class Settings:
    """Every setting beside the files that decides what examples come out.

    Names and defaults are those of the config's data section; a test holds the two together.
    """

    validation_fraction: float = 0.1
    split_seed: int = 42
    prompt_style: str = "auto"
    system_prompt: str | None = None
    enable_thinking: bool | None = None
    max_length: int = 1024
    truncation: str = "keep_answer"
    train_on: str = "assistant"
    max_samples: int | None = None
    max_eval_samples: int | None = None
    encoding: str | None = None


@dataclass
class Prepared:
    """A data set ready for training, with all that a view of it needs. Nothing of its size is held in memory.

    `conversations` are the training file's usable rows in the file's order, those kept back included. `dropped` rows
    keep no trained token. Rows to learn from by comparison are `Pairs`; rows marked bad are neither usable nor bad.
    `sampled` is the number of rows looked at,
    where it was not the whole file.
    """

    format: Format
    template: Template
    train: Examples | Pairs
    validation: Examples | Pairs
    bad_rows: BadRows
    dropped: list[BadRow]
    assumptions: list[str]
    fingerprint: str
    settings: Settings
    encoder: Encoder
    part: Part
    kept_back: Part | None
    chosen: tuple[np.ndarray, np.ndarray]
    source_fingerprint: str
    cache: Cache
    sampled: int | None = None

    @property
    def conversations(self) -> Conversations:
        return self.part.conversations

    @property
    def marks(self) -> list[str]:
        """What became of rows marked good or bad, in sentences."""
        return _marks(self.part, self.kept_back)


def resolve_source(name_or_path: str) -> Path:
    """The training file that a name of a shipped data set, or a path, stands for."""
    shipped = shipped_data()
    if name_or_path in shipped:
        return shipped[name_or_path].train
    path = Path(name_or_path).expanduser()
    if os.path.exists(path) or path.suffix or len(path.parts) > 1:
        return path
    names = ", ".join(shipped)
    raise StudioError(f"There is no file or data set {name_or_path!r}.", f"Give a file's path, or one of: {names}.")


def open_data(name: str, encoding: str | None = None) -> Source:
    """The rows that a name stands for: a shipped data set, a path, or a data set of the Hub."""
    return open_source(name if is_hub_name(name) else resolve_source(name), encoding)


@limited()
def prepare(
    train_file: str,
    tokenizer: Any,
    *,
    validation_file: str | None = None,
    mapping: dict[str, Any] | None = None,
    goal: str = "answers",
    bad_rows: str = "skip",
    cache_folder: Path | None = None,
    on_progress: Progress | None = None,
    on_sample: Callable[[Prepared], None] | None = None,
    **settings: Any,
) -> Prepared:
    """Examples of a file, split into training and validation; `settings` are the fields of `Settings`.

    `goal` is what is to be learned from: "answers", comparisons ("preference"), or "any" of the two, as the rows are.
    `on_progress(phase, done, total)` is called in the phases lookup, read, convert, encode and split, counted in rows
    (`total` is 0 or a guess while a file is read); what it raises ends the work. Before anything that takes long,
    `on_sample` gets what the first rows of a large file come to (phase first). What was read and encoded is kept in
    `cache_folder` and found there again.
    Raises StudioError where nothing can be trained, and for a single bad row where `bad_rows` is "stop".
    """
    wanted = Settings(**settings)
    template = choose_template(tokenizer, wanted.prompt_style)
    encoder = Encoder(
        tokenizer,
        template,
        max_length=wanted.max_length,
        truncation=wanted.truncation,
        train_on=wanted.train_on,
        enable_thinking=wanted.enable_thinking,
    )
    day = date.today().isoformat() if template.writes_date else None
    key = [tokenizer_key(tokenizer), [template.source, day], wanted.train_on, wanted.enable_thinking]
    names = [train_file, *([validation_file] if validation_file else [])]
    sources = [open_data(name, wanted.encoding) for name in names]
    report = on_progress or (lambda phase, done, total: None)

    def first_look() -> None:
        nonlocal on_sample
        if on_sample:
            give, on_sample = on_sample, None
            try:
                seen = _prepared(work.first_rows(_SAMPLE_ROWS), sources, template, wanted)
            except StudioError:
                return  # the first rows may be bad where later ones are not
            give(replace(seen, sampled=len(seen.conversations)))

    work = Preparation(
        encoder,
        key,
        template.origin,
        wanted.system_prompt,
        mapping,
        Cache(cache_folder),
        report,
        before_slow=first_look,
        goal=goal,
    )
    size = sum(path.stat().st_size for source in sources for path in source.files)
    if size < _LARGE_BYTES and all(source.files for source in sources):
        on_sample = None  # the whole is there as soon as a part of it
    return _accepted(_prepared(work, sources, template, wanted), bad_rows)


def _accepted(prepared: Prepared, bad_rows: str) -> Prepared:
    refused = refusal(prepared)
    if bad_rows == "stop" and refused:
        raise refused
    return prepared


def refusal(prepared: Prepared) -> StudioError | None:
    """What to say where bad rows are to stop the work: how many by reason, and the first; None without bad rows."""
    parts = [part for part in (prepared.part, prepared.kept_back) if part]
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
        f"{bad:,} {'row' if bad == 1 else 'rows'} can't be used ({counted}), and bad rows are to stop "
        "the work:\n" + "\n".join(first) + more,
        "Mend these rows or take them out of the file; or let bad_rows be skip, which leaves them out of the training.",
    )


def look_at_first(
    train_file: str,
    tokenizer: Any,
    *,
    validation_file: str | None = None,
    mapping: dict[str, Any] | None = None,
    bad_rows: str = "skip",
    **settings: Any,
) -> Prepared:
    """What the first rows of a file come to, in a moment whatever its size. `sampled` is None where that was all.

    Takes and raises what `prepare` does. A file whose first rows are all bad is read whole.
    """
    given: list[Prepared] = []

    class EnoughError(Exception):
        """The look is taken: the rest of the file is left alone."""

    def take(prepared: Prepared) -> None:
        given.append(prepared)
        raise EnoughError

    try:
        seen = prepare(
            train_file, tokenizer, validation_file=validation_file, mapping=mapping, on_sample=take, **settings
        )
    except EnoughError:
        seen = given[0]
    return _accepted(seen, bad_rows)


def _prepared(work: Preparation, sources: list[Source], template: Template, wanted: Settings) -> Prepared:
    rules = (wanted.validation_fraction, wanted.split_seed, wanted.max_samples, wanted.max_eval_samples)
    kept_back = None
    if len(sources) > 1:
        limit = wanted.max_eval_samples
        kept_back = work.part(
            sources[1],
            (lambda group: some(len(group), wanted.split_seed, limit)) if limit else None,
            [wanted.split_seed, limit] if limit else None,
        )
        rules = (0.0, wanted.split_seed, wanted.max_samples, None)
    limited = wanted.max_samples is not None

    def choose(group: np.ndarray) -> np.ndarray:
        return np.sort(np.concatenate(split(group, *rules)))

    part = work.part(sources[0], choose if limited else None, rules if limited else None)
    if kept_back and (part.format.name == "preference") != (kept_back.format.name == "preference"):
        raise StudioError(
            "Of the training and the validation file one holds comparisons, the other does not.",
            "Choose two files of one kind.",
        )
    work.report("split", 0, 0)
    shell = Prepared(
        format=part.format,
        template=template,
        train=examples_of(part.rows, np.empty(0, np.int64), 1, "drop"),
        validation=examples_of(part.rows, np.empty(0, np.int64), 1, "drop"),
        bad_rows=part.bad_rows,
        dropped=[],
        assumptions=_assumptions(part, template, kept_back),
        fingerprint="",
        settings=wanted,
        encoder=work.encoder,
        part=part,
        kept_back=kept_back,
        chosen=_chosen(part, kept_back, rules),
        source_fingerprint=_source_fingerprint(part, kept_back, work),
        cache=work.cache,
    )
    return recut(shell, max_length=wanted.max_length, truncation=wanted.truncation, report=work.report)


def _chosen(
    part: Part, kept_back: Part | None, rules: tuple[float, int, int | None, int | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the rows of the part to train on, and into those of the part to measure on."""
    place = np.full(len(part.all_groups), -1, np.int64)
    place[np.searchsorted(part.all_positions, part.rows.position)] = np.arange(len(part.rows))
    train, validation = (place[side][place[side] >= 0] for side in split(part.all_groups, *rules))
    return train, np.arange(len(kept_back.rows)) if kept_back else validation


def recut(
    prepared: Prepared, *, max_length: int, truncation: str, report: Progress = lambda phase, done, total: None
) -> Prepared:
    """The same data at another length or way of cutting, without reading or tokenising again."""
    settings = replace(prepared.settings, max_length=max_length, truncation=truncation)
    stores = (prepared.part.rows, (prepared.kept_back or prepared.part).rows)
    cut = []
    for store, selected in zip(stores, prepared.chosen, strict=True):
        report("split", 0, 0)
        cut.append(examples_of(store, selected, max_length, truncation))
    train, validation = cut
    report("split", 0, 0)
    if not len(train):
        raise StudioError(
            f"No row keeps a trained token at a longest length of {max_length:,} tokens.",
            "Choose a greater max_length, or keep the answer when cutting.",
        )
    dropped = [
        BadRow(row, NOTHING_TO_COMPARE if isinstance(examples, Pairs) else NOTHING_LEFT, f"{length} tokens")
        for examples in (train, validation)
        for row, length in examples.dropped
    ]
    rules = vars(settings).copy()
    if settings.encoding is None:
        del rules["encoding"]  # so that runs from before there was one are known again
    whole = json.dumps([prepared.source_fingerprint, _CODE_VERSION, rules], sort_keys=True)
    return replace(
        prepared,
        train=train,
        validation=validation,
        dropped=dropped,
        settings=settings,
        fingerprint=hashlib.sha256(whole.encode()).hexdigest(),
    )


def _assumptions(part: Part, template: Template, kept_back: Part | None) -> list[str]:
    notes = list(part.records.assumptions)
    if part.format.question:
        notes.append(f"The rows can be read in several ways. {part.format.question} The reading above is used.")
    notes += sentences(part.facts["omitted"])
    notes += _marks(part, kept_back)
    resting = part.facts["resting"]
    if resting:
        notes.append(f"{resting} rows hold answers that the file marks as not to be trained.")
    if template.writes_date:
        notes.append(f"The chat template writes the day's date into every row ({date.today().isoformat()}).")
    if kept_back:
        bad = len(kept_back.bad_rows)
        rows = f"{len(kept_back.conversations)} rows" + (f", {bad} bad rows left out" if bad else "")
        notes.append(f"The validation file {Path(kept_back.name).name} has {rows}: {kept_back.format.words}")
        notes += [f"Validation file: {sentence}" for sentence in kept_back.records.assumptions]
    return notes


def _marks(part: Part, kept_back: Part | None) -> list[str]:
    own, other = part.marks, kept_back.marks if kept_back else ""
    return [*([own] if own else []), *([f"Validation file: {other}"] if other else [])]


def _source_fingerprint(part: Part, kept_back: Part | None, work: Preparation) -> str:
    """What the examples come from: the files' bytes, how they are read, the tokenizer and the template."""
    parts = [part, *([kept_back] if kept_back else [])]
    contents = [item.digests or item.name for item in parts]
    return hashlib.sha256(
        json.dumps([contents, work.mapping, work.encoder_key[:2]], sort_keys=True).encode()
    ).hexdigest()
