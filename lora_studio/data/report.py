"""The report on prepared data: numbers, findings, and single rows from record to trained tokens, as JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from lora_studio.data.cache import Facts, key_of
from lora_studio.data.dataset import NOTHING_LEFT, NOTHING_TO_COMPARE, Prepared, prepare, refusal
from lora_studio.data.encode import Encoded
from lora_studio.data.examples import Unpaired, cut_pairs
from lora_studio.data.messages import (
    BadRow,
    ChatMessage,
    Conversation,
    Fields,
    RowError,
    last_answer,
    plain,
    shorten,
    sides,
)
from lora_studio.data.pipeline import EncodedSource
from lora_studio.data.preview import TABLE_ROWS, Readings, RowTable, candidates_of, table
from lora_studio.data.quality import Duplicates, data_quality, grouped
from lora_studio.data.store import Progress
from lora_studio.data.truncate import (
    PERCENTILES,
    Cuts,
    Measures,
    PackingForecast,
    Suggestion,
    cut_curve,
    forecast,
    histogram,
    lengths,
    steps,
    suggest,
)
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

_MAX_ROWS = 20_000
_SECONDS = 2.0
_PIECE = 500
_SHOWN = 20


def findings(prepared: Prepared, report: Progress) -> Facts | None:
    """Duplicates, leaks, contradictions and lopsided answers; None for a first look at a few rows.

    Of a large file a part is looked at, evenly over the whole: `looked_at` of `of_rows` rows. `report` is called in the
    phase check, counted in rows. Exact duplicates are those of the whole in any case.
    """
    if prepared.sampled is not None:
        return None
    parts = (prepared.part, prepared.validation_part or prepared.part)
    settings = prepared.settings
    split = [settings.validation_fraction, settings.split_seed, settings.max_samples, settings.max_eval_samples]
    key = key_of("findings", [part.key for part in parts], split)
    return prepared.cache.get(key, lambda _: _assess(parts, prepared.selected, prepared.encoder.specials, report)).facts


def _assess(
    parts: Sequence[EncodedSource], selected: Sequence[np.ndarray], specials: Sequence[str], report: Progress
) -> Facts:
    report("check", 0, 0)

    def tell(done: int, total: int) -> None:
        report("check", done, total)

    train, validation = (_sample(part, rows, tell) for part, rows in zip(parts, selected, strict=True))
    tell(0, 0)
    repeated = _repeated(parts[0], selected[0]) if len(train) < len(selected[0]) else None
    result = data_quality(train, validation, seconds=_SECONDS, specials=specials, repeated=repeated, report=tell)
    return {**result, "looked_at": len(train) + len(validation), "of_rows": sum(map(len, selected))}


def _repeated(part: EncodedSource, selected: np.ndarray) -> Duplicates:
    """The exact duplicates of a large file, all of them: each row's group is known since it was converted."""
    groups = part.all_groups[np.searchsorted(part.all_positions, part.rows.position[selected])]
    numbers = part.rows.row[selected]
    _, first, member, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    like = np.flatnonzero(sizes > 1)
    listed = like[np.argsort(first[like])][:_SHOWN]
    examples = [numbers[member == group].tolist() for group in listed]
    return {**grouped(examples), "rows": int((sizes[like] - 1).sum()), "groups": len(like)}


def _sample(part: EncodedSource, selected: np.ndarray, tell: Callable[[int, int], None]) -> list[Conversation]:
    """At most so many of a part's rows, evenly from the whole."""
    if len(selected) > _MAX_ROWS:
        selected = selected[np.linspace(0, len(selected) - 1, _MAX_ROWS).astype(int)]
    rows: list[Conversation] = []
    for start in range(0, len(selected), _PIECE):
        tell(0, 0)
        rows += part.conversations.at(part.rows.position[selected[start : start + _PIECE]])
    return rows


