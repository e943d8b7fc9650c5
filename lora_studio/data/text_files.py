"""Plain text and Markdown to rows: paragraphs where blank lines divide the text, else one row a line."""

from collections.abc import Callable, Iterator
from typing import TextIO

from lora_studio.data.decoding import LONGEST, is_broken, lines_of
from lora_studio.data.json_files import BROKEN_BYTES, TOO_LONG
from lora_studio.data.rows import BadRow, Reading, Record, shorten

TEXT_FIELD = "text"
_SAMPLE = 1 << 20


def read_text(open_text: Callable[[], TextIO]) -> Reading:
    """Each row is `{"text": ...}`; its number is the line on which it begins."""
    with open_text() as stream:
        blocks = [block for block in stream.read(_SAMPLE).replace("\n \n", "\n\n").split("\n\n") if block.strip()]
    if len(blocks) > 1 and any("\n" in block.strip("\n") for block in blocks):
        return Reading(lambda: _paragraphs(open_text), ["Blank lines divide the text into rows."])
    return Reading(lambda: _lines(open_text), ["Each line of the text is one row."])


def _lines(open_text: Callable[[], TextIO]) -> Iterator[Record | BadRow]:
    with open_text() as stream:
        for number, line, whole in lines_of(stream):
            if line.strip():
                yield _row(number, line.strip()) if whole else BadRow(number, TOO_LONG, shorten(line))


def _paragraphs(open_text: Callable[[], TextIO]) -> Iterator[Record | BadRow]:
    start, size, block = 0, 0, list[str]()
    with open_text() as stream:
        for number, line, _ in lines_of(stream):
            if line.strip():
                start = start if block else number
                size += len(line)
                if size < LONGEST:
                    block.append(line.rstrip())
            elif block:
                yield (
                    _row(start, "\n".join(block))
                    if size < LONGEST
                    else BadRow(start, TOO_LONG, shorten("".join(block[:1])))
                )
                size, block = 0, []
    if block:
        yield _row(start, "\n".join(block)) if size < LONGEST else BadRow(start, TOO_LONG, shorten("".join(block[:1])))


def _row(number: int, text: str) -> Record | BadRow:
    if is_broken(text):
        return BadRow(number, BROKEN_BYTES, shorten(text))
    return Record(number, {TEXT_FIELD: text})
