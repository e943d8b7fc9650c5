"""Streams answers of base and adapters out of one model, all columns in one batch.

peft chooses the adapter row by row, so that every column answers at the same time and the base is held once. DoRA
adapters can't share a batch; their columns are answered one after the other.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from lora_studio.engine.load import LoadedModel
from lora_studio.errors import StudioError

BASE = "__base__"  # peft's own word for "no adapter"
PIECE_SECONDS = 0.075
HALF_CHARACTER = "\ufffd"

Pieces = Callable[[list[str], list[int]], None]
"""Gets the text added to each column since the last call, and each column's tokens so far."""


@dataclass(frozen=True, slots=True)
class Column:
    """What one column is asked: `adapter` names who answers, None the base."""

    adapter: str | None
    messages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a column said. `finish` is "eos", "length" or "stopped"; `tokens` counts the end token, too."""

    text: str
    tokens: int
    seconds: float
    first_token_seconds: float
    tokens_per_second: float
    finish: str
    ids: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What the page needs: everything but the ids."""
        return {name: value for name, value in asdict(self).items() if name != "ids"}


class ColumnText:
    """The growing text of one column. A character whose bytes are not all there yet is held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._window = 0  # decoding starts here: a token's text can depend on the one before it
        self._shown = 0
        self.ids: list[int] = []
        self.text = ""
        self.ended = False
        self.first_token = 0.0
        self.last_token = 0.0

    def add(self, token: int, now: float) -> None:
        """Takes the next token; after the end token the batch only pads this column."""
        if self.ended:
            return
        if not self.ids:
            self.first_token = now
        self.last_token = now
        self.ids.append(token)
        self.ended = token in self._end_ids

    def take(self, *, all_of_it: bool = False) -> str:
        """The text that came since the last call."""
        before, now = self._decode(self._window, self._shown), self._decode(self._window, len(self.ids))
        if now.endswith(HALF_CHARACTER) and not all_of_it:
            return ""
        piece = now[len(before) :]
        self._window, self._shown = self._shown, len(self.ids)
        self.text += piece
        return piece

    def _decode(self, start: int, stop: int) -> str:
        return str(self._tokenizer.decode(self.ids[start:stop], skip_special_tokens=True))


class Streamer(BaseStreamer):
    """Gets one token per column and step from `generate` and hands text on 10 to 15 times a second."""

    def __init__(self, columns: Sequence[ColumnText], on_pieces: Pieces, seconds: float = PIECE_SECONDS) -> None:
        self.columns = columns
        self._on_pieces = on_pieces
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


class _AskedToStop(StoppingCriteria):
    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._asked(), dtype=torch.bool, device=input_ids.device)


def generation_config(
    loaded: LoadedModel,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    repetition_penalty: float,
) -> GenerationConfig:
    """Sampling settings in transformers' words. Temperature 0 always takes the likeliest token."""
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        repetition_penalty=repetition_penalty,
        eos_token_id=sorted(end_ids(loaded)),
        pad_token_id=loaded.tokenizer.pad_token_id,
        **sampling,
    )


def greedy(loaded: LoadedModel, max_new_tokens: int) -> GenerationConfig:
    """Always the likeliest token: the same answer each time."""
    return generation_config(
        loaded, max_new_tokens=max_new_tokens, temperature=0, top_p=1, top_k=0, repetition_penalty=1
    )


