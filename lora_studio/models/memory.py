"""The memory that a run needs, by part, computed from its config and the model's config.json.

The counts for a training step follow the modelling code of transformers 5 and peft 0.21 tensor by tensor; a test
compares them with the tensors that autograd saves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_studio.config.fields import SettingValues
from lora_studio.config.sections import Config, Training
from lora_studio.files import JsonObject
from lora_studio.models.accelerators import DEVICE_KINDS, EAGER, MIB, expected_attention, is_flash, repeats_keys
from lora_studio.models.adapter_files import WEIGHTS_FILE
from lora_studio.models.hardware import Device
from lora_studio.models.shape import Architecture, Linear, Stack, shape_of
from lora_studio.models.targets import Adapter, adapter, expert_rank, names

GATED = ("gate_proj", "gate_up_proj")
UNLIMITED = 1 << 60
"""Bytes to choose settings for on devices whose memory is not known."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a step computes: bytes of a number in matrix products (2 for 16-bit), and what stands around it.

    `mixed` says that adapter weights are 32-bit below 16-bit products; `quantized` that the base is in 8 or 4 bits;
    `mask_bytes` what a dropout keeps for each number (one byte in PyTorch's fused kernel, else the number's size);
    `masked` that attention gets a mask, as it does for rows that share a sequence; `repeats` that keys and values are
    repeated for every head without one too.
    """

    width: int
    mixed: bool
    quantization: str
    dropout: bool
    mask_bytes: int
    eager: bool = False
    masked: bool = False
    repeats: bool = False


def layer_bytes(model: Architecture, adapter: Adapter, how: Arithmetic, sequence: int, layer: int) -> int:
    """Bytes that one layer keeps for each token of a sequence of that length."""
    present = [item for item in model.linears if layer in item.layers]
    adapted = {item.name for item, _ in adapter.targets}
    return (
        _norms(model, how)
        + _attention(model, how, sequence)
        + _inputs(present, adapted, adapter.rank, how)
        + _feed_forward(model, present, how, layer)
        + sum(_dora(item, how) for item in present if item.name in adapted and adapter.magnitudes)
    )


def _norms(model: Architecture, how: Arithmetic) -> int:
    """An RMS norm computes in 32 bits and keeps that copy and one scale; Phi's layer norm keeps its input as it is."""
    if model.family == "phi":
        return how.width * model.hidden + 8
    over_heads = (model.heads + model.kv_heads) * (model.head_size + 1) if model.head_norms else 0
    return 4 * (model.norms_a_layer * (model.hidden + 1) + over_heads)


def _attention(model: Architecture, how: Arithmetic, sequence: int) -> int:
    """Queries, keys, values, output and one 32-bit sum a head (Dao et al. 2022, arXiv:2205.14135).

    PyTorch's own attention under a mask repeats keys and values for every head, and keeps the mask as numbers; without
    one, values that are a part of a larger matrix product keep all of that. Eager attention keeps the whole matrix of
    weights, in 32 bits and in the width of the products.
    """
    queries, keys = model.heads * model.head_size, model.kv_heads * model.head_size
    whole = queries + 2 * keys if any(item.leaf == "qkv_proj" for item in model.linears) else 0
    repeated = queries if how.masked or how.eager or how.repeats else keys
    if how.eager:
        weights = model.heads * sequence * (4 if how.width == 4 else 4 + how.width)
        return how.width * (queries + 2 * repeated) + weights
    stored = how.width * (2 * queries + repeated + (whole if whole and repeated == keys else repeated))
    return stored + 4 * model.heads + (how.width * sequence if how.masked else 0)


def _inputs(present: list[Linear], adapted: set[str], rank: int, how: Arithmetic) -> int:
    """What adapters keep: each its input (after dropout) and its r numbers; inputs that modules share are kept once."""
    stored = 0
    shared: set[str] = set()
    for item in present:
        place = _place(item)
        if how.quantization == "8bit" and place not in shared:
            shared.add(place)  # bitsandbytes' MatMul8bitLt holds its 16-bit input
            stored += 0 if place == "output" else how.width * item.inputs
        if item.name not in adapted:
            continue
        stored += how.width * rank
        copies = how.dropout or _copied(how)
        if how.dropout:
            stored += how.mask_bytes * item.inputs
        if copies:
            stored += how.width * item.inputs
        elif place not in shared:
            shared.add(place)  # attention's own output is kept by attention
            stored += 0 if place == "output" else how.width * item.inputs
    return stored


