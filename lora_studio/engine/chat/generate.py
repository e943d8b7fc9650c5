"""Streams the answers of base and adapters from one model, with all columns in one batch.

peft selects the adapter per row, so the base is in memory once. Text is emitted in whole characters, 10 to 15 times a
second, until an end token or a stop string.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from jinja2 import TemplateError
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

from lora_studio.data.chat_templates import ChannelReader, channel_reader, is_harmony, with_reasoning
from lora_studio.data.messages import is_broken
from lora_studio.data.render_process import render_text
from lora_studio.engine.chat.cache import stored_cache
from lora_studio.engine.models.multi_adapter import LoadedModel
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.shape import beyond

PIECE_SECONDS = 0.075
HALF_CHARACTER = "\ufffd"
Pieces = Callable[[list[str], list[int]], None]
"""Receives each column's new text, and its number of tokens so far."""


class ColumnText:
    """The growing text of one column. Text that may still change is withheld: an incomplete character, and the
    beginning of a stop string. `opening` is the part of the answer that the prompt already contains, `limit` the number
    of tokens at which it ends; `reader` leaves out of the text what only frames the model's channels."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        stop_strings: Sequence[str] = (),
        opening: str = "",
        reader: ChannelReader | None = None,
        limit: int | None = None,
    ) -> None:
        self.limit = limit
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._stop_strings = stop_strings
        self._window = 0  # decoding starts here: a token's text can depend on the one before it
        self._decoded = 0
        self._waiting = opening
        self._reader = reader
        self._shown: list[int] = []
        self.ids: list[int] = []
        self.text = ""
        self.finish = ""
        self.first_token = 0.0
        self.last_token = 0.0

    @property
    def ended(self) -> bool:
        return bool(self.finish)

    def add(self, token: int, now: float) -> None:
        """Takes the next token. After the end, the batch only pads this column."""
        if self.ended:
            return
        if not self.ids:
            self.first_token = now
        self.last_token = now
        self.ids.append(token)
        self._shown += self._reader.read(token) if self._reader else [token]
        if token in self._end_ids:
            self.finish = "eos"
        elif self._stop_strings:
            self._read(all_of_it=False)
            if self._stop_at() is not None:
                self.finish = "stop_string"
        if not self.ended and len(self.ids) == self.limit:
            self.finish = "length"

    def take(self, *, all_of_it: bool = False) -> str:
        """The text since the last call."""
        self._read(all_of_it=all_of_it)
        stop = self._stop_at()
        if stop is None:
            stop = len(self._waiting) - (0 if all_of_it else self._begun())
            piece, self._waiting = self._waiting[:stop], self._waiting[stop:]
        else:
            piece, self._waiting = self._waiting[:stop], ""
        self.text += piece
        return piece

    def _read(self, *, all_of_it: bool) -> None:
        """Decodes the tokens since the last call."""
        before, now = self._decode(self._window, self._decoded), self._decode(self._window, len(self._shown))
        if now.endswith(HALF_CHARACTER) and not all_of_it:
            return
        self._window, self._decoded = self._decoded, len(self._shown)
        self._waiting += now[len(before) :]

    def _decode(self, start: int, stop: int) -> str:
        return str(self._tokenizer.decode(self._shown[start:stop], skip_special_tokens=True))

    def _stop_at(self) -> int | None:
        """The position of the first stop string."""
        positions = [at for stop in self._stop_strings if (at := self._waiting.find(stop)) >= 0]
        return min(positions, default=None)

    def _begun(self) -> int:
        """The length of a suffix that may be the beginning of a stop string."""
        for length in range(min(len(self._waiting), max(map(len, self._stop_strings), default=1) - 1), 0, -1):
            if any(stop.startswith(self._waiting[-length:]) for stop in self._stop_strings):
                return length
        return 0


class Streamer(BaseStreamer):
    """Receives one token per column and step from `generate` and passes text on."""

    def __init__(
        self,
        columns: Sequence[ColumnText],
        on_pieces: Pieces,
        seconds: float = PIECE_SECONDS,
        on_end: Callable[[int], None] = lambda column: None,
    ) -> None:
        self.columns = columns
        self._on_pieces, self._on_end = on_pieces, on_end
        self._open = set(range(len(columns)))
        self._seconds = seconds
        self._prompts_seen = False
        self._handed_on = time.monotonic()

    def put(self, value: torch.Tensor) -> None:
        if not self._prompts_seen:  # the first value holds the prompts, [columns, tokens]
            self._prompts_seen = True
            return
        now = time.monotonic()
        for column, token in zip(self.columns, value.tolist(), strict=True):
            column.add(token, now)
        if now - self._handed_on >= self._seconds:
            self._hand_on(all_of_it=False)

    def end(self) -> None:
        self._hand_on(all_of_it=True)

    def _hand_on(self, *, all_of_it: bool) -> None:
        self._handed_on = time.monotonic()
        texts = [column.take(all_of_it=all_of_it or column.ended) for column in self.columns]
        if any(texts):
            self._on_pieces(texts, [len(column.ids) for column in self.columns])
        for at in sorted(self._open):
            if all_of_it or self.columns[at].ended:
                self._open.discard(at)
                self._on_end(at)


class AnswerEnding(StoppingCriteria):
    """Ends each column at its own last token, and all or some of them on request; `generate` checks after each token.

    `stopped` holds positions among the columns.
    """

    def __init__(
        self,
        columns: Sequence[ColumnText],
        stop_requested: Callable[[], bool],
        stopped: Callable[[int], bool] = lambda column: False,
    ) -> None:
        self._columns, self._asked, self._stopped = columns, stop_requested, stopped

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        stopped = self._asked()
        for at, column in enumerate(self._columns):
            if not column.ended and self._stopped(at):
                column.finish = "stopped"
        return torch.tensor([stopped or column.ended for column in self._columns], device=input_ids.device)


BASE = "__base__"  # peft's own word for "no adapter"
THINK = "<think>"


@dataclass(frozen=True, slots=True)
class Column:
    """The prompt of one column: `adapter` names who answers, None the base."""

    adapter: str | None
    messages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A column's answer. `finish` is "eos", "stop_string", "length" or "stopped"; `tokens` counts the end token.

    `seconds` is the time spent generating it; `first_token_seconds` counts from the request on.
    """

    text: str
    tokens: int
    seconds: float
    first_token_seconds: float
    tokens_per_second: float
    finish: str
    ids: tuple[int, ...] = ()
    prompt_tokens: int = 0

    def to_dict(self) -> JsonObject:
        """All fields except the ids."""
        return {name: value for name, value in asdict(self).items() if name != "ids"}


