"""What an inspected file looks like on the page: summary, histogram with its cut line, conversation, tokens, bad rows.

Pure functions from the inspector's answers (see data/dataset.py) to HTML; no gradio.
"""

import base64
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
}
PAIRS = (
    "Learned by comparison (training.method dpo): the better answer is made likelier than the worse one. Each row is a "
    "pair; lengths are those of its longer side."
)
PERCENTILES = (("p50", "50 %"), ("p95", "95 %"), ("p99", "99 %"))


def summary(result: Result) -> str:
    """The shape in words, what was assumed, and the numbers."""
    shape = FORMATS.get(result["format"], result["format"])
    assumed = "".join(f"<li>{text.marked(item)}</li>" for item in result["assumptions"])
    words = f'<p class="ls-words"><b>{text.escape(shape)}.</b> {text.marked(result["words"])}</p>'
    more = f'<ul class="ls-assumed">{assumed}</ul>' if assumed else ""
    if result["format"] == "preference":
        more += text.notice(PAIRS)
    origin = f'<p class="ls-hint">{text.escape(result["template_origin"])}</p>' if result["template_origin"] else ""
    return f"{words}{more}{origin}{text.tiles(_facts(result))}"


def _facts(result: Result) -> list[tuple[str, str, str]]:
    bad, total, trained, tokens = (result[name] for name in ("bad_rows", "total_tokens", "trained_tokens", "tokens"))
    split = f"{text.number(result['train_rows'])} to train on, {text.number(result['validation_rows'])} kept back"
    return [
        (text.number(result["usable_rows"]), "usable rows", split),
        (text.number(bad), "bad rows", "left out, listed below" if bad else "every row can be read"),
        (text.number(total), "tokens", f"{text.number(tokens['mean'])} a row on average"),
        (text.number(trained), "trained tokens", f"{text.percent(trained, total)} of all: the answers"),
        (text.number(tokens["max"]), "tokens in the longest row", f"half have at most {text.number(tokens['p50'])}"),
    ]


def bad_rows_line(result: Result) -> str:
    """How many rows are bad, by reason."""
    if not result["bad_rows"]:
        return text.notice("Every row of the file can be used.", kind="good")
    reasons = "; ".join(f"{reason}: {times:,}" for reason, times in result["bad_rows_by_reason"].items())
    return text.notice(
        f"{text.count(result['bad_rows'], 'row')} can't be used and will be left out.", reasons, "warning"
    )


def bad_rows_table(result: Result) -> str:
    """The bad rows with number, reason and what was found, and a link that saves them."""
    bad = result["bad_row_list"]
    if not bad:
        return ""
    rows = [(row["row"], row["reason"], row.get("field", ""), row.get("found", "")) for row in bad]
    shown = "" if len(bad) >= result["bad_rows"] else f" (the first {len(bad):,} of {result['bad_rows']:,})"
    data = base64.b64encode(bad_rows_jsonl(bad).encode()).decode()
    link = (
        f'<a class="ls-download" download="bad-rows.jsonl" href="data:application/x-ndjson;base64,{data}">'
        f"Download bad rows as JSONL{text.escape(shown)}</a>"
    )
    return text.table(("Row", "Reason", "Field", "Found"), rows, "Bad rows") + link


