"""Settings of training with rules of their own: methods that compare good answers with bad ones, speed and memory.

`sections.Training` inherits `Speed`. What only some devices have is refused elsewhere with a reason
(`speed_conflicts`); docs/speed.md says what each switch is worth, and who measured it.
"""

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lora_studio.config.compute import BALANCED, FSDP
from lora_studio.config.fields import Section, setting
from lora_studio.models.accelerators import (
    CPU,
    HOST_MEMORY,
    PINNED,
    TF32,
    TORCH_COMPILE,
    TRITON_KERNELS,
    missing,
)

LEARNING_RATES: Mapping[str, float] = {"sft": 2e-4, "dpo": 5e-6, "kto": 1e-6}
"""The default learning rate of each method: those of LoRA in trl's documentation (`peft_integration`,
`kto_trainer`)."""
COMPARING_METHODS = ("dpo", "kto")
"""The methods that compare good answers with bad ones, and both with the model that the run began with."""
NEED_FULL_WEIGHTS = ("pissa", "pissa_niter_16", "olora")
"""First weights of an adapter that are taken out of the base's own weights."""


def default_rate(method: Any) -> float:
    """The default learning rate of a method; that of SFT for a name that is no method."""
    return LEARNING_RATES.get(str(method), LEARNING_RATES["sft"])


class Preference(Section):
    """Preference training against the base without its adapter: DPO (Rafailov et al. 2023, arXiv:2305.18290) and KTO
    (Ethayarajh et al. 2024, arXiv:2402.01306)."""

    beta: float = setting(0.1, "Beta", "Higher values keep the model closer to the base.", gt=0, le=100)
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust"] = setting(
        "sigmoid",
        "DPO loss",
        "sigmoid is standard DPO. robust allows for noisy pairs.",
        details="hinge and ipo stop at a margin.",
    )
    label_smoothing: float = setting(
        0.0,
        "Label smoothing (noisy pairs)",
        "Estimated share of wrongly labelled pairs. Used by the robust loss.",
        ge=0,
        lt=0.5,
    )
    desirable_weight: float = setting(
        1.0,
        "Desirable weight",
        "Loss weight of good answers. Raise it if they are rare.",
        details="Good answers times this weight should be 1 to 4/3 times bad answers times theirs.",
        gt=0,
        le=1000,
    )
    undesirable_weight: float = setting(
        1.0,
        "Undesirable weight",
        "Loss weight of bad answers. Raise it if they are rare.",
        gt=0,
        le=1000,
    )


