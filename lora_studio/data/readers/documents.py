"""Reads documents (text, Markdown, PDF, DOCX) as paragraphs, and cuts them into chunks for a model to write about.

A paragraph knows the heading and the page that it stands under. A chunk has so many tokens, is cut at headings and
between paragraphs, else between sentences, and is kept as one JSON object a line. A document may be damaged or
malicious, so only a child process with limited memory and time opens it (`engine.chat.analysis`). Every defect is a
sentence with a way out.
"""

import json
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
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


MAX_CHUNKS = 50_000
MAX_CHARACTERS_PER_TOKEN = 16
"""A text with more characters a token is no language, such as an image in base64: it is cut by characters."""
Count = Callable[[Sequence[str]], list[int]]
"""Gives the tokens of each text, without special tokens."""
_SENTENCE = re.compile(r"((?<=[.!?])\s+|(?<=[。！？])|\n)")
_SECTION_SHARE = 4
"""A heading begins a new chunk if the one before holds at least this part of the chunk size (a quarter)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document. `number` counts all chunks from 0; `page` is where it begins, None without pages."""

    number: int
    source: str
    heading: str
    page: int | None
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class _Unit:
    """A paragraph, or a part of one that is longer than a chunk. `joint` is what stands before it in a chunk."""

    text: str
    joint: str
    paragraph: Paragraph
    tokens: int


def split(document: Document, count: Count, size: int, overlap: int, first: int = 0) -> list[Chunk]:
    """The chunks of a document, at most `size` tokens each; `first` is the number of the first one.

    Where no heading separates two chunks, the second one begins with the last units of the first, up to `overlap`
    tokens of them. Raises `StudioError` for more than `MAX_CHUNKS`, and for an overlap of half a chunk or more.
    """
    if overlap * 2 > size:
        raise StudioError(
            f"A chunk overlap of {overlap} tokens is more than half of the chunk size ({size}).",
            "Lower the overlap, or raise the chunk size.",
        )
    chunks: list[Chunk] = []
    for units in _packed(_units(document, count, size), size, overlap):
        for part, text, tokens in _measured(units, count, size):
            start = next((unit.paragraph for unit in part if not unit.paragraph.opens), part[0].paragraph)
            number = first + len(chunks)
            chunks.append(Chunk(number, document.name, start.heading, part[0].paragraph.page, text, tokens))
        if first + len(chunks) > MAX_CHUNKS:
            raise StudioError(
                f"The documents make more than {MAX_CHUNKS:,} chunks.", "Use fewer documents, or larger chunks."
            )
    return chunks


def _measured(units: Sequence[_Unit], count: Count, size: int) -> Iterator[tuple[Sequence[_Unit], str, int]]:
    """Units with their text and its tokens; in halves where the whole has more tokens than its parts, which is rare."""
    text = "".join(unit.text if at == 0 else unit.joint + unit.text for at, unit in enumerate(units)).strip()
    tokens = count([text])[0]
    if tokens > size and len(units) > 1:
        yield from _measured(units[: len(units) // 2], count, size)
        yield from _measured(units[len(units) // 2 :], count, size)
    elif text:
        yield units, text, tokens


def _units(document: Document, count: Count, size: int) -> Iterator[_Unit]:
    """The paragraphs; those of more than `size` tokens in sentences, and sentences of more in words."""
    texts = [paragraph.text for paragraph in document.paragraphs]
    for paragraph, tokens in zip(document.paragraphs, count(texts), strict=True):
        # One more than the text alone has, for the line breaks before it.
        if tokens < size and len(paragraph.text) <= MAX_CHARACTERS_PER_TOKEN * size:
            yield _Unit(paragraph.text, "\n\n", paragraph, tokens + 1)
            continue
        for at, (text, tokens_of_part, joint) in enumerate(_parts(paragraph.text, count, size)):
            yield _Unit(text, joint if at else "\n\n", paragraph, tokens_of_part + 1)


def _parts(text: str, count: Count, size: int) -> Iterator[tuple[str, int, str]]:
    """Sentences with their tokens and the white space before them; those that are too long by words or characters."""
    first, *parts = _SENTENCE.split(text)
    joints = ["\n" if "\n" in space else " " if space else "" for space in ("", *parts[::2])]
    sentences = [(part, joint) for part, joint in zip((first, *parts[1::2]), joints, strict=True) if part.strip()]
    counts = count([sentence for sentence, _ in sentences])
    for (sentence, joint), tokens in zip(sentences, counts, strict=True):
        if tokens < size and len(sentence) <= MAX_CHARACTERS_PER_TOKEN * size:
            yield sentence, tokens, joint
            continue
        waiting = [sentence]
        while waiting:
            part = waiting.pop()
            tokens_of_part = count([part])[0]
            if tokens_of_part < size and len(part) <= MAX_CHARACTERS_PER_TOKEN * size:
                yield part, tokens_of_part, " "
            elif len(part) < 2:
                continue  # one character of more tokens than a chunk
            else:
                middle = part.rfind(" ", 1, len(part) // 2 + 1)
                middle = middle if middle > 0 else len(part) // 2
                waiting += [part[middle:].strip() or " ", part[:middle].strip() or " "]


def _packed(units: Iterable[_Unit], size: int, overlap: int) -> Iterator[list[_Unit]]:
    """Units that fill a chunk each."""
    block: list[_Unit] = []
    fresh = 0  # units of the block that the chunk before does not have
    for unit in units:
        total = sum(member.tokens for member in block)
        section = unit.paragraph.opens and total * _SECTION_SHARE >= size
        if block and fresh and (section or total + unit.tokens > size):
            # A heading at the end belongs to what follows it.
            heading = [block.pop()] if len(block) > 1 and block[-1].paragraph.opens and not section else []
            yield list(block)
            again = [] if section or heading else _tail(block, min(overlap, size - unit.tokens))
            block, fresh = [*again, *heading], len(heading)
            while block and sum(member.tokens for member in block) + unit.tokens > size:
                block.pop(0)
        block.append(unit)
        fresh += 1
    if block and fresh:
        yield block


def _tail(block: Sequence[_Unit], tokens: int) -> list[_Unit]:
    """The last units of at most so many tokens together."""
    tail: list[_Unit] = []
    for unit in reversed(block):
        tokens -= unit.tokens
        if tokens < 0:
            break
        tail.insert(0, unit)
    return tail


def write_chunks(path: Path, chunks: Iterable[Chunk]) -> None:
    """Writes chunks as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", errors="replace") as file:
        for chunk in chunks:
            file.write(json.dumps(asdict(chunk), ensure_ascii=False) + "\n")


def read_chunks(path: Path) -> list[Chunk]:
    """The chunks of such a file. Raises `StudioError` where it is gone or damaged."""
    try:
        with path.open(encoding="utf-8") as file:
            return [Chunk(**json.loads(line)) for line in file]
    except (OSError, ValueError, TypeError, RecursionError):
        raise StudioError("The chunks of these documents are lost or damaged.", "Split the documents again.") from None
