"""The model that a run trains: the base, a fresh adapter on it or one to continue from, and its memory.

A comparison is with where the run began, resumed or not: the trainer loads a checkpoint's weights afterwards.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from lora_studio.config.compute import BALANCED, FSDP
from lora_studio.config.sections import Config
from lora_studio.config.training import NEED_FULL_WEIGHTS
from lora_studio.data.examples import largest_id
from lora_studio.engine.models.adapter import (
    add_adapter,
    as_base,
    continue_adapter,
    fill,
    initial_lora_state,
    other_text,
    take_layout,
)
from lora_studio.engine.models.adapter import train_in_float32 as train_in_float32
from lora_studio.engine.models.load import (
    attention_words,
    dtype_name,
    learned_positions,
    load_model,
    memory_bytes,
    shard_base,
)
from lora_studio.engine.models.multi_adapter import LoadedModel, biases_of
from lora_studio.engine.runtime import EventLog
from lora_studio.engine.train.memory import base_notes, foresee
from lora_studio.engine.train.rows import TrainingRows
from lora_studio.engine.train.settings import padding_free_batches
from lora_studio.errors import StudioError
from lora_studio.jobs.events import MemoryEstimated, ModelLoaded, Warned
from lora_studio.models.adapters import fingerprint
from lora_studio.models.shape import beyond, stored_quantization
from lora_studio.models.shape import read_config as read_numbers


class CardValues(TypedDict):
    """The content of studio.json: what chat, evaluation and export need to use the adapter as in training."""

    base_model: str
    revision: str | None
    base_fingerprint: str
    dtype: str
    quantization: str
    four_bit: dict[str, str | bool] | None
    prompt_style: str
    system_prompt: str | None
    enable_thinking: bool | None
    max_length: int
    run: str
    continued_from: str | None


@dataclass(frozen=True)
class TrainedModel:
    """A base with the adapter that is trained. Inside `bare()` it is the base alone.

    `initial_state` are initial weights taken out of the base, see `adapter.initial_lora_state`;
    `loaded` is the same model with tokenizer and template, to generate with. `sharded`: the base's weights are shared
    out among the processes, which have to compute together. `padding_free`: batches are made without padding.
    """

    model: PeftModel
    loaded: LoadedModel
    initial_state: Mapping[str, torch.Tensor] | None
    bare: Callable[[], AbstractContextManager[None]]
    trainable: int
    parameters: int
    quantization: str
    checkpointing: bool
    foreseen: MemoryEstimated | None
    sharded: bool = False
    padding_free: bool = False


def build_model(
    config: Config, rows: TrainingRows, log: EventLog, *, dtype: torch.dtype, checkpoint: Path | None
) -> TrainedModel:
    """Loads the base and puts the adapter on it. A checkpoint to resume from has an adapter of the same shape."""
    log.phase("model")
    set_seed(config.training.seed)
    sharded = config.compute.strategy == FSDP
    base = load_model(
        config.model.name,
        revision=config.model.revision,
        dtype=config.model.dtype,
        quantization=config.model.quantization,
        attn_implementation=config.model.attn_implementation,
        four_bit=four_bit(config),
        log=log,
        spread=config.compute.strategy == BALANCED,
        on_cpu=sharded,
    )
    stored = stored_quantization(base.config.to_dict())
    for message in check_base(config, base, rows, stored):
        log.emit(Warned(time.time(), message))
    joined, note = padding_free_batches(config, base)
    if note:
        log.emit(Warned(time.time(), note))
    own_biases = biases_of(base)
    attention = attention_words(base, config.model.attn_implementation, dtype)
    if config.model.adapter_name_or_path:
        model, notes = _continued(config, base, rows, checkpoint)
        for message in notes:
            log.emit(Warned(time.time(), message))
    else:
        model = _fresh(config, base, rows, checkpoint)
    initial_state = initial_lora_state(model, config.lora.init_lora_weights)
    trainable, parameters = model.get_nb_trainable_parameters()
    computes_with = base.config._attn_implementation or ""
    log.emit(ModelLoaded(time.time(), parameters, trainable, memory_bytes(), attention, computes_with, joined))
    take_layout(config.model.name, config.model.revision)
    numbers = read_numbers(config.model.name, config.model.revision) or base.config.to_dict()
    for message in base_notes(config):
        log.emit(Warned(time.time(), message))
    checkpointing, foreseen = foresee(config, numbers, rows.prepared.train.longest)
    if foreseen:
        log.emit(foreseen)
    if sharded:
        shard_base(model, config.model.name)
    template: dict[str | None, str] = {None: rows.prepared.template.source}
    return TrainedModel(
        model=model,
        loaded=LoadedModel(config.model.name, model, rows.tokenizer, {}, templates=template),
        initial_state=initial_state,
        bare=partial(as_base, model, initial_state, own_biases),
        trainable=trainable,
        parameters=parameters,
        quantization=config.model.quantization if stored == "none" else stored,
        checkpointing=checkpointing,
        foreseen=foreseen,
        sharded=sharded,
        padding_free=joined,
    )


def _continued(
    config: Config, base: PreTrainedModel, rows: TrainingRows, checkpoint: Path | None
) -> tuple[PeftModel, list[str]]:
    """The adapter that the run continues from, and notes on what it does not take over."""
    start = Path(str(config.model.adapter_name_or_path))
    model, notes = continue_adapter(
        base,
        start if config.training.compares or not checkpoint else checkpoint,
        base=config.model.name,
        revision=config.model.revision,
        dropout=config.lora.lora_dropout,
    )
    embeddings: Any = base.get_input_embeddings()
    known = int(embeddings.weight.shape[0])
    return model, [*notes, *other_text(start, rows.tokenizer, rows.prepared.template.source, known)]


def _fresh(config: Config, base: PreTrainedModel, rows: TrainingRows, checkpoint: Path | None) -> PeftModel:
    """A new adapter; one that a checkpoint overwrites is not filled, unless it is compared with."""
    model = add_adapter(
        base,
        base=config.model.name,
        revision=config.model.revision,
        target=config.lora.target_modules,
        seed=config.training.seed,
        quantized=stored_quantization(base.config.to_dict()) != "none",
        **config.lora.model_dump(exclude={"target_modules", "loraplus_lr_ratio"}),
    )
    if checkpoint is None or config.training.compares:
        fill(
            model,
            config.lora.init_lora_weights,
            base=(config.model.name, config.model.revision),
            rows=rows.prepared.train.answers,
            pad=rows.tokenizer.pad_token_id,
            seed=config.training.seed,
        )
    return model


def studio_card(config: Config, run_id: str, dtype: torch.dtype, prompt_style: str, quantization: str) -> CardValues:
    """The content of studio.json for a run's adapter."""
    return {
        "base_model": config.model.name,
        "revision": config.model.revision,
        "base_fingerprint": fingerprint(config.model.name, config.model.revision),
        "dtype": dtype_name(dtype),
        "quantization": quantization,
        "four_bit": four_bit(config),
        "prompt_style": prompt_style,
        "system_prompt": config.data.system_prompt,
        "enable_thinking": config.data.enable_thinking,
        "max_length": config.data.max_length,
        "run": run_id,
        "continued_from": config.model.adapter_name_or_path,
    }


