"""What is wrong with a prepared data set as a whole, looked for once and kept in the cache."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lora_studio.data.cache import key_of
from lora_studio.data.dataset import Prepared
from lora_studio.data.hygiene import grouped, hygiene
from lora_studio.data.messages import Conversation
from lora_studio.data.parts import Part, Progress

_MOST_ROWS = 20_000
_SECONDS = 2.0
_PIECE = 500
_SHOWN = 20


def findings(prepared: Prepared, report: Progress) -> dict[str, Any] | None:
    """Duplicates, leaks, contradictions and lopsided answers; None for a first look at a few rows.

    Of a large file a part is looked at, evenly over the whole: `looked_at` of `of_rows` rows. `report` is called in the
    phase check, counted in rows. Exact duplicates are those of the whole in any case.
    """
    if prepared.sampled is not None:
        return None
    parts = (prepared.part, prepared.kept_back or prepared.part)
    settings = prepared.settings
    split = [settings.validation_fraction, settings.split_seed, settings.max_samples, settings.max_eval_samples]
    key = key_of("findings", [part.key for part in parts], split)
    return prepared.cache.get(key, lambda _: _found(parts, prepared.chosen, prepared.encoder.specials, report)).facts


def _found(
    parts: Sequence[Part], chosen: Sequence[np.ndarray], specials: Sequence[str], report: Progress
) -> dict[str, Any]:
    report("check", 0, 0)

    def tell(done: int, total: int) -> None:
        report("check", done, total)

    train, validation = (_some(part, rows, tell) for part, rows in zip(parts, chosen, strict=True))
    tell(0, 0)
    repeated = _repeated(parts[0], chosen[0]) if len(train) < len(chosen[0]) else None
    found = hygiene(train, validation, seconds=_SECONDS, specials=specials, repeated=repeated, report=tell)
    return {**found, "looked_at": len(train) + len(validation), "of_rows": sum(map(len, chosen))}


def _repeated(part: Part, chosen: np.ndarray) -> dict[str, Any]:
    """The exact duplicates of a large file, all of them: each row's group is known since it was converted."""
    groups = part.all_groups[np.searchsorted(part.all_positions, part.rows.position[chosen])]
    numbers = part.rows.row[chosen]
    _, first, member, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    like = np.flatnonzero(sizes > 1)
    shown = like[np.argsort(first[like])][:_SHOWN]
    examples = [numbers[member == group].tolist() for group in shown]
    return {**grouped(examples), "rows": int((sizes[like] - 1).sum()), "groups": len(like)}


def _some(part: Part, chosen: np.ndarray, tell: Callable[[int, int], None]) -> list[Conversation]:
    """At most so many of a part's rows, evenly from the whole."""
    if len(chosen) > _MOST_ROWS:
        chosen = chosen[np.linspace(0, len(chosen) - 1, _MOST_ROWS).astype(int)]
    rows: list[Conversation] = []
    for start in range(0, len(chosen), _PIECE):
        tell(0, 0)
        rows += part.conversations.at(part.rows.position[chosen[start : start + _PIECE]])
    return rows