class Token(TypedDict):
    """A token of a row: whether it is trained, special, and kept by the cut."""

    id: int
    text: str
    trained: bool
    special: bool
    kept: bool


class TokenView(TypedDict):
    """A page of a row's tokens, with the numbers of the example that the page belongs to."""

    text: str
    tokens: list[Token]
    full_length: int
    kept_tokens: int
    removed_tokens: int
    removed_after: int
    trained_tokens: int
    lost_trained_tokens: int
    ends_with_eos: bool
    left_out: str
    examples: int
    windows: int
    window: int


class PairView(TokenView):
    """The better side of a comparison as the view, the worse one under `rejected`, and the turns of both."""

    chosen: list[ChatMessage]
    worse: list[ChatMessage]
    rejected: TokenView


class RowView(TokenView):
    """A usable row from record to trained tokens; the last three keys for comparisons only.

    `desirable` is the label of an answer that is labelled good or bad.
    """

    index: int
    row: int
    split: str
    record: Fields
    messages: list[ChatMessage]
    desirable: NotRequired[bool]
    chosen: NotRequired[list[ChatMessage]]
    worse: NotRequired[list[ChatMessage]]
    rejected: NotRequired[TokenView]


_PAGE = 2000  # tokens shown at once
_TEXT_LENGTH = 160  # characters of a row's trained text in a sentence


def preview(prepared: Prepared, row_index: int, part: int | None = None) -> JsonObject:
    """The view of a usable row as a plain object of JSON: see `row_view`."""
    return {**row_view(prepared, row_index, part)}


def row_view(prepared: Prepared, row_index: int, part: int | None = None) -> RowView:
    """One usable row of the training file (counted from 0, in the file's order), from record to trained tokens.

    `part` chooses the window of a long plain text, or the piece of another long row; None is where training begins.
    """
    if not 0 <= row_index < len(prepared.conversations):
        raise StudioError(
            f"There is no valid row {row_index + 1}.", f"Choose a row from 1 to {len(prepared.conversations)}."
        )
    conversation = prepared.conversations[row_index]
    position = int(prepared.conversations.positions[row_index])
    compared = prepared.format.name == "preference"
    try:
        view = _compared(prepared, conversation, part) if compared else _tokens(prepared, conversation, part)
    except RowError as error:
        reason = f"Row {conversation.row} cannot be shown: {error.reason} ({error.found})."
        raise StudioError(reason, "Choose another row, or another prompt style.") from None
    row: RowView = {
        "index": row_index,
        "row": conversation.row,
        "split": _side(prepared, position),
        "record": plain(prepared.part.records[position].fields),
        "messages": [message.to_dict() for message in conversation.messages],
        **view,
    }
    if conversation.label is not None:
        row["desirable"] = conversation.label
    return row


def reading(prepared: Prepared) -> str:
    """Sentences on the format, the assumptions, and the trained text of the first row."""
    parts = [f"Format: {prepared.format.words}", *prepared.assumptions]
    first = prepared.part.rows.position[:1]
    for index in np.searchsorted(prepared.conversations.positions, first).tolist():
        parts.append(f"Trained tokens of the first row: “{trained_text(row_view(prepared, index))}”.")
    return " ".join(parts)


def trained_text(view: RowView) -> str:
    """The trained text of a row on one line, shortened; "…" replaces untrained text in between."""
    pieces: list[str] = []
    trained_before = False
    for token in view["tokens"]:
        if token["trained"]:
            if pieces and not trained_before:
                pieces.append(" … ")
            pieces.append(token["text"])
        trained_before = token["trained"]
    return shorten("".join(pieces).strip().replace("\n", "⏎"), _TEXT_LENGTH)


