"""Answers requests of programs together, base and adapters in one batch, each as if it were alone.

A request that comes while others are answered joins them where the model's cache allows it: what it has read is put
beside the keys and values of the others, padded on the left. A row that ended leaves its place.
"""

import inspect
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import (
    DynamicCache,
    GenerationMixin,
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from lora_studio.config.parsing import parse
from lora_studio.engine.chat.analysis import Call
from lora_studio.engine.chat.generate import (
    Answer,
    AnswerEnding,
    Column,
    ColumnText,
    Streamer,
    answer_of,
    call_generate,
    channels_of,
    check_cache,
    end_ids,
    generate,
    generation_config,
    greedy,
    opening,
    padded,
    prompt_ids,
)
from lora_studio.engine.models.multi_adapter import LoadedModel
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import BatchColumn, ColumnAnswer, Ended, Generate, GenerateBatch, Generated, Piece

RowPieces = Callable[[list[int], list[str], list[int]], None]
"""Receives positions of requests with their new text and their number of tokens so far."""
AT_ONCE = 16
"""Rows of one batch; others wait until a row leaves its place."""
JOINABLE = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
"""Layers of a cache that hold keys and values by token, and nothing else."""


@dataclass(frozen=True, slots=True)
class BatchPrompt:
    """A request of a batch: its prompt, its own settings of the generation section, and its stop strings."""

    column: Column
    settings: Mapping[str, Any]
    stop_strings: Sequence[str] = ()


class RowSampling(LogitsProcessor):
    """Samples each row by its own settings and seed, in the order of transformers' processors.

    What was sampled is left as the only possible token, so that greedy decoding of the batch takes it. Each row sees
    its own tokens without the padding before them, as if it were alone.
    """

    def __init__(self, rows: Sequence["_Row"], padding: Sequence[int]) -> None:
        self._rows, self._padding = rows, padding

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for at, row in enumerate(self._rows):
            if not row.processors and row.generator is None:
                continue
            own = scores[at : at + 1]
            for process in row.processors:
                own = process(input_ids[at : at + 1, self._padding[at] :], own)
            if row.generator is not None:
                token = torch.multinomial(own.softmax(dim=-1), 1, generator=row.generator)
                own = torch.full_like(own, -torch.inf).scatter(1, token, 0.0)
            scores[at : at + 1] = own
        return scores


def _processors(values: Mapping[str, Any]) -> list[LogitsProcessor]:
    """What transformers' `generate` does to the scores with these settings."""
    processors: list[LogitsProcessor] = []
    if values["repetition_penalty"] != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(values["repetition_penalty"]))
    if values["temperature"] > 0:
        if values["temperature"] != 1:
            processors.append(TemperatureLogitsWarper(values["temperature"]))
        if values["top_k"]:
            processors.append(TopKLogitsWarper(values["top_k"]))
        if values["top_p"] < 1:
            processors.append(TopPLogitsWarper(values["top_p"]))
        if values["min_p"]:
            processors.append(MinPLogitsWarper(values["min_p"]))
    return processors


class _Row:
    """A request with its prompt in tokens, its text, and what samples it."""

    def __init__(self, loaded: LoadedModel, position: int, request: BatchPrompt) -> None:
        self.position, self.adapter = position, request.column.adapter
        self.static = request.settings.get("cache_implementation") == "static"
        check_cache(loaded, [self.adapter], greedy(loaded, 1, "static" if self.static else "dynamic"))
        self.prompt = prompt_ids(loaded, request.column, request.settings["enable_thinking"])
        limit = int(request.settings["max_new_tokens"])
        if loaded.longest_text is not None:
            limit = min(limit, loaded.longest_text - len(self.prompt) - loaded.virtual_tokens(self.adapter))
        self.text = ColumnText(
            loaded.tokenizer_of(self.adapter),
            end_ids(loaded, self.adapter),
            request.stop_strings,
            opening(loaded, self.adapter, self.prompt),
            channels_of(loaded, self.adapter),
            limit,
        )
        self.limit = limit
        self.processors = _processors(request.settings)
        self.generator: torch.Generator | None = None
        if request.settings["temperature"] > 0:
            self.generator = torch.Generator(loaded.model.device).manual_seed(request.settings["seed"])
        self.asked_at, self.began = time.monotonic(), 0.0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.prompt) + len(self.text.ids)


