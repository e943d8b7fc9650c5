"""What an analyzed file looks like on the page: summary, findings, conversations, tokens, invalid rows.

Functions from the session's report to HTML, and the pager of conversations.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_studio.config.fields import SettingValues
from lora_studio.data.quality import LabelBalance, in_words, label_words
from lora_studio.errors import StudioError
from lora_studio.files import bytes_in
from lora_studio.jobs.protocol import Progress
from lora_studio.ui import html, theme
from lora_studio.ui.components import Updates
from lora_studio.workspace import Workspace

if TYPE_CHECKING:
    from lora_studio.data.report import Description, RowView

Result = Mapping[str, Any]
FORMATS = {
    "messages": "Chat messages",
    "sharegpt": "ShareGPT conversations",
    "alpaca": "Alpaca (instruction, input, output)",
    "instruction": "Instruction and output",
    "prompt_completion": "Prompt and completion",
    "text": "Plain text",
    "dialogue": "Dialogues in one text",
    "problem": "Problems with several fields",
    "tokenised": "Tokenized rows",
    "mapped": "Your column mapping",
    "preference": "Preference pairs",
    "kto": "Answers labelled good or bad",
}
COMPARED = {
    "preference": "Preference pairs for DPO: the chosen answer is made likelier than the rejected one. "
    "Lengths: the longer side.",
    "kto": "Labelled answers for KTO: good ones are made likelier than the base finds them, bad ones less likely.",
}
"""What rows of a format are compared for."""


def summary(result: Result) -> str:
    """The analysis in one line: format, valid rows, invalid rows, tokens, trained share; the reading in words below."""
    shape = FORMATS.get(result["format"], result["format"])
    pairs = COMPARED.get(result["format"], "")
    return html.render("data.summary", shape, result["words"], pairs, _facts(result))


def notes(result: Result) -> str:
    """What was assumed of the file, and where the chat template comes from."""
    lines = [*result["assumptions"], *([result["template_origin"]] if result["template_origin"] else [])]
    return html.render("data.notes", lines) if lines else ""


def _facts(result: Result) -> list[tuple[str, str, str]]:
    """Value, what it counts, and a remark that is kept in the tooltip."""
    valid, invalid, tokens = (result[name] for name in ("usable_rows", "bad_rows", "tokens"))
    total, trained = result["total_tokens"], result["trained_tokens"]
    before = ", before truncation" if result["truncated_rows"] or result["dropped_rows"] else ""
    split = (
        f"{html.number(result['train_rows'])} training rows, {html.number(result['validation_rows'])} validation rows"
    )
    return [
        (html.number(valid), "valid row" if valid == 1 else "valid rows", split),
        (html.number(invalid), "invalid row" if invalid == 1 else "invalid rows", "listed under Quality"),
        (html.number(total), "tokens", f"{html.number(tokens['mean'])} per row on average{before}"),
        (html.percent(trained, total), "trained", f"{html.count(trained, 'trained token')} of {html.number(total)}"),
    ]


def outdated(analyzed: Mapping[str, Any], values: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """A warning that names the settings changed since the analysis; nothing where they are the same."""
    changed = [titles[path] for path in titles if analyzed.get(path) != values[path]]
    if not changed:
        return ""
    names = changed[0] if len(changed) == 1 else f"{', '.join(changed[:-1])} and {changed[-1]}"
    return html.notice(f"Outdated: {names} changed since this analysis.", "Analyze the dataset again.", "warning")


def bad_rows_line(result: Result, *, stop: bool) -> str:
    """How many rows are invalid, by reason; if they are to stop a run, the error that it would give."""
    if stop and result["refusal"]:
        return html.notice(result["refusal"]["message"], result["refusal"]["hint"], "error")
    if not result["bad_rows"]:
        return html.notice("No invalid rows.", kind="good")
    reasons = "; ".join(f"{reason}: {times:,}" for reason, times in result["bad_rows_by_reason"].items())
    verb = "is" if result["bad_rows"] == 1 else "are"
    return html.notice(f"{html.count(result['bad_rows'], 'invalid row')} {verb} skipped.", reasons, "warning")


def bad_rows_table(result: Result) -> str:
    """The first invalid rows with number, reason and value."""
    bad = result["bad_row_list"]
    if not bad:
        return ""
    names = [name for name in ("file", "row", "reason", "field", "found") if name != "file" or "file" in bad[0]]
    rows = [[row[name] for name in names] for row in bad]
    more = result["bad_rows"] - len(bad)
    first = html.hint(f"The first {len(bad):,}; the download has all.") if more > 0 else ""
    columns = ["Value" if name == "found" else name.capitalize() for name in names]
    return first + html.table(columns, rows, "Invalid rows")


def rows_table(result: Result) -> str:
    """The first rows, raw."""
    rows = result["table"]["rows"]
    counts = [result.get(name, 0) for name in ("usable_rows", "bad_rows", "marked_bad_rows")]
    whole = len(rows) >= sum(counts) > 0
    caption = "All rows" if whole else f"The first {html.count(len(rows), 'row')} of the file"
    return html.table(result["table"]["columns"], rows, caption)


def nearest_cut(curve: Sequence[Mapping[str, Any]], length: float) -> Mapping[str, Any]:
    """The point of the cut curve nearest to a length: its numbers are counted, not estimated."""
    return min(curve, key=lambda point: abs(point["max_length"] - length))


def cut_bounds(result: Result) -> tuple[int, int]:
    """The shortest and the longest length worth trying: beyond the longest row nothing is cut."""
    lengths = [point["max_length"] for point in result["cut_curve"]]
    low, high = min(lengths), int(min(max(lengths), result["tokens"]["max"]))
    return low, max(high, low + 1)


def cut_place(result: Result, length: float) -> int:
    """Where the cut line stands for a length: at the nearest one that is counted, at most at the longest row."""
    _, high = cut_bounds(result)
    return int(nearest_cut(result["cut_curve"], min(length, high))["max_length"])


def limit_sentence(result: Result, length: float) -> str:
    """What a max length cuts and which one is suggested, in one sentence with exact numbers."""
    point = nearest_cut(result["cut_curve"], length)
    lossy = point["lost_trained_tokens"] or point["dropped_rows"]
    kind = "warning" if lossy else "info" if point["rows"] else "good"
    suggested, longest = result["suggested"]["max_length"], result["tokens"]["max"]
    reason = "fits every row" if suggested >= longest else f"95 % of rows have at most {result['tokens']['p95']:,}"
    return html.notice(
        f"{cut_words(result, length)}; suggested: {html.count(suggested, 'token')} ({reason}).", kind=kind
    )


def cut_words(result: Result, length: float) -> str:
    """What a max length cuts, as the first part of a sentence."""
    point = nearest_cut(result["cut_curve"], length)
    at, rows, lost, out = point["max_length"], point["rows"], point["lost_trained_tokens"], point["dropped_rows"]
    if not rows and not lost and not out:
        spare = f" (max length is {result['max_length']:,} now)" if result["max_length"] > at else ""
        return f"At {html.count(at, 'token')} nothing is cut{spare}"
    trained = result["trained_tokens"] + result["lost_trained_tokens"]
    return (
        f"At {html.count(at, 'token')} {html.count(rows, 'row')} ({html.percent(rows, result['rows'])}) "
        f"{'is' if rows == 1 else 'are'} cut, {html.count(lost, 'trained token')} "
        f"({html.percent(lost, trained)}) lost, {html.count(out, 'row')} dropped"
    )


def tokens(preview: Result) -> str:
    """Every token of a row in its place; trained ones marked, special ones framed, those cut off struck through."""
    sides = [("chosen", preview), ("rejected", preview["rejected"])] if "rejected" in preview else [("", preview)]
    sections = [
        (
            name.capitalize(),
            f"Tokens of the {name} answer" if name else "Tokens",
            token_line(side),
            html.Html("".join(map(_token, side["tokens"]))),
        )
        for name, side in sides
    ]
    return html.render("data.tokens", sections)


def token_line(preview: Result) -> str:
    """How many tokens the row has, how many are trained, what is cut off and where, and whether its end is taught."""
    total, trained, removed = (preview[f"{name}_tokens"] for name in ("kept", "trained", "removed"))
    if preview["left_out"]:
        words = f"Dropped: no token of this row is trained ({html.count(preview['full_length'], 'token')})."
        return html.notice(words, f"{preview['left_out'].capitalize()}.", "warning")
    words = f"{html.count(total, 'token')}, {trained:,} trained ({html.percent(trained, total)})."
    lost = preview["lost_trained_tokens"]
    if removed:
        words += f" {_cut_off(removed, preview['removed_after'])}, because the row is longer than allowed"
        words += f"; {lost:,} of them would have been trained." if lost else "."
    if preview["ends_with_eos"]:
        return html.hint(words + " The end token is trained: the model learns to stop.")
    if preview["examples"] > 1 and preview["window"] < preview["windows"] - 1:
        return html.hint(words + " The text continues in the next part.")
    return html.notice(words, "The row does not end with the end token: the model is not taught to stop.", "warning")


def _cut_off(removed: int, after: int) -> str:
    before = removed - after
    if before and after:
        return f"{html.count(before, 'token')} before and {after:,} after what is kept are cut off"
    verb, side = "is" if removed == 1 else "are", "after" if after else "before"
    return f"{html.count(removed, 'token')} {verb} cut off {side} what is kept"


LEGEND = (
    '<p class="ls-legend"><span><b class="ls-tok ls-t">trained</b></span> '
    '<span><b class="ls-tok">context only</b></span> '
    '<span><b class="ls-tok ls-s">special token</b></span> '
    '<span><b class="ls-tok ls-x">cut off</b></span> '
    '<span><b class="ls-tok"><i>↵</i></b> line break</span> '
    '<label><input type="checkbox" class="ls-ids"> Show token IDs</label></p>'
)


def _token(token: Mapping[str, Any]) -> str:
    """A token with its id, what became of it, and marks for what can't be seen: thousands, so without a template."""
    marks = (("ls-t", token["trained"] and token["kept"]), ("ls-s", token["special"]), ("ls-x", not token["kept"]))
    classes = " ".join(["ls-tok", *(name for name, is_so in marks if is_so)])
    raw, number = token["text"], token["id"]
    text = html.escape(raw).replace("\n", "<i>↵</i>\n").replace("\t", "<i>→</i>\t")
    if not raw:
        text = "<i>∅</i>"
    elif raw.isspace() and "\n" not in raw:
        text = f"<i>{'·' * len(raw)}</i>"
    state = "trained" if token["trained"] else "context only"
    if not token["kept"]:
        state = "cut off" + (", would have been trained" if token["trained"] else "")
    state += "" if raw else ", part of a character beside it"
    return f'<span class="{classes}" data-id="{number}" title="id {number}, {state}">{text}</span>'