def _tokens(prepared: Prepared, conversation: Conversation, part: int | None) -> TokenView:
    """A row's tokens, a page of them, and the numbers of the example that the page belongs to."""
    settings = prepared.settings
    encoded, pieces, _ = prepared.encoder.tokens(last_answer(conversation) if prepared.part.unpaired else conversation)
    cuts = Measures.of([encoded]).cuts(settings.max_length, settings.truncation)
    out = NOTHING_LEFT if _left_out(prepared, conversation.row) or not cuts.trained.any() else ""
    return _page_view(prepared, encoded, pieces, cuts, part, out)


def _compared(prepared: Prepared, conversation: Conversation, part: int | None) -> PairView:
    """The view of a comparison: see `PairView`."""
    settings = prepared.settings
    whole = [prepared.encoder.tokens(side) for side in sides(conversation)]
    better, worse = (Measures.of([encoded]) for encoded, _, _ in whole)
    cuts = cut_pairs(better, worse, settings.max_length, settings.truncation)
    lost = _left_out(prepared, conversation.row) or not all(cut.trained.any() for cut in cuts)
    views: list[TokenView] = []
    for (encoded, pieces, _), cut in zip(whole, cuts, strict=True):
        part = views[0]["window"] if views else part
        views.append(_page_view(prepared, encoded, pieces, cut, part, NOTHING_TO_COMPARE if lost else ""))
    return {
        **views[0],
        "chosen": [message.to_dict() for message in conversation.chosen],
        "worse": [message.to_dict() for message in conversation.rejected],
        "rejected": views[1],
        "windows": max(side["windows"] for side in views),
    }


def _page_view(
    prepared: Prepared, encoded: Encoded, pieces: list[str], cuts: Cuts, part: int | None, left_out: str
) -> TokenView:
    """A page of tokens, each with whether the cut keeps it and whether it is (or would be) trained.

    `left_out` is why the whole row goes, where it does. A row that becomes several examples loses nothing.
    """
    examples = [np.empty(0, np.int64)] if left_out else _places(cuts)
    every = np.arange(len(encoded.ids))
    trained = np.zeros(len(every), bool)
    for begin, end in encoded.spans:
        trained[begin:end] = True
    pages = [
        (example, places[start : start + _PAGE])
        for example in examples
        for places in [example if len(examples) > 1 else every]
        for start in range(0, max(len(places), 1), _PAGE)
    ]
    if part is None:
        part = next((at for at, (example, page) in enumerate(pages) if trained[np.intersect1d(example, page)].any()), 0)
    part = min(max(part, 0), len(pages) - 1)
    example, page = pages[part]
    is_kept = np.isin(every, example)
    special = prepared.encoder.special_ids
    removed = every[~is_kept] if len(examples) == 1 else every[:0]
    learned = example[trained[example]]
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
        "kept_tokens": len(example),
        "removed_tokens": len(removed),
        "removed_after": int((removed > example[-1]).sum()) if len(example) else 0,
        "trained_tokens": len(learned),
        "lost_trained_tokens": int(trained[removed].sum()),
        "ends_with_eos": bool(len(learned)) and encoded.ids[learned[-1]] in special,
        "left_out": left_out,
        "examples": len(examples),
        "windows": len(pages),
        "window": part,
    }


def _places(cuts: Cuts) -> list[np.ndarray]:
    """Token positions of each example of a row: one example, or the windows of a long text."""
    return [
        np.concatenate([np.zeros(int(head), np.int64), np.arange(first, stop)])
        for first, stop, head in zip(cuts.first.tolist(), cuts.stop.tolist(), cuts.head.tolist(), strict=True)
    ]


def _left_out(prepared: Prepared, row: int) -> bool:
    """Whether a row of the training file gives no example: the examples themselves say so."""
    parts: Sequence[Any] = [prepared.train] if prepared.validation_part else [prepared.train, prepared.validation]
    return any(row == number for part in parts for number, _ in part.dropped)


