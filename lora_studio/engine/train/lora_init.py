"""Initial weights of an adapter other than random ones: from the base's weights, its rounding error, or the data.

PiSSA (arXiv:2404.02948) and OLoRA (arXiv:2406.01775) move a part of the base's weights into the adapter. The saved
adapter has to work on the unchanged base, so it is saved as the difference from its initial weights: an ordinary
adapter of twice the rank. LoftQ (arXiv:2310.08659) starts from the 4-bit quantization error, EVA (arXiv:2410.07170)
from the principal directions of the activations.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from huggingface_hub import snapshot_download
from peft import EvaConfig, PeftModel, get_peft_model_state_dict, initialize_lora_eva_weights, set_peft_model_state_dict
from peft.tuners.lora import Linear4bit
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import NEED_FULL_WEIGHTS
from lora_studio.data.encode import Example
from lora_studio.engine.models.multi_adapter import Biases, with_biases
from lora_studio.engine.models.tokenizer import checked_source
from lora_studio.errors import StudioError
from lora_studio.models.adapter_files import SETTINGS_FILE, WEIGHTS_FILE

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
