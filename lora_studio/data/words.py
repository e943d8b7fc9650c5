"""Encodes ASCII text word by word, each word once: the tokenizer's own ids and offsets in a fraction of its time.

A byte-level BPE tokenizer cuts text at its added tokens, then into words by a pattern, and merges within a word alone.
So a word that was met before is looked up, and Python's `re` cuts ASCII text as the tokenizer's own pattern does.
"""

import json
import re
from bisect import bisect_right
from itertools import accumulate, chain
from typing import Any

from lora_studio.files import JsonObject

__all__ = ["WordEncoder", "WordEncoding"]
_MOST_WORDS = 1 << 18
_LONGEST_WORD = 64  # characters of a word that is remembered
_BYTE_LETTERS = {byte: 256 + byte for byte in range(33)} | {127: 289}  # of ASCII; the other bytes stand for themselves
# The pattern of `ByteLevel` in the tokenizers library.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ASCII_OF = {"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": "", "N": "0-9"}
_CATEGORY = re.compile(r"\\p\{(\w+)\}")
_SET = re.compile(r"\[\^?(?:[^\[\]\\&]|\\p\{\w+\}|\\[rnst/])+\]")
# What patterns are made of beside sets and categories; all of it means the same to Python on ASCII text. A group is not
# repeated: a pattern that comes with a model could take for ever.
_KNOWN = re.compile(r"(?:\(\?(?:i:|!|:)|\)(?![*+{])|\\[srnS]|[A-Za-z0-9' |]|[?*+]|\{\d+,\d*\})*")
_PROBE = (
    "".join(map(chr, range(128)))
    + "Hello  world, it's 12345 o'clock!!\n\n\tif (x == 0) {\n        return Don'T;\r\n    }"
    "  \n \n<tag>$5.00/day... \n a "
)


class WordEncoder:
    """Encodes ASCII text as one tokenizer does. `of` makes it."""

    def __init__(self, backend: Any, pattern: str, trim: bool, prefix: bool) -> None:
        added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
        self._added = added
        longest_first = sorted(filter(None, added), key=len, reverse=True)
        self._at_added = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        self._cut = re.compile(pattern, re.ASCII).findall
        self.trim, self.prefix = trim, prefix
        self.values = {number: content for content, number in added.items()}
        self._words = _Words(backend.model, self.values)

    @classmethod
    def of(cls, backend: Any) -> "WordEncoder | None":
        """The encoder of a `tokenizers.Tokenizer`; None for one that does not encode word by word in a known way."""
        pattern = _pattern(_state(backend.pre_tokenizer))
        trims = _trims(_state(backend.post_processor))
        if pattern is None or trims is None or not _encodes_words(backend):
            return None
        encoder = cls(backend, pattern, *trims)
        for probe in (_PROBE, *(f"{_PROBE}{token} {token}\n\n{_PROBE}" for token in list(encoder._added)[:4])):
            own, reference = encoder.encode(probe), backend.encode(probe, add_special_tokens=False)
            if own is None or own.ids != reference.ids or own.offsets != reference.offsets:
                return None
        return encoder

    def encode(self, text: str) -> "WordEncoding | None":
        """The encoding of a text; None for one with letters beyond ASCII, or that the pattern leaves letters of."""
        if not text.isascii():
            return None
        ids, first_tokens, starts, start = list[int](), list[int](), list[int](), 0
        words, cut = self._words, self._cut
        words.shrink()
        for number, part in enumerate(self._at_added.split(text) if self._at_added else (text,)):
            if part:
                first_tokens.append(len(ids))
                starts.append(start)
                start += len(part)
                if number % 2:
                    ids.append(self._added[part])
                    continue
                found = cut(part)
                if sum(map(len, found)) != len(part):
                    return None
                ids += chain.from_iterable(map(words.__getitem__, found))
        return WordEncoding(self, ids, starts, first_tokens)


