"""What a person sees of prepared data: the whole as numbers, and one row step by step. All of it is JSON-able."""

import math
from typing import Any

from lora_studio.data.dataset import Prepared, prepare, record_of
from lora_studio.data.encode import window
from lora_studio.data.messages import RowError
from lora_studio.data.rows import shorten
from lora_studio.data.statistics import Measures, count_reasons, cut_curve, histogram, lengths
from lora_studio.errors import StudioError

_LISTED_BAD_ROWS = 200
_TABLE_ROWS = 100
_CELL_LENGTH = 300


def inspect(train_file: str, tokenizer: Any, *, show_examples: int = 2, **settings: Any) -> dict[str, Any]:
    """Prepares a file (see `dataset.prepare` for the settings) and describes what came out."""
    return describe(prepare(train_file, tokenizer, **settings), show_examples)


def describe(prepared: Prepared, show_examples: int = 2) -> dict[str, Any]:
    """Reading, faults, lengths and cuts of a prepared data set; training and validation rows together."""
    settings = prepared.settings
    measures = Measures.of([*prepared.encoded, *prepared.encoded_validation])
    kept = measures.kept(settings.max_length, settings.truncation)
    examples = [*prepared.train, *prepared.validation]
    return {
        "file": str(prepared.file.path),
        "kind": prepared.file.kind,
        "assumptions": prepared.assumptions,
        "format": prepared.format.name,
        "words": prepared.format.words,
        "columns": prepared.format.columns,
        "prompt_style": prepared.template.name,
        "template_origin": prepared.template.origin,
        "rows": len(prepared.encoded) + len(prepared.encoded_validation),
        "usable_rows": len(prepared.conversations),
        "train_rows": len(prepared.train),
        "validation_rows": len(prepared.validation),
        "bad_rows": len(prepared.bad_rows),
        "bad_row_list": [bad.to_dict() for bad in prepared.bad_rows[:_LISTED_BAD_ROWS]],
        "bad_rows_by_reason": count_reasons(prepared.bad_rows),
        "tokens": lengths(measures.length),
        "max_length": settings.max_length,
        "truncation": settings.truncation,
        "truncated_rows": int((measures.length > settings.max_length).sum()),
        "lost_trained_tokens": measures.trained_tokens - int(kept.sum()),
        "dropped_rows": len(prepared.dropped),
        "trained_tokens": int(kept.sum()),
        "total_tokens": sum(len(example.input_ids) for example in examples),
        "histogram": histogram(measures.length),
        "cut_curve": cut_curve(measures, settings.truncation, settings.max_length),
        "table": _table(prepared),
        "examples": [preview(prepared, index) for index in _shown(prepared)[:show_examples]],
        "fingerprint": prepared.fingerprint,
    }


def _shown(prepared: Prepared) -> list[int]:
    """The rows that were rendered: all, unless the settings ask for fewer."""
    rendered = {row.row for row in prepared.encoded} | prepared.validation_rows
    return [index for index, chat in enumerate(prepared.conversations) if chat.row in rendered]


def preview(prepared: Prepared, row_index: int) -> dict[str, Any]:
    """One usable row of the training file (counted from 0, in the file's order), from record to trained tokens."""
    if not 0 <= row_index < len(prepared.conversations):
        raise StudioError(
            f"There is no usable row {row_index + 1}.", f"Choose a row from 1 to {len(prepared.conversations)}."
        )
    conversation = prepared.conversations[row_index]
    try:
        encoded, pieces, text = prepared.encoder.tokens(conversation)
    except RowError as error:
        reason = f"Row {conversation.row} can't be shown: {error.reason} ({error.found})."
        raise StudioError(reason, "Choose another row, or another prompt style.") from None
    settings = prepared.settings
    first, stop = window(encoded, settings.max_length, settings.truncation)
    kept = [0, *range(first, stop)] if first > 0 and encoded.keep_first else range(first, stop)
    trained = [False] * len(encoded.ids)
    for begin, end in encoded.spans:
        trained[begin:end] = [True] * (end - begin)
    special = prepared.encoder.special_ids
    tokens: list[dict[str, Any]] = [
        {"id": encoded.ids[at], "text": pieces[at], "trained": trained[at], "special": encoded.ids[at] in special}
        for at in kept
    ]
    return {
        "index": row_index,
        "row": conversation.row,
        "split": "validation" if conversation.row in prepared.validation_rows else "train",
        "record": plain(record_of(prepared, conversation.row).fields),
        "messages": [message.to_dict() for message in conversation.messages],
        "text": text,
        "tokens": tokens,
        "full_length": len(encoded.ids),
        "removed_tokens": len(encoded.ids) - len(tokens),
        "trained_tokens": sum(token["trained"] for token in tokens),
        "lost_trained_tokens": sum(trained) - sum(token["trained"] for token in tokens),
        "ends_with_eos": _ends_a_turn(tokens),
    }


def _ends_a_turn(tokens: list[dict[str, Any]]) -> bool:
    """Whether the last trained token is an end-of-turn token (any special token: families name theirs differently)."""
    last = next((token for token in reversed(tokens) if token["trained"]), None)
    return last is not None and last["special"]


def _table(prepared: Prepared) -> dict[str, list[Any]]:
    """The file's first rows as a table of short texts."""
    records = prepared.file.records[:_TABLE_ROWS]
    columns = list(dict.fromkeys(name for record in records for name in record.fields))
    rows = [[record.row, *(_cell(record.fields.get(name)) for name in columns)] for record in records]
    return {"columns": ["row", *columns], "rows": rows}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return shorten(value if isinstance(value, str) else str(plain(value)), _CELL_LENGTH)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: what JSON has no form for becomes its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)
