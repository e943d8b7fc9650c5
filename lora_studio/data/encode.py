"""Conversations to examples: token ids and labels, cut to length. Training and preview both come through here.

A token is trained when it lies in a trained span of the rendered text. Ids are those of the tokenizer's
`apply_chat_template`; labels are the id itself, or IGNORED.

ASCII text is encoded word by word, each word once, in a fraction of the tokenizer's time: a byte-level BPE tokenizer
cuts text at its added tokens, then into words by a pattern, and merges within a word alone. So a word that was met
before is looked up, and Python's `re` cuts ASCII text as the tokenizer's own pattern does.
"""

import gc
import json
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import Any

import numpy as np

from lora_studio.data.chat_templates import Template
from lora_studio.data.messages import IGNORED, BadRow, Conversation, RowError
from lora_studio.data.render import MASKS, Rendered, rules_of, trains_all_answers
from lora_studio.data.render_process import LimitedRenderer
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject

_BATCH = 512
_AHEAD = 3  # batches that are rendered and tokenised before one is masked
_BATCH_CHARACTERS = 1 << 21
PROMPT_SHARE = 4
FOREIGN_TOKEN = "a token id is not in the vocabulary of this model's tokenizer"
NOTHING_TRAINED = "the row's labels mask every token"
OTHER_LABELS = "the row's labels differ from its tokens, so they were made for another training method"


@dataclass(slots=True)
class Encoded:
    """A whole row as tokens; `spans` are the trained token ranges. `keep_first`: the first token is kept in any cut.

    `is_text`: plain text, which is split into windows where other rows would be cut. `desirable`: how the answer is
    labelled, None for one without a label. `masks`: the trained ranges by each value of `train_on`, {} if not known.
    """

    row: int
    ids: list[int]
    spans: tuple[tuple[int, int], ...]
    keep_first: bool = False
    is_text: bool = False
    desirable: bool | None = None
    masks: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict, compare=False)


@dataclass(slots=True)
class Example:
    """A training example. `full_length` is the number of tokens before truncation."""

    row: int
    input_ids: list[int]
    labels: list[int]
    full_length: int
    lost_trained_tokens: int
    trained_tokens: int

    def first(self, longest: int | None) -> "Example":
        """The example truncated to a model's context length; None is no limit."""
        if longest is None:
            return self
        labels = self.labels[:longest]
        trained = sum(label != IGNORED for label in labels)
        return replace(self, input_ids=self.input_ids[:longest], labels=labels, trained_tokens=trained)


@dataclass(slots=True)
class _Tokenised:
    """A batch with the tokenizer's encodings of its texts, before the mask."""

    rendered: list[tuple[Conversation, Rendered]]
    bad_rows: list[BadRow]
    encodings: list[Any]