class WordEncoding:
    """A text's token ids, and where tokens lie in it: what is used of `tokenizers.Encoding`.

    `starts` and `first_tokens` say of each part between added tokens, and of each of these, at which character and with
    which token it begins.
    """

    __slots__ = ("_encoder", "_first_tokens", "_starts", "ids")

    def __init__(self, encoder: WordEncoder, ids: list[int], starts: list[int], first_tokens: list[int]) -> None:
        self.ids = ids
        self._encoder = encoder
        self._starts = starts
        self._first_tokens = first_tokens

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The characters of each token, as from and to."""
        values = self._encoder.values
        ends = accumulate((len(values[token]) for token in self.ids), initial=0)
        return [self._trimmed(token, start) for token, start in zip(self.ids, ends, strict=False)]

    def char_to_token(self, char: int) -> int | None:
        """The token that a character belongs to; None for white space that the tokenizer leaves out of offsets."""
        part = bisect_right(self._starts, char) - 1
        token, start = self._first_tokens[part], self._starts[part]
        while (after := start + len(self._encoder.values[self.ids[token]])) <= char:
            token, start = token + 1, after
        begin, end = self._trimmed(self.ids[token], start)
        return token if begin <= char < end else None

    def token_to_chars(self, token: int) -> tuple[int, int]:
        """The characters of a token, as from and to."""
        part = bisect_right(self._first_tokens, token) - 1
        values = self._encoder.values
        before = sum(len(values[each]) for each in self.ids[self._first_tokens[part] : token])
        return self._trimmed(self.ids[token], self._starts[part] + before)

    def _trimmed(self, token: int, start: int) -> tuple[int, int]:
        """The characters of a token that lies at `start`, without the spaces at its ends where they are left out.

        As `process_offsets` of tokenizers' ByteLevel does it.
        """
        value = self._encoder.values[token]
        stop = start + len(value)
        if not self._encoder.trim:
            return start, stop
        leading, trailing = len(value) - len(value.lstrip("Ġ \t\n\r")), len(value) - len(value.rstrip("Ġ \t\n\r"))
        if start == 0 and self._encoder.prefix:
            leading = max(leading - 1, 0)
        start = min(start + leading, stop)
        return start, max(stop - trailing, start)


class _Words(dict[str, tuple[int, ...]]):
    """The token ids of words; a word that is not there is encoded. `values` gets the text of each token, by its id."""

    def __init__(self, model: Any, values: dict[int, str]) -> None:
        super().__init__()
        self._model = model
        self._values = values

    def __missing__(self, word: str) -> tuple[int, ...]:
        tokens = self._model.tokenize(word.translate(_BYTE_LETTERS))
        ids = tuple(token.id for token in tokens)
        for token in tokens:
            self._values[token.id] = token.value
        if len(word) <= _LONGEST_WORD:
            self[word] = ids
        return ids

    def shrink(self) -> None:
        """Forgets all words where there are too many; texts without end hold words without end."""
        if len(self) > _MOST_WORDS:
            self.clear()


def _state(part: Any) -> JsonObject:
    """A part of a tokenizer as its tokenizer.json has it; {} for one that it lacks."""
    state: JsonObject = json.loads(part.__getstate__()) if part is not None else {}
    return state


def _pattern(state: JsonObject) -> str | None:
    """The pattern of words for Python; None for a pre-tokenizer that does more or otherwise than cut by one pattern."""
    steps = state.get("pretokenizers", [state])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"] or len(steps) > 2:
        return None
    if len(steps) == 1:
        return _in_python(_GPT2) if last["use_regex"] else None
    cut = steps[0]
    isolated = cut.get("type") == "Split" and cut["behavior"] == "Isolated" and not cut["invert"]
    return _in_python(cut["pattern"].get("Regex", "")) if isolated and not last["use_regex"] else None


def _in_python(pattern: str) -> str | None:
    """A pattern of Oniguruma as Python's, for ASCII text; None for one with anything that might mean something else."""

    def translated(found: re.Match[str]) -> str:
        return _CATEGORY.sub(lambda name: _ASCII_OF[name[1]], found[0])

    rest = _CATEGORY.sub("", _SET.sub("", pattern))
    if not pattern or not _KNOWN.fullmatch(rest):
        return None
    if any(name not in _ASCII_OF for name in _CATEGORY.findall(pattern)):
        return None
    within = _SET.sub(translated, pattern)
    whole = _CATEGORY.sub(lambda name: f"[{_ASCII_OF[name[1]]}]", within)
    try:
        re.compile(whole, re.ASCII)
    except re.error:  # a set that is empty in ASCII
        return None
    return whole


def _trims(state: JsonObject) -> tuple[bool, bool] | None:
    """Whether offsets leave out spaces, and keep the first one; None for a post-processor that is not known."""
    trim = prefix = False
    for step in state.get("processors", [state] if state else []):
        if step["type"] not in ("ByteLevel", "TemplateProcessing"):
            return None
        if step["type"] == "ByteLevel" and step["trim_offsets"]:
            if trim:
                return None
            trim, prefix = True, step["add_prefix_space"]
    return trim, prefix


def _encodes_words(backend: Any) -> bool:
    """Whether all of ASCII is encoded by merges alone, and added tokens are found in the text as they are written."""
    model, added = backend.model, backend.get_added_tokens_decoder().values()
    letters = (chr(_BYTE_LETTERS.get(byte, byte)) for byte in range(128))
    return (
        _state(backend.normalizer).get("type", "NFC") in ("NFC", "NFKC", "NFD", "NFKD")  # which leave ASCII as it is
        and type(model).__name__ == "BPE"
        and not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
        and not backend.encode_special_tokens
        and len({token.normalized for token in added}) < 2
        and not any(token.lstrip or token.rstrip or token.single_word for token in added)
        and all(model.token_to_id(letter) is not None for letter in letters)
    )
