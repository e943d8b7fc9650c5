"""What a person sees of prepared data: the whole as numbers, and one row step by step. All of it is JSON-able."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_studio.data.dataset import Prepared, prepare, refusal
from lora_studio.data.encode import Encoded
from lora_studio.data.findings import findings
from lora_studio.data.measures import Cuts, Measures
from lora_studio.data.messages import Conversation, RowError
from lora_studio.data.packing import forecast, steps
from lora_studio.data.pairs import cut_pairs, sides
from lora_studio.data.parts import Progress
from lora_studio.data.readings import TABLE_ROWS, readings_of, table
from lora_studio.data.rows import plain
from lora_studio.data.statistics import PERCENTILES, count_reasons, cut_curve, histogram, lengths, suggest
from lora_studio.errors import StudioError

_LISTED_BAD_ROWS = 200


@dataclass(frozen=True)
class Look:
    """What a description shows and counts with; none of it changes the data."""

    show_examples: int = 2
    percentiles: Sequence[float] = PERCENTILES
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 4


def inspect(
    train_file: str,
    tokenizer: Any,
    *,
    look: Look | None = None,
    on_sample: Callable[[dict[str, Any]], None] | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Prepares a file (see `dataset.prepare` for the settings) and describes what came out.

    `on_sample` gets the description of the first rows before a large file is looked at whole.
    """
    give = (lambda prepared: on_sample(describe(prepared, look))) if on_sample else None
    prepared = prepare(train_file, tokenizer, on_sample=give, on_progress=on_progress, **settings)
    return describe(prepared, look, on_progress)


def describe(prepared: Prepared, look: Look | None = None, on_progress: Progress | None = None) -> dict[str, Any]:
    """Reading, faults, lengths and cuts of a prepared data set; training and validation rows together.

    `refusal` is what stops the work where bad rows are not skipped. `on_progress` is called in the phases measure, for
    every length looked at, and check, while faults of the whole are looked for.
    """
    look, report = look or Look(), on_progress or (lambda phase, done, total: None)
    part, settings, refused = prepared.part, prepared.settings, refusal(prepared)
    store = part.records
    return {
        "file": str(part.name),
        "kind": part.records.kind,
        "sampled": prepared.sampled,
        "assumptions": prepared.assumptions,
        "format": prepared.format.name,
        "words": prepared.format.words,
        "columns": prepared.format.columns,
        "prompt_style": prepared.template.name,
        "template_origin": prepared.template.origin,
        "rows": len(prepared.chosen[0]) + len(prepared.chosen[1]),
        "usable_rows": len(prepared.conversations),
        "train_rows": len(prepared.train),
        "validation_rows": len(prepared.validation),
        "bad_rows": len(prepared.bad_rows),
        "bad_row_list": [bad.to_dict() for bad in prepared.bad_rows[:_LISTED_BAD_ROWS]],
        "bad_rows_by_reason": count_reasons(prepared.bad_rows),
        "refusal": {"message": refused.message, "hint": refused.hint} if refused else None,
        **_counts(prepared, look, report),
        "packing": forecast(prepared.train.length, settings.max_length),
        "steps": _steps(prepared, look),
        **readings_of(prepared),
        "hygiene": findings(prepared, report),
        "table": table(list(store.records(range(min(TABLE_ROWS, len(store)))))),
        "examples": [preview(prepared, index) for index in _shown(prepared, look.show_examples)],
        "fingerprint": prepared.fingerprint,
    }


def _counts(prepared: Prepared, look: Look, report: Progress) -> dict[str, Any]:
    """Lengths, and what the cut costs."""
    settings = prepared.settings
    length, how = settings.max_length, settings.truncation
    measures = prepared.train.measures.joined(prepared.validation.measures)
    kept = int(measures.kept(length, how).sum())
    return {
        "tokens": lengths(measures.length, look.percentiles),
        "suggested": suggest(measures.length),
        "max_length": length,
        "truncation": how,
        "truncated_rows": int(measures.cut_rows(length, how).sum()),
        "lost_trained_tokens": measures.trained_tokens - kept,
        "dropped_rows": len(prepared.dropped),
        "split_rows": prepared.train.split_rows + prepared.validation.split_rows,
        "windows": len(prepared.train) + len(prepared.validation),
        "trained_tokens": kept,
        "total_tokens": int(prepared.train.length.sum() + prepared.validation.length.sum()),
        "histogram": histogram(measures.length),
        "cut_curve": cut_curve(measures, how, length, lambda done, total: report("measure", done, total)),
    }


def _steps(prepared: Prepared, look: Look) -> dict[str, int]:
    """Optimizer steps in an epoch, with the rows one by one and packed."""
    batch, accumulation = look.per_device_train_batch_size, look.gradient_accumulation_steps
    packs = forecast(prepared.train.length, prepared.settings.max_length)["packs"]
    return {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "per_epoch": steps(len(prepared.train), batch, accumulation),
        "per_epoch_packed": steps(packs, batch, accumulation),
    }


