"""Words and HTML for the page: numbers with units, notices, progress, tables, bubbles. Pure functions, no gradio.

Markup is made by the macros under templates/. Whatever comes from a file, a model or a person goes through `escape` on
the way there and is shown as text, never run.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lora_studio.errors import StudioError
from lora_studio.plural import count as count

JOINERS = "\u200c\u200d"  # invisible, but Persian, Hindi and emoji are written with them
TEMPLATE = str.maketrans({"$": "&#36;", "{": "&#123;", "`": "&#96;"})  # gr.HTML runs what stands in ${...}


class Html(str):
    """Markup that can stand in other markup as it is. Words put beside it make a plain text again, to be escaped."""

    def __html__(self) -> str:
        return str(self)


def escape(value: object) -> str:
    """Text that neither HTML nor Gradio's templates read as anything else, and in which nothing hides."""
    return html.escape(visible(str(value)), quote=True).translate(TEMPLATE)


def render(macro: str, *values: Any, **named: Any) -> Html:
    """The markup that a macro makes, named as `file.macro` under templates/. All values are escaped but `Html`."""
    file, _, name = macro.partition(".")
    return Html(getattr(TEMPLATES.get_template(f"{file}.jinja").module, name)(*values, **named))


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


def notice(message: str, hint: str = "", kind: str = "info", *, link: str = "") -> Html:
    """A sentence in a box; `kind` is info, good, warning or error, `link` markup that ends the hint."""
    return render("text.notice", message, hint, kind, Html(link))


def problem(error: StudioError) -> Html:
    """What a person can mend, with what to do."""
    return notice(error.message, error.hint, "error")


def marked(words: object) -> Html:
    """Escaped words in which `names` stand out; they may come from a file, so they are escaped first."""
    return Html(re.sub("&#96;(.*?)&#96;", r"<code>\1</code>", escape(words)))


def empty(message: str, hint: str = "") -> Html:
    """What stands where nothing is yet: what will be here and what to do for it."""
    return render("text.empty", message, hint)


def progress(label: str, done: int = 0, total: int = 0, *, remark: str = "", guessed: bool = False) -> Html:
    """A bar with words; without a total it only moves. `guessed` says that the total is not certain."""
    if total:
        words = f"{label}: {done:,} of {'about ' if guessed else ''}{total:,}"
    else:
        words = f"{label}: {done:,}…" if done else f"{label}…"
    words += f" ({remark})" if remark else ""
    return render("text.progress", label, words, min(100.0, 100 * done / total) if total else None)


def tiles(facts: Sequence[tuple[str, str, str]]) -> Html:
    """Numbers to take in at a glance: (value, what it counts, remark) each."""
    return render("text.tiles", facts)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], label: str) -> Html:
    """A table that scrolls within itself, by keyboard too."""
    return render("text.table", columns, rows, label)


def pager(found: int, of: int, page: int, rows: int, noun: str) -> Html:
    """What part of a table is shown, `rows` on a page, and buttons that turn it; `page` counts from 0."""
    last = (found - 1) // rows
    words = count(found, noun) if found == of else f"{found:,} of {count(of, noun)}"
    if last <= 0:
        return render("text.pager", words, ())
    words = f"{page * rows + 1:,} to {min(found, (page + 1) * rows):,} of {words}"
    return render("text.pager", words, ((-1, "Previous page", page > 0), (1, "Next page", page < last)))


def bubbles(messages: Sequence[Mapping[str, Any]]) -> Html:
    """A conversation as it reads: one bubble a message, with its role, what is folded in it, and its text."""
    return render("text.bubbles", [_bubble(message) for message in messages])


def _bubble(message: Mapping[str, Any]) -> tuple[str, tuple[tuple[str, Any], ...], str]:
    role, content = str(message["role"]), str(message.get("content") or "")
    thought, content = thoughts(content) if role == "assistant" else ("", content)
    folded = (("thoughts", message.get("reasoning_content") or thought), ("tool calls", message.get("tool_calls")))
    return role, folded, content


def thoughts(answer: str) -> tuple[str, str]:
    """An answer's reasoning between <think> and </think> (still open while it streams), and the rest."""
    if not answer.lstrip().startswith("<think>"):
        return "", answer
    inside, _, rest = answer.lstrip().removeprefix("<think>").partition("</think>")
    return inside.strip(), rest.lstrip()


class _Loader(FileSystemLoader):
    """Templates without the line breaks beside tags, and with a blank for all others, so that they can be indented."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Any]:
        source, path, is_fresh = super().get_source(environment, template)
        source = re.sub(r"(?<=[>}])\s*\n\s*|\s*\n\s*(?=[<{])", "", source)
        return re.sub(r"\s*\n\s*", " ", source), path, is_fresh


def _escaped(value: Any) -> Any:
    return value if hasattr(value, "__html__") else Html(escape(value))


TEMPLATES = Environment(
    loader=_Loader(Path(__file__).parent / "templates"),
    autoescape=True,
    finalize=_escaped,
    undefined=StrictUndefined,
    auto_reload=False,
)
TEMPLATES.filters |= {"marked": marked, "breaks": lambda markup: Html(markup.replace("\n", "<br>"))}
