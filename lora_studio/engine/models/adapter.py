"""Puts a new or an existing LoRA adapter on a base for training, and reads a model's shape on the meta device.

Target modules are checked against the model's modules. Shapes of families that `models.shape` does not know exactly are
measured without allocating weights.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lora_studio.config.parsing import NOT_ON_EXPERTS
from lora_studio.engine.models.load import check_tensors, read_config, without_weights
from lora_studio.engine.models.multi_adapter import fitting
from lora_studio.engine.models.tokenizer import adapter_tokenizer, checked_source
from lora_studio.engine.models.weights import put_on, read_weights
from lora_studio.engine.train.lora_init import peft_settings
from lora_studio.errors import StudioError
from lora_studio.models.adapter_files import read_lora, read_template
from lora_studio.models.hub import may_run_code_of
from lora_studio.models.module_patterns import check, is_regular_expression, matching
from lora_studio.models.shape import NAMED, Architecture, Linear, Stack, architecture, keep_layout, names
from lora_studio.models.shape import read_config as read_numbers

ALL_LINEAR = "all-linear"


def linear_modules(model: Any) -> list[str]:
    """Paths of the model's linear modules, without the output layer, in the model's order."""
    head = model.get_output_embeddings()
    return [
        path
        for path, module in model.named_modules()
        # Quantized layers are linear too; GPT-2's Conv1D is one with a transposed weight.
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and module is not head
        and not is_router(module)
    ]


def is_router(module: torch.nn.Module) -> bool:
    """Whether a module is a mixture's router, which returns more than its product and cannot take an adapter."""
    return isinstance(module, torch.nn.Linear) and "Router" in type(module).__name__


def last_names(paths: list[str]) -> list[str]:
    """The distinct last parts of module paths: layers.0.mlp.up_proj and layers.1.mlp.up_proj give up_proj."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


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


def reaches_experts(model: Any, config: LoraConfig) -> bool:
    """Whether peft would put such an adapter on a mixture's experts, which are stacked in one tensor."""
    with torch.device("meta"):
        tried = get_peft_model(type(model)(model.config), replace(config, init_lora_weights=True))
    return any(isinstance(module, ParamWrapper) for module in tried.modules())


def add_adapter(
    model: Any,
    *,
    base: str,
    revision: str | None,
    target: str,
    seed: int,
    init_lora_weights: str = "default",
    modules_to_save: str | None = None,
    **lora: Any,
) -> PeftModel:
    """`model` with a new adapter; `lora` are LoraConfig's own settings. The seed determines the initial weights."""
    paths = linear_modules(model)
    if is_regular_expression(target):
        check([target], [path for path, _ in model.named_modules()])  # peft matches it with every module
    torch.manual_seed(seed)
    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=target_modules(target, paths),
            modules_to_save=whole_modules(modules_to_save, model),
            exclude_modules=[path for path, module in model.named_modules() if is_router(module)] or None,
            revision=revision,
            **peft_settings(init_lora_weights),
            **lora,
        )
        if init_lora_weights in NOT_ON_EXPERTS and reaches_experts(model, config):
            raise StudioError(
                f"Adapters on stacked experts do not support the initialization {init_lora_weights}.",
                "Set lora.init_lora_weights to default, or lora.target_modules to attention.",
            )
        adapted = get_peft_model(model, config)
    except ValueError as error:  # peft knows what each kind of module can't bear (experts, state spaces)
        raise StudioError(
            f"This adapter cannot be added to the model: {error}",
            f"Use other lora.target_modules (of {', '.join(last_names(paths))}), or set lora.lora_dropout to 0.",
        ) from error
    # peft records where the base was loaded from; a local path means nothing on other machines.
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def continue_adapter(
    model: PreTrainedModel, folder: Path, *, base: str, revision: str | None, dropout: float
) -> tuple[PeftModel, list[str]]:
    """`model` with the adapter of that folder, its saved weights trainable; and notes on what was not taken over
    unchanged.

    Rank and modules are the adapter's own. Raises `StudioError` if it does not fit the base.
    """
    read_lora(folder)
    with fitting(folder, base):
        weights = read_weights(folder, model, base)
        config: Any = weights.config
        if weights.matrices:
            raise StudioError(
                f"{folder.name} has its own embeddings for {weights.rows:,} tokens, so training cannot continue "
                f"from it on {base}.",
                "Export it merged, and train a new adapter on the merged model.",
            )
        if config.target_parameters and dropout:
            raise StudioError(
                f"{folder.name} targets stacked matrices (target_parameters), which do not support dropout.",
                "Set lora.lora_dropout to 0.",
            )
        config.lora_dropout = dropout
        adapted = put_on(model, weights, "default", base, trainable=True)
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise StudioError(
            f"{folder.name} targets the output layer, whose adapter weights the fused loss ignores: they would not "
            "be trained.",
            "Export it merged, and train a new adapter on the merged model.",
        )
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.peft_config["default"].revision = revision
    return adapted, weights.notes


