"""Conversations to examples: token ids and labels, cut to length. Training and preview both come through here.

A token is trained when it lies in a trained span of the rendered text. Ids are those of the tokenizer's
`apply_chat_template`; labels are the id itself, or IGNORED. Texts that can be encoded word by word (`word_tokens`) come
cut from the process that renders them, and are encoded and masked a batch at a time; others go through the tokenizer.
"""

import gc
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from lora_studio.data.chat_templates import Template
from lora_studio.data.messages import IGNORED, BadRow, Conversation, RowError
from lora_studio.data.render import MASKS, Rendered, rules_of, trains_all_answers
from lora_studio.data.render_process import MOST_AT_ONCE, CutTexts, LimitedRenderer
from lora_studio.data.word_tokens import WordEncoder, WordTokens
from lora_studio.errors import StudioError

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


Span = tuple[int, int]
Row = tuple[Conversation, Rendered]


@dataclass(slots=True)
class _Tokenised:
    """A batch with its texts as tokens, before the mask.

    `words` are the tokens of those rows that were encoded by words, in their order; `encodings` has None for these,
    and the tokenizer's encodings of the others.
    """

    rows: list[Row]
    refused: list[tuple[Conversation, RowError]]
    encodings: list[Any]
    words: WordTokens | None


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
        self._renderer = LimitedRenderer(
            rules_of(tokenizer, template, train_on, enable_thinking), self._words.cutting if self._words else None
        )

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

        While a batch is masked here, the next ones are rendered and cut (in processes) and tokenised, each by a thread
        that waits for it.
        """
        waiting: deque[Future[tuple[list[Encoded], list[BadRow]] | _Tokenised]] = deque()
        with _no_garbage_collection(), _threads(renderer=MOST_AT_ONCE, tokenizer=1) as (renderer, tokenizer):
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

    def _render(self, batch: Sequence[Conversation]) -> tuple[Sequence[Conversation], CutTexts]:
        return batch, self._renderer.render_and_cut(batch)

    def _tokenised(self, rendering: "Future[tuple[Sequence[Conversation], CutTexts]]") -> "_Tokenised":
        batch, texts = rendering.result()
        rows, refused = list[Row](), list[tuple[Conversation, RowError]]()
        for conversation, result in zip(batch, texts.results, strict=True):
            if isinstance(result, RowError):
                refused.append((conversation, result))
            else:
                rows.append((conversation, result))
        cut = [(at, words) for at, words in enumerate(texts.words) if words is not None]
        words = None
        if self._words and cut:
            lengths = [len(rows[at][1].text) for at, _ in cut]
            words = self._words.encode(texts.vocabulary, [each for _, each in cut], lengths)
            if not words.complete.all():  # the pattern leaves characters out, so the tokenizer is to say what they are
                cut, words = [], None
        by_words = {at for at, _ in cut}
        others = [at for at in range(len(rows)) if at not in by_words]
        encodings: list[Any] = [None] * len(rows)
        for at, encoding in zip(others, self._tokenise([rows[at][1].text for at in others]), strict=True):
            encodings[at] = encoding
        return _Tokenised(rows, refused, encodings, words)

    def _masked(self, batch: "tuple[list[Encoded], list[BadRow]] | _Tokenised") -> tuple[list[Encoded], list[BadRow]]:
        if not isinstance(batch, _Tokenised):
            return batch
        for conversation, _ in batch.refused:
            self.unknown_masks += not (self.template.has_marks and trains_all_answers(conversation))
        by_words = [row for row, encoding in zip(batch.rows, batch.encodings, strict=True) if encoding is None]
        masked = iter(self._mask_words(by_words, batch.words) if batch.words else ())
        encoded = list[Encoded]()
        for (conversation, rendered), encoding in zip(batch.rows, batch.encodings, strict=True):
            self.rewritten += rendered.rewritten
            self.numbered += rendered.numbered
            encoded.append(next(masked) if encoding is None else self._mask(conversation, rendered, encoding))
        return encoded, [error.at(conversation.row) for conversation, error in batch.refused]

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
        return backend.encode_batch(texts, add_special_tokens=False) if texts else []

    def _mask(self, conversation: Conversation, rendered: Rendered, encoding: Any) -> Encoded:
        ranges = {span: self._tokens_of(encoding, rendered.text, span) for span in _spans(rendered)}
        return self._encoded(conversation, rendered, encoding.ids, ranges)

    def _mask_words(self, rows: Sequence[Row], words: WordTokens) -> Iterator[Encoded]:
        """The rows, in order, whose texts have these tokens."""
        spans = [list(_spans(rendered)) for _, rendered in rows]
        owner = np.repeat(np.arange(len(rows)), list(map(len, spans)))
        starts, stops = np.array([span for of_row in spans for span in of_row], np.int64).reshape(-1, 2).T
        first, last = words.between(owner, starts, stops)
        self._leave_neighbours(rows, words, (owner, starts, stops), (first, last))
        before = words.tokens[owner]
        ranges = iter(zip((first - before).tolist(), (last - before).tolist(), strict=True))
        ids, token_ends = words.ids.tolist(), words.tokens.tolist()
        for at, (conversation, rendered) in enumerate(rows):
            of_spans = {
                span: tokens if tokens[0] < tokens[1] else None for span, tokens in zip(spans[at], ranges, strict=False)
            }
            yield self._encoded(conversation, rendered, ids[token_ends[at] : token_ends[at + 1]], of_spans)

    def _leave_neighbours(
        self,
        rows: Sequence[Row],
        words: WordTokens,
        spans: tuple[np.ndarray, np.ndarray, np.ndarray],
        tokens: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Does what `_without_neighbours` does to ranges of tokens, in place: from `tokens[0]` to `tokens[1]`."""
        (owner, starts, stops), (first, last) = spans, tokens
        special = np.fromiter(self.special_ids, np.int64, len(self.special_ids))
        filled = np.flatnonzero(first < last)
        before = words.characters[owner]
        for at in filled[np.isin(words.ids[first[filled]], special)]:
            text, begin = rows[owner[at]][1].text, int(words.begins[first[at]] - before[at])
            first[at] += begin < starts[at] and bool(text[begin : starts[at]].strip())
        filled = np.flatnonzero(last > first + 1)
        for at in filled[np.isin(words.ids[last[filled] - 1], special)]:
            text, token = rows[owner[at]][1].text, last[at] - 1
            begin, end = (int(side[token] - before[at]) for side in (words.begins, words.ends))
            last[at] -= end > stops[at] and not text[begin : stops[at]].strip()

    def _encoded(
        self, conversation: Conversation, rendered: Rendered, ids: list[int], ranges: Mapping[Span, Span | None]
    ) -> Encoded:
        """A row as tokens; `ranges` has the tokens of each span of the text, None for one without a token."""
        masks: dict[str, tuple[Span, ...]] = {}
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
def _threads(**numbers: int) -> Iterator[list[ThreadPoolExecutor]]:
    """So many threads of each name. What they have not begun is dropped where the work ends early."""
    pools = [ThreadPoolExecutor(number, name) for name, number in numbers.items()]
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


def _spans(rendered: Rendered) -> set[Span]:
    """All spans of a text that a mask may train."""
    return {*rendered.spans, *chain.from_iterable(rendered.masks.values())}


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
