"""Loads an adapter's file onto a base: maps its names to the base's, counts the matches, and reports what does not
match.

peft only warns about weights that match nothing; the base would then answer in the adapter's name. Reads safetensors
only.
"""

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftModelForCausalLM, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import set_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from lora_studio.engine.models.source import read_config
from lora_studio.errors import StudioError
from lora_studio.models.adapter_files import (
    LORA,
    WEIGHTS_FILE,
    check_settings,
    first_names,
    lora_place,
    plain_name,
    ranks_held,
    read_settings,
    renamed,
)
from lora_studio.models.adapters import read_header

PREFIX = "base_model.model."
EMBEDDINGS = frozenset(
    f"{name}{end}"
    for name in ("embed_tokens", "wte", "word_embeddings", "embed_in")
    for end in (".weight", ".base_layer.weight", ".modules_to_save.weight")
)
"""peft's names for embeddings that it saved in full, without prefixes."""
FREE = frozenset(
    {
        *("r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "use_rslora"),
        *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
        *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type"),
        "inference_mode",
    }
)
"""Settings of plain LoRA: a product of two matrices beside a linear module."""


@dataclass
class AdapterWeights:
    """An adapter read for one base: peft's settings and its tensors, by the base's names.

    `notes` say what was not taken over unchanged. `places` are the modules with LoRA matrices, by the base's names.
    `matrices` are full embeddings that peft saved beside the adapter, by the base's module names, and `rows` is the
    number of tokens in the adapter's embeddings.
    """

    name: str
    config: PeftConfig
    tensors: dict[str, torch.Tensor]
    rows: int
    places: frozenset[str] = frozenset()
    matrices: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        """Whether it consists of LoRA matrices of linear modules, which peft computes side by side in one batch."""
        places = (lora_place(name) for name in self.tensors)
        return self.only_matrices and all(place is not None and place[1] in ("A", "B") for place in places)

    @property
    def only_matrices(self) -> bool:
        """Whether it consists of LoRA matrices only, also of embeddings."""
        if self.matrices or not isinstance(self.config, LoraConfig) or self.config.bias != "none":
            return False
        usual = LoraConfig()
        special = [
            name
            for name in vars(usual)
            if name not in FREE and getattr(self.config, name, None) and vars(self.config)[name] != vars(usual)[name]
        ]
        return not special and all(map(lora_place, self.tensors))


def read_weights(folder: Path, base: PreTrainedModel, name: str) -> AdapterWeights:
    """Reads the adapter of a folder for a base with its own modules in place; `name` is the base's name.

    Raises `StudioError` if no tensor matches the base, or if settings and weights belong to different adapters.
    """
    settings = read_settings(folder)
    check_settings(settings, [path for path, _ in base.named_modules()])
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError, ValueError) as error:
        raise StudioError(f"{WEIGHTS_FILE} of {folder.name} cannot be read: {error}", "Copy it again.") from error
    config = PeftConfig.from_pretrained(str(folder))
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    entry: Any = base.get_input_embeddings()
    weights = AdapterWeights(folder.name, config, tensors, int(entry.weight.shape[0]))
    if broken := [key for key, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]:
        raise StudioError(
            f"{len(broken):,} of the {len(tensors):,} weights of {folder.name} are not finite: "
            f"{first_names(broken, 1)}.",
            "It cannot generate text: use an earlier checkpoint.",
        )
    _take_embeddings(weights, base)
    if settings["peft_type"] == LORA:
        _place_lora(weights, base, name)
    return weights