def _place(item: Linear) -> str:
    """Which tensor a module reads: modules of the same place read the same one."""
    places = {
        "q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "qkv_proj": "attention",
        "o_proj": "output", "dense": "output",
        "gate_proj": "mlp", "up_proj": "mlp", "gate_up_proj": "mlp", "fc1": "mlp", "shared_expert_gate": "mlp",
    }  # fmt: skip
    return places.get(item.leaf, item.name)


def _feed_forward(model: Architecture, present: list[Linear], how: Arithmetic, layer: int) -> int:
    """A gated layer keeps the gate before and after its activation, and the other factor.

    Experts keep the same for each of the experts that a token goes to, and their gathered inputs.
    """
    stored = 0
    for item in present:
        if item.leaf in GATED:
            inner = item.outputs // 2 if item.leaf == "gate_up_proj" else item.outputs
            stored += how.width * 3 * inner
        elif item.leaf == "fc1":
            stored += how.width * 4 * item.outputs  # the steps of GELU's approximation by tanh
    for stack in model.stacks:
        if layer in stack.layers and _is_down(stack):
            stored += how.width * model.active_experts * (4 * stack.inputs + 2 * model.hidden)
    return stored


def _dora(item: Linear, how: Arithmetic) -> int:
    """DoRA keeps the base's and the adapter's answer for the gradient of the magnitudes."""
    return 2 * how.width * item.outputs


def fixed_bytes(model: Architecture, adapter: Adapter, how: Arithmetic, layer: int) -> int:
    """Bytes that one layer keeps however many tokens there are.

    peft's DoRA sends an identity matrix through the adapter and, with dropout, multiplies by a copy of the weights.
    Experts and other parameters with an adapter are multiplied by a copy of their weights too (peft 0.21, `dora.py` and
    `ParamWrapper`).
    """
    stored = 0
    for item, _ in adapter.targets:
        if adapter.magnitudes and layer in item.layers:
            stored += how.width * item.inputs * (item.inputs + adapter.rank) + 12 * item.outputs
            stored += how.width * item.weights if how.dropout and how.mixed else 0
        if item.name in adapter.wrapped and layer in item.layers:
            stored += how.width * item.weights
    return stored + sum(how.width * stack.weights for stack in adapter.stacks if layer in stack.layers)


def forward_bytes(model: Architecture, trained: Adapter, how: Arithmetic) -> int:
    """Bytes a token that stand beside what is kept while the last layer's adapters compute.

    peft hands an adapter its input in the adapter's own 32 bits (`_cast_input_dtype`), which dropout doubles before
    autocast makes the 16-bit copy that is kept. Six tensors are as wide as the layer: the residual, the norm's output,
    the base's answer, the adapter's before and after scaling, and their sum.
    """
    inner = [0, *(how.width * model.active_experts * model.hidden * 2 for stack in model.stacks[:1])]
    adapted = {item.name for item, _ in trained.targets}
    for item in model.linears:
        separate = item.name not in adapted or how.dropout or _copied(how)
        cast = 4 * (1 + how.dropout) if item.name in adapted and _copied(how) else 0
        inner.append((how.width * separate + cast) * item.inputs)
    return max(inner) + 6 * how.width * model.hidden


def backward_bytes(model: Architecture, trained: Adapter, how: Arithmetic) -> int:
    """Bytes a token that stand beside what is kept while gradients go back through the last layer's widest modules.

    A module's input gets one gradient from the base and one from the adapter, which in mixed precision passes through
    32 bits, twice where dropout is undone; the adapter's own input is free by then. The two factors of a gated layer
    get one each from the gradient of their product.
    """
    inner = [0, *(how.width * model.active_experts * stack.inputs for stack in model.stacks if _is_down(stack))]
    adapted = {item.name for item, _ in trained.targets}
    for item in model.linears:
        freed = how.width * (item.name in adapted)
        cast = how.width + 4 * (1 + how.dropout) if item.name in adapted and _copied(how) else 2 * how.width
        gated = 3 * how.width if item.leaf == "down_proj" else 0
        inner.append((max(cast, gated) - freed) * item.inputs)
    return max(inner) + how.width * model.hidden


def _copied(how: Arithmetic) -> bool:
    """Whether adapters get a copy of their input in their own precision; above bitsandbytes' modules autocast casts."""
    return how.mixed and how.quantization == "none"


