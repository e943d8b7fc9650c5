"""Reads documents (text, Markdown, PDF, DOCX) as paragraphs, each with the heading and the page that it stands under.

A document may be damaged or malicious, so only a child process with limited memory and time opens it
(`engine.chat.analysis`). Every defect is a sentence with a way out.
"""

import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.data.messages import is_broken
from lora_studio.data.readers.text_encoding import lines_of, open_text, search_encoding
from lora_studio.errors import StudioError
from lora_studio.units import count

MARKDOWN = (".md", ".markdown", ".mdown")
TEXT = (".txt", ".text", ".rst", ".log", *MARKDOWN)
BINARY = (".pdf", ".docx")
SUFFIXES = (*TEXT, *BINARY)
KINDS = "text, Markdown, PDF and DOCX"
MAX_CHARACTERS = 20_000_000
"""Of one document: about 8,000 pages."""
MAX_UNPACKED_BYTES = 400_000_000
"""Of all parts of a DOCX, as its directory declares them."""
DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What pypdf and python-docx raise for files that are not as they should be, beside errors of their own."""
OnProgress = Callable[[int, int], None]
_RULE = re.compile(r"\s{0,3}(=+|-+)\s*")
_HEADING = re.compile(r"\s{0,3}(#{1,6})\s+(.*)")
_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_DIGITS = re.compile(r"\d+")
_SENTENCE_ENDS = (".", "!", "?", ":", "。", "！", "？")
_MIN_PAGES = 4  # fewer pages don't show which lines every page repeats


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph. `heading` holds the headings that it stands under, such as `Guide > Install`, `page` counts from 1
    and is None where the format has no pages. `opens`: it is itself a heading, so that a section begins."""

    text: str
    heading: str = ""
    page: int | None = None
    opens: bool = False


@dataclass(frozen=True)
class Document:
    """A document's paragraphs in order, and sentences on what a person should know of it."""

    name: str
    paragraphs: list[Paragraph]
    notes: list[str] = field(default_factory=list)


def read_document(path: Path, on_progress: OnProgress = lambda done, total: None) -> Document:
    """Reads a document by the ending of its name; `on_progress` is told the pages that are read.

    Raises `StudioError` for a file that is of another kind, encrypted, damaged, too long, or holds no text.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = "Save it as DOCX or PDF." if suffix in (".doc", ".odt", ".rtf", ".pages") else f"Supported: {KINDS}."
        raise StudioError(f"{path.name} is not a supported document.", hint)
    if not path.is_file():
        raise StudioError(f"The document {path.name} does not exist.", "Upload it again, or check its path.")
    read = _read_pdf if suffix == ".pdf" else _read_docx if suffix == ".docx" else _read_text
    document = read(path, on_progress)
    if not any(paragraph.text.strip() for paragraph in document.paragraphs):
        raise StudioError(f"{path.name} holds no text.", "Check that it is the right file.")
    return document


class _Headings:
    """The headings above a paragraph, by their levels."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, str]] = []

    def enter(self, level: int, title: str) -> None:
        self._stack = [(above, name) for above, name in self._stack if above < level] + [(level, title)]

    @property
    def path(self) -> str:
        return " > ".join(name for _, name in self._stack)


def _limit(name: str, texts: Iterable[str]) -> Iterator[str]:
    """The same texts. Raises `StudioError` once they are too long together."""
    total = 0
    for text in texts:
        total += len(text)
        if total > MAX_CHARACTERS:
            raise StudioError(f"{name} has more than {MAX_CHARACTERS:,} characters.", "Split it into several files.")
        yield text


def _read_text(path: Path, on_progress: OnProgress) -> Document:
    try:
        encoding, notes = search_encoding(path)
    except StudioError as error:
        raise StudioError(error.message.replace("The file", path.name), "Save it as UTF-8 text.") from None
    with open_text(path, encoding) as stream:
        lines = [line.rstrip("\r\n") for line in _limit(path.name, (line for _, line, _ in lines_of(stream)))]
    broken = sum(map(is_broken, lines))
    if broken:
        notes = [*notes, f"{broken:,} lines have bytes that are no text; they are marked with \ufffd."]
        lines = [line.encode("utf-8", "replace").decode() if is_broken(line) else line for line in lines]
    paragraphs = _markdown(lines) if path.suffix.lower() in MARKDOWN else _plain(lines)
    return Document(path.name, list(paragraphs), notes)


def _plain(lines: Iterable[str]) -> Iterator[Paragraph]:
    """Paragraphs between blank lines."""
    block: list[str] = []
    for line in (*lines, ""):
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield Paragraph("\n".join(block))
            block = []


def _markdown(lines: list[str]) -> Iterator[Paragraph]:
    """Paragraphs between blank lines, under ATX (`# Title`) and setext (underlined) headings; fenced code is one."""
    headings, block, fence = _Headings(), list[str](), ""

    def finish() -> Iterator[Paragraph]:
        if any(line.strip() for line in block):
            yield Paragraph("\n".join(block), headings.path)
        block.clear()

    for line in (*lines, ""):
        mark = _FENCE.match(line)
        if fence or mark:
            block.append(line)
            if mark and mark[1] == fence:
                fence = ""
                yield from finish()
            elif mark and not fence:
                fence = mark[1]
            continue
        title = _HEADING.fullmatch(line)
        rule = _RULE.fullmatch(line) if len(block) == 1 else None
        if title:
            yield from finish()
            headings.enter(len(title[1]), title[2].rstrip("# ").strip())
            yield Paragraph(line.strip(), headings.path, opens=True)
        elif rule:
            headings.enter(1 if rule[1].startswith("=") else 2, block[0].strip())
            yield Paragraph(f"{block[0].rstrip()}\n{line.strip()}", headings.path, opens=True)
            block.clear()
        elif line.strip():
            block.append(line.rstrip())
        else:
            yield from finish()
    yield from finish()


