"""prepare(): read, convert, split, encode. The one path from a file to examples that preview and training share."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_studio.data.encode import Encoded, Encoder, Example, cut
from lora_studio.data.formats import Format, convert, recognise
from lora_studio.data.messages import Conversation, RowError
from lora_studio.data.prompt_styles import Template, choose_template
from lora_studio.data.records import BadRow, RecordFile, read_records
from lora_studio.data.rows import Record
from lora_studio.errors import StudioError
from lora_studio.workspace import shipped_data

_CODE_VERSION = 1
_REPORT_EVERY = 2000
_REASONING_WORDS = ("reasoning", "thinking", "thought")
NOTHING_LEFT = "the cut to the longest length leaves no trained token"

Progress = Callable[[str, int, int], None]


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


@dataclass
class Prepared:
    """A data set ready for training, with all that a view of it needs.

    `conversations` are the training file's usable rows in the file's order, those kept back included; `encoded` and
    `encoded_validation` are the rows of the two parts before the cut. `dropped` rows keep no trained token.
    """

    format: Format
    template: Template
    train: list[Example]
    validation: list[Example]
    bad_rows: list[BadRow]
    dropped: list[BadRow]
    assumptions: list[str]
    fingerprint: str
    settings: Settings
    file: RecordFile
    conversations: list[Conversation]
    encoded: list[Encoded]
    encoded_validation: list[Encoded]
    encoder: Encoder
    validation_rows: frozenset[int]
    source_fingerprint: str


@dataclass
class _Source:
    """One file read and converted."""

    file: RecordFile
    format: Format
    conversations: list[Conversation]
    bad_rows: list[BadRow]


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


def prepare(
    train_file: str,
    tokenizer: Any,
    *,
    validation_file: str | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> Prepared:
    """Examples of a file, split into training and validation; `settings` are the fields of `Settings`.

    `on_progress(phase, done, total)` is called in the phases read, convert and encode, counted in rows; what it raises
    ends the work. Raises StudioError where nothing can be trained.
    """
    wanted = Settings(**settings)
    report = on_progress or (lambda phase, done, total: None)
    template = choose_template(tokenizer, wanted.prompt_style)
    source = _read(resolve_source(train_file), wanted.system_prompt, report)
    kept_back = _read(resolve_source(validation_file), wanted.system_prompt, report) if validation_file else None
    train, validation = _split(source.conversations, wanted, kept_back)
    encoder = Encoder(
        tokenizer,
        template,
        max_length=wanted.max_length,
        truncation=wanted.truncation,
        train_on=wanted.train_on,
        enable_thinking=wanted.enable_thinking,
    )
    total = len(train) + len(validation)
    encoded, bad = encoder.encode_whole(train, lambda done, _: report("encode", done, total))
    encoded_validation, bad_validation = encoder.encode_whole(
        validation, lambda done, _: report("encode", len(train) + done, total)
    )
    unrendered = [*bad, *([] if kept_back else bad_validation)]
    refused = {row.row for row in unrendered}
    bad_rows = sorted([*source.bad_rows, *unrendered], key=lambda row: row.row)
    if not encoded:
        raise _nothing_to_train(source, bad_rows)
    files = [source.file.path, *([kept_back.file.path] if kept_back else [])]
    shell = Prepared(
        format=source.format,
        template=template,
        train=[],
        validation=[],
        bad_rows=bad_rows,
        dropped=[],
        assumptions=_assumptions(source, template, kept_back, bad_validation),
        fingerprint="",
        settings=wanted,
        file=source.file,
        conversations=[chat for chat in source.conversations if chat.row not in refused],
        encoded=encoded,
        encoded_validation=encoded_validation,
        encoder=encoder,
        validation_rows=frozenset() if kept_back else frozenset(chat.row for chat in validation),
        source_fingerprint=_source_fingerprint(files, tokenizer, template),
    )
    return recut(shell, max_length=wanted.max_length, truncation=wanted.truncation)


def recut(prepared: Prepared, *, max_length: int, truncation: str) -> Prepared:
    """The same data at another length or way of cutting, without reading or tokenising again."""
    settings = replace(prepared.settings, max_length=max_length, truncation=truncation)
    dropped: list[BadRow] = []
    parts = []
    for rows in (prepared.encoded, prepared.encoded_validation):
        examples = [cut(row, max_length, truncation) for row in rows]
        parts.append([example for example in examples if example.trained_tokens])
        dropped += [
            BadRow(example.row, NOTHING_LEFT, f"{example.full_length} tokens")
            for example in examples
            if not example.trained_tokens
        ]
    if not parts[0]:
        raise StudioError(
            f"No row keeps a trained token at a longest length of {max_length} ({truncation}).",
            "Choose a greater max_length, or keep the answer when cutting.",
        )
    whole = json.dumps([prepared.source_fingerprint, _CODE_VERSION, vars(settings)], sort_keys=True)
    return replace(
        prepared,
        train=parts[0],
        validation=parts[1],
        dropped=dropped,
        settings=settings,
        fingerprint=hashlib.sha256(whole.encode()).hexdigest(),
    )


def _read(path: Path, system_prompt: str | None, report: Progress) -> _Source:
    report("read", 0, 0)
    file = read_records(path)
    rows = len(file.records)
    report("read", rows, rows)
    shape = recognise(file.records)
    conversations: list[Conversation] = []
    bad_rows = list(file.bad_rows)
    for position, record in enumerate(file.records):
        try:
            conversations.append(convert(record, shape, system_prompt))
        except RowError as error:
            bad_rows.append(error.at(record.row))
        if position % _REPORT_EVERY == 0:
            report("convert", position, rows)
    report("convert", rows, rows)
    source = _Source(file, shape, conversations, bad_rows)
    if not conversations:
        raise _nothing_to_train(source, bad_rows)
    return source


def _split(
    rows: Sequence[Conversation], settings: Settings, kept_back: _Source | None
) -> tuple[list[Conversation], list[Conversation]]:
    """Training and validation rows, each in the file's order; decided by the number of rows and the seed alone."""
    order = list(range(len(rows)))
    random.Random(settings.split_seed).shuffle(order)
    share = 0 if kept_back else round(len(rows) * settings.validation_fraction)
    if settings.validation_fraction > 0 and not kept_back and len(rows) > 1:
        share = min(max(share, 1), len(rows) - 1)
    train = sorted(order[share:][: settings.max_samples])
    if kept_back:
        most = settings.max_eval_samples
        chosen = list(range(len(kept_back.conversations)))
        random.Random(settings.split_seed).shuffle(chosen)
        validation = [kept_back.conversations[position] for position in sorted(chosen[:most])]
    else:
        validation = [rows[position] for position in sorted(order[:share][: settings.max_eval_samples])]
    return [rows[position] for position in train], validation