def expert_gradients(adapter: Adapter, how: Arithmetic) -> int:
    """The gradient of the weights that experts and their adapters were merged into, at its largest: those of
    `down_proj` come first, and its merged weights are free before those of `gate_up_proj` come."""
    sizes = {stack.name.rpartition(".")[2]: how.width * stack.weights for stack in adapter.stacks}
    down = sizes.get("down_proj", 0)
    return max(down, sizes.get("gate_up_proj", 0) - down)


def _is_down(stack: Stack) -> bool:
    return stack.name.endswith("down_proj")


PARTS = {
    "weights": ("Base model", "Weights of the base model as loaded."),
    "adapter": ("Adapter", "Trained weights in 32-bit, and their copies in the compute dtype."),
    "gradients": ("Gradients", "One 32-bit number per trained weight."),
    "optimizer": ("Optimizer", "State of the optimizer for each trained weight."),
    "activations": ("Activations", "Stored between forward and backward pass."),
    "logits": ("Loss", "Logits of the vocabulary, computed in tiles if the loss allows it."),
    "overhead": ("System", "Memory of driver and libraries, and fragmentation of the allocator."),
}
"""The parts by their keys: title, and what they are in a sentence."""
TILE_TOKENS, TILE_WORDS = 4096, 32_768  # trl 1.16: trl/kernels/chunked_logprob.py, trl/trainer/utils.py
MAX_SCORES = 2**25
"""Tokens times words whose scores a step on the CPU holds until its backward pass, see `engine.train.fused`."""
PAGE = 4096  # bytes that Linux gives at once: of each row of the buffer, up to one more than its words need
COMFORTABLE = 0.9  # of the memory there is; above it a run may or may not fit


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by part, what learns, and how the step computes. `exact` is False where what a step keeps is guessed,
    `counted` where even the parameters are. `copies` processes take them together, where they share a device."""

    parts: dict[str, int]
    parameters: int
    trainable: int
    gradient_checkpointing: bool
    tokens_at_once: int
    device: str
    exact: bool
    counted: bool = True
    copies: int = 1

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def measurable(self) -> int:
        """What PyTorch's counter sees of it in one process: all but the driver's memory on a GPU, all on the CPU."""
        return self.total // self.copies - DEVICE_KINDS[self.device].library_bytes

    @property
    def share(self) -> float:
        """Trained share of all parameters, adapter included, as peft counts it."""
        return self.trainable / self.parameters

    def to_dict(self) -> JsonObject:
        return {**asdict(self), "total": self.total, "measurable": self.measurable, "share": self.share}


def estimate(config: Config, model: Architecture, device: str, longest: int | None = None) -> Estimate:
    """What a run of `config` needs on each device of that kind (one of `accelerators.DEVICE_KINDS`).

    `longest` is the longest row in tokens where it is known; else every row is taken to fill `data.max_length`.
    Checkpointing left to "auto" is counted as off: `choose_checkpointing` settles it.
    """
    how = arithmetic(config, device, quantization_of(config, model))
    trained = trained_adapter(config, model)
    sequence = min(config.data.max_length, longest or config.data.max_length)
    checkpointing = config.training.gradient_checkpointing is True
    activations, logits = _step(config, model, trained, how, sequence, checkpointing)
    kind = DEVICE_KINDS[device]
    parts = {
        "weights": weight_bytes(
            model,
            quantization_of(config, model),
            weight_width(config, device),
            doubly=config.model.bnb_4bit_use_double_quant,
        ),
        "adapter": (1 + _has_reference(config)) * trained.added * 4
        + (trained.trainable * 2 // (model.layers if checkpointing else 1) if how.mixed else 0),
        "gradients": trained.trainable * 4,
        "optimizer": optimizer_bytes(config.training.optim, model, trained, config.lora.r),
        "activations": activations,
        "logits": logits,
        "overhead": kind.context + kind.workspace + round(kind.reserve * (activations + logits)),
    }
    copies = 1 if kind.is_gpu else config.compute.world_size
    return Estimate(
        parts={name: copies * octets for name, octets in _on_each(parts, config, model, trained).items()},
        parameters=model.parameters + trained.added,
        trainable=trained.trainable,
        gradient_checkpointing=checkpointing,
        tokens_at_once=sequences_at_once(config) * sequence,
        device=device,
        exact=model.exact and not model.stacks,
        counted=model.counted,
        copies=copies,
    )


def _on_each(parts: Mapping[str, int], config: Config, model: Architecture, trained: Adapter) -> dict[str, int]:
    """The parts on each of several devices. DDP gathers the gradients in buckets of their size (torch's Reducer). FSDP
    keeps a share of the base and the whole output layer, and two layers whole while it computes; `balanced` gives each
    device its layers."""
    compute = config.compute
    if compute.strategy == "balanced":
        split = ("weights", "adapter", "gradients", "optimizer", "activations")
        return {name: octets // max(1, compute.gpus) if name in split else octets for name, octets in parts.items()}
    if compute.world_size == 1:
        return dict(parts)
    if compute.strategy == "fsdp":
        whole = parts["weights"]
        output = whole * model.embeddings // model.parameters
        shared = whole - (0 if model.tied else output)
        return {**parts, "weights": shared // compute.world_size + 2 * whole // max(1, model.layers) + output}
    return {**parts, "gradients": parts["gradients"] + trained.trainable * 4}


def trained_adapter(config: Config, model: Architecture) -> Adapter:
    """The adapter that a config asks for, on this model."""
    lora = config.lora
    return adapter(
        model,
        r=lora.r,
        target_modules=lora.target_modules,
        bias=lora.bias,
        use_dora=lora.use_dora,
        modules_to_save=names(lora.modules_to_save or ""),
        quantized=quantization_of(config, model) != "none",
    )


def _has_reference(config: Config) -> bool:
    """Whether a second adapter stands beside the trained one: a comparison with an adapter that is not the bare base.

    The reference's own pass needs no more than what stands there already: it keeps nothing, and computes its layers and
    scores one after the other, as the loss and the backward pass of the trained model do at another moment.
    """
    begun = config.model.adapter_name_or_path is not None or config.lora.init_lora_weights in ("loftq", "orthogonal")
    return config.training.compares and begun


def weight_width(config: Config, device: str) -> int:
    """Bytes of an unquantized weight: auto is 16 bits on a GPU and 32 on the CPU (see engine/models/load.py)."""
    dtype = config.model.dtype
    return auto_width(device) if dtype == "auto" else 4 if dtype == "float32" else 2


def auto_width(device: str) -> int:
    """Bytes of a weight in the precision that a device computes in of itself."""
    return 2 if DEVICE_KINDS[device].is_gpu else 4


def quantization_of(config: Config, model: Architecture) -> str:
    """The bits that the base is computed from: as it is stored, else as it is chosen."""
    return config.model.quantization if model.stored == "none" else model.stored


def arithmetic(config: Config, device: str, quantization: str | None = None) -> Arithmetic:
    """How the step computes: 16-bit bases train under mixed precision on a GPU; the CPU computes as the weights are."""
    width, kind = weight_width(config, device), DEVICE_KINDS[device]
    training = config.training
    attends = expected_attention(config.model.attn_implementation, device, config.model.dtype).name
    return Arithmetic(
        width=width,
        mixed=width == 2 and kind.is_gpu,
        quantization=quantization or config.model.quantization,
        dropout=config.lora.lora_dropout > 0,
        mask_bytes=1 if kind.fused else width if kind.is_gpu else 4,
        eager=attends == EAGER or kind.whole_attention,
        masked=not is_flash(attends) and (training.packing or training.padding_free is True),
        repeats=repeats_keys(device, half=width == 2),
    )


def weight_bytes(model: Architecture, quantization: str, width: int, *, doubly: bool = True) -> int:
    """The base's weights. bitsandbytes quantizes the linear modules in the layers and nothing else: embeddings, output
    layer, norms, biases and stacked experts stay `width` bytes a number.

    8-bit: one byte a weight and a 32-bit scale a row (Dettmers et al. 2022, arXiv:2208.07339). 4-bit: half a byte, an
    8-bit scale for each 64 weights and a 32-bit one for each 256 of these scales (Dettmers et al. 2023,
    arXiv:2305.14314, section 3), and the tables of the two kinds of numbers; without double quantization (`doubly`)
    the first scales have 32 bits.
    """
    if quantization == "none":
        return model.parameters * width
    unquantized = (model.parameters - model.linear_weights) * width
    total = 0
    for item in model.linears:
        if quantization == "8bit":
            module_bytes = item.weights + 4 * item.outputs
        else:
            scales = math.ceil(item.weights / 64)
            scale_bytes = scales + 4 * math.ceil(scales / 256) + 4 * (256 + 1) if doubly else 4 * scales
            module_bytes = math.ceil(item.weights / 2) + scale_bytes + 4 * 16
        total += module_bytes * len(item.layers)
    return unquantized + total


def optimizer_bytes(optim: str, model: Architecture, trained: Adapter, r: int) -> int:
    """What the optimizer remembers. Adam: two numbers a weight (Kingma and Ba 2015); Lion, Adagrad, RMSprop: one; plain
    SGD none; AdEMAMix three. 8-bit: one byte a number and a 32-bit scale for each 256 (Dettmers et al. 2022,
    arXiv:2110.02861). Adafactor: one number a row and one a column (Shazeer and Stern 2018).
    """
    if optim == "adafactor":
        rows = sum((2 * r + item.inputs + item.outputs) * layers for item, layers in trained.targets)
        for stack in trained.stacks:  # two matrices for all experts together
            ranks = expert_rank(r, stack.experts) * stack.experts
            rows += (2 * ranks + stack.inputs + stack.outputs) * len(stack.layers)
        return 4 * (rows + trained.magnitudes + trained.biases)
    name = optim.removeprefix("paged_")
    moments = {"sgd": 0, "lion": 1, "adagrad": 1, "rmsprop": 1, "ademamix": 3}.get(name.partition("_")[0], 2)
    width = 1 + 4 / 256 if name.endswith("8bit") else 4
    return round(trained.trainable * moments * width)


def _step(
    config: Config, model: Architecture, trained: Adapter, how: Arithmetic, sequence: int, checkpointing: bool
) -> tuple[int, int]:
    """Bytes of activations, and what the loss needs beyond them, at the moment when both together are largest.

    With checkpointing a layer keeps its input only and is computed again when its turn comes (Chen et al. 2016,
    arXiv:1604.06174): the inputs of all layers and the whole of one. Three moments can be the largest, and are not
    added: the last layer's feed-forward part on its way forward, the loss with the last norm, and the way back.
    """
    training = config.training
    tokens = sequences_at_once(config) * sequence
    span = tokens if training.packing or training.padding_free is True else sequence
    layers = [layer_bytes(model, trained, how, span, layer) * tokens for layer in range(model.layers)]
    layers = [octets + fixed_bytes(model, trained, how, layer) for layer, octets in enumerate(layers)]
    stored = _stored_layers(training, layers, how.width * model.hidden * tokens, checkpointing)
    again = max(layers) if checkpointing else 0
    unpacked = _dequantized(model, how.quantization)
    forward = again + forward_bytes(model, trained, how) * tokens + unpacked
    backward = again + backward_bytes(model, trained, how) * tokens + max(unpacked, expert_gradients(trained, how))
    scored = (4 + how.width) * model.hidden * tokens + loss_bytes(config, model, how, tokens)
    working = max(forward, backward)
    return stored + working, max(0, scored - working)


def _stored_layers(training: Training, layers: list[int], inputs: int, checkpointing: bool) -> int:
    """Bytes on the device between the passes, of `layers` as each keeps them and the `inputs` that one reads.

    transformers checkpoints each n-th layer, the first among them, and holds what it keeps of them in the machine's
    memory if asked to (`activation_checkpointing_enable`): then one is on its way while another computes. trl's
    offloading moves all that a layer keeps, at most two layers late (`OffloadActivations`).
    """
    if training.activation_offloading:
        return 2 * (inputs if checkpointing else max(layers))
    if not checkpointing:
        return sum(layers)
    every = training.gradient_checkpointing_every_n_layers
    whole = sum(octets for layer, octets in enumerate(layers) if layer % every)
    checkpointed = len(range(0, len(layers), every))
    return whole + inputs * (min(2, checkpointed) if training.gradient_checkpointing_offload else checkpointed)


def _dequantized(model: Architecture, quantization: str) -> int:
    """The largest matrix in 16 bits: a quantized one is unpacked to be multiplied."""
    return 0 if quantization == "none" else 2 * max(item.weights for item in model.linears)


def loss_bytes(config: Config, model: Architecture, how: Arithmetic, tokens: int) -> int:
    """The loss and what it hands to the backward pass: the gradient of the last layer's output, in 32 bits.

    trl 1.16 scores at most 4,096 tokens against 32,768 words at a time, on a GPU in one buffer, elsewhere in about six
    32-bit copies of it. The buffer is as wide for a small vocabulary; on the CPU its untouched pages cost nothing.
    Few scores are held there whole, in three copies (`engine.train.fused`).
    Label smoothing takes the scores of all words: as they come, in 32 bits, and their gradient.
    """
    hidden = (4 + 2 * how.width) * model.hidden * tokens
    if config.training.label_smoothing_factor > 0:
        return hidden + tokens * model.vocabulary * (how.width + 4 + 4)
    rows, words = min(tokens, TILE_TOKENS), min(model.vocabulary, TILE_WORDS)
    if how.mask_bytes == 1:
        return hidden + rows * TILE_WORDS * how.width
    scores = tokens * model.vocabulary
    if scores <= MAX_SCORES:
        return hidden + 3 * 4 * scores
    touched = min(words * how.width + PAGE, TILE_WORDS * how.width)
    return hidden + max(rows * (touched + words * 5 * 4), 3 * 4 * MAX_SCORES)


def checkpoint_bytes(config: Config, model: Architecture) -> int:
    """A checkpoint on the disk: adapter and optimizer state, and the tokenizer with the small files."""
    return learned_bytes(config, model) + 16 * MIB


def learned_bytes(config: Config, model: Architecture) -> int:
    """Of a checkpoint on the disk adapter and optimizer state alone."""
    trained = trained_adapter(config, model)
    return trained.trainable * 4 + optimizer_bytes(config.training.optim, model, trained, config.lora.r)


def verdict(total: float, available: int) -> str:
    """ "fits", "tight" or "does not fit"."""
    return "fits" if total <= COMFORTABLE * available else "tight" if total <= available else "does not fit"


def choose_checkpointing(
    config: Config, model: Architecture, device: str, available: int, longest: int | None = None
) -> bool:
    """Whether to checkpoint: as the config says, and left to "auto" only where a GPU would not comfortably do without.

    On the CPU the memory is rarely short and the time always is.
    """
    setting = config.training.gradient_checkpointing
    if setting != "auto":
        return setting
    without = estimate(with_settings(config, {"training.gradient_checkpointing": False}), model, device, longest)
    return DEVICE_KINDS[device].is_gpu and verdict(without.total, available) != "fits"


def sequences_at_once(config: Config) -> int:
    """Sequences that are in memory together: rows, of which a pair to compare has two."""
    return config.training.per_device_train_batch_size * (2 if config.training.method == "dpo" else 1)


def settled(config: Config, model: Architecture, device: str, available: int, longest: int | None = None) -> Config:
    """The config with checkpointing decided."""
    checkpointing = choose_checkpointing(config, model, device, available, longest)
    return with_settings(config, {"training.gradient_checkpointing": checkpointing})


def with_settings(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with some settings, by path, replaced by values that are known to be right: nothing is checked."""
    sections: dict[str, SettingValues] = {}
    for path, value in changes.items():
        section, _, leaf = path.rpartition(".")
        sections.setdefault(section, {})[leaf] = value
    update = sections.pop("", {})
    update |= {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=update)


SPARE = 1.1  # of weights and cache: what computing needs beside them


@dataclass(frozen=True, slots=True)
class MemoryVerdict:
    """What a job or a chat needs and what is free, in bytes.

    `need` is None for a base whose numbers are not on this machine.
    """

    need: int | None
    free: int
    device: Device

    @property
    def fits(self) -> bool:
        return self.need is None or self.need <= self.free


def model_bytes(
    base: str, revision: str | None, quantization: str, adapters: Sequence[Path], device: str, tokens: int
) -> int | None:
    """Memory of a base with these adapters' folders and the keys and values of so many tokens; None where the base's
    numbers are not on this machine."""
    model = shape_of(base, revision)
    if model is None:
        return None
    width = auto_width(device)
    weights = weight_bytes(model, quantization if model.stored == "none" else model.stored, width)
    learned = sum((folder / WEIGHTS_FILE).stat().st_size for folder in adapters)
    return round(SPARE * (weights + model.cache_bytes(width) * tokens)) + learned + DEVICE_KINDS[device].context


def memory_verdict(
    base: str, revision: str | None, quantization: str, adapters: Sequence[Path], tokens: int, device: Device
) -> MemoryVerdict:
    """The same beside what is free on a device now."""
    need = model_bytes(base, revision, quantization, adapters, device.kind, tokens)
    return MemoryVerdict(need, device.memory_free, device)