def end_ids(loaded: LoadedModel) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's and those of the model's generation config."""
    given = loaded.model.generation_config.eos_token_id
    own = given if isinstance(given, list) else [given]
    return frozenset(token for token in (*own, loaded.tokenizer.eos_token_id) if token is not None)


def prompt_ids(loaded: LoadedModel, column: Column, enable_thinking: bool | None) -> list[int]:
    """The column's messages as the one who answers was trained to see them.

    `enable_thinking` None is what the adapter was trained with.
    """
    template = loaded.template(column.adapter)
    card = loaded.cards[column.adapter] if column.adapter else {}
    thinking = card.get("enable_thinking") if enable_thinking is None else enable_thinking
    switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    try:
        encoded: Any = loaded.tokenizer.apply_chat_template(
            [dict(message) for message in column.messages],
            chat_template=template,
            add_generation_prompt=True,
            return_dict=True,
            **switch,
        )
    except TemplateError as error:
        raise StudioError(f"The chat template refuses this conversation: {error}", "Change its messages.") from error
    ids: list[int] = encoded["input_ids"]
    longest = loaded.longest_text
    if longest is not None and len(ids) >= longest:
        raise StudioError(
            f"The conversation has {len(ids)} tokens; {loaded.name} reads at most {longest}.", "Start a new one."
        )
    return ids


def generate(
    loaded: LoadedModel,
    columns: Sequence[Column],
    settings: GenerationConfig,
    *,
    seed: int = 0,
    enable_thinking: bool | None = None,
    on_pieces: Pieces = lambda texts, tokens: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """Answers of all columns. `stop` is asked after each token; what was said until then is the answer."""
    unknown = [column.adapter for column in columns if column.adapter not in (None, *loaded.adapters)]
    if unknown or not columns:
        raise StudioError(
            f"There is no adapter {unknown[0]!r} in memory." if unknown else "No column was asked.",
            f"Loaded are: {', '.join(loaded.adapters) or 'none'}.",
        )
    prompts = [prompt_ids(loaded, column, enable_thinking) for column in columns]
    ends = end_ids(loaded)
    texts = [ColumnText(loaded.tokenizer, ends) for _ in columns]
    torch.manual_seed(seed)
    everybody = range(len(columns))
    groups = [list(everybody)] if loaded.mixes else [[position] for position in everybody]
    answers: dict[int, Answer] = {}
    for group in groups:
        began = time.monotonic()
        _generate_group(
            loaded,
            [columns[position].adapter for position in group],
            [prompts[position] for position in group],
            settings,
            Streamer([texts[position] for position in group], _spread(on_pieces, texts, group)),
            stop,
        )
        for position in group:
            answers[position] = _answer(texts[position], began, stopped=stop())
    return [answers[position] for position in range(len(columns))]


def _spread(on_pieces: Pieces, texts: Sequence[ColumnText], group: Sequence[int]) -> Pieces:
    """Pieces of some columns as pieces of all."""

    def hand_on(pieces: list[str], _: list[int]) -> None:
        of_all = dict(zip(group, pieces, strict=True))
        on_pieces([of_all.get(position, "") for position in range(len(texts))], [len(text.ids) for text in texts])

    return hand_on


def _generate_group(
    loaded: LoadedModel,
    adapters: Sequence[str | None],
    prompts: Sequence[list[int]],
    settings: GenerationConfig,
    streamer: Streamer,
    stop: Callable[[], bool],
) -> None:
    """One call of the model's own `generate`, on left-padded prompts."""
    longest = max(map(len, prompts))
    pad = loaded.tokenizer.pad_token_id
    device = loaded.model.device
    input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    if loaded.longest_text is not None:
        settings.max_new_tokens = min(settings.max_new_tokens, loaded.longest_text - longest)
    names: dict[str, Any] = {}
    context: Any = nullcontext()
    if loaded.adapters and loaded.mixes:
        names = {"adapter_names": [BASE if adapter is None else loaded.adapters[adapter] for adapter in adapters]}
    elif loaded.adapters and adapters[0] is None:
        context = loaded.model.disable_adapter()
    elif loaded.adapters:
        loaded.model.set_adapter(loaded.adapters[str(adapters[0])], inference_mode=True)
    with context:
        loaded.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=settings,
            streamer=streamer,
            stopping_criteria=[_AskedToStop(stop)],
            **names,
        )


def _answer(text: ColumnText, began: float, *, stopped: bool) -> Answer:
    seconds = max(text.last_token - began, 1e-6)
    return Answer(
        text=text.text,
        tokens=len(text.ids),
        seconds=seconds,
        first_token_seconds=text.first_token - began,
        tokens_per_second=len(text.ids) / seconds,
        finish="eos" if text.ended else "stopped" if stopped else "length",
        ids=tuple(text.ids),
    )
