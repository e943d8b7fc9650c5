"""Whether the greedy answers of another engine are the model's own.

Two engines that compute the same in 16 bits add up in another order, and of two tokens that are equally likely within
that rounding each may take another one: vLLM alone gave 80 different greedy answers of 1,000 to one prompt, in batches
of different sizes (Thinking Machines, "Defeating Nondeterminism in LLM Inference", 2025). So what counts is each token
of an answer after those before it: it has to be the model's top-1 token, or as likely as that within the rounding.
Answers that are those of `generate` need no further look; the tokens of all others are scored in one pass.
"""

import json
from collections.abc import Sequence

import torch

from lora_studio.data.encode import Example
from lora_studio.data.messages import IGNORED
from lora_studio.engine.chat.generate import Answer, Column, ColumnText, channels_of, end_ids, opening, prompt_ids
from lora_studio.engine.chat.logprobs import Shortfall, shortfalls
from lora_studio.engine.models.multi_adapter import LoadedModel
from lora_studio.errors import StudioError
from lora_studio.units import count, shorten

STEPS, LARGEST, LEAST = 4, 16.0, 0.01
"""A tie is a difference of so many steps between neighbouring numbers of the precision where the largest logits lie (16
to 32); in float32 the order of sums counts for more, `LEAST` nats."""
MOST_TIES = 0.05
"""Share of the tokens that may be ties: rounding makes about one in a hundred, another model many."""
SHOWN = 60


def tie_nats(dtype: torch.dtype) -> float:
    """How far two tokens may be apart, in nats, and be equally likely within the rounding of a precision."""
    return max(STEPS * LARGEST * torch.finfo(dtype).eps, LEAST)


def check_agreement(
    loaded: LoadedModel,
    columns: Sequence[Column],
    theirs: Sequence[Answer],
    ours: Sequence[Answer] | None,
    *,
    enable_thinking: bool | None,
    engine: str,
    hint: str,
) -> int:
    """The number of ties among the tokens of `theirs`, which have to be greedy answers to `columns` and to have ids.

    `ours` are those of `generate`, None where nothing was generated. Raises `StudioError` with the first answer that is
    not the model's.
    """
    ends = [end_ids(loaded, column.adapter) for column in columns]
    for column, answer in zip(columns, theirs, strict=True):
        if answer.tokens and not answer.ids:
            raise StudioError(f"{engine} does not name the tokens of its answers.", f"Install a newer {engine}. {hint}")
        prompt = prompt_ids(loaded, column, enable_thinking)
        if (text := text_of(loaded, column, prompt, answer.ids)) != answer.text:
            raise _other(loaded, column, engine, hint, answer.text, text)
    same = [
        ours is not None and _spoken(own.ids, end) == _spoken(other.ids, end)
        for own, other, end in zip(ours or theirs, theirs, ends, strict=True)
    ]
    ties = 0
    for adapter in dict.fromkeys(column.adapter for column in columns):
        at = [at for at, column in enumerate(columns) if column.adapter == adapter and not same[at] and theirs[at].ids]
        rows = [_example(prompt_ids(loaded, columns[each], enable_thinking), theirs[each].ids) for each in at]
        for each, behind in zip(at, shortfalls(loaded, adapter, rows), strict=True):
            ties += _ties(loaded, columns[each], theirs[each], behind, engine, hint)
    tokens = sum(len(answer.ids) for answer in theirs)
    if ties > max(1, MOST_TIES * tokens):
        raise StudioError(f"{engine} answers otherwise than transformers in {ties} of {count(tokens, 'token')}.", hint)
    return ties


def text_of(loaded: LoadedModel, column: Column, prompt: list[int], ids: Sequence[int]) -> str:
    """The text of an answer's tokens, as `generate` shows it."""
    text = ColumnText(
        loaded.tokenizer_of(column.adapter),
        end_ids(loaded, column.adapter),
        (),
        opening(loaded, column.adapter, prompt),
        channels_of(loaded, column.adapter),
    )
    for token in ids:
        text.add(token, 0.0)
    text.take(all_of_it=True)
    return text.text


def _spoken(ids: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """An answer's tokens without its end token, which an engine may leave out."""
    return tuple(ids[:-1] if ids and ids[-1] in ends else ids)


def _example(prompt: list[int], ids: Sequence[int]) -> Example:
    labels = [IGNORED] * len(prompt) + [*ids]
    return Example(0, [*prompt, *ids], labels, len(labels), 0, len(ids))


def _ties(
    loaded: LoadedModel, column: Column, answer: Answer, behind: Sequence[Shortfall], engine: str, hint: str
) -> int:
    """How many tokens of an answer are no top-1 tokens; raises `StudioError` at one that is less likely than a tie."""
    tie, tokenizer = tie_nats(loaded.base.dtype), loaded.tokenizer_of(column.adapter)
    for at, each in enumerate(behind):
        if not each.nats <= tie:  # also where it is no number
            said, instead = (str(tokenizer.decode([*answer.ids[:at], token])) for token in (answer.ids[at], each.top))
            raise _other(loaded, column, engine, hint, said, instead)
    return sum(each.nats > 0 for each in behind)


def _other(loaded: LoadedModel, column: Column, engine: str, hint: str, said: str, instead: str) -> StudioError:
    prompt = json.dumps(shorten(str(column.messages[-1]["content"]), SHOWN), ensure_ascii=False)
    return StudioError(
        f"{engine} answers otherwise than transformers: to {prompt}, {column.adapter or 'the base'} says "
        f"{said[-SHOWN:]!r} instead of {instead[-SHOWN:]!r}.",
        hint,
    )