def _side(prepared: Prepared, position: int) -> str:
    """The split of a row: train, validation, or unused if the settings limit the rows."""
    stores = (prepared.part, prepared.validation_part or prepared.part)
    for name, store, selected in zip(("train", "validation"), stores, prepared.selected, strict=True):
        if store is prepared.part and position in store.rows.position[selected]:
            return name
    return "unused"


_LISTED_BAD_ROWS = 200


@dataclass(frozen=True)
class Look:
    """Options of a report; none of them changes the data. `processes` share the batches of a step."""

    show_examples: int = 2
    percentiles: Sequence[float] = PERCENTILES
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 4
    processes: int = 1


class LengthReport(TypedDict):
    """Row lengths, and the cost of truncation."""

    tokens: dict[str, float]
    suggested: Suggestion
    max_length: int
    truncation: str
    truncated_rows: int
    lost_trained_tokens: int
    dropped_rows: int
    split_rows: int
    windows: int
    trained_tokens: int
    total_tokens: int
    histogram: dict[str, list[int]]
    cut_curve: list[dict[str, int]]


class Described(LengthReport, Readings):
    """The report on prepared data. `refusal` is the error if bad rows are to stop the work.

    `marked_bad_rows` are labelled bad and left out; of the training rows, so many are labelled good (`desirable_rows`)
    and bad (`undesirable_rows`), where both are learned from.
    """

    file: str
    sampled: int | None
    assumptions: list[str]
    format: str
    words: str
    columns: dict[str, str]
    reading: str
    prompt_style: str
    template_origin: str
    rows: int
    usable_rows: int
    train_rows: int
    validation_rows: int
    marked_bad_rows: int
    desirable_rows: int
    undesirable_rows: int
    bad_rows: int
    bad_row_list: list[JsonObject]
    bad_rows_by_reason: dict[str, int]
    refusal: dict[str, str] | None
    packing: PackingForecast
    steps: dict[str, int]
    hygiene: Facts | None
    table: RowTable
    examples: list[RowView]
    fingerprint: str


class Description(Described):
    """The report, with the kind of the file."""

    kind: str


class Analysis(Described):
    """The report as a session answers it, whose answers have a kind of their own."""

    file_kind: str


