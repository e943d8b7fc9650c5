"""Cuts text into the words of a byte-level BPE tokenizer with Python's `re`, as the tokenizer's own pattern does.

Such a tokenizer cuts text at its added tokens, then into words by a pattern. The pattern is translated once, and stands
for the same words in ASCII text. In other text each character beyond ASCII gives way to another one of its kind, of
which the pattern knows as little as it does of the character itself: letters, numbers and so on are all that it tells
apart. Runs where templates are rendered, without numpy.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

# Stand-ins of upper- and lower-case letters and of numbers; with `re.ASCII` they have no class of their own.
_UPPER, _LOWER, _NUMBER, _OTHER, _SPACE, _UNKNOWN = "Àà¼§\x0c\ufdd4"
_STAND_INS = {"Lu": _UPPER, "Ll": _LOWER, "Nd": _NUMBER, "Nl": _NUMBER, "No": _NUMBER, "Zs": _SPACE}
_KINDS = {
    **{"L": f"A-Za-z{_UPPER}{_LOWER}", "Lu": f"A-Z{_UPPER}", "Ll": f"a-z{_LOWER}", "N": f"0-9{_NUMBER}"},
    **dict.fromkeys(("Lt", "Lm", "Lo", "M"), ""),
}
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of `ByteLevel` in the tokenizers library."""
_CATEGORY = re.compile(r"\\p\{(\w+)\}")
_SET = re.compile(r"\[\^?(?:[^\[\]\\&]|\\p\{\w+\}|\\[rnst/])+\]")
# What patterns are made of beside sets and categories; all of it means the same to Python on ASCII text. A group is not
# repeated: a pattern that comes with a model could take for ever.
_KNOWN = re.compile(r"(?:\(\?(?:i:|!|:)|\)(?![*+{])|\\[srnS]|[A-Za-z0-9' |]|[?*+]|\{\d+,\d*\})*")


Form = Literal["NFC", "NFKC", "NFD", "NFKD"]
FORMS: tuple[Form, ...] = ("NFC", "NFKC", "NFD", "NFKD")
"""Normalization forms of Unicode; all leave ASCII as it is."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """How one tokenizer cuts text, as plain values: its pattern in Python's form, and its added tokens.

    `beyond_ascii`: other text than ASCII can be cut; `form` is the Unicode normalization that such text has to be in
    already, None for a tokenizer that normalizes nothing.
    """

    pattern: str
    added: tuple[str, ...]
    beyond_ascii: bool
    form: Form | None


class Cutter:
    """Cuts text by fixed rules."""

    def __init__(self, cutting: Cutting) -> None:
        longest_first = sorted(filter(None, cutting.added), key=len, reverse=True)
        self._at_added = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self._cut = re.compile(cutting.pattern, re.ASCII).findall
        self._stand_ins = _StandIns(cutting.pattern.lower()) if cutting.beyond_ascii else None
        self._form = cutting.form

    def words(self, text: str) -> list[str] | None:
        """The words and added tokens of a text, in order; None for text that only the tokenizer can cut.

        They are shorter than the text by what the pattern leaves out of it.
        """
        if not text.isascii() and not self._can_cut(text):
            return None
        words: list[str] = []
        for number, part in enumerate(self._at_added.split(text) if self._at_added else (text,)):
            if number % 2:
                words.append(part)
            elif part.isascii():
                words += self._cut(part)
            else:
                assert self._stand_ins is not None
                alike = part.translate(self._stand_ins)
                if _UNKNOWN in alike:
                    return None
                ends = accumulate(map(len, self._cut(alike)), initial=0)
                words += [part[start:stop] for start, stop in pairwise(ends)]
        return words

    def _can_cut(self, text: str) -> bool:
        return self._stand_ins is not None and (self._form is None or unicodedata.is_normalized(self._form, text))


class _StandIns(dict[int, str]):
    """The stand-in of each character, for `str.translate`; `pattern` is in lower case.

    Known are characters that have been in Unicode, with the same category, since its version 3.2: of those neither the
    tokenizer's tables nor Python's are too old to know. Symbols may be newer: a table that lacks one takes it for
    neither a letter nor a number, which is right. Not known are letters without case, of which whole sentences are one
    word, and letters that could be meant by one of the pattern, as the long s is by 's' where case is ignored.
    """

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = pattern

    def __missing__(self, code: int) -> str:
        stand_in = self[code] = self._of(chr(code))
        return stand_in

    def _of(self, letter: str) -> str:
        if letter.isascii():
            return letter
        category, earlier = unicodedata.category(letter), unicodedata.ucd_3_2_0.category(letter)
        if category[0] in "PS" and (earlier[0] in "PS" or earlier == "Cn"):
            return _OTHER
        folded = re.findall("[a-z]+", f"{letter.casefold()} {letter.lower()} {letter.upper().lower()}")
        if category != earlier or any(run in self._pattern for run in folded):
            return _UNKNOWN
        return _STAND_INS.get(category, _UNKNOWN)


class Numbers(dict[str, int]):
    """The number of each word, from 0 in the order in which they come up; the keys are the vocabulary."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number

    def of(self, words: Iterable[str]) -> Iterable[int]:
        """The numbers of words."""
        return map(self.__getitem__, words)


def in_python(pattern: str) -> str | None:
    """A pattern of Oniguruma as Python's, for `re.ASCII`; None for one with anything that might mean something else."""

    def translated(match: re.Match[str]) -> str:
        return _CATEGORY.sub(lambda name: _KINDS[name[1]], match[0])

    rest = _CATEGORY.sub("", _SET.sub("", pattern))
    if not pattern or not _KNOWN.fullmatch(rest):
        return None
    if any(name not in _KINDS for name in _CATEGORY.findall(pattern)):
        return None
    within = _SET.sub(translated, pattern)
    whole = _CATEGORY.sub(lambda name: f"[{_KINDS[name[1]]}]", within)
    try:
        re.compile(whole, re.ASCII)
    except re.error:  # a set that is empty
        return None
    return whole
