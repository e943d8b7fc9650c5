"""How many sequences rows become when several share one: best-fit decreasing, counted without packing anything.

The same rule as trl's `packing_strategy="bfd"` (Ding et al. 2024, arXiv:2404.10830); a test compares the two.
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np


def count_packs(lengths: np.ndarray, max_length: int) -> int:
    """Sequences of at most `max_length` tokens that rows of these lengths fill; longer rows count as cut.

    Rows of one length are placed at once: the fullest sequence that still takes one takes as many as it can.
    """
    counts = np.bincount(np.minimum(lengths[lengths > 0], max_length), minlength=max_length + 1)
    free: dict[int, int] = defaultdict(int)  # sequences by the room they have left
    open_rooms = 0  # the same rooms as bits, to find the smallest that is large enough
    packs = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            fitting = open_rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else max_length
            each = room // length
            here = free[room] if fitting else left  # a new sequence is always to be had
            taken = min(here, left // each) or 1
            rows = min(taken * each, left)
            if fitting:
                free[room] -= taken
                open_rooms &= ~(0 if free[room] else 1 << room)
            else:
                packs += taken
            rest = room - rows // taken * length
            free[rest] += taken
            open_rooms |= 1 << rest if rest else 0
            left -= rows
    return packs


def padding(lengths: np.ndarray, batch_size: int) -> float:
    """Share of padding where rows come in random batches, each filled up to the longest of its rows."""
    order = np.random.default_rng(0).permutation(lengths)
    starts = np.arange(0, len(order), batch_size)
    if not len(starts):
        return 0.0
    sizes = np.diff([*starts, len(order)])
    filled = int((np.maximum.reduceat(order, starts) * sizes).sum())
    return round(1 - int(order.sum()) / filled, 4) if filled else 0.0


def forecast(lengths: np.ndarray, max_length: int, batch_size: int = 1) -> dict[str, Any]:
    """What packing would do: rows to sequences, and the share of padding that batches of rows have without it and
    sequences that are filled up have with it."""
    rows, tokens = int((lengths > 0).sum()), int(np.minimum(lengths, max_length).sum())
    packs = count_packs(lengths, max_length)
    packed = packs * max_length - tokens
    return {
        "max_length": max_length,
        "rows": rows,
        "packs": packs,
        "rows_per_pack": round(rows / packs, 2) if packs else 0.0,
        "padding_alone": padding(np.minimum(lengths[lengths > 0], max_length), batch_size),
        "padding_packed": round(packed / (packs * max_length), 4) if packs else 0.0,
    }


def steps(rows: int, batch_size: int, accumulation: int) -> int:
    """Optimizer steps in one epoch on one device, as the trainer counts them: the last one may be short."""
    return math.ceil(math.ceil(rows / batch_size) / accumulation)
