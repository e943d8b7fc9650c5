"""Puts a LoRA adapter on a base for training, new or existing, with initial weights that are random or of a method.

Shapes of families that `models.shape` does not know exactly are measured on the meta device, without weights.

PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775) move a part of the base's weights into the adapter. The saved
adapter has to work on the unchanged base, so it is saved as the difference from its initial weights: an ordinary
adapter of twice the rank. LoftQ (arXiv:2310.08659) starts from the 4-bit quantization error, EVA (arXiv:2410.07170)
from the principal directions of the activations.
"""

import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import bitsandbytes as bnb
import torch
from huggingface_hub import snapshot_download
from peft import (
    EvaConfig,
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    initialize_lora_eva_weights,
    set_peft_model_state_dict,
)
from peft.tuners.lora import Linear4bit, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import NEED_FULL_WEIGHTS, NOT_ON_EXPERTS
from lora_studio.data.encode import Example
from lora_studio.engine.models.load import check_tensors
from lora_studio.engine.models.multi_adapter import Biases, fitting, with_biases
from lora_studio.engine.models.source import adapter_tokenizer, checked_source, read_config, without_weights
from lora_studio.engine.models.weights import put_on, read_weights
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.adapter_files import (
    SETTINGS_FILE,
    WEIGHTS_FILE,
    check,
    is_regular_expression,
    matching,
    read_lora,
    read_template,
)
from lora_studio.models.hub import may_run_code_of
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


def take_layout(name: str, revision: str | None = None) -> JsonObject:
    """Stores the layout of a model whose family is not fully known, unless it is stored already; returns its config."""
    config = read_config(name, revision)
    numbers = read_numbers(name, revision)
    layout = architecture(numbers) if numbers else None
    if numbers and (layout is None or not layout.counted):
        keep_layout(numbers, layout_of(without_weights(name, revision)))
    return config.to_dict()


def module_names(name: str, revision: str | None = None) -> tuple[list[str], list[str]]:
    """The names by which an adapter can ask for a model's linear layers, and for modules to be trained in full."""
    model = without_weights(name, revision)
    return list(last_names(linear_modules(model))), list(bearing_names(model))


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


SVD_ROUNDS = 16
"""Iterations of the randomized SVD, as in `pissa_niter_16`: a 7B model takes seconds on a GPU."""
EVA_ROWS = 512
MAX_BATCHES = 400
"""Batches after which EVA gives up, because the data have too few directions."""


def peft_settings(first_weights: str) -> SettingValues:
    """LoraConfig's arguments for a `lora.init_lora_weights`; loftq is initialized as usual and filled afterwards."""
    if first_weights == "eva":
        # rho 1 keeps every module at the configured rank; above 1 ranks are redistributed, and some become 0.
        # All tokens count: answers alone can be a single word, which has no principal directions.
        return {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=1.0, use_label_mask=False)}
    return {"init_lora_weights": True if first_weights in ("default", "loftq") else first_weights}


def fill(
    model: PeftModel,
    first_weights: str,
    *,
    base: tuple[str, str | None],
    rows: Sequence[Example],
    pad: int,
    seed: int,
) -> None:
    """Fills a new adapter with the initial weights that peft itself cannot compute here: loftq and eva.

    `base` is the model's name and revision, `rows` are the training rows.
    """
    if first_weights == "loftq":
        fill_with_rounding(model, *base)
    if first_weights == "eva":
        sample = random.Random(seed).sample(range(len(rows)), min(len(rows), EVA_ROWS))
        tokens = max(1024, 4 * rank_of(model))  # a batch has to span more directions than it gives
        ids = (rows[row].input_ids for row in sample)
        fill_from_data(model, token_batches(ids, tokens=tokens, pad=pad, device=model.device))


def rank_of(model: Any) -> int:
    """The rank of a new adapter."""
    return int(model.peft_config["default"].r)


def initial_lora_state(model: PeftModel, first_weights: str) -> dict[str, torch.Tensor] | None:
    """A copy of the adapter's initial weights if they were taken out of the base; else None.

    Afterwards the adapter's config no longer requests an initialization: whoever loads it has its weights.
    """
    settings: Any = model.peft_config["default"]
    settings.init_lora_weights = True
    if first_weights not in NEED_FULL_WEIGHTS:
        return None
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items() if ".lora_" in name}


@contextmanager
def as_base(model: PeftModel, initial_state: Mapping[str, torch.Tensor] | None, own_biases: Biases) -> Iterator[None]:
    """Inside, the bare base: with its own biases, and the adapter disabled or restored to its initial weights."""
    with (
        with_biases(own_biases),
        model.disable_adapter() if initial_state is None else _given_back(model, initial_state),
    ):
        yield


