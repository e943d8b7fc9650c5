"""How a model computes attention: what each implementation needs, which one `auto` takes and why, and what it can do.

Without torch, so that form, checks and estimate say what the run will do; `engine.models.load` asks the same questions
with what only torch knows (the precision, the GPU's generation, what the model's class supports).
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.models.accelerators import FLASH_ATTENTION, FLASH_ATTENTION_3, FLEX_ATTENTION, HUB_KERNELS, missing

SDPA, EAGER = "sdpa", "eager"
PACKAGES: Mapping[str, tuple[str, str]] = {
    FLASH_ATTENTION: ("flash_attn", "flash-attn"),
    FLASH_ATTENTION_3: ("flash_attn_interface", "flash-attn-3"),
    **dict.fromkeys(HUB_KERNELS, ("kernels", "kernels")),
}
"""Module and distribution that an implementation needs (transformers 5.23, `modeling_flash_attention_utils`)."""
TITLES = {FLASH_ATTENTION: "FlashAttention 2", FLASH_ATTENTION_3: "FlashAttention 3"}
BEST_FIRST = (FLASH_ATTENTION_3, FLASH_ATTENTION)
"""What `auto` looks for: what is installed and needs no download. PyTorch's own attention (SDPA) is always there."""
FLASH = (*BEST_FIRST, *HUB_KERNELS)
"""FlashAttention of any origin: it attends to rows of different lengths in one sequence without a mask."""
HOPPER, AMPERE = 9, 8
"""Major compute capabilities: FlashAttention 3 is written for Hopper (9), FlashAttention 2 needs Ampere (8)."""
LONGEST_HEAD = 256
"""The largest head size that FlashAttention has kernels for."""
LINEAR_LAYERS = frozenset(
    ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "gated_delta_net", "rwkv", "ssm")
)
LINEAR_FAMILIES = ("mamba", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "bamba", "zamba", "falcon_h1", "xlstm")


@dataclass(frozen=True, slots=True)
class Attention:
    """An implementation by transformers' name, and why it is the one."""

    name: str
    reason: str

    @property
    def words(self) -> str:
        return f"{self.name}: {self.reason}"


def lacking(implementation: str, kind: str, *, half: bool | None = None, capability: int | None = None) -> str:
    """Why an implementation can't run on a device of that kind; "" where it can.

    `half` says whether the model computes in 16 bits, `capability` is an NVIDIA GPU's major one; None for unknown.
    """
    if implementation in (SDPA, EAGER):
        return ""
    if reason := missing(kind, HUB_KERNELS[0] if implementation in HUB_KERNELS else implementation):
        return reason
    if implementation == FLEX_ATTENTION:
        return ""
    if half is False:
        return "it needs 16-bit precision"
    least = HOPPER if "3" in implementation else AMPERE
    if capability is not None and capability < least:
        return f"it needs a GPU of compute capability {least}.0 or higher, and this one has {capability}"
    module, distribution = PACKAGES[implementation]
    if importlib.util.find_spec(module) is None or not _has(distribution):
        return f"the package {distribution} is not installed"
    if implementation in HUB_KERNELS and _offline() and not _is_cached(implementation):
        return f"{implementation} would be downloaded, and HF_HUB_OFFLINE disables downloads"
    return ""


def automatic(
    kind: str, *, half: bool | None = None, capability: int | None = None, unsupported: Sequence[str] = ()
) -> Attention:
    """What `auto` takes on a device of that kind: the best that is installed. `unsupported` are those that the model's
    class does not have."""
    reasons: list[str] = []
    for name in BEST_FIRST:
        reason = "the model does not support it" if name in unsupported else ""
        reason = reason or lacking(name, kind, half=half, capability=capability)
        if not reason:
            return Attention(name, "the fastest that is installed")
        reasons.append(f"{TITLES[name]} is not used, {reason}")
    return Attention(SDPA, reasons[-1])


def expected(implementation: str, kind: str, dtype: str = "auto") -> Attention:
    """The attention of a run on a device of that kind, as far as it is known without loading the model. `dtype` is the
    setting `model.dtype`."""
    if implementation != "auto":
        return Attention(implementation, "as configured")
    return automatic(kind, half=False if dtype == "float32" else None)


def is_flash(implementation: str) -> bool:
    """Whether an implementation is FlashAttention."""
    return implementation in FLASH


def joins_rows(padding_free: object, implementation: str, *, possible: bool) -> bool:
    """Whether batches are made without padding: as `training.padding_free` says; left to "auto", where the attention
    reads such a batch without a mask. `possible` says that method, packing and model allow it."""
    if padding_free == "auto":
        return possible and is_flash(implementation)
    return bool(padding_free)


def linear_layers(values: Mapping[str, Any]) -> str:
    """The kind of layer in a model's config that carries a state from token to token, by which rows of one sequence can
    see each other; "" for a model of attention alone."""
    text = values.get("text_config")
    text = text if isinstance(text, Mapping) else values
    kinds = text.get("layer_types") or text.get("layers_block_type") or ()
    linear = [str(kind) for kind in kinds if str(kind) in LINEAR_LAYERS]
    family = str(text.get("model_type", ""))
    return linear[0] if linear else family if family.startswith(LINEAR_FAMILIES) else ""


def lacks_state_kernels() -> bool:
    """Whether the package is missing whose convolutions begin anew with each row of a sequence: transformers 5.23
    refuses such batches without it."""
    return importlib.util.find_spec("causal_conv1d") is None


def _has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _is_cached(kernel: str) -> bool:
    """Whether the Hub's cache on this machine has a kernel."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return any(Path(HF_HUB_CACHE).glob(f"*--{kernel.replace('/', '--')}"))