@dataclass
class _Part:
    """Rows with their `ids` [rows, tokens], padded on the left, and the cache of all tokens but the last."""

    rows: list[_Row] = field(default_factory=list)
    ids: torch.Tensor | None = None
    cache: DynamicCache | None = None


class _Segment(Streamer):
    """A streamer of one call of `generate` of several: its end is not that of the answers."""

    def end(self) -> None:
        self._hand_on(all_of_it=False)


def generate_batch(
    loaded: LoadedModel,
    prompts: Sequence[BatchPrompt],
    *,
    on_pieces: RowPieces,
    on_end: Callable[[int, Answer | StudioError], None],
    stop: Callable[[], bool] = lambda: False,
    stopped_columns: Collection[int] = (),
    more: Callable[[], Sequence[BatchPrompt]] = lambda: (),
) -> None:
    """Answers requests that know nothing of each other, each as if it were alone.

    `on_end` is called once for each, as soon as it ends, with what was wrong if it cannot be answered.
    `stopped_columns` are positions of those whose answer nobody waits for any more; it may grow meanwhile. `more` gives
    what has come since it was last called, and is called after each token; positions count on.
    """
    batch = _Batch(loaded, on_pieces, on_end, stop, stopped_columns, more)
    batch.take(prompts)
    batch.answer_all()


def answer_columns(loaded: LoadedModel, call: Call[Generate]) -> Generated:
    """Answers of all columns of a request at once, whose text is streamed."""
    message = call.message
    settings = parse({"generation": message.settings}).generation
    values = settings.model_dump(exclude={"seed", "stop_strings", "enable_thinking"})
    answers = generate(
        loaded,
        [Column(column.adapter, column.messages) for column in message.columns],
        generation_config(loaded, **values),
        seed=settings.seed,
        enable_thinking=settings.enable_thinking,
        stop_strings=(*settings.stop_texts, *message.stop),
        on_pieces=lambda texts, tokens: call.answer(Piece(texts=list(texts), tokens=list(tokens))),
        stop=call.stopped.is_set,
    )
    return Generated(columns=[ColumnAnswer(**answer.to_dict()) for answer in answers])


def batch_prompt(column: BatchColumn) -> BatchPrompt:
    """A request of the protocol with its settings checked."""
    settings = parse({"generation": column.settings}).generation
    values = settings.model_dump(exclude={"stop_strings"})
    return BatchPrompt(Column(column.adapter, column.messages), values, (*settings.stop_texts, *column.stop))


def hand_end(call: Call[GenerateBatch], position: int, answer: Answer | StudioError) -> None:
    """Sends how a request of a batch ended."""
    if isinstance(answer, StudioError):
        call.answer(Ended(position=position, message=answer.message, hint=answer.hint))
    else:
        call.answer(Ended(position=position, answer=ColumnAnswer(**answer.to_dict())))


def answer_call(loaded: LoadedModel, call: Call[GenerateBatch]) -> None:
    """Answers the requests of a call and those that join it."""

    def hand_on(positions: list[int], texts: list[str], tokens: list[int]) -> None:
        call.answer(Piece(positions=positions, texts=texts, tokens=tokens))

    generate_batch(
        loaded,
        [batch_prompt(column) for column in call.message.columns],
        on_pieces=hand_on,
        on_end=partial(hand_end, call),
        stop=call.stopped.is_set,
        stopped_columns=call.stopped_columns,
        more=lambda: [batch_prompt(call.joining.get()) for _ in range(call.joining.qsize())],
    )