SIDES = {"train": "training row", "validation": "validation row", "unused": "not used with these settings"}


def position(preview: Result, index: int, rows: int) -> str:
    """Which row is looked at."""
    words = f"Example {index + 1:,} of {rows:,} (row {preview['row']:,} of the file), {SIDES[preview['split']]}"
    if "desirable" in preview:
        words += ", labelled good" if preview["desirable"] else ", labelled bad"
    if preview["windows"] > 1:
        words += f"; part {preview['window'] + 1:,} of {preview['windows']:,}"
    return html.render("data.position", words)


def conversation(preview: Result) -> str:
    """The row as it was read, and as the file holds it."""
    parts = [("", html.bubbles(preview["messages"]) if preview["messages"] else None)]
    if "rejected" in preview:
        parts += [("Chosen", html.bubbles(preview["chosen"])), ("Rejected", html.bubbles(preview["worse"]))]
    record = json.dumps(preview["record"], ensure_ascii=False, indent=2)
    return html.render("data.conversation", parts, preview.get("text", ""), record)


PHASES = {
    "tokenizer": "Loading the tokenizer",
    "lookup": "Checking the cache",
    "read": "Reading rows",
    "convert": "Converting rows",
    "encode": "Tokenizing",
    "first": "Analyzing the first rows",
    "split": "Splitting and truncating",
    "measure": "Measuring lengths",
    "check": "Checking quality",
    "duplicates": "Comparing rows",
    "rows": "Reading the first rows",
    "sample": "Reading the whole file",
}
GROUPS = 5  # examples of a finding that are named