Generating = Callable[..., list[Answer]]
"""What answers in the way of `generate`."""


def generation_config(
    loaded: LoadedModel,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    repetition_penalty: float,
    min_p: float = 0.0,
    cache_implementation: str = "dynamic",
) -> GenerationConfig:
    """Sampling settings as transformers names them. Temperature 0 is greedy decoding.

    With a static cache transformers compiles the model on a GPU, in the mode of CUDA graphs; on the CPU it does not.
    """
    sampling: dict[str, float | None] = {}
    if temperature > 0:
        sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p or None}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        repetition_penalty=repetition_penalty,
        cache_implementation=None if cache_implementation == "dynamic" else cache_implementation,
        pad_token_id=loaded.tokenizer.pad_token_id,
        **sampling,
    )


def greedy(loaded: LoadedModel, max_new_tokens: int, cache_implementation: str = "dynamic") -> GenerationConfig:
    """Greedy decoding: deterministic answers."""
    return generation_config(
        loaded,
        max_new_tokens=max_new_tokens,
        temperature=0,
        top_p=1,
        top_k=0,
        repetition_penalty=1,
        cache_implementation=cache_implementation,
    )


def check_cache(loaded: LoadedModel, adapters: Sequence[str | None], settings: GenerationConfig) -> None:
    """Raises `StudioError` for columns that transformers and peft can't answer with the cache that was chosen."""
    if settings.cache_implementation is None:
        return
    lacking, base = "", cast("Any", loaded.base)
    if not base._supports_default_dynamic_cache():
        lacking = f"{loaded.name} keeps a state of its own kind instead of keys and values"
    for adapter in adapters:
        if loaded.virtual_tokens(adapter):
            lacking = f"{adapter} puts virtual tokens into the cache"
    if lacking:
        raise StudioError(f"The KV cache cannot be static: {lacking}.", "Set the KV cache to dynamic.")


