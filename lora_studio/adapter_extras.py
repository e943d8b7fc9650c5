"""What a LoRA adapter holds beyond pairs of matrices under one scale: programs that read such pairs alone lose it.

No torch: the adapter's own settings and the names of its tensors say it all.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

_EXTRAS = {
    "use_dora": "DoRA's magnitudes",
    "modules_to_save": "modules trained whole",
    "lora_bias": "biases of its own (lora_bias)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "target_parameters": "matrices on stacked experts (target_parameters)",
    "alora_invocation_tokens": "an invocation (aLoRA)",
    "arrow_config": "a router over adapters (Arrow)",
    "use_qalora": "pooled inputs (QA-LoRA)",
    "use_bdlora": "block-diagonal matrices (BD-LoRA)",
}
"""Settings of an adapter that add something to the pairs, by what a person calls it."""
_CANNOT_MERGE = {"alora_invocation_tokens": "aLoRA", "arrow_config": "Arrow", "use_qalora": "QA-LoRA"}
"""Settings whose effect depends on the text: no weights of the base have it."""
_MODULE = re.compile(r"base_model\.model\.(?P<module>.+?)\.(?:lora_|weight$|bias$|token_adapter|trainable_tokens)")
_TARGETS = re.compile(r"model\.layers\.\d+\.(?:self_attn\.[qkvo]|mlp\.(?:gate|up|down))_proj")


def extras(settings: Mapping[str, Any]) -> list[str]:
    """What an adapter with these settings holds beyond pairs of matrices, in words."""
    found = [words for name, words in _EXTRAS.items() if settings.get(name)]
    return found + (["trained biases"] if settings.get("bias", "none") != "none" else [])


def scale(settings: Mapping[str, Any], pattern: str = "") -> float:
    """What B A is multiplied by: alpha / r, or alpha / sqrt(r) (rsLoRA), for modules of a pattern or for all others."""
    rank = (settings.get("rank_pattern") or {}).get(pattern, settings["r"])
    alpha = (settings.get("alpha_pattern") or {}).get(pattern, settings["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else float(rank))


def scales_differ(settings: Mapping[str, Any]) -> bool:
    """Whether some modules have another scale than the rest."""
    patterns = {*(settings.get("rank_pattern") or {}), *(settings.get("alpha_pattern") or {})}
    return any(not math.isclose(scale(settings, pattern), scale(settings)) for pattern in patterns)


def other_modules(tensors: Iterable[str]) -> list[str]:
    """Modules that an adapter of these tensors is on, beside the projections of attention and of a plain MLP."""
    found = (match["module"] for name in tensors if (match := _MODULE.match(name)))
    return sorted({module.rpartition(".")[2] for module in found if not _TARGETS.fullmatch(module)})


def cannot_merge(settings: Mapping[str, Any]) -> list[str]:
    """Kinds of LoRA that no weights can hold."""
    return [words for name, words in _CANNOT_MERGE.items() if settings.get(name)]
