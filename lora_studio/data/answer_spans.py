"""Where the answers of a conversation stand in its whole text, for a template without generation marks.

A template that writes earlier turns otherwise than the last one (reasoning kept in the last turn only, the system
prompt moved to the newest question) is rendered again with a mark at the end of each message's content. The marks say
where a turn ends; what the prompt for an answer and the answer by itself bring is then found around them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.data.messages import RowError

REWRITES = "the chat template changes earlier turns as the conversation goes on, so they can't be trained"
# Unicode's noncharacters, which no row holds: a mark is the number of its message between two of them.
_OPEN, _CLOSE, _ZERO = "\ufdd2", "\ufdd3", 0xFDD4
_MARK = re.compile(f"{_OPEN}([{chr(_ZERO)}-{chr(_ZERO + 9)}]+){_CLOSE}")
_FOUND = 200

Render = Callable[[Sequence[dict[str, Any]], bool], str]


@dataclass(frozen=True, slots=True)
class _Marked:
    """A text without its marks, and where each message's mark stood."""

    text: str
    ends: Mapping[int, int]

    def after(self, message: int) -> str:
        """What follows a message's content. Raises RowError where the template does not write that content."""
        if message not in self.ends:
            raise RowError(REWRITES, found=self.text[:_FOUND])
        return self.text[self.ends[message] :]


class AnswerSpans:
    """Finds answers in whole texts. `render` gives the text of messages, with a generation prompt or without.

    `special` matches the tokens that may differ between a turn at the end and the same turn in the middle.
    """

    def __init__(self, render: Render, special: re.Pattern[str]) -> None:
        self._render = render
        self._special = special

    def find(self, messages: Sequence[dict[str, Any]], text: str) -> list[tuple[int, int]]:
        """The character spans of all assistant messages in `text`, in order. Raises RowError."""
        marked = [_with_mark(message, number) for number, message in enumerate(messages)]
        whole = _without_marks(self._render(marked, False))
        if whole.text != text:  # the template decides by the contents' ends
            raise RowError(REWRITES, found=_difference(whole.text, text))
        spans: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                start, stop = self._span(marked, number, whole)
                between = any(start < end <= stop for other, end in whole.ends.items() if other != number)
                if start > stop or between or (spans and start < spans[-1][1]):
                    raise RowError(REWRITES, found=text[start : start + _FOUND])
                spans.append((start, stop))
        return spans

    def _span(self, marked: Sequence[dict[str, Any]], number: int, whole: _Marked) -> tuple[int, int]:
        """The span of one answer: what its prompt leads to, up to where the answer by itself ends."""
        if number == 0:
            raise RowError(REWRITES, found=whole.text[:_FOUND])
        asked = number - 1
        prompt = _without_marks(self._render(marked[:number], True)).after(asked)
        alone = _without_marks(self._render(marked[: number + 1], False))
        begins = whole.ends[asked] if asked in whole.ends else len(whole.text) - len(whole.after(asked))
        start = begins + self._length(prompt, whole.text[begins:])
        own = alone.after(asked)
        answer = own[self._length(prompt, own) :]
        if marked[number]["content"]:
            stop = whole.ends.get(number, -1)
            if stop < start:
                raise RowError(REWRITES, found=answer[:_FOUND])
            return start, stop + self._length(alone.after(number), whole.text[stop:])
        if (same := self._common(answer, whole.text[start:])) is not None:
            return start, start + same
        closing = answer[len(self._without_end(answer)) :]
        stop = whole.text.find(closing, start) if closing.strip() else -1
        if stop < 0:
            raise RowError(REWRITES, found=answer[:_FOUND])
        return start, stop + len(closing)

    def _length(self, part: str, text: str) -> int:
        """How far `part` goes along with the beginning of `text`; only special tokens of it may be left over."""
        common = self._common(part, text)
        if common is None:
            raise RowError(REWRITES, found=part[:_FOUND])
        return common

    def _common(self, part: str, text: str) -> int | None:
        common = common_length(part, text, self._special)
        return None if self._special.sub("", part[common:]).strip() else common

    def _without_end(self, answer: str) -> str:
        """An answer less the special tokens and white space that close it."""
        kept = answer.rstrip()
        while last := next((found for found in self._special.finditer(kept) if found.end() == len(kept)), None):
            kept = kept[: last.start()].rstrip()
        return kept


def common_length(part: str, text: str, special: re.Pattern[str]) -> int:
    """How many characters two texts begin with alike, less a special token of either that they only begin alike."""
    common = common_start(part, text)
    for one in (part, text):
        for match in special.finditer(one, max(0, common - 100), common + 100):
            if match.start() < common < match.end():
                common = match.start()
    return common


def common_start(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    low, high = 0, shorter  # they are alike up to `low` and not up to `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def _with_mark(message: dict[str, Any], number: int) -> dict[str, Any]:
    """The message with its mark behind the last letter of its content; white space there may be stripped."""
    content = message["content"]
    if not isinstance(content, str) or not content.strip():
        return {**message, "content": ""} if content == "" else message
    end = len(content.rstrip())
    digits = "".join(chr(_ZERO + int(digit)) for digit in str(number))
    return {**message, "content": content[:end] + _OPEN + digits + _CLOSE + content[end:]}


def _without_marks(marked: str) -> _Marked:
    """Raises RowError where a template writes a content twice."""
    pieces, ends = [], dict[int, int]()
    length = done = 0
    for mark in _MARK.finditer(marked):
        number = int("".join(str(ord(digit) - _ZERO) for digit in mark.group(1)))
        pieces.append(marked[done : mark.start()])
        length += len(pieces[-1])
        if number in ends:
            raise RowError(REWRITES, found=pieces[-1][-_FOUND:])
        ends[number], done = length, mark.end()
    return _Marked("".join([*pieces, marked[done:]]), ends)


def _difference(one: str, other: str) -> str:
    at = common_start(one, other)
    return other[max(0, at - 20) : at + _FOUND]
