"""One row step by step: record, messages, text, tokens, what the cut removes, what is trained. All of it is JSON-able.

Cuts are those of the training: `Measures.cuts` and `cut_pairs`, and the rows that the examples themselves leave out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_studio.data.dataset import NOTHING_LEFT, NOTHING_TO_COMPARE, Prepared
from lora_studio.data.encode import Encoded
from lora_studio.data.measures import Cuts, Measures
from lora_studio.data.messages import Conversation, RowError
from lora_studio.data.pairs import cut_pairs, sides
from lora_studio.data.rows import plain, shorten
from lora_studio.errors import StudioError

_PAGE = 2000  # tokens shown at once
_TOLD = 160  # characters of a row's trained text in a sentence


def preview(prepared: Prepared, row_index: int, part: int | None = None) -> dict[str, Any]:
    """One usable row of the training file (counted from 0, in the file's order), from record to trained tokens.

    `part` chooses the window of a long plain text, or the piece of another long row; None is where training begins.
    """
    if not 0 <= row_index < len(prepared.conversations):
        raise StudioError(
            f"There is no usable row {row_index + 1}.", f"Choose a row from 1 to {len(prepared.conversations)}."
        )
    conversation = prepared.conversations[row_index]
    position = int(prepared.conversations.positions[row_index])
    compared = prepared.format.name == "preference"
    try:
        shown = _compared(prepared, conversation, part) if compared else _tokens(prepared, conversation, part)
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


def reading(prepared: Prepared) -> str:
    """How a file was read, what was assumed, and what its first row trains, in a few sentences."""
    parts = [f"Format: {prepared.format.words}", *prepared.assumptions]
    first = prepared.part.rows.position[:1]
    for index in np.searchsorted(prepared.conversations.positions, first).tolist():
        parts.append(f"The first row trains: “{trained_text(preview(prepared, index))}”.")
    return " ".join(parts)


def trained_text(shown: dict[str, Any]) -> str:
    """The trained text of a row's preview on one line, shortened; "…" stands for what is not trained in between."""
    pieces: list[str] = []
    trained_before = False
    for token in shown["tokens"]:
        if token["trained"]:
            if pieces and not trained_before:
                pieces.append(" … ")
            pieces.append(token["text"])
        trained_before = token["trained"]
    return shorten("".join(pieces).strip().replace("\n", "⏎"), _TOLD)


def _tokens(prepared: Prepared, conversation: Conversation, part: int | None) -> dict[str, Any]:
    """A row's tokens, a page of them, and the numbers of the example that the page belongs to."""
    settings = prepared.settings
    encoded, pieces, _ = prepared.encoder.tokens(conversation)
    cuts = Measures.of([encoded]).cuts(settings.max_length, settings.truncation)
    out = NOTHING_LEFT if _left_out(prepared, conversation.row) or not cuts.trained.any() else ""
    return _shown(prepared, encoded, pieces, cuts, part, out)


def _compared(prepared: Prepared, conversation: Conversation, part: int | None) -> dict[str, Any]:
    """The better side like any row, and the worse one under "rejected"; "chosen" and "worse" hold their turns."""
    settings = prepared.settings
    whole = [prepared.encoder.tokens(side) for side in sides(conversation)]
    better, worse = (Measures.of([encoded]) for encoded, _, _ in whole)
    cuts = cut_pairs(better, worse, settings.max_length, settings.truncation)
    lost = _left_out(prepared, conversation.row) or not all(cut.trained.any() for cut in cuts)
    found: list[dict[str, Any]] = []
    for (encoded, pieces, _), cut in zip(whole, cuts, strict=True):
        part = found[0]["window"] if found else part
        found.append(_shown(prepared, encoded, pieces, cut, part, NOTHING_TO_COMPARE if lost else ""))
    turns = {
        "chosen": [message.to_dict() for message in conversation.chosen],
        "worse": [message.to_dict() for message in conversation.rejected],
    }
    return {**found[0], **turns, "rejected": found[1], "windows": max(side["windows"] for side in found)}


def _shown(
    prepared: Prepared, encoded: Encoded, pieces: list[str], cuts: Cuts, part: int | None, left_out: str
) -> dict[str, Any]:
    """A page of tokens in their places, each with whether it is kept and whether it is (or would be) trained.

    `left_out` is why the whole row goes, where it does. A row that becomes several examples loses nothing.
    """
    examples = [np.empty(0, np.int64)] if left_out else _places(cuts)
    every = np.arange(len(encoded.ids))
    trained = np.zeros(len(every), bool)
    for begin, end in encoded.spans:
        trained[begin:end] = True
    pages = [
        (kept, places[start : start + _PAGE])
        for kept in examples
        for places in [kept if len(examples) > 1 else every]
        for start in range(0, max(len(places), 1), _PAGE)
    ]
    if part is None:
        part = next((at for at, (kept, page) in enumerate(pages) if trained[np.intersect1d(kept, page)].any()), 0)
    part = min(max(part, 0), len(pages) - 1)
    kept, page = pages[part]
    is_kept = np.isin(every, kept)
    special = prepared.encoder.special_ids
    removed = every[~is_kept] if len(examples) == 1 else every[:0]
    learned = kept[trained[kept]]
    return {
        "text": "".join(pieces[at] for at in page.tolist()),
        "tokens": [
            {
                "id": encoded.ids[at],
                "text": pieces[at],
                "trained": bool(trained[at]),
                "special": encoded.ids[at] in special,
                "kept": bool(is_kept[at]),
            }
            for at in page.tolist()
        ],
        "full_length": len(every),
        "kept_tokens": len(kept),
        "removed_tokens": len(removed),
        "removed_after": int((removed > kept[-1]).sum()) if len(kept) else 0,
        "trained_tokens": len(learned),
        "lost_trained_tokens": int(trained[removed].sum()),
        "ends_with_eos": bool(len(learned)) and encoded.ids[learned[-1]] in special,
        "left_out": left_out,
        "examples": len(examples),
        "windows": len(pages),
        "window": part,
    }


def _places(cuts: Cuts) -> list[np.ndarray]:
    """The places of the tokens that each example of the row has: one example, or the windows of a long text."""
    return [
        np.concatenate([np.zeros(int(head), np.int64), np.arange(first, stop)])
        for first, stop, head in zip(cuts.first.tolist(), cuts.stop.tolist(), cuts.head.tolist(), strict=True)
    ]


def _left_out(prepared: Prepared, row: int) -> bool:
    """Whether a row of the training file gives no example: the examples themselves say so."""
    parts: Sequence[Any] = [prepared.train] if prepared.kept_back else [prepared.train, prepared.validation]
    return any(row == number for part in parts for number, _ in part.dropped)


def _side(prepared: Prepared, position: int) -> str:
    """Where a row goes: train, validation, or unused where the settings ask for fewer rows."""
    stores = (prepared.part, prepared.kept_back or prepared.part)
    for name, store, chosen in zip(("train", "validation"), stores, prepared.chosen, strict=True):
        if store is prepared.part and position in store.rows.position[chosen]:
            return name
    return "unused"
