"""Which rows are trained on and which are kept back. Rows that say the same stay on the same side."""

import hashlib

import numpy as np

from lora_studio.data.hygiene import group_key
from lora_studio.data.messages import Conversation


def group_of(conversation: Conversation) -> int:
    """The same number for rows that say the same."""
    return int.from_bytes(hashlib.blake2b(group_key(conversation).encode(), digest_size=8).digest(), "little")


def split(
    groups: np.ndarray, fraction: float, seed: int, max_samples: int | None = None, max_eval_samples: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation rows, each rising; decided by groups, fraction and seed alone.

    At least one row is kept back where a fraction is asked for and a group can be spared; groups too large for the
    share that is left stay in training.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))  # groups in order of appearance
    member = rank[member]
    sizes = np.bincount(member)
    order = np.random.default_rng(seed).permutation(len(sizes))
    share = 0 if fraction <= 0 else min(max(round(len(groups) * fraction), 1), len(groups) - 1)
    kept_back = _fill(order, sizes, share)
    if share and not len(kept_back) and len(sizes) > 1:
        kept_back = order[[int(np.argmin(sizes[order]))]]
    ranked = np.concatenate([kept_back, order[~np.isin(order, kept_back)]])
    place = np.empty(len(ranked), np.int64)
    place[ranked] = np.arange(len(ranked))
    rows = np.argsort(place[member], kind="stable")
    share = int(sizes[kept_back].sum())
    return np.sort(rows[share:][:max_samples]), np.sort(rows[:share][:max_eval_samples])


def some(count: int, seed: int, most: int | None) -> np.ndarray:
    """At most `most` of that many rows, by the seed."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def _fill(order: np.ndarray, sizes: np.ndarray, share: int) -> np.ndarray:
    """Groups, in order, that together have at most `share` rows."""
    chosen, left = [], share
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if left <= 0:
            break
        if size <= left:
            chosen.append(group)
            left -= size
    return np.array(chosen, np.int64)
