"""The tokens of words, each word encoded once: a fraction of the tokenizer's time for the same tokens.

A byte-level BPE tokenizer merges within a word alone, so a word that was met before is looked up. Texts come as words
(see `word_cutting`), many at once, and become arrays.
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from lora_studio.data.word_cutting import FORMS, GPT2_PATTERN, Cutter, Cutting, Numbers, in_python
from lora_studio.files import JsonObject

_MOST_CHARACTERS = 1 << 22  # of all words that are remembered
_PLAIN_BYTES = {*range(33, 127), *range(161, 173), *range(174, 256)}
# The letter that stands for each byte in the vocabulary of a byte-level tokenizer.
_LETTERS = {
    **{byte: byte for byte in _PLAIN_BYTES},
    **{byte: 256 + number for number, byte in enumerate(sorted({*range(256)} - _PLAIN_BYTES))},
}
_PROBE = (
    "".join(map(chr, range(128)))
    + "Hello  world, it's 12345 o'clock!!\n\n\tif (x == 0) {\n        return Don'T;\r\n    }"
    "  \n \n<tag>$5.00/day... \n a "
)
_PROBE_BEYOND = (
    "“Ça va, naïve Ångström?” – 5 €\xa0¾ of Ελλάδα; Москва\u3000№ 7… I’m, ’S 'É\xa0\n Ünïcode’ll \xa0 x² 🙂 "
)


@dataclass(slots=True)
class WordTokens:
    """The tokens of several texts one after another: `ids`, and the characters of each token from `begins` to `ends`.

    Characters are counted through all texts. Text i has the tokens from `tokens[i]` to `tokens[i + 1]`, and the
    characters from `characters[i]`. `complete`: whether the words of a text are all of it; else the rest is void.
    """

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    tokens: np.ndarray
    characters: np.ndarray
    complete: np.ndarray

    def offsets(self, text: int) -> list[tuple[int, int]]:
        """The characters of each token of a text, as from and to."""
        these, first = slice(self.tokens[text], self.tokens[text + 1]), int(self.characters[text])
        return list(zip((self.begins[these] - first).tolist(), (self.ends[these] - first).tolist(), strict=True))

    def between(self, texts: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that lie, wholly or partly, in spans of characters: from and to, counted through all texts.

        `starts` and `stops` are characters of the text. A span without a token is not from before to.
        """
        first = np.searchsorted(self.ends, self.characters[texts] + starts, "right")
        return first, np.searchsorted(self.begins, self.characters[texts] + stops, "left")


