"""What a model is made of, taken from the model itself without memory for its weights.

For families whose layout architecture.py does not know, and for what no config.json tells: learned positions, tensors
that a checkpoint lacks, and how many parameters peft would train.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lora_studio.engine.models.adapter import add_adapter, continue_adapter, linear_modules
from lora_studio.engine.models.load import check_tensors, read_config, without_weights
from lora_studio.engine.models.tokenizer import checked_source
from lora_studio.errors import StudioError
from lora_studio.models.hub import may_run_code_of
from lora_studio.models.shape import Architecture, Linear, Stack, architecture, keep_layout
from lora_studio.models.shape import read_config as read_numbers

MAX_READ = 4 * 1024**3
"""Bytes of a checkpoint up to which its tensors are looked at before a run; for a larger one the run does it."""

_LAYER = re.compile(r"\.(\d+)\.")


def layout_of(model: Any) -> Architecture:
    """The layout of a model, whose parameters are counted one by one. The rest of a step's memory stays a guess."""
    text = model.config.get_text_config()
    values = text.to_dict()

    def number(name: str) -> int:
        """A number of the config; 0 where it has none. Some have one a layer, whose first choice stands in the dict."""
        return int((values[name] if name in values else getattr(text, name, None)) or 0)

    hidden, heads = number("hidden_size"), number("num_attention_heads") or 1
    embeddings, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    linears, stacks = _linears(model), _stacks(model)
    layout = Architecture(
        family=str(text.model_type),
        hidden=hidden,
        layers=number("num_hidden_layers"),
        vocabulary=int(embeddings.shape[0]),
        heads=heads,
        kv_heads=number("num_key_value_heads") or heads,
        head_size=number("head_dim") or hidden // heads,
        linears=linears,
        stacks=stacks,
        tied=output is None or output.weight is embeddings,
        active_experts=number("num_experts_per_tok"),
        longest=number("max_position_embeddings") or None,
        exact=False,
    )
    other_parameters = sum(parameter.numel() for parameter in model.parameters()) - layout.parameters
    return replace(layout, other_parameters=other_parameters)


def _linears(model: Any) -> tuple[Linear, ...]:
    """The linear modules, those that stand in several layers together."""
    modules = dict(model.named_modules())
    layers_of: dict[tuple[str, int, int, bool], list[int]] = {}
    for path in linear_modules(model):
        weight = modules[path].weight
        turned = type(modules[path]).__name__ == "Conv1D"
        inputs, outputs = weight.shape if turned else reversed(weight.shape)
        layer = _LAYER.search(f"{path}.")
        name = _LAYER.sub(".{}.", path, count=1) if layer else path
        key = name, int(inputs), int(outputs), modules[path].bias is not None
        layers_of.setdefault(key, []).append(int(layer[1]) if layer else 0)
    return tuple(Linear(*key, tuple(layers)) for key, layers in layers_of.items())


def _stacks(model: Any) -> tuple[Stack, ...]:
    """The experts' matrices, each kind in one tensor of three dimensions, and the routers that are no linear module."""
    layers_of: dict[tuple[str, int, int, int], list[int]] = {}
    linear = {f"{path}.weight" for path in linear_modules(model)}
    for path, parameter in model.named_parameters():
        layer = _LAYER.search(path)
        router = parameter.ndim == 2 and path.endswith(".mlp.gate.weight") and path not in linear
        if layer and (router or (parameter.ndim == 3 and "experts" in path)):
            experts, outputs, inputs = (1, *parameter.shape) if router else parameter.shape
            key = _LAYER.sub(".{}.", path, count=1), int(experts), int(inputs), int(outputs)
            layers_of.setdefault(key, []).append(int(layer[1]))
    return tuple(Stack(*key, tuple(layers)) for key, layers in layers_of.items())


def learned_positions(model: Any) -> int | None:
    """Tokens that a model with learned positions can read, such as GPT-2 and OPT; None for all others."""
    tables = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and ("position" in name or name.endswith("wpe"))
    ]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if tables and limit else None


def take_layout(name: str, revision: str | None = None) -> None:
    """Keeps the layout of a model whose kind is not known in full, unless it is kept already."""
    numbers = read_numbers(name, revision)
    layout = architecture(numbers) if numbers else None
    if numbers and (layout is None or not layout.counted):
        keep_layout(numbers, layout_of(without_weights(name, revision)))


def look_at_model(
    name: str, revision: str | None, *, lora: Mapping[str, Any], seed: int, adapter: str | None
) -> dict[str, Any]:
    """What the checks before a start want to know of a model that is on this machine.

    `lora` are the settings of a fresh adapter; `adapter` is the folder of one to continue from, whose own count.
    """
    config = read_config(name, revision)
    model = without_weights(name, revision)
    numbers = read_numbers(name, revision) or config.to_dict()
    layout = layout_of(model)
    known_layout = architecture(numbers)
    if known_layout is None or not known_layout.counted:
        keep_layout(numbers, layout)
    facts: dict[str, Any] = {
        "embeddings": layout.vocabulary,
        "positions": learned_positions(model),
        "parameters": layout.parameters,
        "problem": _whole(name, revision, numbers),
    }
    try:
        with torch.device("meta"):
            facts["trainable"] = _adapted(name, model, lora, seed, adapter).get_nb_trainable_parameters()[0]
    except StudioError as error:
        facts["adapter_problem"] = [error.message, error.hint]
    return facts


def _adapted(name: str, model: Any, lora: Mapping[str, Any], seed: int, adapter: str | None) -> Any:
    if adapter:
        return continue_adapter(model, Path(adapter), base=name, revision=None, dropout=lora["lora_dropout"])[0]
    settings = {name: value for name, value in lora.items() if name not in ("target_modules", "loraplus_lr_ratio")}
    first = settings.pop("init_lora_weights", "default")
    kind = first if first in ("default", "gaussian") else "default"  # the others need weights, and as many parameters
    return add_adapter(
        model, base="", revision=None, target=lora["target_modules"], seed=seed, init_lora_weights=kind, **settings
    )


def _whole(name: str, revision: str | None, numbers: Mapping[str, Any]) -> list[str] | None:
    """What is wrong with the checkpoint of a model in a folder: tensors that it lacks, by their names."""
    folder = Path(checked_source(name))
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files or "quantization_config" in numbers or sum(file.stat().st_size for file in files) > MAX_READ:
        return None
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(folder),
        device_map={"": "meta"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        trust_remote_code=may_run_code_of(name),
    )
    try:
        check_tensors(name, loaded[1])
    except StudioError as error:
        return [error.message, error.hint]
    return None