def _take_embeddings(weights: AdapterWeights, base: Any) -> None:
    """Takes full embeddings out of the tensors: peft saves the base's own if their size changed or they have LoRA."""
    paths = {module: path for path, module in base.named_modules()}
    entry, output = base.get_input_embeddings(), base.get_output_embeddings()
    saved = set(getattr(weights.config, "modules_to_save", None) or ())
    trained = {module for module in (entry, output) if {paths.get(module), _last(paths.get(module))} & saved}
    tied = output is not None and output.weight is entry.weight
    if trained and tied and getattr(weights.config, "ensure_weight_tying", False):
        trained = {entry, output}  # peft trains and saves both as one
    for module in dict.fromkeys(candidate for candidate in (entry, output) if candidate in paths):
        whole = [key for key in weights.tensors if _is_of(key, paths[module])]
        for key in whole:
            tensor, own = weights.tensors[key], module.weight
            if module not in trained or plain_name(key) != plain_name(f"{paths[module]}.weight"):
                del weights.tensors[key]
            if module is entry:
                weights.rows = tensor.shape[0]
            compared = module not in trained and not own.is_meta  # without weights only shapes can be compared
            if tensor.shape != own.shape or (compared and not torch.equal(tensor.to(own), own)):
                weights.matrices[paths[module]] = tensor
    if weights.matrices:
        rows = entry.weight.shape[0]
        sizes = f" for {weights.rows:,} tokens (base: {rows:,})" if weights.rows != rows else ""
        weights.notes.append(f"{weights.name} has its own embeddings{sizes} and uses them.")


def _last(path: str | None) -> str:
    return (path or "").rpartition(".")[2]


def _is_of(key: str, path: str) -> bool:
    """Whether a tensor is a module's full matrix, by any of the names it is saved under."""
    ends = (".weight", ".base_layer.weight", ".modules_to_save.weight", ".original_module.weight")
    return plain_name(key) in {plain_name(path + end) for end in ends}


def known_tokens(folder: Path, base: str, revision: str | None) -> int:
    """The number of tokens in an adapter's embeddings: its own if its file has any, else the base's by its config."""
    for name, tensor in read_header(folder / WEIGHTS_FILE).items():
        if plain_name(name) in EMBEDDINGS:
            return int(tensor["shape"][0])
    return int(read_config(base, revision).get_text_config().vocab_size)


def _place_lora(weights: AdapterWeights, base: PreTrainedModel, name: str) -> None:
    """Maps LoRA matrices to the base's names, and sets the modules, ranks and alphas that the file contains."""
    config: Any = weights.config
    config.init_lora_weights = True  # first weights, in whose place the file's are put
    ranks = ranks_held({key: tuple(tensor.shape) for key, tensor in weights.tensors.items()})
    modules = dict(base.named_modules())
    places = renamed(((module.removeprefix(PREFIX)) for module in ranks), modules)
    places = {own: place for own, place in places.items() if _bears_weight(modules[place])}
    by_file = {module: places[own] for module in ranks if (own := module.removeprefix(PREFIX)) in places}
    weights.places = frozenset(by_file.values())
    _check_ranks(weights, ranks, by_file)
    targeted = _meant(config, base, places)
    lost = [module for module in ranks if module not in by_file]
    experts = bool(config.target_parameters) or any(".experts" in module for module in lost)
    if not by_file and not experts and ranks:
        raise _no_place(weights, list(ranks), name, sorted(targeted) or list(modules)[1:])
    lacking = sorted(targeted - weights.places)
    other_names = any(own != place for own, place in places.items())
    if by_file and not experts and (other_names or weights.places != targeted):
        _as_the_file_says(config, places)
    if lacking and not experts:
        weights.notes.append(
            f"{weights.name} has no weights for {len(lacking):,} of the {len(targeted | weights.places):,} modules "
            f"in its config ({first_names(lacking)}). There, only the base is used."
        )
    foreign = {module: place for module, place in by_file.items() if module.removeprefix(PREFIX) != place}
    if foreign:
        first = next(iter(foreign))
        weights.notes.append(
            f"{weights.name} names its modules as another class of the same model does "
            f"({first.removeprefix(PREFIX)}). They were mapped to the base's ({foreign[first]}); peft alone would "
            "ignore them."
        )
    weights.tensors = {_key(key, by_file): tensor for key, tensor in weights.tensors.items()}


def _bears_weight(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), torch.nn.Parameter)