class _Batch:
    """Requests that wait, and those that are being answered."""

    def __init__(
        self,
        loaded: LoadedModel,
        on_pieces: RowPieces,
        on_end: Callable[[int, Answer | StudioError], None],
        stop: Callable[[], bool],
        stopped: Collection[int],
        more: Callable[[], Sequence[BatchPrompt]],
    ) -> None:
        self._loaded, self._on_pieces, self._on_end = loaded, on_pieces, on_end
        self._stop, self._stopped, self._more = stop, stopped, more
        self._waiting: deque[_Row] = deque()
        self._count = 0

    def take(self, prompts: Iterable[BatchPrompt]) -> None:
        """Reads requests, which wait from now on."""
        for request in prompts:
            try:
                self._waiting.append(_Row(self._loaded, self._count, request))
            except StudioError as error:
                self._on_end(self._count, error)
            self._count += 1

    def answer_all(self) -> None:
        """Answers until none waits."""
        while self._waiting:
            if self._stop():
                self._end(self._waiting)
                return
            if self._joins(self._waiting[0]):
                self._answer_joined()
            else:
                self._answer_group()
            self.take(self._more())

    def _joins(self, row: _Row) -> bool:
        return not row.static and self._loaded.shares([row.adapter]) and joins(self._loaded)

    def _answer_group(self) -> None:
        """Answers the first that waits, and those that share a batch with it, in one call of `generate`."""
        waiting = list(self._waiting)
        groups = self._loaded.groups([row.adapter for row in waiting])
        rows = [waiting[at] for at in next(group for group in groups if 0 in group)]
        rows = [row for row in rows if row.static == rows[0].static][:AT_ONCE]
        self._waiting = deque(row for row in waiting if row not in rows)
        settings = greedy(self._loaded, max(row.limit for row in rows), "static" if rows[0].static else "dynamic")
        self._run(rows, padded(self._loaded, [row.prompt for row in rows]), settings, self._stop, Streamer)

    def _answer_joined(self) -> None:
        """Answers all that wait and come meanwhile, up to one that can't join: it is next."""
        work = _Part()
        while not self._stop():
            fresh = self._next(AT_ONCE - sum(not row.text.ended for row in work.rows))
            if fresh.rows and work.rows:
                self._step(fresh, lambda: True)
            work = _merged([work, fresh], self._loaded.tokenizer.pad_token_id) if work.rows else fresh
            if not work.rows:
                return
            self._step(work, partial(self._changes, work))
        self._end([row for row in work.rows if not row.text.ended])

    def _next(self, places: int) -> _Part:
        """Those that can join, in the order in which they came."""
        rows = list[_Row]()
        while self._waiting and len(rows) < places and self._joins(self._waiting[0]):
            rows.append(self._waiting.popleft())
        rows.sort(key=lambda row: row.adapter or "")  # rows of one adapter together need no copies
        return _Part(rows, padded(self._loaded, [row.prompt for row in rows]) if rows else None)

    def _changes(self, work: _Part) -> bool:
        """Whether the rows at work are to be put together anew: somebody waits to join, or half of them have ended."""
        self.take(self._more())
        ended = sum(row.text.ended for row in work.rows)
        place = len(work.rows) - ended < AT_ONCE
        joining = place and bool(self._waiting) and self._joins(self._waiting[0])
        return self._stop() or joining or 2 * ended >= len(work.rows)

    def _step(self, part: _Part, until: Callable[[], bool]) -> None:
        """Adds tokens to all rows of a part, at least one, until `until` returns true or all have ended."""
        assert part.ids is not None
        most = max(row.limit - len(row.text.ids) for row in part.rows)
        cache = {"past_key_values": part.cache} if part.cache else {}
        settings = greedy(self._loaded, most)
        output = self._run(part.rows, part.ids, settings, until, _Segment, return_dict_in_generate=True, **cache)
        part.ids, part.cache = output.sequences, output.past_key_values

    def _run(
        self,
        rows: list[_Row],
        ids: torch.Tensor,
        settings: Any,
        until: Callable[[], bool],
        streamer: type[Streamer],
        **options: Any,
    ) -> Any:
        """One call of `generate`, after each token of which rows end by themselves and all of them with `until`."""
        padding = [ids.shape[1] - row.length for row in rows]
        for row in rows:
            row.began = row.began or time.monotonic()
        ending = AnswerEnding([row.text for row in rows], until, lambda at: rows[at].position in self._stopped)
        return call_generate(
            self._loaded,
            [row.adapter for row in rows],
            ids,
            torch.tensor([[0] * none + [1] * (ids.shape[1] - none) for none in padding], device=ids.device),
            settings,
            streamer=self._streamer(streamer, rows),
            stopping_criteria=[ending],
            logits_processor=[RowSampling(rows, padding)],
            **options,
        )

    def _streamer(self, kind: type[Streamer], rows: Sequence[_Row]) -> Streamer:
        positions = [row.position for row in rows]

        def end(at: int) -> None:
            row = rows[at]
            stopped = self._stop()
            self._on_end(row.position, answer_of(row.text, len(row.prompt), row.asked_at, row.began, stopped=stopped))

        return kind(
            [row.text for row in rows], lambda texts, tokens: self._on_pieces(positions, texts, tokens), on_end=end
        )

    def _end(self, rows: Collection[_Row]) -> None:
        """Ends rows that did not end by themselves."""
        if rows:
            self._streamer(Streamer, list(rows)).end()


