"""Reads plain text and Markdown: a row is a dialogue exchange, a paragraph between blank lines, or a line."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TextIO

from lora_studio.data.dialogues import Marks, marks_of, role_at
from lora_studio.data.messages import BadRow, Reading, Record, is_broken, shorten
from lora_studio.data.readers.json import BROKEN_BYTES, TOO_LONG
from lora_studio.data.readers.text_encoding import MAX_ROW_CHARACTERS, lines_of

TEXT_FIELD = "text"
_SAMPLE = 1 << 20
_MIN_SHARE = 0.8
_MAX_BLANK = 1000
_MAX_TITLES = 3


def read_text(open_text: Callable[[], TextIO]) -> Reading:
    """Each row is `{"text": ...}`; its number is the line on which it begins."""
    with open_text() as stream:
        sample = stream.read(_SAMPLE)
    blocks = [block for block in sample.replace("\n \n", "\n\n").split("\n\n") if block.strip()]
    dialogue = None if len(blocks) > 1 and marks_of(blocks) else _dialogue_of(sample)
    if dialogue:
        return Reading(lambda: _rows(open_text, _has_content, dialogue.begins), [dialogue.words()])
    if len(blocks) > 1 and any("\n" in block.strip("\n") for block in blocks):
        return Reading(lambda: _rows(open_text, _is_written, _follows_blank), ["Blank lines separate the rows."])
    return Reading(lambda: _lines(open_text), ["Each line of the text is one row."])


@dataclass(frozen=True, slots=True)
class _Dialogue:
    """A text that is a dialogue over many lines, and where in it a row begins: at a "gap", a "system" or a "user"."""

    marks: Marks
    begins_at: str

    def words(self) -> str:
        where = {
            "gap": "Wide gaps or rules separate the rows.",
            "system": "Each system prompt starts a row.",
            "user": "Each user turn starts a row, without the turns before it.",
        }
        return (
            f"The lines of the text are a dialogue: {self.marks.words()}. {where[self.begins_at]} If other turns "
            "belong together, provide them as rows of JSONL with `messages`."
        )

    def begins(self, line: str, between: list[str], block: list[str]) -> bool:
        """Whether a line begins a row. A system prompt stands in the row of the turn after it."""
        role = role_at(line, self.marks)
        if self.begins_at == "gap":
            return role in ("system", "user") and _is_gap(between)
        if role != self.begins_at:
            return False
        prompt = role_at(block[0], self.marks) == "system"
        return not prompt or any(role_at(earlier, self.marks) == role for earlier in block)


def _dialogue_of(sample: str) -> _Dialogue | None:
    """The dialogue that a text begins with and goes on as, question and answer by turns; None for other texts.

    A title may stand before several questions: a row of its own, that no mark opens.
    """
    marks = marks_of([sample])
    turns: list[tuple[str, bool]] = []
    title = 0
    for line, gap in _gaps(sample.splitlines()) if marks else ():
        role = role_at(line, marks) if marks else None
        title += role is None and not turns
        if role in ("system", "user", "assistant"):
            turns.append((role, gap))
    spoken = [role for role, _ in turns if role != "system"]
    answered = sum(pair == ("user", "assistant") for pair in pairwise(spoken))
    if marks is None or 2 * answered < _MIN_SHARE * len(spoken):
        return None
    if title > _MAX_TITLES or (title and answered < 2):
        return None
    wide = [role for role, gap in turns[1:] if gap]
    if wide and "assistant" not in wide:
        return _Dialogue(marks, "gap")
    return _Dialogue(marks, "system" if sum(role == "system" for role, _ in turns) > 1 else "user")


def _gaps(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Lines with content, each with whether a gap (a rule or several blank lines) precedes it."""
    between: list[str] = []
    for line in lines:
        if _has_content(line):
            yield line, _is_gap(between)
            between = []
        else:
            between.append(line.strip())


def _is_gap(between: Sequence[str]) -> bool:
    """Whether more than one blank line, or a rule, stands between two lines."""
    return any(between) or len(between) > 1


def _has_content(line: str) -> bool:
    """Whether a line is neither blank nor a rule of dashes or the like."""
    content = line.strip()
    return bool(content) and (len(content) < 3 or bool(content.strip("-*=_ ")))


def _lines(open_text: Callable[[], TextIO]) -> Iterator[Record | BadRow]:
    with open_text() as stream:
        for number, line, whole in lines_of(stream):
            if line.strip():
                yield _row(number, line.strip()) if whole else BadRow(number, TOO_LONG, shorten(line))


Begins = Callable[[str, list[str], list[str]], bool]


def _rows(open_text: Callable[[], TextIO], counts: Callable[[str], bool], begins: Begins) -> Iterator[Record | BadRow]:
    """Rows of several lines. `begins` says of a line that `counts`, with the lines before it that do not and those of
    the row so far, whether a row begins there.

    Of a row that is too long only the beginning is held.
    """
    start, size = 0, 0
    block, between = list[str](), list[str]()
    with open_text() as stream:
        for number, line, _ in lines_of(stream):
            if not counts(line):
                between += [line.strip()] if len(between) < _MAX_BLANK else []
                continue
            if block and begins(line, between, block):
                yield _long_row(start, block, size)
                size, block = 0, []
            start = start if block else number
            size += len(line)
            if size < MAX_ROW_CHARACTERS or not block:
                block += [*(between if block else []), line.rstrip()]
            between = []
    if block:
        yield _long_row(start, block, size)


def _long_row(number: int, lines: list[str], size: int) -> Record | BadRow:
    if size >= MAX_ROW_CHARACTERS:
        return BadRow(number, TOO_LONG, shorten(lines[0]))
    return _row(number, "\n".join(lines))


def _is_written(line: str) -> bool:
    return bool(line.strip())


def _follows_blank(_line: str, between: list[str], _block: list[str]) -> bool:
    return bool(between)


def _row(number: int, text: str) -> Record | BadRow:
    if is_broken(text):
        return BadRow(number, BROKEN_BYTES, shorten(text))
    return Record(number, {TEXT_FIELD: text})
