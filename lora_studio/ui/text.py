"""Words and HTML for the page: numbers with units, notices, progress, tables, bubbles. Pure functions, no gradio.

Whatever comes from a file, a model or a person goes through `escape` and is shown as text, never run.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_studio.errors import StudioError
from lora_studio.plural import count as count

JOINERS = "\u200c\u200d"  # invisible, but Persian, Hindi and emoji are written with them
TEMPLATE = str.maketrans({"$": "&#36;", "{": "&#123;", "`": "&#96;"})  # gr.HTML runs what stands in ${...}


def escape(value: object) -> str:
    """Text that neither HTML nor Gradio's templates read as anything else, and in which nothing hides."""
    return html.escape(visible(str(value)), quote=True).translate(TEMPLATE)


def visible(text: str) -> str:
    """Control characters and marks that turn the reading direction as ⟨U+202E⟩; line feeds and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"⟨U+{ord(char):04X}⟩" if _hidden(char) else char for char in text)


def _hidden(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in "\n\t" and char not in JOINERS


def number(value: float) -> str:
    """12345.0 as 12,345; a fraction keeps one decimal."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def percent(part: float, whole: float) -> str:
    """A share that says 0 % and 100 % only where it is exactly that."""
    if whole <= 0 or part <= 0:
        return "0 %"
    share = 100 * part / whole
    if share < 0.1:
        return "< 0.1 %"
    if share > 99.9 and part < whole:
        return "> 99.9 %"
    return f"{share:.1f} %".replace(".0 %", " %")


def duration(seconds: float) -> str:
    """0.12 s, 4.1 s, 41 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for large, name, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def size(octets: float) -> str:
    """Bytes as kB, MB, GB or TB (powers of 1,000, as drives and downloads are counted)."""
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1000:
            return f"{octets:.0f} {unit}" if octets >= 10 or unit == "B" else f"{octets:.1f} {unit}"
        octets /= 1000
    return f"{octets:.1f} TB"


def shorten(text: str, longest: int) -> str:
    """One line of at most `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def notice(message: str, hint: str = "", kind: str = "info", *, link: str = "") -> str:
    """A sentence in a box; `kind` is info, good, warning or error, `link` markup that ends the hint."""
    role = "alert" if kind == "error" else "status"
    more = f'<span class="ls-hint">{_lines(hint)}{link}</span>' if hint else ""
    return f'<div class="ls-notice ls-{kind}" role="{role}"><span>{_lines(message)}</span>{more}</div>'


def problem(error: StudioError) -> str:
    """What a person can mend, with what to do."""
    return notice(error.message, error.hint, "error")


def _lines(text: str) -> str:
    return marked(text).replace("\n", "<br>")


def marked(words: object) -> str:
    """Escaped words in which `names` stand out; they may come from a file, so they are escaped first."""
    return re.sub("&#96;(.*?)&#96;", r"<code>\1</code>", escape(words))


def empty(message: str, hint: str = "") -> str:
    """What stands where nothing is yet: what will be here and what to do for it."""
    more = f"<span>{escape(hint)}</span>" if hint else ""
    return f'<div class="ls-empty"><b>{escape(message)}</b>{more}</div>'


def progress(label: str, done: int = 0, total: int = 0, *, remark: str = "", guessed: bool = False) -> str:
    """A bar with words; without a total it only moves. `guessed` says that the total is not certain."""
    if total:
        said = f"{label}: {done:,} of {'about ' if guessed else ''}{total:,}"
    else:
        said = f"{label}: {done:,}…" if done else f"{label}…"
    said += f" ({remark})" if remark else ""
    share = min(100.0, 100 * done / total) if total else 0.0
    inner = f'<i style="width:{share:.1f}%"></i>' if total else '<i class="ls-unknown"></i>'
    values = f' aria-valuenow="{share:.0f}" aria-valuemin="0" aria-valuemax="100"' if total else ""
    bar = f'<div class="ls-bar" role="progressbar" aria-label="{escape(label)}"{values}>{inner}</div>'
    return f'<div class="ls-progress"><span>{escape(said)}</span>{bar}</div>'


def tiles(facts: Sequence[tuple[str, str, str]]) -> str:
    """Numbers to take in at a glance: (value, what it counts, remark) each."""
    cells = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(label)}</span>{f'<small>{escape(remark)}</small>' if remark else ''}"
        "</div>"
        for value, label, remark in facts
    )
    return f'<div class="ls-tiles">{cells}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], label: str) -> str:
    """A table that scrolls within itself, by keyboard too."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="ls-table" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: object) -> str:
    return '<span class="ls-none">none</span>' if value is None else f"<div>{escape(value)}</div>"


def pager(found: int, of: int, page: int, rows: int, noun: str) -> str:
    """What part of a table is shown, `rows` on a page, and buttons that turn it; `page` counts from 0."""
    last = (found - 1) // rows
    said = count(found, noun) if found == of else f"{found:,} of {count(of, noun)}"
    if last <= 0:
        return f'<div class="run-pager"><span>{said}</span></div>'
    said = f"{page * rows + 1:,} to {min(found, (page + 1) * rows):,} of {said}"
    buttons = "".join(
        f'<button type="button" data-act="page" data-value="{step}"{"" if able else " disabled"}>{word}</button>'
        for step, word, able in ((-1, "Previous page", page > 0), (1, "Next page", page < last))
    )
    return f'<div class="run-pager"><span>{said}</span>{buttons}</div>'


def bubbles(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as it reads: one bubble a message, with its role."""
    return f'<div class="ls-talk">{"".join(map(_bubble, messages))}</div>'


def _bubble(message: Mapping[str, Any]) -> str:
    role = str(message["role"])
    side = role if role in ("user", "assistant", "system") else "other"
    content = str(message.get("content") or "")
    thought, content = thoughts(content) if role == "assistant" else ("", content)
    folded = {"thoughts": message.get("reasoning_content") or thought, "tool calls": message.get("tool_calls")}
    extras = "".join(
        f"<details><summary>{name}</summary><pre>{escape(inside)}</pre></details>"
        for name, inside in folded.items()
        if inside
    )
    body = escape(content) if content else '<span class="ls-none">empty</span>'
    said = f'<div class="ls-said">{body}</div>'
    return f'<div class="ls-bubble ls-{side}"><small>{escape(role)}</small>{extras}{said}</div>'


def thoughts(answer: str) -> tuple[str, str]:
    """An answer's reasoning between <think> and </think> (still open while it streams), and the rest."""
    if not answer.lstrip().startswith("<think>"):
        return "", answer
    inside, _, rest = answer.lstrip().removeprefix("<think>").partition("</think>")
    return inside.strip(), rest.lstrip()
