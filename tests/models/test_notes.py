"""What is said of a base model before a run: experts that stay frozen or in full width, and fast layers that lack."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import nest, parse
from lora_studio.models import notes
from lora_studio.models.notes import FAST_PATHS, PIP_NAMES, RUNS_ON, fast_packages, model_notes
from lora_studio.models.shape import Linear, architecture

MIXTURE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151_936,
}
"""Qwen3-30B-A3B."""


def said(numbers: dict[str, Any], kind: str = "cuda", **settings: Any) -> list[str]:
    config = parse(nest({path.replace("__", "."): value for path, value in settings.items()}))
    model = architecture(numbers)
    assert model is not None
    return [note.words for note in model_notes(config, numbers, model, kind)]


def test_experts_without_an_adapter_are_told_with_their_share() -> None:
    (note,) = said(MIXTURE, lora__target_modules="attention")
    assert note == (
        "96 % of the model, weights of experts, get no adapter and stay frozen. Set lora.target_modules to all-linear "
        "to train adapters on the experts too."
    )
    assert not said(MIXTURE)


def test_what_four_bits_leave_of_a_mixture_is_told() -> None:
    (note,) = said(MIXTURE, model__quantization="4bit")
    assert note.startswith("4bit quantizes linear modules only: the stacked experts, 96 % of the parameters, stay in")
    assert "16 bits (54.0 GiB)" in note
    assert not said({**MIXTURE, "model_type": "qwen3"}, model__quantization="4bit")


def test_layers_that_peft_reaches_as_parameters_alone_stay_frozen_in_four_bits() -> None:
    dense = {**MIXTURE, "mlp_only_layers": [0]}
    assert any("unquantized base only" in note for note in said(dense, model__quantization="4bit"))
    assert not said(dense)


def test_modules_that_all_linear_leaves_out_are_told() -> None:
    model = architecture({**MIXTURE, "model_type": "mamba2", "num_experts": 0})
    assert model is not None
    layers = tuple(range(4))
    mamba = replace(
        model, stacks=(), family="mamba2", linears=(Linear("backbone.layers.{}.mixer.out_proj", 64, 32, False, layers),)
    )
    config = parse({})
    found = [note.words for note in model_notes(config, {"model_type": "other"}, mamba, "cpu")]
    assert found == [
        "all-linear leaves out out_proj: the model reads these weights past an adapter, which would not learn."
    ]


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("cuda", "Run: pip install causal-conv1d flash-linear-attention --no-build-isolation"),
        ("xpu", "Run: pip install flash-linear-attention"),
        ("cpu", ""),
        ("mps", ""),
    ],
)
def test_missing_fast_layers_are_told_where_the_device_could_use_them(
    kind: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "_installed", lambda module: False)
    numbers = {**MIXTURE, "model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"]}
    found = said({"text_config": numbers, "model_type": "qwen3_5"}, kind)
    assert [note.partition("Run: ")[1] + note.partition("Run: ")[2] for note in found] == ([command] if command else [])
    monkeypatch.setattr(notes, "_installed", lambda module: True)
    assert not said(numbers, kind)


def test_a_hybrid_with_attention_layers_alone_needs_no_package() -> None:
    numbers = {"model_type": "granitemoehybrid"}
    assert fast_packages({**numbers, "layer_types": ["attention", "mamba"]}) == ("causal_conv1d", "mamba_ssm")
    assert fast_packages({**numbers, "layer_types": ["attention", "attention"]}) == ()


def test_the_families_with_fast_layers_are_those_of_the_installed_transformers() -> None:
    """The decorator names the package that a function of the modelling code is taken from."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    found = {}
    for path in sorted((Path(package.origin).parent / "models").glob("*/modeling_*.py")):
        names = re.findall(r"use_kernel_func_from_hub_with_fallback\(\s*\"\w+\",\s*\"(\w+)\"", path.read_text("utf-8"))
        if used := set(names) & PIP_NAMES.keys():
            found[path.parent.name] = tuple(sorted(used))
    assert {family: tuple(sorted(packages)) for family, packages in FAST_PATHS.items()} == found
    assert RUNS_ON.keys() == PIP_NAMES.keys()
