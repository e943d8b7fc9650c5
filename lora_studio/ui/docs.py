"""The documentation served beside the page, without a network: `docs/` as it is shipped, rendered on request.

The server's middleware stands before it as before everything else. Raw HTML in a page is shown as text. Pages are light
or dark as the switch of the page above them was left, which a cookie tells; without it as the system is.
"""

import importlib.resources
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from lora_studio.ui import html
from lora_studio.ui.html import Html

PAGE_OF_TAB = {
    "data": "data-formats",
    "train": "training",
    "runs": "charts",
    "chat": "chat",
    "evaluate": "evaluation",
    "export": "export",
}
"""The page of the documentation that the header's question mark opens from each tab."""
THEME_COOKIE, THEMES = "lora-studio-theme", ("light", "dark")
IMAGES = (".webp", ".png", ".gif")
HEADERS = {
    "vary": "cookie",
    "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
}
_COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
STYLE = Path(__file__).parent / "static" / "docs.css"


def docs_folder() -> Path:
    """Where the pages are: in an installed package, else at the top of the repository."""
    package = Path(str(importlib.resources.files("lora_studio")))
    installed = package / "shipped_docs"
    return installed if installed.is_dir() else package.parent / "docs"


def docs_url(tab: str = "") -> str:
    """The address of a tab's documentation, relative to the page; without a tab that of the table of contents."""
    return f"docs/{PAGE_OF_TAB.get(tab, 'index')}"


def routes() -> list[Route]:
    """`/docs/PAGE` for the pages, `/docs/images/NAME` for their pictures, and `/docs/tab/NAME` to a tab's page."""
    return [
        Route("/docs", lambda request: RedirectResponse("docs/index"), methods=["GET"]),
        Route("/docs/tab/{name}", lambda request: RedirectResponse(_of_tab(request)), methods=["GET"]),
        Route("/docs/{path:path}", _serve, methods=["GET"]),
    ]


def _of_tab(request: Request) -> str:
    """The way from a tab's own address to its page."""
    return f"../../{docs_url(request.path_params['name'])}"


def _serve(request: Request) -> Response:
    """A page or a picture. Only names of files that are there are served: no path is put together from a request."""
    path = request.path_params["path"]
    if path == "":
        return RedirectResponse("index")
    if path in _files(IMAGES):
        return FileResponse(_files(IMAGES)[path], headers=HEADERS)
    name, theme = path.removesuffix(".md"), request.cookies.get(THEME_COOKIE, "")
    if f"{name}.md" not in _files((".md",)):
        missing = f"# No such page\n\n[All pages]({_up(path)}index.md)"
        return HTMLResponse(_document(path, missing, theme), 404, HEADERS)
    text = _files((".md",))[f"{name}.md"].read_text(encoding="utf-8")
    return HTMLResponse(_document(name, text, theme), headers=HEADERS)


@cache
def _files(suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files with these endings, by their path below the folder."""
    folder = docs_folder()
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in suffixes}


def _document(name: str, text: str, theme: str) -> str:
    """A whole page of HTML; `name` is its path without the ending, from which its links are relative."""
    title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), "LoRA Studio")
    up = _up(name)
    style = Html(STYLE.read_text(encoding="utf-8"))
    known = theme if theme in THEMES else ""
    return html.render("docs.page", title, Html(rendered(text)), Html(_contents(up)), up, style, known)


def _up(name: str) -> str:
    """The way from a page to the folder of all pages."""
    return "../" * name.count("/")


def _contents(up: str) -> str:
    """The lists of the table of contents, with links relative to a page so many folders down."""
    text = _files((".md",))["index.md"].read_text(encoding="utf-8").partition("## Contents\n")[2]
    return rendered(text, up)


def rendered(text: str, up: str = "") -> str:
    """Markdown as HTML: headings get ids, links between pages lose their `.md`, and raw HTML is shown as text."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(_COMMENT.sub("", text))
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and following is not None:
            token.attrSet("id", anchor(following.content))
        if token.type in ("fence", "code_block", "table_open"):
            token.attrSet("tabindex", "0")  # they scroll sideways, by keyboard too
    for token in _inline(tokens):
        if token.type == "link_open":
            token.attrSet("href", _served(str(token.attrGet("href")), up))
    return str(reader.renderer.render(tokens, reader.options, {}))


def _inline(tokens: Sequence[Token]) -> Iterator[Token]:
    return (child for token in tokens for child in token.children or ())


def _served(link: str, up: str) -> str:
    """A link as the server answers it."""
    if "://" in link or link.startswith("#"):
        return link
    place, mark, heading = link.partition("#")
    return f"{up}{place.removesuffix('.md')}{mark}{heading}"


def anchor(heading: str) -> str:
    """The id of a heading, as GitHub and mkdocs make it."""
    words = re.sub(r"\[([^\[\]]*)\]\([^()]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", words.lower()).strip())