def other_text(folder: Path, tokenizer: PreTrainedTokenizerBase, template: str, rows: int) -> Iterator[str]:
    """Notes on differences between the run's prompts and those the adapter was trained on; `rows` is the embedding
    size."""
    own, lacking = adapter_tokenizer(folder, tokenizer, rows)
    if lacking or own is not tokenizer:
        yield (
            f"{folder.name} has its own tokenizer, but this run uses the base's. Tokens and end tokens that only "
            "the adapter's has are not used."
        )
    before = read_template(folder)
    if before and before != template:
        yield (
            f"{folder.name} was trained with another chat template than this run uses. Its answers will follow the "
            "new template, set by data.prompt_style."
        )


MAX_READ = 4 * 1024**3
"""Bytes up to which a checkpoint's tensors are checked before a run; larger ones are checked by the run."""
_LAYER = re.compile(r"\.(\d+)\.")


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
    """The experts' matrices, each kind in one three-dimensional tensor, and routers that are not linear modules."""
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
    """The context length of a model with learned position embeddings, such as GPT-2 and OPT; None for all others."""
    tables = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and ("position" in name or name.endswith("wpe"))
    ]
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if tables and limit else None


def take_layout(name: str, revision: str | None = None) -> None:
    """Stores the layout of a model whose family is not fully known, unless it is stored already."""
    numbers = read_numbers(name, revision)
    layout = architecture(numbers) if numbers else None
    if numbers and (layout is None or not layout.counted):
        keep_layout(numbers, layout_of(without_weights(name, revision)))


class CountedModel(TypedDict):
    """The sizes of a model on this machine; each problem is a message and a hint."""

    embeddings: int
    positions: int | None
    parameters: int
    problem: tuple[str, str] | None
    trainable: NotRequired[int]
    adapter_problem: NotRequired[tuple[str, str]]


def look_at_model(
    name: str, revision: str | None, *, lora: Mapping[str, Any], seed: int, adapter: str | None
) -> CountedModel:
    """The sizes of a model on this machine, for the checks before a start.

    `lora` are the settings of a new adapter; `adapter` is the folder of one to continue from, which is counted instead.
    """
    config = read_config(name, revision)
    model = without_weights(name, revision)
    numbers = read_numbers(name, revision) or config.to_dict()
    layout = layout_of(model)
    known_layout = architecture(numbers)
    if known_layout is None or not known_layout.counted:
        keep_layout(numbers, layout)
    facts: CountedModel = {
        "embeddings": layout.vocabulary,
        "positions": learned_positions(model),
        "parameters": layout.parameters,
        "problem": _whole(name, revision, numbers),
    }
    try:
        with torch.device("meta"):
            facts["trainable"] = _adapted(name, model, lora, seed, adapter).get_nb_trainable_parameters()[0]
    except StudioError as error:
        facts["adapter_problem"] = (error.message, error.hint)
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


def _whole(name: str, revision: str | None, numbers: Mapping[str, Any]) -> tuple[str, str] | None:
    """The problem of an incomplete checkpoint in a local folder: the names of missing tensors."""
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
        return error.message, error.hint
    return None