def joins(loaded: LoadedModel) -> bool:
    """Whether requests can join others that are being answered by this base.

    Its cache has to hold nothing but keys and values by token, and it has to take the positions that follow from the
    attention mask: states of linear attention, chunks, and position ids of images have other places for a row's past.
    With RoPE that grows with the longest row (dynamic, longrope) a row would change what others say.
    """
    base: Any = loaded.base
    if not base._supports_default_dynamic_cache():
        return False
    config = base.config.get_text_config(decoder=True)
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type"), *(each.get("rope_type") for each in rope.values() if isinstance(each, dict))}
    own_positions = type(base)._prepare_position_ids_for_generation
    return (
        {"position_ids", "past_key_values"} <= inspect.signature(base.forward).parameters.keys()
        and all(type(layer) in JOINABLE for layer in DynamicCache(config=config).layers)
        and "chunked_attention" not in (getattr(config, "layer_types", None) or ())
        and not kinds & {"dynamic", "longrope"}
        and own_positions is GenerationMixin._prepare_position_ids_for_generation
    )


def _merged(parts: Sequence[_Part], pad_token: int) -> _Part:
    """The rows of all parts that have not ended, with as much padding as the longest of them needs."""
    parts = [part for part in parts if part.rows]
    live = [[at for at, row in enumerate(part.rows) if not row.text.ended] for part in parts]
    rows = [part.rows[at] for part, places in zip(parts, live, strict=True) for at in places]
    if not rows:
        return _Part()
    if len(parts) == 1 and len(rows) == len(parts[0].rows):
        return parts[0]
    parts, live = [part for part, places in zip(parts, live, strict=True) if places], [each for each in live if each]
    length = max(row.length for row in rows)

    def put_together(values: Sequence[torch.Tensor], tokens: int, fill: int, after: tuple[int, ...]) -> torch.Tensor:
        """Rows of [rows, ..., tokens, ...] with so many tokens: filled or cut on the left (`pad` cuts below 0)."""
        dim = -1 - len(after) // 2
        selected = [value[places] for value, places in zip(values, live, strict=True)]
        return torch.cat([pad(value, (*after, tokens - value.shape[dim], 0), value=fill) for value in selected])

    caches = [part.cache for part in parts if part.cache is not None]  # each part has been through a step
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        first = layers[0]
        if first.keys is None:
            continue  # a layer that uses the keys and values of another
        window = getattr(first, "sliding_window", length)
        for name in ("keys", "values"):
            values = [getattr(layer, name) for layer in layers]
            setattr(first, name, put_together(values, min(length, window) - 1, 0, (0, 0)))
        if hasattr(first, "cumulative_length"):
            first.cumulative_length = length - 1
    ids = put_together([part.ids for part in parts if part.ids is not None], length, pad_token, ())
    return _Part(rows, ids, caches[0])
