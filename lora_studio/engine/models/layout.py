"""The parts of a model by name: linear modules, stacked experts, the whole layout, and what of it an adapter targets.

Shapes of families that `models.shape` does not know exactly are measured on the meta device, without weights.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypedDict

import torch

from lora_studio.errors import StudioError
from lora_studio.models.adapter_files import is_regular_expression, matching
from lora_studio.models.shape import Architecture, Linear, Stack
from lora_studio.models.targets import (
    ALL_LINEAR,
    NAMED,
    cannot_learn,
    ends_with,
    expert_rank,
    is_renamed,
    names,
    names_stack,
)

_LAYER = re.compile(r"\.(\d+)\.")


def text_part(model: Any) -> str:
    """What the paths of a multimodal model's language model begin with; "" for a model of text alone."""
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    return next(f"{path}." if path else "" for path, module in model.named_modules() if module is decoder)


def linear_modules(model: Any) -> list[str]:
    """Paths of the linear modules of the language model, without the output layer, in the model's order."""
    head, prefix = model.get_output_embeddings(), text_part(model)
    return [
        path
        for path, module in model.named_modules()
        # Quantized layers are linear too; GPT-2's Conv1D is one with a transposed weight.
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head
        and not is_router(module)
        and path.startswith(prefix)
    ]


def expert_parameters(model: Any) -> dict[str, int]:
    """Paths of the parameters that hold a matrix of every expert of a layer, with the number of experts."""
    prefix = text_part(model)
    return {
        path: int(parameter.shape[0])
        for part, module in model.named_modules()
        for name, parameter in module.named_parameters(part, recurse=False)
        if parameter.ndim == 3 and ("experts" in (path := name) or "Experts" in type(module).__name__)
        if path.startswith(prefix)
    }


def is_router(module: torch.nn.Module) -> bool:
    """Whether a module is a mixture's router, which returns more than its product and cannot take an adapter."""
    return isinstance(module, torch.nn.Linear) and "Router" in type(module).__name__


def last_names(paths: list[str]) -> list[str]:
    """The distinct last parts of module paths: layers.0.mlp.up_proj and layers.1.mlp.up_proj give up_proj."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


class TargetSettings(TypedDict):
    """LoraConfig's settings for what an adapter sits on."""

    target_modules: str | list[str]
    exclude_modules: list[str] | None
    target_parameters: list[str] | None
    rank_pattern: dict[str, int]


def targets_of(setting: str, model: Any, *, r: int, quantized: bool = False) -> TargetSettings:
    """peft's settings for a `lora.target_modules` on this model; experts that are stacked get `expert_rank`.

    peft would also take some names for others: of vision modules, of experts, and of modules that cannot learn. Models
    that have such are given the names of each module. With `quantized`, weights that peft reaches as parameters alone
    get no adapter. Raises `StudioError` for modules that the model does not have.
    """
    paths, experts, family = linear_modules(model), expert_parameters(model), str(model.config.model_type)
    usable = [path for path in paths if not cannot_learn(family, path)]
    if len(usable) == len(paths) and not experts and not text_part(model):
        routers = [path for path, module in model.named_modules() if is_router(module)]
        return {
            "target_modules": target_modules(setting, paths),
            "exclude_modules": routers or None,
            "target_parameters": None,
            "rank_pattern": {},
        }
    chosen, stacks = _chosen(setting, paths, usable, list(experts))
    renamed = [path for path in chosen if is_renamed(family, path.rpartition(".")[2])]
    modules = [path for path in chosen if path not in set(renamed)]
    weights = [] if quantized else [f"{path}.weight" for path in renamed]
    module_paths = [path for path, _ in model.named_modules()]
    # a rank applies to modules and parameters of its name alike
    of_modules = _Endings(module_paths)
    of_parameters = _Endings([*module_paths, *(path for path, _ in model.named_parameters())])
    ranks: dict[str, int] = {}
    for number in dict.fromkeys(experts[path] for path in stacks):
        same = [path for path in stacks if experts[path] == number]
        ranks |= dict.fromkeys(of_parameters.shortest(same, least=2), expert_rank(r, number))
    parameters = [*ranks, *of_parameters.shortest(weights, least=2)]
    return {
        "target_modules": of_modules.shortest(modules),
        "exclude_modules": None,
        "target_parameters": parameters or None,
        "rank_pattern": ranks,
    }