def preference_contradictions(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What does not go with learning by comparison, and what goes with nothing else: the path of a setting and what is
    wrong with it. `values` are all settings by path."""
    method, best = values["training.method"], values["evaluation.metric_for_best_model"]
    if values["preference.label_smoothing"] and values["preference.loss_type"] != "robust":
        yield "preference.label_smoothing", "is only used if preference.loss_type is robust"
    if method not in COMPARING_METHODS:
        if best.startswith("reward_"):
            words = f"cannot be {best}, which is only measured if training.method is dpo or kto"
            yield "evaluation.metric_for_best_model", words
        return
    is_pairs = method == "dpo"
    if values["training.packing"]:
        rows = "pairs" if is_pairs else "good and bad answers"
        yield "training.packing", f"must be off if training.method is {method}: {rows} are not packed"
    if values["training.label_smoothing_factor"]:
        instead = "dpo has preference.label_smoothing" if is_pairs else "kto has no label smoothing"
        yield "training.label_smoothing_factor", f"requires training.method sft; {instead}"
    if values["training.neftune_noise_alpha"]:
        yield "training.neftune_noise_alpha", "requires training.method sft: noise would disturb the comparison"
    if values["data.train_on"] == "all":
        yield "data.train_on", f"cannot be all if training.method is {method}, which compares answers"
    if (start := values["lora.init_lora_weights"]) in NEED_FULL_WEIGHTS:
        words = f"cannot be {start} if training.method is {method}, which compares with the unchanged base"
        yield "lora.init_lora_weights", words
    if values["lora.bias"] != "none":
        yield "lora.bias", f"must be none if training.method is {method}, which compares with the base's own biases"
    if values["evaluation.labels"]:
        yield "evaluation.labels", f"requires training.method sft; {method} measures which answer is preferred"
    if method == "kto":
        yield from _kto(values)


def _kto(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What KTO needs beyond DPO. Its KL term is estimated by giving each prompt of a batch the answer of another one,
    so that trl refuses a batch of one row too."""
    for path in ("training.per_device_train_batch_size", "evaluation.per_device_eval_batch_size"):
        if values[path] < 2:
            yield path, "must be at least 2 if training.method is kto, which estimates KL within a batch"
    if values["preference.loss_type"] != "sigmoid":
        yield "preference.loss_type", "requires training.method dpo; kto has a loss of its own"
    if values["preference.label_smoothing"]:
        yield "preference.label_smoothing", "requires training.method dpo; kto has a loss of its own"


SPEED = "Speed and memory"


class Speed(Section):
    """What makes a training step faster or smaller without changing what it learns."""

    packing: bool = setting(
        False,
        "Packing",
        "Packs several short rows into one sequence of the max length.",
        details="Rows in one sequence do not attend to each other. Fast with FlashAttention; other attention reads a"
        " mask of the whole sequence. Models with linear attention cannot pack.",
        group="Duration and memory",
    )
    padding_free: bool | Literal["auto"] = setting(
        "auto",
        "Padding-free batches",
        "Joins the rows of a batch without padding. auto: on with FlashAttention.",
        details="Rows do not attend to each other. Other attention reads a mask of the whole batch, which costs time."
        " Models with linear attention cannot do it.",
        group="Duration and memory",
    )
    train_sampling_strategy: Literal["random", "group_by_length"] = setting(
        "group_by_length",
        "Batch sampling",
        "group_by_length batches rows of similar length, which reduces padding.",
        group="Duration and memory",
    )
    gradient_checkpointing: bool | Literal["auto"] = setting(
        "auto",
        "Gradient checkpointing",
        "Saves memory and costs time. auto: on if a GPU needs it.",
        group=SPEED,
    )
    gradient_checkpointing_every_n_layers: int = setting(
        1,
        "Checkpoint every n layers",
        "2 checkpoints every second layer: faster, and needs more memory.",
        group=SPEED,
        ge=1,
        le=1000,
    )
    gradient_checkpointing_offload: bool = setting(
        False,
        "Offload checkpoints",
        "Keeps checkpoints in the machine's memory instead of the GPU's. Slower.",
        group=SPEED,
    )
    activation_offloading: bool = setting(
        False,
        "Activation offloading",
        "Keeps activations in the machine's memory instead of the GPU's. Slower.",
        group=SPEED,
    )
    torch_compile: bool = setting(
        False,
        "Compile (torch.compile)",
        "Compiles the model. The first steps take minutes, later ones less.",
        details="Rows of new lengths can compile again.",
        group=SPEED,
    )
    use_liger_kernel: bool = setting(
        False,
        "Liger kernels",
        "Triton kernels for norms and MLP, from the package liger-kernel.",
        group=SPEED,
    )
    tf32: bool = setting(
        False,
        "TF32",
        "Faster float32 matrix products on NVIDIA GPUs, with 10 bits of precision.",
        group=SPEED,
    )
    dataloader_num_workers: int = setting(
        0,
        "Data loader workers",
        "Processes that prepare batches. 0: the training process does it.",
        details="Rows are tokenized before training, so that a batch takes little work.",
        group=SPEED,
        ge=0,
        le=64,
    )
    dataloader_pin_memory: bool = setting(
        True,
        "Pinned memory",
        "Copies batches to the GPU from page-locked memory.",
        group=SPEED,
    )


def speed_contradictions(training: Speed, method: str, strategy: str) -> Iterator[tuple[str, str]]:
    """Switches that don't go together on any machine: the path of a setting and what is wrong with it."""
    if training.padding_free is True and training.packing:
        yield "training.padding_free", "must be auto or false if training.packing is on: packed rows have no padding"
    if training.padding_free is True and method != "sft":
        yield "training.padding_free", "requires training.method sft: trl pads pairs"
    if training.gradient_checkpointing is False:
        if training.gradient_checkpointing_offload:
            yield "training.gradient_checkpointing_offload", "requires training.gradient_checkpointing"
        if training.gradient_checkpointing_every_n_layers > 1:
            yield "training.gradient_checkpointing_every_n_layers", "requires training.gradient_checkpointing"
    if training.activation_offloading and training.gradient_checkpointing_offload:
        yield "training.activation_offloading", "already holds what training.gradient_checkpointing_offload would"
    if strategy in (FSDP, BALANCED):
        for name in ("torch_compile", "activation_offloading"):
            if getattr(training, name):
                yield f"training.{name}", f"requires compute.strategy ddp; it is untested with {strategy}"


def speed_conflicts(training: Speed, dtype: str, kind: str) -> Iterator[tuple[str, str]]:
    """Switches that a device of that kind (one of `accelerators.DEVICE_KINDS`) does not have, or whose package is not
    installed: the path of a setting and why. `dtype` is the setting `model.dtype`."""
    needs = {
        "gradient_checkpointing_offload": HOST_MEMORY,
        "activation_offloading": HOST_MEMORY,
        "torch_compile": TORCH_COMPILE,
        "use_liger_kernel": TRITON_KERNELS,
        "tf32": TF32,
    }
    for name, feature in needs.items():
        if not getattr(training, name) or (name == "tf32" and dtype != "float32"):
            continue
        reason = missing(kind, feature) or (_no_compiler(kind) if name == "torch_compile" else "")
        if name == "use_liger_kernel" and not reason and importlib.util.find_spec("liger_kernel") is None:
            reason = "the package liger-kernel is not installed (pip install liger-kernel)"
        if reason:
            yield f"training.{name}", f"cannot be used here: {reason}; turn it off"


def _no_compiler(kind: str) -> str:
    """Why torch.compile has nothing to compile with: C++ on the CPU, Triton on a GPU. "" where it has."""
    if kind == CPU:
        compiles = any(map(shutil.which, ("g++", "clang++", "cl")))
        return "" if compiles else "it needs a C++ compiler, such as g++"
    return "" if importlib.util.find_spec("triton") else "the package triton is not installed"


def pins_memory(training: Speed, kind: str) -> bool:
    """Whether batches are put into page-locked memory: on request, where a device reads from it."""
    return training.dataloader_pin_memory and not missing(kind, PINNED)


def checkpointing_arguments(training: Speed) -> dict[str, int | bool]:
    """transformers' `gradient_checkpointing_kwargs` (`offload` since 5.16, `every_n_layers` since 5.17); none where
    every layer is checkpointed on the device."""
    arguments: dict[str, int | bool] = {}
    if training.gradient_checkpointing_every_n_layers > 1:
        arguments["every_n_layers"] = training.gradient_checkpointing_every_n_layers
    if training.gradient_checkpointing_offload:
        arguments["offload"] = True
    return arguments