def _assumptions(
    source: _Source, template: Template, kept_back: _Source | None, bad_validation: list[BadRow]
) -> list[str]:
    found = list(source.file.assumptions)
    thoughtful = sum(any(message.reasoning_content for message in chat.messages) for chat in source.conversations)
    if thoughtful and not any(word in template.source for word in _REASONING_WORDS):
        found.append(f"{thoughtful} rows bring reasoning, for which the chat template has no place: it is left out.")
    resting = sum(not all(message.trained for message in chat.messages) for chat in source.conversations)
    if resting:
        found.append(f"{resting} rows hold answers that the file marks as not to be trained.")
    if kept_back:
        bad = len(kept_back.bad_rows) + len(bad_validation)
        rows = f"{len(kept_back.conversations)} rows" + (f", {bad} bad rows left out" if bad else "")
        found.append(f"The validation file {kept_back.file.path.name} has {rows}: {kept_back.format.words}")
        found += [f"Validation file: {sentence}" for sentence in kept_back.file.assumptions]
    return found


def _nothing_to_train(source: _Source, bad_rows: list[BadRow]) -> StudioError:
    first = bad_rows[0]
    where = f" ({first.field})" if first.field else ""
    found = f"; found: {first.found[:120]}" if first.found else ""
    return StudioError(
        f"No row of {source.file.path.name} can be trained on. It was read so: {source.format.words} "
        f"Row {first.row}: {first.reason}{where}{found}.",
        "Mend the rows, or choose a prompt style that has a place for them.",
    )


def _source_fingerprint(files: Sequence[Path], tokenizer: Any, template: Template) -> str:
    """What the examples come from: the files' bytes, the tokenizer and the template."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    whole.update(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).digest())
    whole.update(json.dumps([tokenizer.special_tokens_map, template.source], sort_keys=True, default=str).encode())
    return whole.hexdigest()


def record_of(prepared: Prepared, row: int) -> Record:
    """The record of the training file with that row number."""
    return next(record for record in prepared.file.records if record.row == row)