def step(progress: Progress) -> str:
    """How far the reader is; while a file is read its number of rows is a guess."""
    phase, seconds_left = progress.phase, progress.seconds_left
    remarks = []
    if progress.rows_per_second and progress.done:
        remarks.append(f"{progress.rows_per_second:,.0f} rows/s")
    if seconds_left:
        seconds = round(seconds_left)
        remarks.append(f"about {html.duration(seconds) if seconds > 9 else f'{max(1, seconds)} s'} left")
    label = PHASES.get(phase, phase.capitalize() or "Working")
    done = 0 if phase == "sample" else progress.done
    return html.progress(label, done, progress.total, remark=", ".join(remarks), guessed=phase == "read")


def first_look(result: Result) -> str:
    """That what is shown comes from the first rows only; nothing when it is the whole file."""
    rows = result.get("sampled")
    if rows is None:
        return ""
    return html.notice(
        f"Preview: the first {html.count(rows, 'row')} of the file.",
        "All figures are of these rows until the whole file is read.",
        "warning",
    )


def hygiene(result: Result) -> str:
    """Duplicates, leaks, contradictions and lopsided answers: a line each where there are any."""
    quality = result["hygiene"]
    if quality is None:
        return html.notice("Duplicates and contradictions are checked once the whole file is read.")
    lines = [(title, words, " · ".join(examples[:GROUPS])) for title, words, examples in in_words(quality)]
    body = html.render("data.findings", lines) if lines else html.notice(CLEAN, kind="good")
    looked_at, total = quality["looked_at"], quality["of_rows"]
    part = html.hint(f"Checked {looked_at:,} of {total:,} rows, sampled evenly.") if looked_at < total else ""
    return body + _labels(quality["labels"]) + part


