"""Documents as chunks of so many tokens, cut at headings and between paragraphs, else between sentences.

A chunk is what a model is shown to write questions about. Chunks are kept as one JSON object a line.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_studio.data.readers.documents import Document, Paragraph
from lora_studio.errors import StudioError

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
