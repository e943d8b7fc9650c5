"""What an inspected file looks like on the page: summary, the cut line in words, conversation, tokens, bad rows.

Pure functions from the inspector's answers (see data/dataset.py) to HTML; no gradio.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lora_studio.ui import text

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
    return text.render("data.summary", shape, result["words"], result["assumptions"], pairs, origin, facts)


def _facts(result: Result, stop: bool) -> list[tuple[str, str, str]]:
    usable, bad, tokens = (result[name] for name in ("usable_rows", "bad_rows", "tokens"))
    total, trained = result["total_tokens"], result["trained_tokens"]
    fate = "listed below; they stop a run" if stop else "left out, listed below"
    before = ", before the cut" if result["truncated_rows"] or result["dropped_rows"] else ""
    split = f"{text.number(result['train_rows'])} to train on, {text.number(result['validation_rows'])} kept back"
    return [
        (text.number(usable), "usable row" if usable == 1 else "usable rows", split),
        (text.number(bad), "bad row" if bad == 1 else "bad rows", fate if bad else "every row can be read"),
        (text.number(total), "tokens", f"{text.number(tokens['mean'])} a row on average{before}"),
        (text.number(trained), "trained tokens", f"{text.percent(trained, total)} of all: the answers"),
        (text.number(tokens["max"]), "tokens in the longest row", f"half have at most {text.number(tokens['p50'])}"),
    ]


def bad_rows_line(result: Result, *, stop: bool) -> str:
    """How many rows are bad, by reason; where bad rows are to stop the work, that nothing can be trained."""
    if stop and result["refusal"]:
        return text.notice(result["refusal"]["message"], result["refusal"]["hint"], "error")
    if not result["bad_rows"]:
        verb = "read" if result["marked_bad_rows"] else "used"
        return text.notice(f"Every row of the file can be {verb}.", kind="good")
    reasons = "; ".join(f"{reason}: {times:,}" for reason, times in result["bad_rows_by_reason"].items())
    return text.notice(
        f"{text.count(result['bad_rows'], 'row')} can't be used and will be left out.", reasons, "warning"
    )


def bad_rows_table(result: Result) -> str:
    """The first bad rows with number, reason and what was found."""
    bad = result["bad_row_list"]
    if not bad:
        return ""
    names = [name for name in ("file", "row", "reason", "field", "found") if name != "file" or "file" in bad[0]]
    rows = [[row[name] for name in names] for row in bad]
    more = result["bad_rows"] - len(bad)
    first = text.hint(f"The first {len(bad):,}; the file to download has all.") if more > 0 else ""
    return first + text.table([name.capitalize() for name in names], rows, "Bad rows")


def rows_table(result: Result) -> str:
    """The first rows as they stand in the file."""
    rows = result["table"]["rows"]
    counts = [result.get(name, 0) for name in ("usable_rows", "bad_rows", "marked_bad_rows")]
    whole = len(rows) >= sum(counts) > 0
    shown = "All rows" if whole else f"The first {text.count(len(rows), 'row')} of the file"
    return text.table(result["table"]["columns"], rows, shown)


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
    return text.notice(cut_words(result, length), kind=kind)


def cut_words(result: Result, length: float) -> str:
    point = nearest_cut(result["cut_curve"], length)
    at, rows, lost, out = point["max_length"], point["rows"], point["lost_trained_tokens"], point["dropped_rows"]
    if not rows and not lost and not out:
        longest, allowed = int(result["tokens"]["max"]), result["max_length"]
        spare = f"; {allowed:,} are allowed now" if allowed > longest else ""
        return (
            f"At {text.count(at, 'token')}: nothing is cut. The longest row has {text.count(longest, 'token')}{spare}."
        )
    trained = result["trained_tokens"] + result["lost_trained_tokens"]
    return (
        f"At {text.count(at, 'token')}: {text.count(rows, 'row')} ({text.percent(rows, result['rows'])}) "
        f"{'is' if rows == 1 else 'are'} cut, {text.count(lost, 'trained token')} "
        f"({text.percent(lost, trained)}) lost, {text.count(out, 'row')} left out."
    )


def tokens(preview: Result) -> str:
    """Every token of a row in its place; trained ones marked, special ones framed, those cut off struck through."""
    sides = [("better", preview), ("worse", preview["rejected"])] if "rejected" in preview else [("", preview)]
    drawn = [
        (
            f"{name.capitalize()} answer" if name else "",
            f"Tokens of the {name} answer" if name else "Tokens",
            token_line(side),
            text.Html("".join(map(_token, side["tokens"]))),
        )
        for name, side in sides
    ]
    return text.render("data.tokens", drawn)


def token_line(preview: Result) -> str:
    """How many tokens the row has, how many are trained, what is cut off and where, and whether its end is taught."""
    total, trained, removed = (preview[f"{name}_tokens"] for name in ("kept", "trained", "removed"))
    if preview["left_out"]:
        words = f"Left out: all {text.count(preview['full_length'], 'token')} of this row. No token of it is trained."
        return text.notice(words, f"{preview['left_out'].capitalize()}.", "warning")
    words = f"{text.count(total, 'token')}, {trained:,} trained ({text.percent(trained, total)})."
    lost = preview["lost_trained_tokens"]
    if removed:
        words += f" {_cut_off(removed, preview['removed_after'])}, because the row is longer than allowed"
        words += f"; {lost:,} of them would have been trained." if lost else "."
    if preview["ends_with_eos"]:
        return text.notice(words + " The end of the answer is trained: the model learns when to stop.")
    if preview["examples"] > 1 and preview["window"] < preview["windows"] - 1:
        return text.notice(words + " The text goes on in the next part.")
    return text.notice(words, "The row does not end with the end token: the model is not taught to stop.", "warning")


def _cut_off(removed: int, after: int) -> str:
    before = removed - after
    if before and after:
        return f"{text.count(before, 'token')} before and {after:,} after what is kept are cut off"
    verb, side = "is" if removed == 1 else "are", "after" if after else "before"
    return f"{text.count(removed, 'token')} {verb} cut off {side} what is kept"


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
    shown = text.escape(raw).replace("\n", "<i>↵</i>\n").replace("\t", "<i>→</i>\t")
    if not raw:
        shown = "<i>∅</i>"
    elif raw.isspace() and "\n" not in raw:
        shown = f"<i>{'·' * len(raw)}</i>"
    state = "trained" if token["trained"] else "only read"
    if not token["kept"]:
        state = "cut off" + (", would have been trained" if token["trained"] else "")
    state += "" if raw else ", part of a character beside it"
    return f'<span class="{classes}" data-id="{number}" title="id {number}, {state}">{shown}</span>'


FATES = {"train": "trained on", "validation": "kept back to measure on", "unused": "not used at these settings"}


def position(preview: Result, index: int, rows: int) -> str:
    """Which row is looked at."""
    words = f"Conversation {index + 1:,} of {rows:,} (row {preview['row']:,} of the file), {FATES[preview['split']]}"
    if preview["windows"] > 1:
        words += f"; part {preview['window'] + 1:,} of {preview['windows']:,}"
    return text.render("data.position", words)


def conversation(preview: Result) -> str:
    """The row as it was read, and as the file holds it."""
    parts = [("", text.bubbles(preview["messages"]) if preview["messages"] else None)]
    if "rejected" in preview:
        parts += [("Better answer", text.bubbles(preview["chosen"])), ("Worse answer", text.bubbles(preview["worse"]))]
    record = json.dumps(preview["record"], ensure_ascii=False, indent=2)
    return text.render("data.conversation", parts, preview.get("text", ""), record)