def _chosen(setting: str, paths: list[str], usable: list[str], stacks: list[str]) -> tuple[list[str], list[str]]:
    """The linear modules and stacked experts that a setting names."""
    setting = setting.strip()
    if setting == ALL_LINEAR:
        return usable, stacks
    module_names = names(setting)
    of_experts = [name for name in module_names if any(names_stack(name, path) for path in stacks)]
    rest = [name for name in module_names if name not in of_experts or any(ends_with(path, name) for path in paths)]
    chosen: list[str] = []
    if rest or not of_experts:
        value = target_modules(", ".join(rest) if of_experts else setting, usable if setting in NAMED else paths)
        if isinstance(value, str):
            chosen = matching(value, paths)
        else:
            chosen = [path for path in paths if any(ends_with(path, name) for name in value)]
    return chosen, [path for path in stacks if any(names_stack(name, path) for name in of_experts)]


class _Endings:
    """Paths by their endings, by which peft looks for modules and parameters."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths_with: dict[str, set[str]] = {}
        for path in paths:
            for ending in _endings(path):
                self._paths_with.setdefault(ending, set()).add(path)

    def shortest(self, paths: Collection[str], *, least: int = 1) -> list[str]:
        """The shortest endings, of at least so many names, that name all of these paths, and no other."""
        allowed = set(paths)
        endings = (itertools.islice(_endings(path), least - 1, None) for path in paths)
        shortest = (next(end for end in of_path if self._paths_with[end] <= allowed) for of_path in endings)
        return list(dict.fromkeys(shortest))


def _endings(path: str) -> Iterator[str]:
    """The endings of a path by whole names, the shortest first; none begins with a layer's number."""
    parts = path.split(".")
    return (".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1) if not parts[at].isdigit())


def target_modules(setting: str, paths: list[str]) -> str | list[str]:
    """peft's value for a `lora.target_modules` setting, given the paths of the model's linear modules.

    Raises `StudioError` for modules that the model does not have.
    """
    available = last_names(paths)
    setting = setting.strip()
    if setting == ALL_LINEAR:
        return ALL_LINEAR
    if setting in NAMED:
        matches = [name for name in available if name in NAMED[setting]]
        if not matches:
            raise StudioError(
                f"This model has no modules with the names known for {setting}.",
                f"Name them explicitly. The model has {', '.join(available)}.",
            )
        return matches
    if is_regular_expression(setting):
        if not matching(setting, paths):
            raise StudioError(
                f"The regular expression {setting} matches no linear module of the model.",
                f"It must match whole paths, such as {paths[0]} or {paths[-1]}.",
            )
        return setting
    module_names = names(setting)
    unknown = [name for name in module_names if not any(path == name or path.endswith(f".{name}") for path in paths)]
    if unknown or not module_names:
        noun = "module" if len(unknown) == 1 else "modules"
        raise StudioError(
            f"The model has no linear {noun} {', '.join(unknown)}." if unknown else "No target module is set.",
            f"Its linear modules are: {', '.join(available)}. `all-linear` selects all of them.",
        )
    return module_names


def bearing_names(model: Any) -> list[str]:
    """Last parts of the names of modules that hold weights themselves."""
    return last_names([path for path, part in model.named_modules() if list(part.parameters(recurse=False))])


def whole_modules(setting: str | None, model: Any) -> list[str] | None:
    """The modules of a `lora.modules_to_save` setting. Raises `StudioError` for those that cannot be trained fully."""
    module_names = names(setting or "")
    for name in module_names:
        modules = [module for path, module in model.named_modules() if path.endswith(name)]  # as peft looks for it
        if not modules:
            raise StudioError(
                f"The model has no module {name} to train in full.",
                f"Its modules are: {', '.join(bearing_names(model))}.",
            )
        if not all(weight.is_floating_point() for module in modules for weight in module.parameters()):
            raise StudioError(
                f"{name} is quantized, so it cannot be trained in full.",
                "Remove it from lora.modules_to_save, or set model.quantization to none.",
            )
    return module_names or None


def layout_of(model: Any) -> Architecture:
    """The layout of a model whose parameters are counted; the activation memory of a step remains an estimate."""
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
    """The linear modules, grouped over layers."""
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
    """The experts' matrices, each kind in one tensor, and routers that are not linear modules."""
    layers_of: dict[tuple[str, int, int, int, bool], list[int]] = {}
    linear = {f"{path}.weight" for path in linear_modules(model)}
    experts = expert_parameters(model)
    for path, parameter in model.named_parameters():
        layer = _LAYER.search(path)
        flat = parameter.ndim == 2 and path not in linear and not path.endswith("bias")
        flat = flat and (path.endswith(".mlp.gate.weight") or ".experts." in path)
        if layer and (flat or path in experts):
            experts_count, outputs, inputs = (1, *parameter.shape) if flat else parameter.shape
            key = _LAYER.sub(".{}.", path, count=1), int(experts_count), int(inputs), int(outputs), flat
            layers_of.setdefault(key, []).append(int(layer[1]))
    return tuple(Stack(*key[:-1], tuple(layers), flat=key[-1]) for key, layers in layers_of.items())
