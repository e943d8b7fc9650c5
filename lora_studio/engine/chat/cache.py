"""The keys and values of an answer on the CPU, in memory that grows in steps and goes back to the system.

transformers' dynamic cache copies all keys and values for each token into tensors that are a token longer. None of them
fits where an earlier one was, so the heap keeps gaps as large as the cache itself, and keeps them after the answer.
"""

import ctypes
import math
import mmap
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

STEP = 256
"""Tokens by which the memory of a layer grows; the system gives the pages as they are written."""


class StoredLayer(DynamicLayer):
    """A `DynamicLayer` with `keys` and `values` [rows, heads, tokens, width] that are the first tokens of a store."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._stores: dict[str, torch.Tensor] = {}
        self.after_prompt: Callable[[], object] | None = None
        """Called once, before the token that follows on the prompt."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the new tokens, and gives the keys and values of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        elif self.after_prompt is not None:
            self.after_prompt()
            self.after_prompt = None
        keys, values = self._extended("keys", key_states), self._extended("values", value_states)
        self.keys, self.values = keys, values
        return keys, values

    def _extended(self, name: str, added: torch.Tensor) -> torch.Tensor:
        before: torch.Tensor = getattr(self, name)
        past = before.shape[-2] if before.numel() else 0  # an empty one has no dimensions yet
        tokens = past + added.shape[-2]
        store = self._stores.get(name)
        if store is None or tokens > store.shape[-2] or not _begins(store, before):
            store = self._stores[name] = _store((*added.shape[:-2], -(-tokens // STEP) * STEP, added.shape[-1]), added)
            if past:
                store[..., :past, :] = before
        store[..., past:tokens, :] = added
        return store[..., :tokens, :]


def _begins(store: torch.Tensor, tokens: torch.Tensor) -> bool:
    """Whether these are the first tokens of the store: rows that were put together anew are elsewhere."""
    return store.data_ptr() == tokens.data_ptr() and store.shape[:-2] == tokens.shape[:-2]


def _store(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """A tensor in memory of its own, outside the heap: it costs what is written, and is given back as a whole."""
    memory = mmap.mmap(-1, math.prod(shape) * like.element_size(), access=mmap.ACCESS_COPY)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


@cache
def _heap() -> Callable[[int], int]:
    """glibc's `malloc_trim`, which gives free pages of the heap back to the system; elsewhere nothing is done."""
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0) if sys.platform == "linux" else lambda pad: 0


def stored_cache(base: Any, settings: GenerationConfig) -> DynamicCache | None:
    """An empty cache for a base on the CPU, or None where transformers makes its own: on other devices, whose memory
    PyTorch manages itself, for models without such layers, and where the settings or the model's own name another kind.

    Layers that hold more than all keys and values (sliding windows, linear attention) are transformers' own.
    """
    own = base.generation_config
    other = settings.cache_implementation or own.cache_implementation or own.use_cache is False
    if base.device.type != "cpu" or other or not base._supports_default_dynamic_cache():
        return None
    stored = DynamicCache(config=base.config.get_text_config(decoder=True))
    stored.layers = [StoredLayer() if type(layer) is DynamicLayer else layer for layer in stored.layers]
    first = next((layer for layer in stored.layers if isinstance(layer, StoredLayer)), None)
    if first is None:
        return None
    first.after_prompt = lambda: _heap()(0)  # what reading a prompt takes is more than a token needs
    return stored
