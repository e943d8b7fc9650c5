"""What a person should know of a base model before a run: experts without an adapter or in full width, a slow path.

Each is a sentence with a way out. The checks before a start, the form and the run itself show the same ones.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_studio.config.sections import Config
from lora_studio.models.accelerators import CUDA, ROCM, XPU
from lora_studio.models.memory import quantization_of, trained_adapter, weight_width
from lora_studio.models.shape import Architecture
from lora_studio.models.targets import ALL_LINEAR, cannot_learn
from lora_studio.units import GIB


@dataclass(frozen=True, slots=True)
class Note:
    """A finding about the base model, and what to do about it; `title` is the check's that it belongs to."""

    title: str
    finding: str
    advice: str

    @property
    def words(self) -> str:
        """All of it in one line."""
        return f"{self.finding} {self.advice}".strip()


PIP_NAMES: Mapping[str, str] = {
    "fla": "flash-linear-attention",
    "causal_conv1d": "causal-conv1d",
    "mamba_ssm": "mamba-ssm",
}
"""The packages of fast kernels by the module that transformers imports."""
RUNS_ON: Mapping[str, tuple[str, ...]] = {
    "fla": (CUDA, ROCM, XPU),
    "causal_conv1d": (CUDA, ROCM),
    "mamba_ssm": (CUDA, ROCM),
}
"""Kinds of devices that transformers uses them on (transformers 5.23, `utils/import_utils.py`)."""
_CONVOLUTION, _DELTA, _STATE = ("causal_conv1d",), ("causal_conv1d", "fla"), ("causal_conv1d", "mamba_ssm")
FAST_PATHS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("inkling", "inkling2", "lfm2", "lfm2_moe"), _CONVOLUTION),
    **dict.fromkeys(("bailing_hybrid", "glm5_next", "kimi_linear", "olmo_hybrid"), _DELTA),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe", "qwen3_next", "qwen4_exp"), _DELTA),
    **dict.fromkeys(("bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "mamba"), _STATE),
    **dict.fromkeys(("mamba2", "nemotron_h", "zamba", "zamba2"), _STATE),
}
"""Families whose layers have a slow substitute in plain PyTorch, with the packages of the fast ones; a test compares
them with the modelling code of transformers."""


def model_notes(config: Config, numbers: Mapping[str, Any], model: Architecture, kind: str) -> Iterator[Note]:
    """All notes on a run on that kind of device; `numbers` are the model's config.json.

    Raises `PatternError` for an expression of `lora.target_modules` that takes too long.
    """
    yield from _adapted_experts(config, model)
    yield from _unquantized_experts(config, model, kind)
    yield from _left_out(config, model)
    yield from _slow_path(numbers, kind)


def _adapted_experts(config: Config, model: Architecture) -> Iterator[Note]:
    """That experts get no adapter; an adapter to continue from has its own modules."""
    frozen = trained_adapter(config, model).frozen_experts
    if not frozen or config.model.adapter_name_or_path:
        return
    share = 100 * frozen / model.parameters
    finding = f"{share:.0f} % of the model, weights of experts, get no adapter and stay frozen."
    if config.lora.target_modules.strip().lower() != ALL_LINEAR:
        yield Note("Experts", finding, "Set lora.target_modules to all-linear to train adapters on the experts too.")
    elif quantization_of(config, model) != "none":
        advice = "peft reaches them on an unquantized base only: set model.quantization to none to train them too."
        yield Note("Experts", finding, advice)
    else:
        yield Note("Experts", finding, "peft has no adapter for the way in which this model stores them.")


def _unquantized_experts(config: Config, model: Architecture, kind: str) -> Iterator[Note]:
    """That bitsandbytes quantizes linear modules alone, and experts in one tensor are none."""
    bits, stacked = quantization_of(config, model), model.stacked_weights
    if bits == "none" or 10 * stacked < model.parameters:
        return
    width = weight_width(config, kind)
    finding = (
        f"{bits} quantizes linear modules only: the stacked experts, {100 * stacked / model.parameters:.0f} % of the "
        f"parameters, stay in {8 * width} bits ({stacked * width / GIB:,.1f} GiB)."
    )
    yield Note("Experts", finding, "The estimate counts them so.")


def _left_out(config: Config, model: Architecture) -> Iterator[Note]:
    """That all-linear leaves out modules on which an adapter is refused or has no effect."""
    left = [item.leaf for item in model.linears if cannot_learn(model.family, item.name)]
    if left and config.lora.target_modules.strip().lower() == ALL_LINEAR and not config.model.adapter_name_or_path:
        listed = ", ".join(dict.fromkeys(left))
        finding = (
            f"all-linear leaves out {listed}: the model reads these weights past an adapter, which would not learn."
        )
        yield Note("Target modules", finding, "")


def _slow_path(numbers: Mapping[str, Any], kind: str) -> Iterator[Note]:
    """That the packages of a model's fast layers are not installed, where the device could use them."""
    lacking = [name for name in fast_packages(numbers) if kind in RUNS_ON[name] and not _installed(name)]
    if lacking:
        packages = [PIP_NAMES[name] for name in lacking]
        finding = (
            f"This model's fast layers need {' and '.join(packages)}; without, it trains on a slow path in PyTorch."
        )
        build = " --no-build-isolation" if any(name != "fla" for name in lacking) else ""
        yield Note("Fast path", finding, f"Run: pip install {' '.join(packages)}{build}")


def fast_packages(numbers: Mapping[str, Any]) -> tuple[str, ...]:
    """The packages of a model's fast layers by their modules; () for a model without such layers."""
    text = numbers.get("text_config")
    values = text if isinstance(text, Mapping) else numbers
    family = str(values.get("model_type", "")).removesuffix("_text")
    kinds = values.get("layer_types") or []
    only_attention = bool(kinds) and all(
        str(layer).endswith("attention") and layer != "linear_attention" for layer in kinds
    )
    return () if only_attention else FAST_PATHS.get(family, ())


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
