"""Takes JSON values one by one out of a stream of characters, so that an array of any length needs little memory."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from lora_studio.data.decoding import LONGEST

_BLOCK = 1 << 20
_MARGIN = 16  # an error this near to the end of what is read may only mean that more must be read
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")


class Decoder(json.JSONDecoder):
    """JSON in which NaN, as Python's and pandas' writers put it for a missing value, is null; `empty` counts these."""

    def __init__(self) -> None:
        super().__init__(parse_constant=self._constant)
        self.empty = 0

    def _constant(self, name: str) -> float | None:
        if name != "NaN":
            return float(name.replace("Infinity", "inf"))
        self.empty += 1
        return None


class BrokenJsonError(ValueError):
    """What is wrong and where: "line 3, column 7: Expecting value"."""


class TooDeepError(BrokenJsonError):
    """A value nested deeper than can be read."""


class Values:
    """The unread rest of a stream of JSON; `longest` is the number of characters that one value may have."""

    def __init__(self, stream: TextIO, longest: int = LONGEST, decoder: Decoder | None = None) -> None:
        self._decoder = decoder or Decoder()
        self._stream = stream
        self._longest = longest
        self._text = ""
        self._at = 0
        self._line, self._column = 1, 0
        self._ended = False
        self.lines_passed = 0

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            self._at = self._end_of_space()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Passes over the character that `peek` showed."""
        self._at += 1

    def value(self) -> Any:
        """The value that begins here. Raises BrokenJsonError, without having read on."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.pos >= len(self._text) - _MARGIN or error.msg.startswith("Unterminated")
                if unfinished and len(self._text) - self._at < self._longest and self._more():
                    continue
                raise BrokenJsonError(self._said(error.pos, error.msg)) from None
            except RecursionError:
                raise TooDeepError(self._said(self._at, "nested too deeply")) from None
            except ValueError as error:  # a number of more digits than Python reads
                raise BrokenJsonError(self._said(self._at, str(error).split(";")[0])) from None
            if end > len(self._text) - _MARGIN and isinstance(value, (int, float)) and self._more():
                continue
            self.lines_passed = self._text.count("\n", self._at, end)
            self._at = end
            return value

    def array(self) -> Iterator[Any]:
        """The elements of the array that begins here. Raises BrokenJsonError where it breaks."""
        self.peek()
        self.skip()
        first = True
        while (following := self.peek()) != "]":
            if not first:
                if following != ",":
                    raise BrokenJsonError(self._said(self._at, "Expecting ',' delimiter"))
                self.skip()
            yield self.value()
            first = False
        self.skip()
        if self.peek():
            raise BrokenJsonError(self._said(self._at, "more stands after the end of the array"))

    def rest(self) -> Iterator[Any]:
        """All values that follow, with or without commas between them."""
        while following := self.peek():
            if following == ",":
                self.skip()
            yield self.value()

    def _end_of_space(self) -> int:
        found = _SPACE.match(self._text, self._at)
        return found.end() if found else self._at

    def _more(self) -> bool:
        """Forgets what has been passed and reads on, ever more, so that no long value is read in small steps."""
        if self._ended:
            return False
        block = self._stream.read(max(_BLOCK, len(self._text) - self._at))
        if not block:
            self._ended = True
            return False
        passed = self._text[: self._at]
        self._line += passed.count("\n")
        self._column = len(passed) - passed.rfind("\n") - 1 + (0 if "\n" in passed else self._column)
        self._text, self._at = self._text[self._at :] + block, 0
        return True

    def _said(self, position: int, message: str) -> str:
        passed = self._text[:position]
        line = self._line + passed.count("\n")
        column = len(passed) - passed.rfind("\n") + (0 if "\n" in passed else self._column)
        return f"line {line}, column {column}: {message}"