def _shown(prepared: Prepared, count: int) -> list[int]:
    """The first rows that were rendered: all are, unless the settings ask for fewer."""
    positions = prepared.part.rows.position[: max(count, 0)]
    return np.searchsorted(prepared.conversations.positions, positions).tolist()


def preview(prepared: Prepared, row_index: int, part: int = 0) -> dict[str, Any]:
    """One usable row of the training file (counted from 0, in the file's order), from record to trained tokens.

    `part` chooses the window of a long plain text.
    """
    if not 0 <= row_index < len(prepared.conversations):
        raise StudioError(
            f"There is no usable row {row_index + 1}.", f"Choose a row from 1 to {len(prepared.conversations)}."
        )
    conversation = prepared.conversations[row_index]
    position = int(prepared.conversations.positions[row_index])
    compared = prepared.format.name == "preference"
    try:
        shown = _compared(prepared, conversation) if compared else _tokens(prepared, conversation, part)
    except RowError as error:
        reason = f"Row {conversation.row} can't be shown: {error.reason} ({error.found})."
        raise StudioError(reason, "Choose another row, or another prompt style.") from None
    return {
        "index": row_index,
        "row": conversation.row,
        "split": _side(prepared, position),
        "record": plain(prepared.part.records[position].fields),
        "messages": [message.to_dict() for message in conversation.messages],
        **shown,
    }


def _tokens(prepared: Prepared, conversation: Conversation, part: int) -> dict[str, Any]:
    """Text, tokens and labels of a row, or of one window of it."""
    encoded, pieces, text = prepared.encoder.tokens(conversation)
    windows = _windows(prepared, encoded)
    part = min(max(part, 0), len(windows) - 1)
    found = _labelled(prepared, encoded, pieces, text, windows[part])
    found |= {"windows": len(windows), "window": part}
    return found | ({"removed_tokens": 0, "lost_trained_tokens": 0} if len(windows) > 1 else {})


def _compared(prepared: Prepared, conversation: Conversation) -> dict[str, Any]:
    """The better side like any row, and the worse one under "rejected"; "chosen" and "worse" hold their turns."""
    settings = prepared.settings
    whole = [prepared.encoder.tokens(side) for side in sides(conversation)]
    better, worse = (Measures.of([encoded]) for encoded, _, _ in whole)
    cuts = cut_pairs(better, worse, settings.max_length, settings.truncation)
    found = [_labelled(prepared, *side, _places(cut)[0]) for side, cut in zip(whole, cuts, strict=True)]
    turns = {
        "chosen": [message.to_dict() for message in conversation.chosen],
        "worse": [message.to_dict() for message in conversation.rejected],
    }
    return {**found[0], **turns, "rejected": found[1], "windows": 1, "window": 0}


def _labelled(
    prepared: Prepared, encoded: Encoded, pieces: list[str], text: str, kept: Sequence[int]
) -> dict[str, Any]:
    """A row's tokens that are kept, each with whether it is trained."""
    trained = [False] * len(encoded.ids)
    for begin, end in encoded.spans:
        trained[begin:end] = [True] * (end - begin)
    special = prepared.encoder.special_ids
    tokens: list[dict[str, Any]] = [
        {"id": encoded.ids[at], "text": pieces[at], "trained": trained[at], "special": encoded.ids[at] in special}
        for at in kept
    ]
    shown = sum(token["trained"] for token in tokens)
    return {
        "text": text,
        "tokens": tokens,
        "full_length": len(encoded.ids),
        "removed_tokens": len(encoded.ids) - len(tokens),
        "trained_tokens": shown,
        "lost_trained_tokens": sum(trained) - shown,
        "ends_with_eos": _ends_a_turn(tokens),
    }


def _windows(prepared: Prepared, encoded: Encoded) -> list[Sequence[int]]:
    """The places of the tokens that each example of the row has: one example, or the windows of a long text."""
    settings = prepared.settings
    return _places(Measures.of([encoded]).cuts(settings.max_length, settings.truncation))


def _places(cuts: Cuts) -> list[Sequence[int]]:
    return [
        [0, *range(first, stop)] if head else range(first, stop)
        for first, stop, head in zip(cuts.first.tolist(), cuts.stop.tolist(), cuts.head.tolist(), strict=True)
    ]


def _side(prepared: Prepared, position: int) -> str:
    """Where a row goes: train, validation, or unused where the settings ask for fewer rows."""
    stores = (prepared.part, prepared.kept_back or prepared.part)
    for name, store, chosen in zip(("train", "validation"), stores, prepared.chosen, strict=True):
        if store is prepared.part and position in store.rows.position[chosen]:
            return name
    return "unused"


def _ends_a_turn(tokens: list[dict[str, Any]]) -> bool:
    """Whether the last trained token is an end-of-turn token (any special token: families name theirs differently)."""
    last = next((token for token in reversed(tokens) if token["trained"]), None)
    return last is not None and last["special"]
