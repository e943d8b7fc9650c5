"""What a training step keeps in memory between forward and backward, counted tensor by tensor for one token.

The counts follow the modelling code of transformers 5 and peft 0.21: a frozen matrix keeps no input, an adapter keeps
its own. A test compares them with the tensors that PyTorch's autograd really saves.
"""

from dataclasses import dataclass

from lora_studio.architecture import Architecture, Linear
from lora_studio.lora_size import Adapter

GATED = ("gate_proj", "gate_up_proj")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a step computes: bytes of a number in matrix products (2 for 16-bit), and what stands around it.

    `mixed` says that adapter weights are 32-bit below 16-bit products; `quantized` that the base is in 8 or 4 bits;
    `mask_bytes` what a dropout keeps for each number (one byte in PyTorch's CUDA kernel, the number's size on the CPU);
    `masked` that attention gets a mask, as it does for rows of several lengths and for packed ones.
    """

    width: int
    mixed: bool
    quantization: str
    dropout: bool
    mask_bytes: int
    eager: bool = False
    masked: bool = False


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
    repeated = queries if how.masked or how.eager else keys
    if how.eager:
        weights = model.heads * sequence * (4 if how.width == 4 else 4 + how.width)
        return how.width * (queries + 2 * repeated) + weights
    kept = how.width * (2 * queries + repeated + (whole if whole and repeated == keys else repeated))
    return kept + 4 * model.heads + (how.width * sequence if how.masked else 0)


def _inputs(present: list[Linear], adapted: set[str], rank: int, how: Arithmetic) -> int:
    """What adapters keep: each its input (after dropout) and its r numbers; inputs that modules share are kept once."""
    kept = 0
    shared: set[str] = set()
    for item in present:
        place = _place(item)
        if how.quantization == "8bit" and place not in shared:
            shared.add(place)  # bitsandbytes' MatMul8bitLt holds its 16-bit input
            kept += 0 if place == "output" else how.width * item.inputs
        if item.name not in adapted:
            continue
        kept += how.width * rank
        copies = how.dropout or (how.mixed and how.quantization == "none")
        if how.dropout:
            kept += how.mask_bytes * item.inputs
        if copies:
            kept += how.width * item.inputs
        elif place not in shared:
            shared.add(place)  # attention's own output is kept by attention
            kept += 0 if place == "output" else how.width * item.inputs
    return kept


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
    kept = 0
    for item in present:
        if item.leaf in GATED:
            inner = item.outputs // 2 if item.leaf == "gate_up_proj" else item.outputs
            kept += how.width * 3 * inner
        elif item.leaf == "fc1":
            kept += how.width * 4 * item.outputs  # the steps of GELU's approximation by tanh
    for stack in model.stacks:
        if layer in stack.layers and stack.name.endswith("down_proj"):
            kept += how.width * model.active_experts * (4 * stack.inputs + 2 * model.hidden)
    return kept


def _dora(item: Linear, how: Arithmetic) -> int:
    """DoRA keeps the base's and the adapter's answer for the gradient of the magnitudes."""
    return 2 * how.width * item.outputs


def fixed_bytes(model: Architecture, adapter: Adapter, how: Arithmetic, layer: int) -> int:
    """Bytes that one layer keeps however many tokens there are.

    peft's DoRA sends an identity matrix through the adapter and, with dropout, multiplies by a copy of the weights.
    Experts with an adapter are multiplied by a copy of their weights too (peft 0.21, `dora.py` and `ParamWrapper`).
    """
    kept = 0
    for item, _ in adapter.targets:
        if adapter.magnitudes and layer in item.layers:
            kept += how.width * item.inputs * (item.inputs + adapter.rank) + 12 * item.outputs
            kept += how.width * item.weights if how.dropout and how.mixed else 0
    return kept + sum(how.width * stack.weights for stack in adapter.stacks if layer in stack.layers)


def working_bytes(model: Architecture, how: Arithmetic) -> int:
    """Bytes a token that the backward pass of one layer needs besides what was kept: gradients of the widest tensors.

    Under mixed precision each adapter's input gradient is made in 32 bits, twice while dropout is undone.
    """
    inner = max((item.outputs if item.leaf in ("gate_proj", "fc1") else item.inputs) for item in model.linears)
    casts = 8 if how.mixed and how.quantization == "none" else 0
    return (3 * how.width + casts) * inner + 2 * how.width * model.hidden