class WordEncoder:
    """Encodes texts that are cut into words as one tokenizer does. `of` makes it; `cutting` says how to cut."""

    def __init__(self, backend: Any, cutting: Cutting, trim: bool, prefix: bool) -> None:
        self.cutting = cutting
        self._words = _Words(backend)
        self._trim, self._prefix = trim, prefix

    @classmethod
    def of(cls, backend: Any) -> "WordEncoder | None":
        """The encoder of a `tokenizers.Tokenizer`; None for one that does not encode word by word in a known way."""
        own_pattern = _pattern(_state(backend.pre_tokenizer))
        pattern = in_python(own_pattern)
        trims = _trims(_state(backend.post_processor))
        if pattern is None or trims is None or not _encodes_words(backend):
            return None
        form = next((form for form in FORMS if form == _state(backend.normalizer).get("type")), None)
        added = tuple(token.content for token in backend.get_added_tokens_decoder().values())
        beyond = own_pattern.isascii() and own_pattern.isprintable() and _has_all(backend.model, range(256))
        encoder = cls(backend, Cutting(pattern, added, beyond, form), *trims)
        probes = [_PROBE, *(f"{_PROBE}{token} {token}\n\n{_PROBE}" for token in added[:4])]
        if beyond and (form is None or unicodedata.is_normalized(form, _PROBE_BEYOND)):
            probes.append(_PROBE_BEYOND)
        return encoder if all(encoder._is_right(probe, backend) for probe in probes) else None

    def encode_text(self, text: str) -> WordTokens | None:
        """The tokens of a single text; None for one that is to be left to the tokenizer."""
        words = Cutter(self.cutting).words(text)
        if words is None:
            return None
        numbers = Numbers()
        row = np.fromiter(numbers.of(words), np.uint32, len(words)).tobytes()
        tokens = self.encode(list(numbers), [row], [len(text)])
        return tokens if tokens.complete[0] else None

    def encode(self, vocabulary: Sequence[str], texts: Sequence[bytes], lengths: Sequence[int]) -> WordTokens:
        """The tokens of texts, each as the places of its words in `vocabulary`, unsigned integers of 32 bits.

        `lengths` are the numbers of characters of the texts.
        """
        words = self._words
        place = words.places(vocabulary)[np.frombuffer(b"".join(texts), np.uint32)]
        text_ends = np.cumsum([0, *(len(text) // 4 for text in texts)])
        count = words.counts[place]
        token_ends, character_ends = _starts(count), _starts(words.characters[place])
        at = np.repeat(words.firsts[place] - token_ends[:-1], count) + np.arange(token_ends[-1])
        before = np.repeat(character_ends[:-1], count)
        begins, ends = before + words.begins[at], before + words.ends[at]
        tokens, characters = token_ends[text_ends], character_ends[text_ends]
        if self._trim:
            leading = words.leading[at]
            if self._prefix:
                at_start = begins == np.repeat(characters[:-1], np.diff(tokens))
                leading = np.where(at_start, np.maximum(leading - 1, 0), leading)
            begins = np.minimum(begins + leading, ends)
            ends = np.maximum(ends - words.trailing[at], begins)
        complete = np.diff(characters) == np.asarray(lengths)
        return WordTokens(words.ids[at], begins, ends, tokens, characters, complete)

    def _is_right(self, probe: str, backend: Any) -> bool:
        tokens, reference = self.encode_text(probe), backend.encode(probe, add_special_tokens=False)
        return tokens is not None and tokens.ids.tolist() == reference.ids and tokens.offsets(0) == reference.offsets


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


class _Words:
    """The tokens of words. Word i has `counts[i]` tokens from `firsts[i]` on, and so many `characters`.

    `leading` and `trailing` are the spaces at a token's ends, which some tokenizers leave out of its characters. Words
    are forgotten, all at once, when they are too many: texts without end hold words without end.
    """

    def __init__(self, backend: Any) -> None:
        self._model = backend.model
        self._added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
        self._forget()

    def _forget(self) -> None:
        self._places: dict[str, int] = {}
        self.ids, self.begins, self.ends, self.leading, self.trailing = (np.empty(0, np.int32) for _ in range(5))
        self.counts, self.firsts, self.characters = (np.empty(0, np.int64) for _ in range(3))

    def places(self, words: Sequence[str]) -> np.ndarray:
        """The place of each word; words that were not met before are encoded."""
        if self.characters.sum() > _MOST_CHARACTERS:
            self._forget()
        new = [word for word in words if word not in self._places]
        if new:
            self._add(new)
        return np.fromiter(map(self._places.__getitem__, words), np.int64, len(words))

    def _add(self, words: Sequence[str]) -> None:
        self._places |= {word: number for number, word in enumerate(words, len(self._places))}
        tokens = list(map(self._tokens, words))
        self.counts = np.concatenate([self.counts, list(map(len, tokens))])
        self.firsts = _starts(self.counts)[:-1]
        self.characters = np.concatenate([self.characters, list(map(len, words))])
        columns = np.array([token for of_word in tokens for token in of_word], np.int32).reshape(-1, 5).T
        self.ids, self.begins, self.ends, self.leading, self.trailing = map(
            np.concatenate,
            zip((self.ids, self.begins, self.ends, self.leading, self.trailing), columns, strict=True),
        )

    def _tokens(self, word: str) -> list[tuple[int, int, int, int, int]]:
        """Of each token: its id, its characters as from and to, its leading and its trailing spaces."""
        if word in self._added:
            return [(self._added[word], 0, len(word), *_spaces(word))]
        tokens = self._model.tokenize(word.encode().decode("latin-1").translate(_LETTERS))
        ends = list(accumulate((len(token.value) for token in tokens), initial=0))
        # Tokens are made of bytes: a character belongs to each token that has one of its bytes.
        character = [number for number, letter in enumerate(word) for _ in letter.encode()]
        return [
            (token.id, character[start], character[stop - 1] + 1, *_spaces(token.value))
            for token, (start, stop) in zip(tokens, pairwise(ends), strict=True)
        ]


def _spaces(value: str) -> tuple[int, int]:
    """How many spaces a token begins and ends with, as `process_offsets` of tokenizers' ByteLevel counts them."""
    return len(value) - len(value.lstrip("Ġ \t\n\r")), len(value) - len(value.rstrip("Ġ \t\n\r"))


def _state(part: Any) -> JsonObject:
    """A part of a tokenizer as its tokenizer.json has it; {} for one that it lacks."""
    state: JsonObject = json.loads(part.__getstate__()) if part is not None else {}
    return state


def _pattern(state: JsonObject) -> str:
    """The pattern of words; "" for a pre-tokenizer that does more or otherwise than cut by one pattern."""
    steps = state.get("pretokenizers", [state])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last["add_prefix_space"] or len(steps) > 2:
        return ""
    if len(steps) == 1:
        return GPT2_PATTERN if last["use_regex"] else ""
    cut = steps[0]
    isolated = cut.get("type") == "Split" and cut["behavior"] == "Isolated" and not cut["invert"]
    return str(cut["pattern"].get("Regex", "")) if isolated and not last["use_regex"] else ""


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
    form = _state(backend.normalizer).get("type")
    return (
        form in (None, *FORMS)
        and all(form is None or unicodedata.is_normalized(form, token.content) for token in added)
        and type(model).__name__ == "BPE"
        and not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
        and not backend.encode_special_tokens
        and len({token.normalized for token in added}) < 2
        and not any(token.lstrip or token.rstrip or token.single_word for token in added)
        and _has_all(model, range(128))
    )


def _has_all(model: Any, numbers: range) -> bool:
    """Whether each of these bytes is a token."""
    return all(model.token_to_id(chr(_LETTERS[byte])) is not None for byte in numbers)
