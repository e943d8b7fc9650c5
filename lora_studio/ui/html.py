"""Words and HTML for the page: numbers with units, notices, progress, tables, bubbles. Pure functions, no gradio.

Markup is made by the macros under templates/. Whatever comes from a file, a model or a person goes through `escape` on
the way there and is shown as text, never run.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lora_studio.errors import StudioError
from lora_studio.units import TEMPLATE as TEMPLATE
from lora_studio.units import count as count
from lora_studio.units import duration as duration
from lora_studio.units import escape as escape
from lora_studio.units import gib as gib
from lora_studio.units import number as number
from lora_studio.units import percent as percent
from lora_studio.units import shorten as shorten
from lora_studio.units import size as size
from lora_studio.units import visible as visible


class Html(str):
    """Markup that can stand in other markup as it is. Words put beside it make a plain text again, to be escaped."""

    def __html__(self) -> str:
        return str(self)


def render(macro: str, *values: Any, **options: Any) -> Html:
    """The markup that a macro makes, named as `file.macro` under templates/. All values are escaped but `Html`."""
    return Html(_macro(macro)(*values, **options))


@cache
def _macro(name: str) -> Callable[..., str]:
    file, _, macro = name.partition(".")
    macro_function: Callable[..., str] = getattr(TEMPLATES.get_template(f"{file}.jinja").module, macro)
    return macro_function


def notice(message: str, hint: str = "", kind: str = "info", *, link: str = "") -> Html:
    """A sentence in a box; `kind` is info, good, warning or error, `link` markup that ends the hint."""
    return render("text.notice", message, hint, kind, Html(link))


def problem(error: StudioError) -> Html:
    """What a person can mend, with what to do."""
    return notice(error.message, error.hint, "error")


def marked(words: object) -> Html:
    """Escaped words in which `names` stand out; they may come from a file, so they are escaped first."""
    return Html(re.sub("&#96;(.*?)&#96;", r"<code>\1</code>", escape(words)))


def hint(words: str, id: str = "") -> Html:
    """A remark on what stands beside it."""
    return render("text.hint", words, id)


def quiet(words: str) -> Html:
    """Words that are there to be looked up."""
    return render("text.quiet", words)


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


def pager(matches: int, total: int, page: int, rows: int, noun: str) -> Html:
    """What part of a table is shown, `rows` on a page, and buttons that turn it; `page` counts from 0."""
    last = (matches - 1) // rows
    words = count(matches, noun) if matches == total else f"{matches:,} of {count(total, noun)}"
    if last <= 0:
        return render("text.pager", words, ())
    words = f"{page * rows + 1:,} to {min(matches, (page + 1) * rows):,} of {words}"
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
    inside, _, remainder = answer.lstrip().removeprefix("<think>").partition("</think>")
    return inside.strip(), remainder.lstrip()


class _Loader(FileSystemLoader):
    """Templates without the line breaks beside tags, and with a blank for all others, so that they can be indented."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Any]:
        source, path, is_fresh = super().get_source(environment, template)
        joined = ""
        for line in filter(None, map(str.strip, source.splitlines())):
            joined += line if not joined or joined[-1] in ">}" or line[0] in "<{" else f" {line}"
        return joined, path, is_fresh


def _escaped(value: Any) -> Markup:
    return value if type(value) is Markup else Markup(value if isinstance(value, Html) else escape(value))


TEMPLATES = Environment(
    loader=_Loader(Path(__file__).parent / "templates"),
    autoescape=True,
    finalize=_escaped,
    undefined=StrictUndefined,
    auto_reload=False,
)
TEMPLATES.filters |= {"marked": marked, "breaks": lambda markup: Html(markup.replace("\n", "<br>"))}
