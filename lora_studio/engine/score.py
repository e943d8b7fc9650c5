"""One forced answer, token by token: how likely base and adapters find each token, and how far apart they are there.

Nothing is generated. All read the very same tokens, those that the first adapter was trained to see.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_studio.engine.generate import Column, end_ids, prompt_ids
from lora_studio.engine.loaded import LoadedModel
from lora_studio.errors import StudioError

MOST_TOKENS = 2048
POSITIONS = 256
"""Positions whose scores over the whole vocabulary are in memory at once."""


def score(
    loaded: LoadedModel, adapters: Sequence[str], messages: Sequence[Mapping[str, Any]], answer: str
) -> dict[str, Any]:
    """Texts of the answer's tokens, the end token last, and log-probabilities (nats) of each by who scores it.

    "divergence" holds KL(adapter || base) at each token, "mean_divergence" its mean over the answer.
    """
    unknown = [name for name in adapters if name not in loaded.adapters]
    if unknown or not adapters:
        raise StudioError("Choose an adapter that is in memory.", "The base is compared with it.")
    prompt = prompt_ids(loaded, Column(adapters[0], messages), None)
    tokenizer = loaded.tokenizer_of(adapters[0])
    ids: list[int] = tokenizer.encode(answer, add_special_tokens=False)
    if not ids:
        raise StudioError("There is no text to score.", "Ask something first.")
    room = min(MOST_TOKENS, (loaded.longest_text or math.inf) - len(prompt))
    ids = [*ids, *sorted(end_ids(loaded, adapters[0]) & {tokenizer.eos_token_id})]
    if len(ids) > room:
        raise StudioError(f"The answer has {len(ids):,} tokens; at most {room:,} can be scored here.")
    known = min(loaded.rows(name) for name in (None, *adapters))
    if max((*prompt, *ids)) >= known:
        raise StudioError(
            f"{adapters[0]} is asked with tokens that not all columns know: they have embeddings for {known:,}.",
            "Compare their answers; token by token only adapters with the base's vocabulary can be compared.",
        )
    rows: dict[str | None, list[torch.Tensor]] = {name: [] for name in (None, *adapters)}
    divergence: dict[str, list[torch.Tensor]] = {name: [] for name in adapters}
    for begin in range(0, len(ids), POSITIONS):
        part = ids[begin : begin + POSITIONS]
        seen = [*prompt, *ids[: begin + len(part) - 1]]
        base = _scores(loaded, None, seen, len(part))
        rows[None].append(_chosen(base, part))
        for name in adapters:
            its = _scores(loaded, name, seen, len(part))
            rows[name].append(_chosen(its, part))
            divergence[name].append((its.exp() * (its - base)).sum(-1).clamp(min=0))
    joined = {name: torch.cat(parts).tolist() for name, parts in divergence.items()}
    return {
        "texts": [str(tokenizer.decode([token])) for token in ids],
        "base": torch.cat(rows[None]).tolist(),
        "adapters": {name: torch.cat(rows[name]).tolist() for name in adapters},
        "divergence": joined,
        "mean_divergence": {name: sum(values) / len(values) for name, values in joined.items()},
    }


@torch.inference_mode()
def _scores(loaded: LoadedModel, name: str | None, ids: Sequence[int], last: int) -> torch.Tensor:
    """Log-probabilities of what comes after each of the last tokens, [last, vocabulary]."""
    given = torch.tensor([list(ids)], device=loaded.model.device)
    with loaded.answering_as(name) as model:
        logits = model(input_ids=given, use_cache=False, logits_to_keep=last).logits[0, -last:]
    scores: torch.Tensor = logits.float().log_softmax(dim=-1)
    return scores


def _chosen(scores: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    return scores.gather(1, torch.tensor(ids, device=scores.device)[:, None])[:, 0].cpu()