def _key(key: str, by_file: Mapping[str, str]) -> str:
    """A tensor's name as peft saves it on this base."""
    place = lora_place(key)
    if place is None or place[0] not in by_file:
        return key
    module, part = place
    ending = "" if part.startswith("embedding") else ".bias" if key.endswith(".bias") else ".weight"
    return f"{PREFIX}{by_file[module]}.lora_{part}{ending}"


def _check_ranks(weights: AdapterWeights, ranks: Mapping[str, int], by_file: Collection[str]) -> None:
    """Checks that each module's rank in the settings is that of its matrices, since peft allocates by the settings."""
    config: Any = weights.config
    pattern = config.rank_pattern or {}
    highest = max([config.r, *pattern.values()])
    largest = max(ranks.values(), default=highest)
    if config.target_parameters and highest > largest:
        raise StudioError(
            f"The config of {weights.name} states rank {highest:,}, but its largest matrix has {largest:,} rows.",
            "Copy adapter_config.json and the weights from the same adapter.",
        )
    for module, rank in ((module.removeprefix(PREFIX), ranks[module]) for module in by_file):
        configured = pattern.get(get_pattern_key(list(pattern), module), config.r)
        if configured != rank:
            raise StudioError(
                f"The config of {weights.name} states rank {configured:,} for {module}, but its matrix has {rank:,} "
                "rows.",
                "Copy adapter_config.json and the weights from the same adapter.",
            )


def _meant(config: Any, base: PreTrainedModel, places: Mapping[str, str]) -> frozenset[str]:
    """The base's modules that the settings name, by its own names or by those of the file."""
    names = {place: own for own, place in places.items()}
    if not config.target_modules or config.target_modules == "all-linear":
        return frozenset(names)
    return frozenset(
        path
        for path, module in base.named_modules()
        if _bears_weight(module)
        and (check_target_module_exists(config, path) or check_target_module_exists(config, names.get(path, path)))
    )