class Encoder:
    """Renders, tokenises, masks and cuts conversations with one tokenizer, template and set of rules.

    `rewritten` and `numbered` count the rows rendered so far of which `Rendered` says so, `unknown_masks` those that
    another mask might refuse, accept or render otherwise.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        *,
        max_length: int,
        truncation: str,
        train_on: str,
        enable_thinking: bool | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise StudioError(
                "The model only has a slow tokenizer, which cannot map tokens to positions in the text.",
                "Choose a model with a tokenizer.json.",
            )
        self.template = template
        self.max_length = max_length
        self.truncation = truncation
        self.train_on = train_on
        self._tokenizer = tokenizer
        self._bos = tokenizer.bos_token_id
        self.special_ids = frozenset(tokenizer.added_tokens_decoder)
        self.specials = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self.rewritten = self.numbered = self.unknown_masks = 0
        self._words = WordEncoder.of(tokenizer.backend_tokenizer)
        self._renderer = LimitedRenderer(rules_of(tokenizer, template, train_on, enable_thinking))

    def render(self, conversation: Conversation) -> str:
        """The text of a conversation, special tokens included. Raises RowError."""
        return self._render_one(conversation).text

    def encode(self, conversations: Sequence[Conversation]) -> tuple[list[Example], list[BadRow]]:
        """Examples cut to length, and the rows that can't be rendered. Rows may be left without a trained token."""
        encoded, bad_rows = self.encode_whole(conversations)
        return [cut(row, self.max_length, self.truncation) for row in encoded], bad_rows

    def encode_whole(self, conversations: Sequence[Conversation]) -> tuple[list[Encoded], list[BadRow]]:
        """Rows as tokens before any cut, and the rows that can't be rendered."""
        encoded: list[Encoded] = []
        bad_rows: list[BadRow] = []
        for rows, bad in self.encode_batches(batches(conversations)):
            encoded += rows
            bad_rows += bad
        return encoded, bad_rows

    def encode_batches(
        self, chat_batches: Iterable[Sequence[Conversation]]
    ) -> Iterator[tuple[list[Encoded], list[BadRow]]]:
        """For each batch, in order, the rows as tokens and those that can't be rendered.

        While a batch is masked here, the next ones are rendered (in a process) and tokenised (without Python's lock),
        each by a thread that waits for it.
        """
        waiting: deque[Future[tuple[list[Encoded], list[BadRow]] | _Tokenised]] = deque()
        with _no_garbage_collection(), _threads("renderer", "tokenizer") as (renderer, tokenizer):
            for batch in chat_batches:
                if any(chat.input_ids is not None for chat in batch):
                    waiting.append(tokenizer.submit(self._take_over, batch))
                else:
                    rendered = renderer.submit(self._render, batch)
                    waiting.append(tokenizer.submit(self._tokenised, rendered))
                while len(waiting) > _AHEAD or (waiting and waiting[0].done()):
                    yield self._masked(waiting.popleft().result())
            while waiting:
                yield self._masked(waiting.popleft().result())

    def _take_over(self, batch: Sequence[Conversation]) -> tuple[list[Encoded], list[BadRow]]:
        """Rows that come as tokens."""
        encoded, bad_rows = [], []
        for chat in batch:
            try:
                encoded.append(self._from_ids(chat))
            except RowError as error:
                bad_rows.append(error.at(chat.row))
        return encoded, bad_rows

    def _from_ids(self, chat: Conversation) -> Encoded:
        """A row's own tokens, trained where its labels say so, or all of them. Raises RowError."""
        ids = list(chat.input_ids or ())
        labels = ids if chat.labels is None else list(chat.labels)
        foreign = next((token for token in ids if token >= len(self._tokenizer)), None)
        if foreign is not None:
            raise RowError(FOREIGN_TOKEN, "input_ids", f"{foreign}, of {len(self._tokenizer)} tokens")
        edges = np.flatnonzero(np.diff(np.array([IGNORED, *labels, IGNORED]) != IGNORED)).tolist()
        spans = tuple(zip(edges[::2], edges[1::2], strict=True))
        if not spans:
            raise RowError(NOTHING_TRAINED, "labels", labels[:20])
        if any(ids[start:stop] != labels[start:stop] for start, stop in spans):
            raise RowError(OTHER_LABELS, "labels", labels[:20])
        keep_first = ids[0] == self._bos and ids.count(ids[0]) == 1
        return Encoded(chat.row, ids, spans, keep_first, masks=dict.fromkeys(MASKS, spans))

    def _render(self, batch: Sequence[Conversation]) -> tuple[list[tuple[Conversation, Rendered]], list[BadRow]]:
        rendered, bad_rows = [], []
        for conversation, result in zip(batch, self._renderer.render(batch), strict=True):
            if isinstance(result, RowError):
                bad_rows.append(result.at(conversation.row))
                self.unknown_masks += not (self.template.has_marks and trains_all_answers(conversation))
            else:
                rendered.append((conversation, result))
                self.rewritten += result.rewritten
                self.numbered += result.numbered
        return rendered, bad_rows

    def _tokenised(self, rendering: "Future[tuple[list[tuple[Conversation, Rendered]], list[BadRow]]]") -> "_Tokenised":
        rendered, bad_rows = rendering.result()
        return _Tokenised(rendered, bad_rows, self._tokenise([result.text for _, result in rendered]))

    def _masked(self, batch: "tuple[list[Encoded], list[BadRow]] | _Tokenised") -> tuple[list[Encoded], list[BadRow]]:
        if not isinstance(batch, _Tokenised):
            return batch
        pairs = zip(batch.rendered, batch.encodings, strict=True)
        return [self._mask(chat, result, encoding) for (chat, result), encoding in pairs], batch.bad_rows

    def tokens(self, conversation: Conversation) -> tuple[Encoded, list[str], str]:
        """One conversation's tokens with the piece of text each stands for, and the text. Raises RowError.

        The pieces joined are the text. Of several tokens that make up one character, the first bears it.
        """
        if conversation.input_ids is not None:
            encoded = self._from_ids(conversation)
            parts = [self._tokenizer.decode([token]) for token in encoded.ids]
            return encoded, parts, "".join(parts)
        rendered = self._render_one(conversation)
        (encoding,) = self._tokenise([rendered.text])
        pieces, done = [], 0
        for _, stop in encoding.offsets:
            pieces.append(rendered.text[done:stop])
            done = max(done, stop)
        if pieces:
            pieces[-1] += rendered.text[done:]
        return self._mask(conversation, rendered, encoding), pieces, rendered.text

    def _render_one(self, conversation: Conversation) -> Rendered:
        (result,) = self._renderer.render([conversation])
        if isinstance(result, RowError):
            raise result
        return result

    def _tokenise(self, texts: list[str]) -> list[Any]:
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        if self._words is None:
            return backend.encode_batch(texts, add_special_tokens=False)
        encodings: list[Any] = [self._words.encode(text) for text in texts]
        others = [place for place, encoding in enumerate(encodings) if encoding is None]
        encoded = backend.encode_batch([texts[place] for place in others], add_special_tokens=False)
        for place, encoding in zip(others, encoded, strict=True):
            encodings[place] = encoding
        return encodings

    def _mask(self, conversation: Conversation, rendered: Rendered, encoding: Any) -> Encoded:
        ids, masks = encoding.ids, dict[str, tuple[tuple[int, int], ...]]()
        ranges = {
            span: self._tokens_of(encoding, rendered.text, span)
            for span in {*rendered.spans, *chain.from_iterable(rendered.masks.values())}
        }
        for name, spans in rendered.masks.items():
            masks[name] = tuple(tokens for span in spans if (tokens := ranges[span]))
            if len(masks[name]) < len(spans):  # without its last span, the one before would be taken for the last turn
                masks.clear()
                break
        own = tuple(tokens for span in rendered.spans if (tokens := ranges[span]))
        self.unknown_masks += not masks
        keep_first = bool(ids) and ids[0] == self._bos and ids.count(self._bos) == 1
        is_text = conversation.text is not None
        return Encoded(conversation.row, ids, own, keep_first, is_text, conversation.label, masks)

    def _tokens_of(self, encoding: Any, text: str, span: tuple[int, int]) -> tuple[int, int] | None:
        """The range of tokens that is trained for a character span; None if it holds no token of its own."""
        tokens = _token_range(encoding, text, *span)
        return self._without_neighbours(encoding, text, span, tokens) if tokens else None

    def _without_neighbours(
        self, encoding: Any, text: str, span: tuple[int, int], tokens: tuple[int, int]
    ) -> tuple[int, int] | None:
        """The tokens of a span less the special ones beside it that only take in white space of it.

        A role's token with `rstrip` reaches over the space that an answer begins with, one with `lstrip` over its end.
        """
        (start, stop), (first, last) = span, tokens
        if encoding.ids[first] in self.special_ids:
            begin, _ = encoding.token_to_chars(first)
            first += begin < start and bool(text[begin:start].strip())
        if last > first and encoding.ids[last - 1] in self.special_ids:
            begin, end = encoding.token_to_chars(last - 1)
            last -= end > stop and not text[begin:stop].strip()
        return (first, last) if first < last else None