def repeated_rows(result: Result) -> tuple[int, int]:
    """How many rows repeat an earlier row exactly, and how many nearly."""
    quality = result["hygiene"]
    return (quality["exact_duplicates"]["rows"], quality["near_duplicates"]["rows"]) if quality else (0, 0)


CLEAN = "No duplicates, no leaks into validation, no contradicting answers, no special tokens in the text."


def _labels(labels: LabelBalance | None) -> str:
    if not labels:
        return ""
    total = sum(labels["counts"].values())
    rows = [(answer, f"{count:,}", html.percent(count, total)) for answer, count in labels["counts"].items()]
    table = html.table(("Answer", "Rows", "Share"), rows, "Answers")
    return html.render("data.labels", label_words(labels), table)


def percentiles(result: Result) -> str:
    """Shortest, mean, every percentile asked for, longest, in tokens; and the reason for the suggested max length."""
    names = {"min": "shortest", "mean": "mean", "max": "longest"}
    cells = [
        (html.number(value), names[name], "")
        if name in names
        else (f"≤ {html.number(value)}", f"{name.removeprefix('p')} % of rows", "")
        for name, value in result["tokens"].items()
    ]
    return html.tiles(cells) + html.hint(f"Suggested max length: {result['suggested']['reason']}")


def forecast(result: Result) -> str:
    """Packs and padding of the training rows, steps per epoch, and windows of long texts."""
    pack, steps = result["packing"], result["steps"]
    lines = []
    compared = result["format"] in COMPARED
    if pack["rows"] and not compared:
        lines.append(
            f"Packing: {html.count(pack['rows'], 'row')} in {html.count(pack['packs'], 'pack')} of "
            f"{html.count(pack['max_length'], 'token')}, {_share(pack['padding_packed'])} padding; "
            f"without packing about {_share(pack['padding_alone'])}."
        )
    factors = [steps["per_device_train_batch_size"], steps["gradient_accumulation_steps"]]
    factors += [steps["processes"]] * (steps["processes"] > 1)
    rows = html.count(math.prod(factors), "row")
    lines.append(
        f"Epoch: {html.count(steps['per_epoch'], 'step')} of {rows} ({' × '.join(map(str, factors))})"
        + (
            "; answers to compare are not packed."
            if compared
            else f"; {html.number(steps['per_epoch_packed'])} packed."
        )
    )
    if result["split_rows"]:
        verb = "is" if result["split_rows"] == 1 else "are"
        lines.append(
            f"Windows: {html.count(result['split_rows'], 'long text')} {verb} split into windows of at most "
            f"{html.count(result['max_length'], 'token')}, {html.count(result['windows'], 'example')} in all."
        )
    return html.render("data.lines", lines)


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def uploads(workspace: Workspace) -> str:
    """The uploaded files, each with its size and a button that deletes it."""
    if not (paths := workspace.uploads()):
        return html.hint("No uploaded files.")
    return html.render("data.uploads", [(path, _size_of(path)) for path in paths])


def _size_of(path: Path) -> str:
    return html.size(bytes_in(path) if path.is_dir() else path.stat().st_size)


def cache(octets: int, *, owned: bool = True) -> str:
    """The size of the tokenized rows on disk; `owned` says that the reader may clear them."""
    if not octets:
        return html.hint("The cache is empty.")
    words = f"{html.size(octets)} of tokenized rows, so that the same data starts at once."
    words += " Clearing deletes none of your files." if owned else " All visitors share them; the owner clears them."
    return html.hint(words)