def _as_the_file_says(config: Any, places: Mapping[str, str]) -> None:
    """Settings for exactly these modules, each with its own rank and alpha."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    config.rank_pattern = {
        place: ranks.get(get_pattern_key(list(ranks), own), config.r) for own, place in places.items()
    }
    config.alpha_pattern = {
        place: alphas.get(get_pattern_key(list(alphas), own), config.lora_alpha) for own, place in places.items()
    }
    config.rank_pattern = {place: rank for place, rank in config.rank_pattern.items() if rank != config.r}
    config.alpha_pattern = {place: it for place, it in config.alpha_pattern.items() if it != config.lora_alpha}
    config.target_modules = set(places.values())
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None


def _no_place(weights: AdapterWeights, theirs: Sequence[str], name: str, ours: Sequence[str]) -> StudioError:
    return StudioError(
        f"None of the {len(weights.tensors):,} weights of {weights.name} matches a module of {name}: it has "
        f"{first_names([module.removeprefix(PREFIX) for module in theirs], 2)}.",
        f"It was trained on another model, or its weights were renamed. {name} has {first_names(ours, 2)}.",
    )


def put_on(model: Any, weights: AdapterWeights, adapter: str, base: str, *, trainable: bool = False) -> PeftModel:
    """peft's model with the adapter on it: `model` itself if it is peft's already, else a wrapper around it.

    Adds notes on tensors that do not match to `weights.notes`. Raises `StudioError` if none matches, and what peft
    raises if shapes differ.
    """
    weights.config.inference_mode = not trainable
    with warnings.catch_warnings():  # peft looks for ranks among modules, and not among parameters
        warnings.filterwarnings("ignore", "The following rank_pattern keys did not match")
        if isinstance(model, PeftModel):
            model.add_adapter(adapter, weights.config, autocast_adapter_dtype=False)
        else:
            model = PeftModelForCausalLM(model, weights.config, adapter, autocast_adapter_dtype=trainable)
    expected = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    places = renamed(weights.tensors, expected)
    tensors = {places.get(key, key): tensor for key, tensor in weights.tensors.items()}
    lost, lacking = _put(model, weights, adapter, tensors, expected)
    if lost and len(lost) == len(tensors):
        raise _no_place(weights, lost, base, [key.removeprefix(PREFIX) for key in expected])
    if lost:
        weights.notes.append(
            f"{len(lost):,} of the {len(tensors):,} weights of {weights.name} match no module of {base} and are "
            f"ignored: {first_names([key.removeprefix(PREFIX) for key in lost])}."
        )
    if lacking:
        weights.notes.append(
            f"{weights.name} lacks {len(lacking):,} of the {len(expected):,} weights in its config: "
            f"{first_names([key.removeprefix(PREFIX) for key in lacking])}. There, only the base is used."
        )
    return model


def _put(
    model: PeftModel,
    weights: AdapterWeights,
    adapter: str,
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """Loads the tensors; returns those that match nothing, and the adapter's parameters that got no value."""
    kind: Any = weights.config
    if kind.is_prompt_learning:
        set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter)
        return [key for key in tensors if key not in expected], [key for key in expected if key not in tensors]
    around = {path: part for path, part in model.named_modules() if isinstance(part, AuxiliaryTrainingWrapper)}
    needed = [f"{path}.{key}" for path, part in around.items() for key in part.adapter_state_dict_load_map(adapter)]
    if saved := [key for key in needed if key not in tensors]:
        raise StudioError(
            f"{weights.name} trained modules in full that its file lacks: {first_names(saved)}.",
            "Copy the adapter again, or remove the module from its modules_to_save.",
        )
    with warnings.catch_warnings():  # where the base is without weights only the names are of interest
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")
        result: Any = set_peft_model_state_dict(model, dict(tensors), adapter_name=adapter)
    lost, missing = [
        [".".join(part for part in key.split(".") if part != adapter) for key in keys]
        for keys in (result.unexpected_keys, result.missing_keys)
    ]
    lacking = [
        key for key in expected if key in set(missing) and not key.startswith(tuple(f"{path}." for path in around))
    ]
    return lost, lacking  # a layer that is tied to another has no weights of its own in the file


def own_embeddings(base: PreTrainedModel, matrices: Mapping[str, torch.Tensor]) -> dict[str, torch.nn.Module]:
    """Embeddings and output layer with the adapter's own matrices, by module name; the base's are unchanged.

    An output layer tied to the base's embeddings is tied to the new ones, unless it has a matrix of its own.
    """
    paths = {module: path for path, module in base.named_modules()}
    entry, output = base.get_input_embeddings(), base.get_output_embeddings()
    modules_of: dict[str, torch.nn.Module] = {}
    for module in (entry, output):
        if module is not None and (matrix := matrices.get(paths[module])) is not None:
            modules_of[paths[module]] = _with_rows(module, matrix)
    if output is not None and output.weight is entry.weight and paths[output] not in modules_of:
        modules_of[paths[output]] = _with_rows(output, matrices[paths[entry]])
        modules_of[paths[output]].weight = modules_of[paths[entry]].weight
    return modules_of


def _with_rows(module: Any, matrix: torch.Tensor) -> Any:
    """A copy of an embedding or output layer with another matrix, [tokens, hidden]."""
    memo = {id(module.weight): module.weight}
    copied = copy.deepcopy(module, memo)
    copied.weight = torch.nn.Parameter(matrix.to(module.weight), requires_grad=False)
    rows = matrix.shape[0]
    for name in ("num_embeddings", "out_features"):
        if hasattr(copied, name):
            setattr(copied, name, rows)
    bias = getattr(copied, "bias", None)
    if isinstance(bias, torch.Tensor) and bias.shape[0] != rows:
        grown = bias.new_zeros(rows)
        grown[: min(rows, bias.shape[0])] = bias[: min(rows, bias.shape[0])]
        copied.bias = torch.nn.Parameter(grown, requires_grad=False)
    return copied
