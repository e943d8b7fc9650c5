"""What an analyzed file looks like on the page: summary, findings, conversations, tokens, invalid rows.

Functions from the session's report to HTML, and the pager of conversations.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.files import bytes_in
from lora_studio.jobs.protocol import Progress
from lora_studio.ui import html, theme
from lora_studio.ui.studio import Updates
from lora_studio.workspace import Workspace

if TYPE_CHECKING:
    from lora_studio.data.report import Description, RowView

Result = Mapping[str, Any]
FORMATS = {
    "messages": "Conversations as lists of messages",
    "sharegpt": "Conversations in ShareGPT form",
    "alpaca": "Instructions with input and output (Alpaca)",
    "instruction": "Instructions with answers",
    "prompt_completion": "Prompts with completions",
    "text": "Plain text",
    "dialogue": "Dialogues written as one text",
    "problem": "Problems in several fields",
    "tokenised": "Rows that are tokens already",
    "mapped": "Read as you said",
    "preference": "Pairs of a better and a worse answer",
    "kto": "Answers marked good or bad",
}
PAIRS = (
    "Learned by comparison (training.method dpo): the better answer is made likelier than the worse one. Each row is a "
    "pair; lengths are those of its longer side."
)


def summary(result: Result, *, stop: bool = False) -> str:
    """The shape in words, what was assumed, and the numbers; `stop` where bad rows are to stop the work."""
    shape = FORMATS.get(result["format"], result["format"])
    pairs = PAIRS if result["format"] == "preference" else ""
    origin, facts = result["template_origin"], _facts(result, stop)
    return html.render("data.summary", shape, result["words"], result["assumptions"], pairs, origin, facts)


def _facts(result: Result, stop: bool) -> list[tuple[str, str, str]]:
    usable, bad, tokens = (result[name] for name in ("usable_rows", "bad_rows", "tokens"))
    total, trained = result["total_tokens"], result["trained_tokens"]
    fate = "listed below; they stop a run" if stop else "left out, listed below"
    before = ", before the cut" if result["truncated_rows"] or result["dropped_rows"] else ""
    split = f"{html.number(result['train_rows'])} to train on, {html.number(result['validation_rows'])} kept back"
    return [
        (html.number(usable), "usable row" if usable == 1 else "usable rows", split),
        (html.number(bad), "bad row" if bad == 1 else "bad rows", fate if bad else "every row can be read"),
        (html.number(total), "tokens", f"{html.number(tokens['mean'])} a row on average{before}"),
        (html.number(trained), "trained tokens", f"{html.percent(trained, total)} of all: the answers"),
        (html.number(tokens["max"]), "tokens in the longest row", f"half have at most {html.number(tokens['p50'])}"),
    ]


def bad_rows_line(result: Result, *, stop: bool) -> str:
    """How many rows are bad, by reason; where bad rows are to stop the work, that nothing can be trained."""
    if stop and result["refusal"]:
        return html.notice(result["refusal"]["message"], result["refusal"]["hint"], "error")
    if not result["bad_rows"]:
        verb = "read" if result["marked_bad_rows"] else "used"
        return html.notice(f"Every row of the file can be {verb}.", kind="good")
    reasons = "; ".join(f"{reason}: {times:,}" for reason, times in result["bad_rows_by_reason"].items())
    return html.notice(
        f"{html.count(result['bad_rows'], 'row')} can't be used and will be left out.", reasons, "warning"
    )


def bad_rows_table(result: Result) -> str:
    """The first bad rows with number, reason and what was found."""
    bad = result["bad_row_list"]
    if not bad:
        return ""
    names = [name for name in ("file", "row", "reason", "field", "found") if name != "file" or "file" in bad[0]]
    rows = [[row[name] for name in names] for row in bad]
    more = result["bad_rows"] - len(bad)
    first = html.hint(f"The first {len(bad):,}; the file to download has all.") if more > 0 else ""
    return first + html.table([name.capitalize() for name in names], rows, "Bad rows")


def rows_table(result: Result) -> str:
    """The first rows as they stand in the file."""
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


def cut_sentence(result: Result, length: float) -> str:
    """What is lost when rows may have that many tokens, in one sentence with exact numbers."""
    point = nearest_cut(result["cut_curve"], length)
    lossy = point["lost_trained_tokens"] or point["dropped_rows"]
    kind = "warning" if lossy else "info" if point["rows"] else "good"
    return html.notice(cut_words(result, length), kind=kind)


def cut_words(result: Result, length: float) -> str:
    point = nearest_cut(result["cut_curve"], length)
    at, rows, lost, out = point["max_length"], point["rows"], point["lost_trained_tokens"], point["dropped_rows"]
    if not rows and not lost and not out:
        longest, allowed = int(result["tokens"]["max"]), result["max_length"]
        spare = f"; {allowed:,} are allowed now" if allowed > longest else ""
        return (
            f"At {html.count(at, 'token')}: nothing is cut. The longest row has {html.count(longest, 'token')}{spare}."
        )
    trained = result["trained_tokens"] + result["lost_trained_tokens"]
    return (
        f"At {html.count(at, 'token')}: {html.count(rows, 'row')} ({html.percent(rows, result['rows'])}) "
        f"{'is' if rows == 1 else 'are'} cut, {html.count(lost, 'trained token')} "
        f"({html.percent(lost, trained)}) lost, {html.count(out, 'row')} left out."
    )


def tokens(preview: Result) -> str:
    """Every token of a row in its place; trained ones marked, special ones framed, those cut off struck through."""
    sides = [("better", preview), ("worse", preview["rejected"])] if "rejected" in preview else [("", preview)]
    sections = [
        (
            f"{name.capitalize()} answer" if name else "",
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
        words = f"Left out: all {html.count(preview['full_length'], 'token')} of this row. No token of it is trained."
        return html.notice(words, f"{preview['left_out'].capitalize()}.", "warning")
    words = f"{html.count(total, 'token')}, {trained:,} trained ({html.percent(trained, total)})."
    lost = preview["lost_trained_tokens"]
    if removed:
        words += f" {_cut_off(removed, preview['removed_after'])}, because the row is longer than allowed"
        words += f"; {lost:,} of them would have been trained." if lost else "."
    if preview["ends_with_eos"]:
        return html.notice(words + " The end of the answer is trained: the model learns when to stop.")
    if preview["examples"] > 1 and preview["window"] < preview["windows"] - 1:
        return html.notice(words + " The text goes on in the next part.")
    return html.notice(words, "The row does not end with the end token: the model is not taught to stop.", "warning")


def _cut_off(removed: int, after: int) -> str:
    before = removed - after
    if before and after:
        return f"{html.count(before, 'token')} before and {after:,} after what is kept are cut off"
    verb, side = "is" if removed == 1 else "are", "after" if after else "before"
    return f"{html.count(removed, 'token')} {verb} cut off {side} what is kept"


LEGEND = (
    '<p class="ls-legend"><span><b class="ls-tok ls-t">trained</b> the model learns to write this</span> '
    '<span><b class="ls-tok">read</b> only read</span> '
    '<span><b class="ls-tok ls-s">special</b> a control token of the template</span> '
    '<span><b class="ls-tok ls-x">cut off</b> the model never sees this</span> '
    '<span><b class="ls-tok"><i>↵</i></b> a line break</span> '
    '<label><input type="checkbox" class="ls-ids"> Show each token’s id</label></p>'
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
    state = "trained" if token["trained"] else "only read"
    if not token["kept"]:
        state = "cut off" + (", would have been trained" if token["trained"] else "")
    state += "" if raw else ", part of a character beside it"
    return f'<span class="{classes}" data-id="{number}" title="id {number}, {state}">{text}</span>'


FATES = {"train": "trained on", "validation": "kept back to measure on", "unused": "not used at these settings"}


def position(preview: Result, index: int, rows: int) -> str:
    """Which row is looked at."""
    words = f"Conversation {index + 1:,} of {rows:,} (row {preview['row']:,} of the file), {FATES[preview['split']]}"
    if preview["windows"] > 1:
        words += f"; part {preview['window'] + 1:,} of {preview['windows']:,}"
    return html.render("data.position", words)


def conversation(preview: Result) -> str:
    """The row as it was read, and as the file holds it."""
    parts = [("", html.bubbles(preview["messages"]) if preview["messages"] else None)]
    if "rejected" in preview:
        parts += [("Better answer", html.bubbles(preview["chosen"])), ("Worse answer", html.bubbles(preview["worse"]))]
    record = json.dumps(preview["record"], ensure_ascii=False, indent=2)
    return html.render("data.conversation", parts, preview.get("text", ""), record)


PHASES = {
    "tokenizer": "Loading the tokenizer",
    "lookup": "Looking for what is kept of this file",
    "read": "Reading rows",
    "convert": "Converting rows",
    "encode": "Making tokens",
    "first": "Looking at the first rows",
    "split": "Setting rows apart to measure on, and cutting long ones",
    "measure": "Counting what each length would cut",
    "check": "Looking for repeated and contradictory rows",
    "rows": "Looking at the rows",
    "sample": "Reading the whole file",
}
GROUPS = 5  # examples of a finding that are named


def step(progress: Progress) -> str:
    """How far the reader is; while a file is read its number of rows is a guess."""
    phase, seconds_left = progress.phase, progress.seconds_left
    remarks = []
    if progress.rows_per_second and progress.done:
        remarks.append(f"{progress.rows_per_second:,.0f} rows a second")
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
        f"First look: {html.count(rows, 'row')} from the start of the file.",
        "Every number here is of these rows alone, until the whole file is read.",
        "warning",
    )


def hygiene(result: Result) -> str:
    """Duplicates, leaks, contradictions and lopsided answers: a line each where there are any."""
    quality = result["hygiene"]
    if quality is None:
        return html.notice("Duplicates and contradictions are looked for once the whole file is read.")
    lines = [line for line in (*_repeats(quality), *_leaks(quality), *_unlike(quality), *_specials(quality)) if line]
    body = html.render("data.findings", lines) if lines else html.notice(CLEAN, kind="good")
    return body + _labels(quality["labels"]) + _looked_at(quality)


CLEAN = "No duplicates, no row in both parts, no contradictory answers, no special tokens in the texts."
Finding = tuple[str, str, str]
"""Title, words and examples."""


def _finding(title: str, words: str, examples: Sequence[str]) -> Finding:
    return title, words, " · ".join(examples[:GROUPS])


def _groups(examples: Sequence[Sequence[int]]) -> list[str]:
    return ["rows " + ", ".join(f"{row:,}" for row in group) for group in examples]


def _pairs(examples: Sequence[Sequence[int]]) -> list[str]:
    return [f"row {train:,} and validation row {validation:,}" for train, validation in examples]


def _repeats(quality: Result) -> list[Finding]:
    exact, near = quality["exact_duplicates"], quality["near_duplicates"]
    lines = []
    if exact["rows"]:
        verb = "repeats" if exact["rows"] == 1 else "repeat"
        words = f"{html.count(exact['rows'], 'row')} {verb} an earlier row, in {html.count(exact['groups'], 'group')}."
        lines.append(_finding("Duplicates", words, _groups(exact["examples"])))
    if near["rows"]:
        verb = "says" if near["rows"] == 1 else "say"
        among = f" Looked for among {near['sampled']:,} rows." if near["sampled"] else ""
        words = f"{html.count(near['rows'], 'row')} {verb} almost what an earlier row says.{among}"
        lines.append(_finding("Near duplicates", words, _groups(near["examples"])))
    return lines


def _leaks(quality: Result) -> list[Finding]:
    shared = quality["shared_with_validation"]
    lines = []
    if shared["rows"]:
        verb = "is" if shared["rows"] == 1 else "are"
        words = (
            f"{html.count(shared['rows'], 'validation row')} {verb} trained on too: the validation loss will flatter."
        )
        lines.append(_finding("In both parts", words, _pairs(shared["examples"])))
    if shared["prompts"]:
        verb = "asks" if shared["prompts"] == 1 else "ask"
        words = (
            f"{html.count(shared['prompts'], 'validation row')} {verb} what a training row asks, answered otherwise."
        )
        lines.append(_finding("Same question in both parts", words, _pairs(shared["prompt_examples"])))
    return lines


def _unlike(quality: Result) -> list[Finding]:
    unlike = quality["contradictions"]
    if not unlike["prompts"]:
        return []
    verb = "has" if unlike["prompts"] == 1 else "have"
    words = (
        f"{html.count(unlike['prompts'], 'prompt')} {verb} different answers, in {html.count(unlike['rows'], 'row')}."
    )
    return [_finding("Contradictory answers", words, _groups(unlike["examples"]))]


def _specials(quality: Result) -> list[Finding]:
    hidden = quality["special_tokens"]
    if not hidden["rows"]:
        return []
    verb = "holds" if hidden["rows"] == 1 else "hold"
    tokens = html.shorten(", ".join(hidden["counts"]), 120)
    words = f"{html.count(hidden['rows'], 'row')} {verb} {tokens} as text: the model takes them for real ones. "
    words += (
        "Take them out of the texts, unless they are meant as such, as an end mark after each document is: inside a "
        "text they teach the model to stop or change roles there."
    )
    places = [f"row {row:,} ({role}): {token}" for row, role, token in hidden["examples"]]
    return [_finding("Special tokens in the texts", words, places)]


def _labels(labels: Result | None) -> str:
    """How the answers are spread, where there are only a few."""
    if not labels:
        return ""
    total, (most, times) = sum(labels["counts"].values()), next(iter(labels["counts"].items()))
    words = (
        f"{html.count(labels['distinct'], 'different answer')}; “{html.shorten(most, 40)}” is given most: "
        f"{times:,} times ({html.percent(times, total)})."
    )
    rows = [(answer, f"{count:,}", html.percent(count, total)) for answer, count in labels["counts"].items()]
    table = html.table(("Answer", "Rows", "Share"), rows, "Answers")
    return html.render("data.labels", words, table)


def _looked_at(quality: Result) -> str:
    if quality["looked_at"] >= quality["of_rows"]:
        return ""
    words = f"Looked at {quality['looked_at']:,} of {quality['of_rows']:,} rows, taken evenly from the whole."
    return html.hint(words)


def suggestion(result: Result) -> str:
    """The longest row that suits the data, and why."""
    suggested = result["suggested"]
    words = f"Suggested longest row: {html.count(suggested['max_length'], 'token')}"
    words += ", the one in use." if suggested["max_length"] == result["max_length"] else "."
    return html.notice(words, suggested["reason"])


def percentiles(result: Result) -> str:
    """Shortest, mean, every percentile asked for, longest."""
    names = {"min": "shortest", "mean": "on average", "max": "longest"}
    cells = [
        (html.number(value), names[name], "")
        if name in names
        else (f"≤ {html.number(value)}", f"{name.removeprefix('p')} % of the rows", "")
        for name, value in result["tokens"].items()
    ]
    return html.tiles(cells)


def forecast(result: Result) -> str:
    """What packing and windows would do to the training rows, and how many steps an epoch has."""
    pack, steps = result["packing"], result["steps"]
    lines = []
    compared = result["format"] == "preference"
    if pack["rows"] and not compared:
        verb = "fits" if pack["rows"] == 1 else "fit"
        lines.append(
            f"Packing: {html.count(pack['rows'], 'row')} {verb} into {html.count(pack['packs'], 'pack')} of "
            f"{html.count(pack['max_length'], 'token')}; padding is {_share(pack['padding_packed'])} then. "
            f"Without packing it is about {_share(pack['padding_alone'])}: a batch is filled up to its longest row."
        )
    batch, accumulation = steps["per_device_train_batch_size"], steps["gradient_accumulation_steps"]
    rows = html.count(batch * accumulation, "row")
    lines.append(
        f"An epoch has {html.count(steps['per_epoch'], 'step')} of {rows} ({batch} × {accumulation})"
        + ("; pairs are not packed." if compared else f"; packed {html.number(steps['per_epoch_packed'])}.")
    )
    if result["split_rows"]:
        verb = "is" if result["split_rows"] == 1 else "are"
        lines.append(
            f"{html.count(result['split_rows'], 'long text')} {verb} split into windows of at most "
            f"{html.count(result['max_length'], 'token')}, so that nothing is lost: "
            f"{html.count(result['windows'], 'example')} in all."
        )
    return html.render("data.lines", lines)


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def uploads(workspace: Workspace) -> str:
    """The files that were uploaded, each with its size and a way to delete it."""
    if not (paths := workspace.uploads()):
        return html.hint("Nothing that you uploaded is kept.")
    return html.render("data.uploads", [(path, _size_of(path)) for path in paths])


def _size_of(path: Path) -> str:
    return html.size(bytes_in(path) if path.is_dir() else path.stat().st_size)


def cache(octets: int, *, owned: bool = True) -> str:
    """What prepared data takes on the disk; `owned` says that the reader may clear it."""
    if not octets:
        return html.hint("Nothing is kept at the moment.")
    words = f"{html.size(octets)} of prepared rows are kept, so that the next start of the same data takes no time."
    words += (
        " Clearing them loses no file of yours." if owned else " All visitors share them, and the owner clears them."
    )
    return html.hint(words)


Preview = Callable[[int, int | None], "RowView"]


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
        row = gr.Number(1, label="Conversation", precision=0, minimum=1, scale=0, min_width=90)
        following = gr.Button("Next", size="md", scale=0, min_width=90)
    position = gr.HTML()
    with gr.Row(visible=False, elem_classes="ls-pager") as windows:
        earlier = gr.Button("Previous part", size="sm", scale=0, min_width=160)
        later = gr.Button("Next part", size="sm", scale=0, min_width=160)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            conversation = gr.HTML()
        with gr.Column(scale=3, min_width=300, elem_classes="ls-marked"):
            gr.HTML(LEGEND)
            tokens = gr.HTML(js_on_load=theme.on_load("tokens"))
    components = (position, previous, row, following, windows, earlier, later, conversation, tokens)
    return Pager(*components, gr.State(0), gr.State(0))


class RowPages:
    """What the pager's buttons do. `preview(index, window)` asks the reader for one conversation.

    A window of None is the one in which training begins.
    """

    def __init__(self, view: Pager, preview: Preview) -> None:
        self.view, self._preview = view, preview

    def back(self, result: "Description | None", index: int) -> Updates:
        return self.go(result, index)

    def forward(self, result: "Description | None", index: int) -> Updates:
        return self.go(result, index + 2)

    def go(self, result: "Description | None", number: float | None) -> Updates:
        """Shows one conversation, counted from 1; beyond an end stands the end."""
        return self._open(result, int(number) - 1, None) if number is not None else {}

    def earlier(self, result: "Description | None", index: int, window: int) -> Updates:
        return self._open(result, index, max(window - 1, 0))

    def later(self, result: "Description | None", index: int, window: int) -> Updates:
        return self._open(result, index, window + 1)

    def _open(self, result: "Description | None", index: int, window: int | None) -> Updates:
        if not result or result["sampled"] is not None:
            return {}
        index = min(max(index, 0), result["usable_rows"] - 1)
        try:
            return self.paint(self._preview(index, window), index, result)
        except StudioError as error:
            return {self.view.conversation: html.problem(error), self.view.tokens: ""}

    def paint(self, preview: "RowView | None", index: int, result: "Description") -> Updates:
        v, rows = self.view, result["usable_rows"]
        idle = result["sampled"] is None  # at a first look the reader is busy with the whole file
        if preview is None:
            return {
                v.conversation: html.empty("No conversation to show", "Every row is bad or left out."),
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