def inspect(
    train_file: str,
    tokenizer: Any,
    *,
    look: Look | None = None,
    on_sample: Callable[[JsonObject], None] | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> JsonObject:
    """Prepares a file (see `dataset.prepare` for the settings) and describes what came out.

    `on_sample` gets the description of the first rows before a large file is looked at whole.
    """
    give = (lambda prepared: on_sample(describe(prepared, look))) if on_sample else None
    prepared = prepare(train_file, tokenizer, on_sample=give, on_progress=on_progress, **settings)
    return describe(prepared, look, on_progress)


def describe(prepared: Prepared, look: Look | None = None, on_progress: Progress | None = None) -> JsonObject:
    """A prepared data set as a `Description`: training and validation rows together.

    `refusal` is what stops the work where bad rows are not skipped. `on_progress` is called in the phases measure, for
    every length looked at, and check, while faults of the whole are looked for.
    """
    look, report = look or Look(), on_progress or (lambda phase, done, total: None)
    part, settings, refused = prepared.part, prepared.settings, refusal(prepared)
    store = part.records
    description: Description = {
        "file": str(part.name),
        "kind": part.records.kind,
        "sampled": prepared.sampled,
        "assumptions": prepared.assumptions,
        "format": prepared.format.name,
        "words": prepared.format.words,
        "columns": prepared.format.columns,
        "reading": reading(prepared),
        "prompt_style": prepared.template.name,
        "template_origin": prepared.template.origin,
        "rows": len(prepared.selected[0]) + len(prepared.selected[1]),
        "usable_rows": len(prepared.conversations),
        "train_rows": len(prepared.train),
        "validation_rows": len(prepared.validation),
        "marked_bad_rows": part.marked_bad,
        **_label_counts(prepared),
        "bad_rows": len(prepared.bad_rows),
        "bad_row_list": [bad_row_entry(part, bad) for bad in prepared.bad_rows[:_LISTED_BAD_ROWS]],
        "bad_rows_by_reason": prepared.bad_rows.reasons(),
        "refusal": {"message": refused.message, "hint": refused.hint} if refused else None,
        **_counts(prepared, look, report),
        "packing": forecast(prepared.train.length, settings.max_length, look.per_device_train_batch_size),
        "steps": _steps(prepared, look),
        **candidates_of(prepared),
        "hygiene": findings(prepared, report),
        "table": table(list(store.records(range(min(TABLE_ROWS, len(store)))))),
        "examples": [row_view(prepared, index) for index in _first_indices(prepared, look.show_examples)],
        "fingerprint": prepared.fingerprint,
    }
    return {**description}


class LabelCounts(TypedDict):
    """How many training rows are labelled good and bad; both 0 for rows without such labels."""

    desirable_rows: int
    undesirable_rows: int


def _label_counts(prepared: Prepared) -> LabelCounts:
    good, bad = prepared.train.counts if isinstance(prepared.train, Unpaired) else (0, 0)
    return {"desirable_rows": good, "undesirable_rows": bad}


def bad_row_entry(part: EncodedSource, bad: BadRow) -> JsonObject:
    """A bad row as JSON, with its file and its number there if the source has several files."""
    if len(part.records.starts) < 2:
        return bad.to_dict()
    name, row = part.records.place(bad.row)
    return {**bad.to_dict(), "row": row, "file": name}


def save_bad_rows(prepared: Prepared, path: Path) -> int:
    """Writes every bad row, those of a validation file among them, as one JSON object a line; returns how many."""
    parts = [part for part in (prepared.part, prepared.validation_part) if part]
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for part in parts:
            for bad in part.bad_rows:
                row = {"file": Path(part.name).name, **bad_row_entry(part, bad)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return sum(len(part.bad_rows) for part in parts)


def _counts(prepared: Prepared, look: Look, report: Progress) -> LengthReport:
    """Row lengths, and the cost of truncation."""
    settings = prepared.settings
    length, how = settings.max_length, settings.truncation
    report("measure", 0, 0)
    measures = prepared.train.measures.joined(prepared.validation.measures)
    trained_tokens = int(measures.kept(length, how).sum())
    return {
        "tokens": lengths(measures.length, look.percentiles),
        "suggested": suggest(measures.length),
        "max_length": length,
        "truncation": how,
        "truncated_rows": int(measures.cut_rows(length, how).sum()),
        "lost_trained_tokens": measures.trained_tokens - trained_tokens,
        "dropped_rows": len(prepared.dropped),
        "split_rows": prepared.train.split_rows + prepared.validation.split_rows,
        "windows": len(prepared.train) + len(prepared.validation),
        "trained_tokens": trained_tokens,
        "total_tokens": int(prepared.train.length.sum() + prepared.validation.length.sum()),
        "histogram": histogram(measures.length),
        "cut_curve": cut_curve(measures, how, length, lambda done, total: report("measure", done, total)),
    }


def _steps(prepared: Prepared, look: Look) -> dict[str, int]:
    """Optimizer steps in an epoch, unpacked and packed."""
    batch, batches = look.per_device_train_batch_size, look.gradient_accumulation_steps * look.processes
    packs = forecast(prepared.train.length, prepared.settings.max_length)["packs"]
    return {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": look.gradient_accumulation_steps,
        "processes": look.processes,
        "per_epoch": steps(len(prepared.train), batch, batches),
        "per_epoch_packed": steps(packs, batch, batches),
    }


def _first_indices(prepared: Prepared, count: int) -> list[int]:
    """The first rows that were rendered: all are, unless the settings ask for fewer."""
    positions = prepared.part.rows.position[: max(count, 0)]
    return np.searchsorted(prepared.conversations.positions, positions).tolist()