@contextmanager
def _given_back(model: PeftModel, initial_state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Restores the initial matrices, which gives the base back what they took, and modules trained in full."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    trained = {name: tensor.clone() for name, tensor in state.items()}
    whole = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    set_peft_model_state_dict(model, trained | dict(initial_state))
    for module in whole:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in whole:
            module.enable_adapters(True)
        set_peft_model_state_dict(model, trained)


def save_as_difference(folder: Path, initial_state: Mapping[str, torch.Tensor]) -> None:
    """Converts the adapter in `folder`, which needs a changed base, to one of twice the rank for the unchanged base.

    The base lost B0 A0 and the adapter adds B A: on the unchanged base that is [B, -B0] [A; A0].
    """
    weights = load_file(folder / WEIGHTS_FILE)
    for name, trained in weights.items():
        if "lora_A" in name:
            weights[name] = torch.cat([trained, initial_state[name].to(trained.dtype)], dim=0)
        elif "lora_B" in name:
            weights[name] = torch.cat([trained, -initial_state[name].to(trained.dtype)], dim=1).contiguous()
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    config["r"] *= 2
    config["lora_alpha"] *= math.sqrt(2) if config["use_rslora"] else 2  # the scale stays as it was
    (folder / SETTINGS_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@torch.no_grad()
def fill_with_rounding(model: PeftModel, name: str, revision: str | None) -> None:
    """LoftQ: the adapter starts as the best low-rank approximation of the 4-bit quantization error."""
    stored = _stored_weights(name, revision)
    for path, module in model.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        base = module.get_base_layer().weight
        original = _read(stored, path.removeprefix("base_model.model.") + ".weight").to(base.device, torch.float32)
        lost = original - bnb.functional.dequantize_4bit(base.data, base.quant_state).float()
        left_vectors, sizes, right_vectors = torch.svd_lowrank(lost, q=module.r["default"], niter=SVD_ROUNDS)
        root = (sizes / module.scaling["default"]).sqrt()
        for part, value in ((module.lora_A, root[:, None] * right_vectors.T), (module.lora_B, left_vectors * root)):
            part["default"].weight.data = value.to(part["default"].weight.dtype).contiguous()


def _stored_weights(name: str, revision: str | None) -> dict[str, Path]:
    """The file of each of the base's tensors. The model was just loaded, so nothing is downloaded."""
    folder = Path(checked_source(name))
    if not folder.is_dir():
        snapshot = snapshot_download(
            str(folder), revision=revision, allow_patterns="*.safetensors", local_files_only=True
        )
        folder = Path(snapshot)
    stored = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            stored.update(dict.fromkeys(opened.keys(), file))
    return stored


def _read(stored: Mapping[str, Path], name: str) -> torch.Tensor:
    """A tensor of the base by its path in the model; some checkpoints omit the first part of the path."""
    for candidate in (name, name.partition(".")[2]):
        if candidate in stored:
            with safe_open(stored[candidate], framework="pt") as opened:
                return opened.get_tensor(candidate)
    raise StudioError(
        f"LoftQ cannot find {name} in the model's files, which store it under another name.",
        "Set lora.init_lora_weights to default.",
    )


def fill_from_data(model: PeftModel, batches: Sequence[Mapping[str, torch.Tensor]]) -> None:
    """EVA: the adapter's A matrices start as the principal directions of the activations.

    Repeats the batches until the directions converge.
    """
    base: Any = model.get_base_model()
    decoder = base.get_decoder()
    batches_seen = 0

    def forward(_: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
        nonlocal batches_seen
        batches_seen += 1
        if batches_seen > MAX_BATCHES:
            raise StudioError(
                f"The data have no {rank_of(model)} stable directions after {MAX_BATCHES} batches.",
                "Use more varied data or a lower lora.r for EVA, or set lora.init_lora_weights to default.",
            )
        return decoder(**inputs, use_cache=False)  # without the output layer, whose scores nobody needs here

    initialize_lora_eva_weights(model, batches, forward_fn=forward, show_progress_bar=False)


def token_batches(
    rows: Iterable[Sequence[int]], *, tokens: int, pad: int, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """Rows of token ids as batches of at least `tokens` tokens, padded on the right.

    A remainder too small for a batch of its own joins the last batch.
    """
    groups: list[list[Sequence[int]]] = [[]]
    for row in rows:
        if sum(map(len, groups[-1])) >= tokens:
            groups.append([])
        groups[-1].append(row)
    if len(groups) > 1 and sum(map(len, groups[-1])) < tokens:
        groups[-2].extend(groups.pop())
    batches = []
    for group in groups:
        longest = max(map(len, group))
        ids = [[*row, *[pad] * (longest - len(row))] for row in group]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in group]
        batches.append(
            {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
        )
    return batches