Preview = Callable[[SettingValues | None, int, int | None], "RowView"]


@dataclass(frozen=True)
class Pager:
    """`index` is the conversation looked at, `window` which part of it, both from 0."""

    position: gr.HTML
    previous: gr.Button
    row: gr.Number
    next: gr.Button
    windows: gr.Row
    earlier: gr.Button
    later: gr.Button
    conversation: gr.HTML
    tokens: gr.HTML
    index: gr.State
    window: gr.State

    def all(self) -> list[Any]:
        return list(vars(self).values())


def draw() -> Pager:
    with gr.Row(elem_classes="ls-turn"):
        previous = gr.Button("Previous", size="md", scale=0, min_width=90)
        row = gr.Number(1, label="Example", precision=0, minimum=1, scale=0, min_width=90)
        following = gr.Button("Next", size="md", scale=0, min_width=90)
        position = gr.HTML(elem_classes="ls-place")
    with gr.Row(visible=False, elem_classes="ls-pager") as windows:
        earlier = gr.Button("Previous part", size="sm", scale=0, min_width=160)
        later = gr.Button("Next part", size="sm", scale=0, min_width=160)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300, elem_classes="ls-marked"):
            gr.HTML(LEGEND)
            tokens = gr.HTML(js_on_load=theme.on_load("tokens"))
        with gr.Column(scale=2, min_width=300):
            conversation = gr.HTML()
    components = (position, previous, row, following, windows, earlier, later, conversation, tokens)
    return Pager(*components, gr.State(0), gr.State(0))


class RowPages:
    """What the pager's buttons do. `preview(analyzed, index, window)` asks the reader for one conversation.

    `analyzed` are the settings of the analysis on this page: another page of the visitor may show another file's.
    A window of None is the one in which training begins.
    """

    def __init__(self, view: Pager, preview: Preview) -> None:
        self.view, self._preview = view, preview

    def back(self, result: "Description | None", analyzed: SettingValues | None, index: int) -> Updates:
        return self.go(result, analyzed, index)

    def forward(self, result: "Description | None", analyzed: SettingValues | None, index: int) -> Updates:
        return self.go(result, analyzed, index + 2)

    def go(self, result: "Description | None", analyzed: SettingValues | None, number: float | None) -> Updates:
        """Shows one conversation, counted from 1; beyond an end stands the end, and an empty field changes nothing."""
        return self._open(result, analyzed, None if number is None else int(number) - 1, None)

    def earlier(self, result: "Description | None", analyzed: SettingValues | None, index: int, window: int) -> Updates:
        return self._open(result, analyzed, index, max(window - 1, 0))

    def later(self, result: "Description | None", analyzed: SettingValues | None, index: int, window: int) -> Updates:
        return self._open(result, analyzed, index, window + 1)

    def _open(
        self, result: "Description | None", analyzed: SettingValues | None, index: int | None, window: int | None
    ) -> Updates:
        if not result or result["sampled"] is not None or index is None:
            return {self.view.position: gr.skip()}  # an update without any component is an error to Gradio
        index = min(max(index, 0), result["usable_rows"] - 1)
        try:
            return self.paint(self._preview(analyzed, index, window), index, result)
        except StudioError as error:
            return {self.view.conversation: html.problem(error), self.view.tokens: ""}

    def paint(self, preview: "RowView | None", index: int, result: "Description") -> Updates:
        v, rows = self.view, result["usable_rows"]
        idle = result["sampled"] is None  # at a first look the reader is busy with the whole file
        if preview is None:
            return {
                v.conversation: html.empty("No example to show", "Every row is invalid or dropped."),
                v.tokens: "",
                v.windows: gr.Row(visible=False),
            }
        window, windows = preview["window"], preview["windows"]
        return {
            v.position: position(preview, index, rows),
            v.row: gr.Number(value=index + 1, maximum=rows),
            v.index: index,
            v.window: window,
            v.windows: gr.Row(visible=windows > 1),
            v.earlier: gr.Button(interactive=idle and window > 0),
            v.later: gr.Button(interactive=idle and window < windows - 1),
            v.conversation: conversation(preview),
            v.tokens: tokens(preview),
            v.previous: gr.Button(interactive=idle and index > 0),
            v.next: gr.Button(interactive=idle and index < rows - 1),
        }
