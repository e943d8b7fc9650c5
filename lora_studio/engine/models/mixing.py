"""Mixes adapters of one base by peft's `add_weighted_adapter` into a new adapter folder, without the base's weights.

peft computes a mix from the adapters' matrices alone: the base is built from its config, its weights take no memory,
and the matrices are in float32, as they were trained, whatever the base is loaded in.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from transformers import PreTrainedModel

from lora_studio.engine.models.multi_adapter import fitting
from lora_studio.engine.models.source import without_weights
from lora_studio.engine.models.weights import AdapterWeights, put_on, read_weights
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs import protocol
from lora_studio.models.adapter_files import CARD_FILE, SETTINGS_FILE, WEIGHTS_FILE, carried
from lora_studio.models.adapters import read_card
from lora_studio.models.mixing import Mix, Parent, check_parents

MIXED = "mixed"
"""peft's name for the new adapter."""
_OF_TRAINING = ("run", "continued_from", "mixed_from")
"""What a studio.json says of how its own adapter came about."""


def mix_requested(message: protocol.Mix) -> list[str]:
    """Writes the mix of a request to a session; returns notes for a person."""
    adapters = zip(message.adapters.items(), message.weights, message.runs, strict=True)
    parents = tuple(Parent(name, Path(folder), weight, run) for (name, folder), weight, run in adapters)
    mix = Mix(parents, message.combination_type, message.density, message.seed)
    return mix_adapters(mix, Path(message.out), base=message.base, revision=message.revision)


def mix_adapters(mix: Mix, out: Path, *, base: str, revision: str | None = None) -> list[str]:
    """Writes the mix into the new folder `out`, an adapter like any other; returns notes for a person.

    Tokenizer, chat template and system prompt are those of the first adapter. Raises `StudioError` where peft cannot
    mix them; `out` then does not exist.
    """
    notes = check_parents(mix)
    model, weights = mixed_model(mix, base, revision)
    notes += [note for adapter in weights for note in adapter.notes]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as place:
        folder = Path(place) / "adapter"
        folder.mkdir()
        _save(model, mix, base, folder)
        folder.rename(out)
    return list(dict.fromkeys(notes))


def mixed_model(mix: Mix, base: str, revision: str | None = None) -> tuple[PeftModel, list[AdapterWeights]]:
    """peft's model with all adapters and their mix, on a base without weights."""
    bare, read = without_weights(base, revision), []
    for parent in mix.parents:
        with fitting(parent.folder, base):
            weights = read_weights(parent.folder, bare, base)
        weights.name = parent.name
        if not weights.only_matrices:
            raise StudioError(
                f"{parent.name} consists of more than LoRA matrices, which cannot be mixed.",
                "Use adapters of linear modules alone.",
            )
        read.append(weights)
    _same_targets(read)
    _fill_with_nothing(bare)
    model: Any = bare
    for at, weights in enumerate(read):
        notes = len(weights.notes)
        with fitting(mix.parents[at].folder, base):
            model = put_on(model, weights, f"adapter{at}", base)
        if len(weights.notes) > notes:  # a matrix without a value is random, and a mix multiplies it with others
            raise StudioError(weights.notes[-1], "Only adapters that fit the base as a whole can be mixed.")
    torch.manual_seed(mix.seed or 0)
    names = [f"adapter{at}" for at in range(len(read))]
    with fitting(mix.parents[0].folder, base):
        model.add_weighted_adapter(
            names,
            [float(parent.weight) for parent in mix.parents],
            MIXED,
            combination_type=mix.method,
            density=mix.density,
            svd_full_matrices=False,  # only the first vectors are used
        )
    _check_whole(model, names)
    config = model.peft_config[MIXED]
    config.use_rslora = False  # the scale of each adapter is in the matrices; peft keeps the first one's setting
    config.base_model_name_or_path, config.revision = base, revision
    return model, read


def _same_targets(read: list[AdapterWeights]) -> None:
    """Names the targets of all adapters in one way where they differ in more than a list of names.

    peft mixes lists of names only, and takes whatever else narrows them (layers, exclusions) from the first adapter.
    """
    configs: list[Any] = [weights.config for weights in read]
    narrowing = ("layers_to_transform", "layers_pattern", "exclude_modules")
    same = all(getattr(config, name) == getattr(configs[0], name) for config in configs for name in narrowing)
    if same and all(isinstance(config.target_modules, set) for config in configs):
        return
    for config, weights in zip(configs, read, strict=True):
        config.target_modules = set(weights.places)
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None


def _fill_with_nothing(base: PreTrainedModel) -> None:
    """Zeros in the place of the base's weights: one number each, whatever the shape, so that peft finds a device."""
    for module in base.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            zeros = torch.zeros((), dtype=torch.float32).expand(weight.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))


def _check_whole(model: PeftModel, names: list[str]) -> None:
    """Raises `StudioError` unless the mix is on every module that one of the adapters is on."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    adapters_of = [{key for part in layer.adapter_layer_names for key in getattr(layer, part)} for layer in layers]
    lost = sum(bool(adapters & set(names)) and MIXED not in adapters for adapters in adapters_of)
    if lost:
        raise StudioError(
            f"peft leaves {lost} of the adapted modules out of this mix.", "Mix adapters with the same target modules."
        )


def _save(model: PeftModel, mix: Mix, base: str, folder: Path) -> None:
    """The files of an adapter: peft's, those of the first adapter that say how it is asked, and studio.json."""
    first = mix.parents[0].folder
    for path in carried(first):
        if path.name not in (SETTINGS_FILE, WEIGHTS_FILE, CARD_FILE):
            shutil.copyfile(path, folder / path.name)
    state = get_peft_model_state_dict(model, adapter_name=MIXED, save_embedding_layers=False)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    if broken := sum(not torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise StudioError(f"{broken} matrices of the mix are not finite.", "Use smaller weights or a higher density.")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    model.peft_config[MIXED].inference_mode = True
    model.peft_config[MIXED].save_pretrained(str(folder))
    digests = [_digest(parent.folder / WEIGHTS_FILE) for parent in mix.parents]
    values: JsonObject = {name: value for name, value in read_card(first).values.items() if name not in _OF_TRAINING}
    values |= {"base_model": base, "mixed_from": mix.recipe(digests)}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