def _read_pdf(path: Path, on_progress: OnProgress) -> Document:
    from pypdf import PasswordType, PdfReader  # a quarter of a second
    from pypdf.errors import DependencyError, PyPdfError

    damaged = StudioError(f"{path.name} is damaged: it cannot be read as PDF.", "Open and save it again, or print it.")
    try:
        with path.open("rb") as file:
            if b"%PDF-" not in file.read(1024):
                raise StudioError(f"{path.name} is not a PDF.", "Check what the file is; its name ends with .pdf.")
        reader = PdfReader(path)
        if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise StudioError(f"{path.name} is encrypted.", "Save a copy without a password.")
        pages = []
        for page in reader.pages:
            pages.append(page.extract_text().splitlines())
            on_progress(len(pages), len(reader.pages))
            if sum(map(len, pages[-1])) > MAX_CHARACTERS:
                break
    except DependencyError:
        raise StudioError(f"{path.name} is encrypted.", "Save a copy without a password.") from None
    except (PyPdfError, *DAMAGE):
        raise damaged from None
    if not pages:
        raise StudioError(f"{path.name} has no pages.", "Open and save it again, or choose another file.")
    if not any(line.strip() for lines in pages for line in lines):
        raise StudioError(
            f"{path.name} has no text on its {count(len(pages), 'page')}: it holds scanned images.",
            "Recognize the text first, for example with ocrmypdf.",
        )
    return Document(path.name, list(_of_pages(path.name, pages)), _page_notes(pages))


def _page_notes(pages: list[list[str]]) -> list[str]:
    empty = sum(not any(line.strip() for line in lines) for lines in pages)
    if not empty:
        return []
    return [f"{empty:,} of {len(pages):,} pages have no text: they are empty, or scanned images."]


def _of_pages(name: str, pages: list[list[str]]) -> Iterator[Paragraph]:
    """The paragraphs of a PDF's pages. A line that ends early with a full stop ends its paragraph; words divided at a
    line's end are joined. Lines that most pages have in common (running heads, page numbers) are left out."""
    repeated = _repeated(pages)
    for number, page in enumerate(pages, start=1):
        lines = [" ".join(line.split()) for line in page]
        lines = [line for at, line in enumerate(lines) if not (_is_edge(at, lines) and _pattern(line) in repeated)]
        width = max(map(len, lines), default=0)
        block = ""
        for line in (*_limit(name, lines), ""):
            if line:
                divided = len(block) > 1 and block[-1] == "-" and block[-2].isalpha() and line[0].islower()
                block = block[:-1] + line if divided else f"{block} {line}".strip()
            if block and (not line or (len(line) < 0.75 * width and line.endswith(_SENTENCE_ENDS))):
                yield Paragraph(block, page=number)
                block = ""


def _is_edge(at: int, lines: list[str]) -> bool:
    return at < 2 or at >= len(lines) - 2


def _pattern(line: str) -> str:
    return _DIGITS.sub("0", " ".join(line.split()))


def _repeated(pages: list[list[str]]) -> set[str]:
    """First and last lines that more than half of the pages have, numbers aside."""
    if len(pages) < _MIN_PAGES:
        return set()
    counts = Counter(
        pattern
        for lines in pages
        for pattern in {_pattern(line) for at, line in enumerate(lines) if _is_edge(at, lines) and line.strip()}
    )
    return {pattern for pattern, pages_with_it in counts.items() if 2 * pages_with_it > len(pages)}


def _read_docx(path: Path, on_progress: OnProgress) -> Document:
    import docx  # a third of a second
    from docx.opc.exceptions import OpcError
    from docx.table import Table
    from lxml.etree import LxmlError

    damaged = StudioError(  # libxml2 does not tell one from the other
        f"{path.name} cannot be read as DOCX: it is damaged, or needs more memory than a document may take.",
        "Open and save it again, or split it.",
    )
    try:
        with path.open("rb") as file:
            if file.read(4) == b"\xd0\xcf\x11\xe0":  # Office's older container, which also holds what it encrypts
                raise StudioError(
                    f"{path.name} is encrypted, or an old Word file.", "Save a copy as DOCX without a password."
                )
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise StudioError(
                f"{path.name} unpacks to {unpacked / 1e6:,.0f} MB; the limit is {MAX_UNPACKED_BYTES / 1e6:,.0f} MB.",
                "Remove its images, or split it into several files.",
            )
        headings, paragraphs = _Headings(), list[Paragraph]()
        for item in docx.Document(str(path)).iter_inner_content():
            if isinstance(item, Table):
                rows = (" | ".join(" ".join(cell.text.split()) for cell in row.cells) for row in item.rows)
                paragraphs.append(Paragraph("\n".join(rows), headings.path))
                continue
            style = (item.style.name or "") if item.style is not None else ""
            numbered = style.startswith("Heading ") and style[-1].isdecimal()
            level = 1 if style == "Title" else 1 + int(style[-1]) if numbered else 0
            text = item.text.strip()
            if level and text:
                headings.enter(level, " ".join(text.split()))
            if text:
                paragraphs.append(Paragraph(text, headings.path, opens=level > 0))
        for _ in _limit(path.name, (paragraph.text for paragraph in paragraphs)):
            pass
    except (OpcError, LxmlError, *DAMAGE):
        raise damaged from None
    return Document(path.name, paragraphs)
