"""Text encoded word by word has the ids and offsets of the tokenizer itself, or is left to it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from lora_studio.data import word_tokens
from lora_studio.data.word_cutting import Cutter, Numbers
from lora_studio.data.word_tokens import WordEncoder
from lora_studio.workspace import model_source

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PATTERNS = {
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt-oss": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
POST = {
    "no offsets trimmed": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    "offsets trimmed": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    "the first space kept": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
}
LETTERS = "ab'SsTtlLdD12 \n\r\t .,!-()<|>_im\x0b\x1c\x7f~/"
BEYOND = LETTERS + "éÉßñçøÅÿλΣДжŠ½²٣‘’“”–—…€№™°§¿«»\xa0\u2003\u3000🙂→"


def _split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {**GPT2, "use_regex": False}]}


def _backend(**parts: Any) -> Any:
    """The built-in tokenizer with other parts."""
    text = (Path(model_source("demo")) / "tokenizer.json").read_text(encoding="utf-8")
    return Tokenizer.from_str(json.dumps({**json.loads(text), **parts}))


def _compare(backend: Any, encoder: WordEncoder, texts: int, letters: str = LETTERS) -> None:
    """Compares ids, offsets and spans of random texts of letters, white space and added tokens, encoded together."""
    dice = random.Random(0)
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    cutter, numbers = Cutter(encoder.cutting), Numbers()
    whole, rows = list[str](), list[bytes]()
    for _ in range(texts):
        pieces = (dice.choice(added) if dice.random() < 0.1 else dice.choice(letters) for _ in range(40))
        whole.append("".join(piece * dice.choice((1, 1, 1, 3)) for piece in pieces))
        words = cutter.words(whole[-1])
        assert words is not None, whole[-1]
        rows.append(np.array(list(numbers.of(words)), np.uint32).tobytes())
    tokens = encoder.encode(list(numbers), rows, list(map(len, whole)))
    assert tokens.complete.all()
    for at, text in enumerate(whole):
        reference = backend.encode(text, add_special_tokens=False)
        ids = tokens.ids[tokens.tokens[at] : tokens.tokens[at + 1]].tolist()
        assert (ids, tokens.offsets(at)) == (reference.ids, reference.offsets), text
        starts = np.array([dice.randrange(len(text)) for _ in range(5)])
        stops = np.array([dice.randrange(start, len(text)) + 1 for start in starts])
        found = tokens.between(np.full(5, at), starts, stops)
        for start, stop, first, last in zip(starts, stops, *(side - tokens.tokens[at] for side in found), strict=True):
            inside = [token for token, (begin, end) in enumerate(reference.offsets) if end > start and begin < stop]
            assert inside == list(range(first, last)), (text, start, stop)


@pytest.mark.parametrize("post", POST)
@pytest.mark.parametrize("pattern", ["gpt2", *PATTERNS])
def test_ids_and_offsets_are_those_of_the_tokenizer(pattern, post):
    before = GPT2 if pattern == "gpt2" else _split(PATTERNS[pattern])
    backend = _backend(pre_tokenizer=before, post_processor=POST[post])
    encoder = WordEncoder.of(backend)
    assert encoder is not None
    _compare(backend, encoder, 60)
    _compare(backend, encoder, 60, BEYOND)


@pytest.mark.real
@pytest.mark.parametrize(("name", "is_byte_level"), [("qwen3", True), ("minimind", True), ("phi-3-mini", False)])
def test_real_byte_level_tokenizers_encode_word_by_word_and_others_do_not(real, name, is_byte_level):
    backend = Tokenizer.from_file(str(real / "tokenizers" / name / "tokenizer.json"))
    encoder = WordEncoder.of(backend)
    assert (encoder is not None) == is_byte_level
    if encoder:
        _compare(backend, encoder, 300)
        _compare(backend, encoder, 300, BEYOND)


@pytest.mark.parametrize(
    "text",
    [
        "我们",  # a sentence without spaces would be one word
        "e\u0301",  # not in the normalization form of the tokenizer
        "it'\u017f",  # a long s, which is an s where case is ignored
        "a\u200bb",  # neither letter, number, symbol nor white space
    ],
)
def test_text_that_the_pattern_may_cut_otherwise_is_left_to_the_tokenizer(text):
    encoder = WordEncoder.of(_backend(pre_tokenizer=_split(PATTERNS["qwen3"]), normalizer={"type": "NFC"}))
    assert encoder is not None
    assert encoder.encode_text(text) is None
    assert encoder.encode_text("naïve") is not None


def test_a_pattern_with_letters_beyond_ascii_cuts_ascii_alone():
    encoder = WordEncoder.of(_backend(pre_tokenizer=_split(r"[äöü]+|\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+")))
    assert encoder is not None
    assert encoder.encode_text("naive") is not None
    assert encoder.encode_text("naïve") is None


def test_a_text_that_the_pattern_leaves_letters_of_is_not_complete():
    encoder = WordEncoder.of(_backend())
    assert encoder is not None
    assert encoder.encode(["one", " two"], [np.array([0, 1], np.uint32).tobytes()], [8]).complete.tolist() == [False]


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {**GPT2, "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}},
        {"pre_tokenizer": _split(r"(?:a+)+b|\s+|\S")},  # takes for ever on a long run of one letter
        {"pre_tokenizer": _split(r"[\p{L}&&[^x]]+|\s+|.")},
        {"pre_tokenizer": _split(r"\p{Han}+|\s+|\S+")},
        {"pre_tokenizer": _split(r"(?<=a)b|\s+|\S+")},
        {"pre_tokenizer": _split(r"[a-z]+")},  # leaves the other letters uncut
    ],
)
def test_a_tokenizer_that_cuts_text_in_an_unknown_way_is_left_to_itself(parts):
    assert WordEncoder.of(_backend(**parts)) is None


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_take_in_what_is_beside_them_are_left_to_the_tokenizer(flag):
    backend = _backend()
    backend.add_special_tokens([AddedToken("<odd>", **{flag: True})])
    assert WordEncoder.of(backend) is None


def test_words_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(word_tokens, "_MOST_CHARACTERS", 500)
    backend = _backend()
    encoder = WordEncoder.of(backend)
    assert encoder is not None
    for number in range(100):
        text = f"{number} {'abcdefghij'[number % 10] * (number % 7 + 1)}q{chr(97 + number % 26)}x" + "y" * number
        own = encoder.encode_text(text)
        assert own is not None
        assert own.ids.tolist() == backend.encode(text, add_special_tokens=False).ids
        assert encoder._words.characters.sum() < 500 + len(text)