def end_ids(loaded: LoadedModel, column: str | None = None) -> frozenset[int]:
    """All tokens that end an answer of an adapter or the base (None): those of its tokenizer, of the base's tokenizer
    and of the generation config."""
    eos_token_id = loaded.model.generation_config.eos_token_id
    own = eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    ends = (*own, loaded.tokenizer.eos_token_id, loaded.tokenizer_of(column).eos_token_id)
    return frozenset(token for token in ends if token is not None)


def prompt_ids(loaded: LoadedModel, column: Column, enable_thinking: bool | None) -> list[int]:
    """The column's messages, encoded as the adapter was trained to see them.

    If `enable_thinking` is None, the adapter's own setting applies.
    """
    template = loaded.template(column.adapter)
    card = loaded.cards[column.adapter] if column.adapter else {}
    thinking = card.get("enable_thinking") if enable_thinking is None else enable_thinking
    switch: dict[str, bool] = {} if thinking is None else {"enable_thinking": thinking}
    messages = with_reasoning(column.messages) if is_harmony(template) else column.messages
    try:
        text = render_text(
            template, {**loaded.tokenizer_of(column.adapter).special_tokens_map, **switch}, messages, prompt=True
        )
    except TemplateError as error:
        raise StudioError(f"The chat template rejects this conversation: {error}", "Change its messages.") from error
    if is_broken(text):
        raise StudioError(
            "The conversation contains half of a surrogate pair, which is not valid text.", "Type it again."
        )
    ids: list[int] = loaded.tokenizer_of(column.adapter)(text, add_special_tokens=False)["input_ids"]
    embeddings, largest = loaded.rows(column.adapter), max(ids, default=-1)
    lacking = beyond(loaded.name, embeddings=embeddings, positions=None, largest_id=largest, longest=0)
    if lacking is not None:
        raise lacking
    longest = loaded.longest_text
    virtual = loaded.virtual_tokens(column.adapter)
    if longest is not None and len(ids) + virtual >= longest:
        raise StudioError(
            f"The conversation has {len(ids)} tokens{f' and {virtual} virtual ones' if virtual else ''}; "
            f"{loaded.name} reads at most {longest}.",
            "Start a new conversation.",
        )
    return ids