@contextmanager
def _threads(*names: str) -> Iterator[list[ThreadPoolExecutor]]:
    """A thread of each name. What they have not begun is dropped where the work ends early."""
    pools = [ThreadPoolExecutor(1, name) for name in names]
    try:
        yield pools
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows hold no circles, and looking for some among a million objects takes a tenth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """Conversations in pieces of bounded size, by number and by text."""
    batch: list[Conversation] = []
    size = 0
    for conversation in conversations:
        batch.append(conversation)
        size += len(conversation.text or "") + sum(len(message.content) for message in conversation.messages)
        if len(batch) == _BATCH or size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _token_range(encoding: Any, text: str, start: int, stop: int) -> tuple[int, int] | None:
    """The tokens that lie, wholly or partly, in a character span.

    Looks up the two ends only; where an end has no token of its own (white space left out of the offsets) or several
    (bytes of one character), all offsets are searched.
    """
    first = encoding.char_to_token(start)
    last = encoding.char_to_token(stop - 1)
    if first is not None and last is not None and text[stop - 1] < "\x80":
        return first, last + 1
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < stop))
    return (int(inside[0]), int(inside[-1]) + 1) if inside.size else None


def window(encoded: Encoded, max_length: int, truncation: str) -> tuple[int, int]:
    """The token range that a cut keeps (the first token comes on top of it where `keep_first` says so).

    keep_answer drops what follows the last trained token, then the prompt from the left. An answer that is longer than
    `max_length` by itself keeps its start and, before it, prompt for at most a quarter of the length.
    """
    length = len(encoded.ids)
    if length <= max_length:
        return 0, length
    if truncation == "drop":
        return 0, 0
    if truncation == "keep_start" or not encoded.spans:
        return 0, max_length
    begin, end = encoded.spans[-1]
    if end <= max_length:
        return 0, max_length
    budget = max_length - 1 if encoded.keep_first else max_length
    first = end - budget if end - begin <= budget else max(0, begin - max_length // PROMPT_SHARE)
    return first, min(first + budget, length)


def cut(encoded: Encoded, max_length: int, truncation: str) -> Example:
    """The example that a row becomes at a length; without any trained token where the cut leaves none."""
    first, stop = window(encoded, max_length, truncation)
    ids = encoded.ids[first:stop]
    labels = [IGNORED] * len(ids)
    trained = total = 0
    for begin, end in encoded.spans:
        total += end - begin
        begin, end = max(begin, first), min(end, stop)
        if begin < end:
            labels[begin - first : end - first] = ids[begin - first : end - first]
            trained += end - begin
    if first > 0 and encoded.keep_first:
        ids = [encoded.ids[0], *ids]
        labels = [IGNORED, *labels]
    return Example(encoded.row, ids, labels, len(encoded.ids), total - trained, trained)


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
                pieces = cut(part)
                if sum(map(len, pieces)) != len(part):
                    return None
                ids += chain.from_iterable(map(words.__getitem__, pieces))
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