def four_bit(config: Config) -> dict[str, str | bool] | None:
    """The settings of 4-bit weights by name; None for a base without them."""
    if config.model.quantization != "4bit":
        return None
    return {name: value for name, value in config.model.model_dump().items() if name.startswith("bnb_4bit_")}


def check_base(config: Config, base: Any, rows: TrainingRows, stored: str) -> Iterator[str]:
    """Notes on the loaded base. Raises `StudioError` if it cannot read the rows, or does not support the adapter's
    initialization."""
    prepared = rows.prepared
    parts = [part for part in (prepared.train, prepared.validation) if len(part)]
    error = beyond(
        config.model.name,
        embeddings=base.get_input_embeddings().weight.shape[0],
        positions=learned_positions(base),
        largest_id=max(map(largest_id, parts)),
        longest=max(part.longest for part in parts),
    )
    if error is not None:
        raise error
    if stored == "none":
        return
    if config.lora.init_lora_weights in NEED_FULL_WEIGHTS:
        raise StudioError(
            f"The base is stored in {stored}, which does not support the initialization "
            f"{config.lora.init_lora_weights}.",
            "Set lora.init_lora_weights to default, or use a 16-bit version of the base.",
        )
    if config.model.quantization == "none":
        yield f"The base is stored in {stored} and is trained that way, as with model.quantization {stored}."