def generate(
    loaded: LoadedModel,
    columns: Sequence[Column],
    settings: GenerationConfig,
    *,
    seed: int = 0,
    enable_thinking: bool | None = None,
    stop_strings: Sequence[str] = (),
    on_pieces: Pieces = lambda texts, tokens: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """Answers of all columns. A stop string ends an answer and is not part of it.

    `stop` is checked after each token; the text generated until then is the answer.
    """
    unknown = [column.adapter for column in columns if column.adapter not in (None, *loaded.adapters)]
    if unknown or not columns:
        raise StudioError(
            f"The adapter {unknown[0]!r} is not loaded." if unknown else "No column is selected.",
            f"Loaded are: {', '.join(loaded.adapters) or 'none'}.",
        )
    check_cache(loaded, [column.adapter for column in columns], settings)
    prompts = [prompt_ids(loaded, column, enable_thinking) for column in columns]
    texts = [
        ColumnText(
            loaded.tokenizer_of(column.adapter),
            end_ids(loaded, column.adapter),
            stop_strings,
            opening(loaded, column.adapter, prompt),
            channels_of(loaded, column.adapter),
        )
        for column, prompt in zip(columns, prompts, strict=True)
    ]
    torch.manual_seed(seed)
    answers: dict[int, Answer] = {}
    requested_at = time.monotonic()
    for group in loaded.groups([column.adapter for column in columns]):
        began = time.monotonic()
        streamer = Streamer([texts[position] for position in group], _spread(on_pieces, texts, group))
        _generate_group(
            loaded,
            [columns[position].adapter for position in group],
            [prompts[position] for position in group],
            settings,
            streamer,
            AnswerEnding(streamer.columns, stop),
        )
        for position in group:
            answers[position] = answer_of(texts[position], len(prompts[position]), requested_at, began, stopped=stop())
    return [answers[position] for position in range(len(columns))]


def opening(loaded: LoadedModel, adapter: str | None, prompt: list[int]) -> str:
    """The beginning of the reasoning that some templates write into the prompt: it belongs to the answer."""
    return f"{THINK}\n" if str(loaded.tokenizer_of(adapter).decode(prompt[-8:])).rstrip().endswith(THINK) else ""


def channels_of(loaded: LoadedModel, adapter: str | None) -> ChannelReader | None:
    """What reads the channels of a column prompted in harmony, as gpt-oss is; None for all others."""
    return channel_reader(loaded.tokenizer_of(adapter)) if is_harmony(loaded.template(adapter)) else None


def _spread(on_pieces: Pieces, texts: Sequence[ColumnText], group: Sequence[int]) -> Pieces:
    """Pieces of some columns, as a list for all columns."""

    def hand_on(pieces: list[str], _: list[int]) -> None:
        of_all = dict(zip(group, pieces, strict=True))
        on_pieces([of_all.get(position, "") for position in range(len(texts))], [len(text.ids) for text in texts])

    return hand_on


def padded(loaded: LoadedModel, prompts: Sequence[list[int]]) -> torch.Tensor:
    """Prompts of different lengths as [columns, tokens], padded on the left."""
    longest, pad = max(map(len, prompts)), loaded.tokenizer.pad_token_id
    return torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=loaded.model.device)


def call_generate(
    loaded: LoadedModel,
    adapters: Sequence[str | None],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    settings: GenerationConfig,
    **options: Any,
) -> Any:
    """One call of the model's `generate`, in which each row [columns, tokens] is answered by its own adapter."""
    names: dict[str, list[str]] = {}
    context: Any = nullcontext(loaded.model)
    if loaded.lora and loaded.shares(adapters):
        names = {"adapter_names": [BASE if adapter is None else loaded.adapters[adapter] for adapter in adapters]}
    elif loaded.adapters:
        context = loaded.use_adapter(adapters[0])
    if "past_key_values" not in options and not any(map(loaded.virtual_tokens, adapters)):
        options |= {} if (cache := stored_cache(loaded.base, settings)) is None else {"past_key_values": cache}
    with context as model:
        return model.generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=settings,
            eos_token_id=sorted(frozenset.intersection(*(end_ids(loaded, adapter) for adapter in adapters))) or None,
            **names,
            **options,
        )


def _generate_group(
    loaded: LoadedModel,
    adapters: Sequence[str | None],
    prompts: Sequence[list[int]],
    settings: GenerationConfig,
    streamer: Streamer,
    ending: AnswerEnding,
) -> None:
    """One call of the model's `generate`, on left-padded prompts."""
    longest = max(map(len, prompts))
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
    most = settings.max_new_tokens
    if loaded.longest_text is not None:
        most = min(most, loaded.longest_text - longest - max(map(loaded.virtual_tokens, adapters)))
    call_generate(
        loaded,
        adapters,
        padded(loaded, prompts),
        torch.tensor(mask, device=loaded.model.device),
        settings,
        max_new_tokens=most,
        streamer=streamer,
        stopping_criteria=[ending],
    )


def answer_of(text: ColumnText, prompt_tokens: int, requested_at: float, began: float, *, stopped: bool) -> Answer:
    """A column's answer; `requested_at` and `began`, when it was asked for and begun, are on the monotonic clock."""
    seconds = max(text.last_token - began, 1e-6)
    return Answer(
        text=text.text,
        tokens=len(text.ids),
        seconds=seconds,
        first_token_seconds=max(text.first_token - requested_at, 0.0),
        tokens_per_second=len(text.ids) / seconds,
        finish=text.finish or ("stopped" if stopped else "length"),
        ids=tuple(text.ids),
        prompt_tokens=prompt_tokens,
    )
