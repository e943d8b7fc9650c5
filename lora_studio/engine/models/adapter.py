"""Puts a LoRA adapter on a base for training, new or existing, with initial weights that are random or of a method.

PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775) move a part of the base's weights into the adapter. The saved
adapter has to work on the unchanged base, so it is saved as the difference from its initial weights: an ordinary
adapter of twice the rank. LoftQ (arXiv:2310.08659) starts from the 4-bit quantization error, EVA (arXiv:2410.07170)
from the principal directions of the activations.
"""

import json
import math
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from peft.tuners.lora import Linear4bit
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import NOT_ON_EXPERTS
from lora_studio.config.training import NEED_FULL_WEIGHTS
from lora_studio.data.encode import Example
from lora_studio.engine.models.layout import (
    bearing_names,
    expert_parameters,
    last_names,
    layout_of,
    linear_modules,
    targets_of,
    whole_modules,
)
from lora_studio.engine.models.load import check_tensors, learned_positions
from lora_studio.engine.models.multi_adapter import Biases, fitting, with_biases
from lora_studio.engine.models.source import (
    adapter_tokenizer,
    auto_class,
    checked_source,
    read_config,
    without_weights,
)
from lora_studio.engine.models.weights import put_on, read_weights
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.adapter_files import (
    CARD_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    check,
    is_regular_expression,
    read_lora,
    read_template,
)
from lora_studio.models.hub import may_run_code_of
from lora_studio.models.shape import architecture, keep_layout, stored_quantization
from lora_studio.models.shape import read_config as read_numbers
from lora_studio.workspace import write_atomically


def add_adapter(
    model: Any,
    *,
    base: str,
    revision: str | None,
    target: str,
    seed: int,
    init_lora_weights: str = "default",
    modules_to_save: str | None = None,
    quantized: bool = False,
    **lora: Any,
) -> PeftModel:
    """`model` with a new adapter; `lora` are LoraConfig's own settings. The seed determines the initial weights.

    `quantized` says that the base's linear modules are in 8 or 4 bits, or will be."""
    paths = linear_modules(model)
    if is_regular_expression(target):
        check([target], [path for path, _ in model.named_modules()])  # peft matches it with every module
    torch.manual_seed(seed)
    try:
        targets = targets_of(target, model, r=lora.get("r", LoraConfig.r), quantized=quantized)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            modules_to_save=whole_modules(modules_to_save, model),
            revision=revision,
            **targets,
            **peft_settings(init_lora_weights),
            **lora,
        )
        if init_lora_weights in NOT_ON_EXPERTS and targets["target_parameters"]:
            raise StudioError(
                f"Adapters on stacked experts do not support the initialization {init_lora_weights}.",
                "Set lora.init_lora_weights to default, or lora.target_modules to attention.",
            )
        with warnings.catch_warnings():  # peft looks for ranks among modules, and not among parameters
            warnings.filterwarnings("ignore", "The following rank_pattern keys did not match")
            adapted = get_peft_model(model, config)
    except ValueError as error:  # peft knows what each kind of module can't bear (experts, state spaces)
        raise StudioError(
            f"This adapter cannot be added to the model: {error}",
            f"Use other lora.target_modules (of {', '.join(last_names(paths))}), or set lora.lora_dropout to 0.",
        ) from error
    # peft records where the base was loaded from; a local path means nothing on other machines.
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def train_in_float32(model: PeftModel, dtype: torch.dtype) -> None:
    """Makes what is trained float32: trl makes a quantized model's adapter bf16, whose 8 bits lose small updates.

    LoRA's modules go on to give numbers of the base's precision `dtype`. Modules that are trained in full do so from
    here on: their float32 would meet 16 bits in the next module wherever there is no autocast, as when a run asks its
    model, and on the CPU.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    whole = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    for module in (module for wrapper in whole for module in wrapper.modules_to_save.values()):
        module.register_forward_pre_hook(lambda _, inputs: tuple(_as(torch.float32, value) for value in inputs))
        module.register_forward_hook(lambda _, inputs, output: _as(dtype, output))


def _as(dtype: torch.dtype, value: Any) -> Any:
    """Numbers in that precision; token ids and what is no tensor as they are."""
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


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


def take_layout(name: str, revision: str | None = None) -> JsonObject:
    """Stores the layout of a model whose family is not fully known, unless it is stored already; returns its config."""
    config = read_config(name, revision)
    numbers = read_numbers(name, revision)
    layout = architecture(numbers) if numbers else None
    if numbers and (layout is None or not layout.counted):
        keep_layout(numbers, layout_of(without_weights(name, revision)))
    return config.to_dict()


def module_names(name: str, revision: str | None = None) -> tuple[list[str], list[str]]:
    """Last names of a model's modules and experts that an adapter can target, and of those that hold weights."""
    model = without_weights(name, revision)
    return last_names([*linear_modules(model), *expert_parameters(model)]), bearing_names(model)


class CountedModel(TypedDict):
    """The sizes of a model on this machine; each problem is a message and a hint."""

    embeddings: int
    positions: int | None
    parameters: int
    problem: tuple[str, str] | None
    trainable: NotRequired[int]
    adapter_problem: NotRequired[tuple[str, str]]


def look_at_model(
    name: str,
    revision: str | None,
    *,
    lora: Mapping[str, Any],
    seed: int,
    adapter: str | None,
    quantization: str = "none",
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
    quantized = (quantization, stored_quantization(numbers)) != ("none", "none")
    try:
        with torch.device("meta"):
            facts["trainable"] = _adapted(name, model, lora, seed, adapter, quantized).get_nb_trainable_parameters()[0]
    except StudioError as error:
        facts["adapter_problem"] = (error.message, error.hint)
    return facts


def _adapted(name: str, model: Any, lora: Mapping[str, Any], seed: int, adapter: str | None, quantized: bool) -> Any:
    if adapter:
        return continue_adapter(model, Path(adapter), base=name, revision=None, dropout=lora["lora_dropout"])[0]
    settings = {name: value for name, value in lora.items() if name not in ("target_modules", "loraplus_lr_ratio")}
    first = settings.pop("init_lora_weights", "default")
    kind = first if first in ("default", "gaussian") else "default"  # the others need weights, and as many parameters
    return add_adapter(
        model,
        base="",
        revision=None,
        target=lora["target_modules"],
        seed=seed,
        init_lora_weights=kind,
        quantized=quantized,
        **settings,
    )


def _whole(name: str, revision: str | None, numbers: Mapping[str, Any]) -> tuple[str, str] | None:
    """The problem of an incomplete checkpoint in a local folder: the names of missing tensors."""
    folder = Path(checked_source(name))
    files = list(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files or "quantization_config" in numbers or sum(file.stat().st_size for file in files) > MAX_READ:
        return None
    loaded: Any = auto_class(name, read_config(name, revision)).from_pretrained(
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
def save_adapter(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    card: Mapping[str, Any],
    folder: Path,
    initial_state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Saves adapter weights and config, tokenizer with chat template, and studio.json to `folder`.

    `initial_state` are initial weights taken out of the base, see `initial_lora_state`.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False, selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    if initial_state is not None:
        save_as_difference(folder, initial_state)
    tokenizer.save_pretrained(str(folder))
    write_atomically(folder / CARD_FILE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")


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