def bad_rows_jsonl(bad: Sequence[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in bad)


def rows_table(result: Result) -> str:
    """The first rows as they stand in the file."""
    rows = result["table"]["rows"]
    shown = (
        f"The first {len(rows):,} rows of the file" if len(rows) < result["rows"] + result["bad_rows"] else "All rows"
    )
    return text.table(result["table"]["columns"], rows, shown)


def nearest_cut(curve: Sequence[Mapping[str, Any]], length: float) -> Mapping[str, Any]:
    """The point of the cut curve nearest to a length: its numbers are counted, not estimated."""
    return min(curve, key=lambda point: abs(point["max_length"] - length))


def cut_bounds(result: Result) -> tuple[int, int]:
    """The shortest and the longest length worth trying: beyond the longest row nothing is cut."""
    lengths = [point["max_length"] for point in result["cut_curve"]]
    low, high = min(lengths), int(min(max(lengths), result["tokens"]["max"]))
    return low, max(high, low + 1)


def cut_sentence(result: Result, length: float) -> str:
    """What is lost when rows may have that many tokens, in one sentence with exact numbers."""
    point = nearest_cut(result["cut_curve"], length)
    at, rows, lost, out = point["max_length"], point["rows"], point["lost_trained_tokens"], point["dropped_rows"]
    if not rows and not lost and not out:
        longest = text.count(int(result["tokens"]["max"]), "token")
        return text.notice(f"At {text.count(at, 'token')}: nothing is cut. The longest row has {longest}.", kind="good")
    trained = result["trained_tokens"] + result["lost_trained_tokens"]
    words = (
        f"At {text.count(at, 'token')}: {text.count(rows, 'row')} ({text.percent(rows, result['rows'])}) "
        f"{'is' if rows == 1 else 'are'} cut, {text.count(lost, 'trained token')} "
        f"({text.percent(lost, trained)}) lost, {text.count(out, 'row')} left out."
    )
    return text.notice(words, kind="warning" if lost or out else "info")


def histogram(result: Result, length: float) -> str:
    """Rows by their number of tokens, with percentiles, and the cut line at the point nearest to `length`."""
    edges, counts = result["histogram"]["edges"], result["histogram"]["counts"]
    cut = nearest_cut(result["cut_curve"], length)["max_length"]
    most, first, last = max(counts, default=0), edges[0], edges[-1] - 1
    marks = "".join(
        f'<div class="ls-mark" style="{_at(result["tokens"][key], edges)};--row:{row}">'
        f"<span>{label} ≤ {text.number(result['tokens'][key])}</span></div>"
        for row, (key, label) in enumerate(PERCENTILES)
    )
    words = f"Histogram of tokens a row, {text.number(first)} to {text.number(last)}, cut line at {text.number(cut)}."
    return (
        f'<figure class="ls-hist"><figcaption>Rows by number of tokens</figcaption>'
        f'<div class="ls-plot"><svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="{words}">'
        f'{_bars(edges, counts, cut)}</svg>{marks}<div class="ls-cut" style="{_at(cut, edges)}">'
        f"<span>{'← ' if cut < first else ''}cut at {text.number(cut)}{' →' if cut > last else ''}</span></div></div>"
        f'<div class="ls-axis"><span>{text.number(first)}</span><span>tokens a row (highest bar: '
        f"{text.count(most, 'row')})</span><span>{text.number(last)}</span></div></figure>"
    )


def _share(value: float, edges: Sequence[float]) -> float:
    """Where a number of tokens stands on the axis, 0 to 1."""
    width = edges[-1] - edges[0]
    return min(1.0, max(0.0, (value - edges[0]) / width)) if width > 0 else 0.5


def _at(value: float, edges: Sequence[float]) -> str:
    """Place on the axis; labels right of the middle hang to the left of their line, so that none is cut off."""
    share = _share(value, edges)
    return f"left:{100 * share:.2f}%;--side:{'-100%' if share > 0.5 else '0%'}"


def _bars(edges: Sequence[float], counts: Sequence[int], cut: float) -> str:
    most = max(counts, default=0) or 1
    bars = []
    for low, high, rows in zip(edges, edges[1:], counts, strict=False):
        left, right = 1000 * _share(low, edges), 1000 * _share(high, edges)
        height = max(1.0, 100 * rows / most) if rows else 0.0
        lost = ' class="ls-over"' if low >= cut else ""
        lengths = text.number(low) if high - low == 1 else f"{text.number(low)} to {text.number(high - 1)}"
        title = f"{lengths} tokens: {text.count(rows, 'row')}"
        bars.append(
            f'<rect{lost} x="{left:.1f}" y="{100 - height:.1f}" width="{max(1.0, 0.92 * (right - left)):.1f}" '
            f'height="{height:.1f}"><title>{title}</title></rect>'
        )
    return "".join(bars)


def tokens(preview: Result) -> str:
    """Every token of a row in its place; trained ones marked, special ones framed, ids on hover."""
    if "rejected" in preview:
        better, worse = (_token_box(side, f"Tokens of the {name} answer") for side, name in _named_sides(preview))
        return f"{LEGEND}<h4>Better answer</h4>{better}<h4>Worse answer</h4>{worse}"
    return f"{LEGEND}{_token_box(preview, 'Tokens')}"


def _named_sides(preview: Result) -> list[tuple[Result, str]]:
    return [(preview, "better"), (preview["rejected"], "worse")]


def _token_box(side: Result, label: str) -> str:
    spans = "".join(map(_token, side["tokens"]))
    return f'{token_line(side)}<div class="ls-tokens" role="region" tabindex="0" aria-label="{label}">{spans}</div>'


def token_line(preview: Result) -> str:
    """How many tokens the row has, how many are trained, and whether its end is taught."""
    total, trained, removed = len(preview["tokens"]), preview["trained_tokens"], preview["removed_tokens"]
    words = f"{text.count(total, 'token')}, {trained:,} trained ({text.percent(trained, total)})."
    if removed:
        words += f" {text.count(removed, 'token')} cut off, because the row is longer than allowed."
    if preview["ends_with_eos"]:
        return text.notice(words + " The end of the answer is trained: the model learns when to stop.")
    return text.notice(words, "The row does not end with the end token: the model is not taught to stop.", "warning")


LEGEND = (
    '<p class="ls-legend"><span class="ls-tok ls-t">trained</span> the model learns to write this '
    '<span class="ls-tok">read</span> only read '
    '<span class="ls-tok ls-s">special</span> a control token of the template '
    '<span class="ls-tok"><i>↵</i></span> a line break. Hover over a token for its id.</p>'
)


def _token(token: Mapping[str, Any]) -> str:
    classes = "ls-tok" + (" ls-t" if token["trained"] else "") + (" ls-s" if token["special"] else "")
    raw = token["text"]
    shown = text.escape(raw).replace("\n", "<i>↵</i>\n").replace("\t", "<i>→</i>\t")
    if not raw:
        shown = "<i>∅</i>"
    elif raw.isspace() and "\n" not in raw:
        shown = f"<i>{'·' * len(raw)}</i>"
    state = ("trained" if token["trained"] else "only read") + ("" if raw else ", part of a character beside it")
    return f'<span class="{classes}" title="id {token["id"]}, {state}">{shown}</span>'


def position(preview: Result, index: int, rows: int) -> str:
    """Which row is looked at."""
    words = f"Conversation {index + 1:,} of {rows:,} (row {preview['row']:,} of the file)"
    if preview["windows"] > 1:
        words += f"; the first of its {preview['windows']:,} windows"
    return f'<p class="ls-where" role="status">{words}</p>'


def conversation(preview: Result) -> str:
    """The row as it was read, and as the file holds it."""
    record = text.escape(json.dumps(preview["record"], ensure_ascii=False, indent=2))
    body = text.bubbles(preview["messages"]) if preview["messages"] else f"<pre>{text.escape(preview['text'])}</pre>"
    if "rejected" in preview:
        body += f"<h4>Better answer</h4>{text.bubbles(preview['chosen'])}"
        body += f"<h4>Worse answer</h4>{text.bubbles(preview['worse'])}"
    body = f'<div class="ls-reading" role="region" tabindex="0" aria-label="Conversation">{body}</div>'
    return f'{body}<details class="ls-raw"><summary>As it stands in the file</summary><pre>{record}</pre></details>'
