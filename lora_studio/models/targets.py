"""Which linear modules and stacked experts of a model an adapter targets, and how many parameters that trains.

Arithmetic on a model's layout (`models.shape`), as peft 0.21 counts. Expert matrices that a model keeps in one tensor
are no modules: peft adapts them by name as parameters (`target_parameters`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.models.adapter_files import is_regular_expression, matching
from lora_studio.models.shape import Architecture, Linear, Stack

# The projections of attention, and of queries and values alone, under the names that the known families use.
NAMED = {
    "attention": (
        "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "out_proj",
    ),
    "q_v": ("q_proj", "v_proj", "query", "value", "q_lin", "v_lin", "wq", "wv"),
}  # fmt: skip
ALL_LINEAR = "all-linear"
RENAMED_BY_PEFT = frozenset((
    "afmoe", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe",
    "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe",
    "longcat_flash", "mellum", "minimax", "minimax_m2", "mixtral", "olmoe", "qwen3_moe", "qwen3_next", "solar_open",
))  # fmt: skip
"""Families for which peft takes `EXPERT_NAMES` in target_modules for the stacked experts (peft 0.21,
`_convert_peft_config_moe`): linear modules of these names are reached as parameters alone."""
EXPERT_NAMES = ("gate", "gate_proj", "up_proj", "down_proj")
MAMBA = frozenset(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"))
NOT_ON_MAMBA = ("out_proj", "conv1d")
"""Modules whose weights these families' kernels read themselves: peft refuses them
(`_check_lora_target_modules_mamba`)."""
PAST_THE_MODULE = frozenset(("doge", "falcon_mamba", "mamba"))
"""Families whose code reads the weight of `dt_proj` itself, so that an adapter on the module has no effect."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in numbers. `targets` are (module, layers it sits in); `missing` are names that the model has not.

    `wrapped` are names of targets whose weight peft adapts as a parameter; `frozen_experts` counts the parameters of
    experts that get no adapter.
    """

    rank: int
    targets: tuple[tuple[Linear, int], ...]
    stacks: tuple[Stack, ...]
    lora: int
    magnitudes: int
    biases: int
    saved_modules: int
    saved_copies: int
    missing: tuple[str, ...]
    wrapped: frozenset[str] = frozenset()
    frozen_experts: int = 0

    @property
    def trainable(self) -> int:
        """Parameters that learn."""
        return self.lora + self.magnitudes + self.biases + self.saved_modules

    @property
    def added(self) -> int:
        """Parameters that are in memory besides the base's."""
        return self.lora + self.magnitudes + self.saved_copies

    @property
    def on_parameters(self) -> bool:
        """Whether peft adapts parameters, for which it has neither dropout nor DoRA."""
        return bool(self.stacks or self.wrapped)


def adapter(
    model: Architecture,
    *,
    r: int,
    target_modules: str = ALL_LINEAR,
    bias: str = "none",
    use_dora: bool = False,
    modules_to_save: Sequence[str] = (),
    quantized: bool = False,
) -> Adapter:
    """The adapter of these settings (Hu et al. 2021, section 4.1: r x (inputs + outputs) for each matrix).

    DoRA (Liu et al. 2024, arXiv:2402.09353) adds one magnitude an output; a module saved whole is trained in a copy.
    On a `quantized` base, modules whose weight would be adapted as a parameter get no adapter. Raises `PatternError`
    for an expression that takes too long.
    """
    targets, stacks, missing = _targets(model, target_modules)
    by_weight = {item.name for item, _ in targets if is_renamed(model.family, item.leaf)}
    left_out = [(item, layers) for item, layers in targets if quantized and item.name in by_weight]
    if quantized:
        targets, by_weight = [target for target in targets if target not in left_out], set()
    lora = sum(r * (item.inputs + item.outputs) * layers for item, layers in targets)
    lora += sum(
        expert_rank(r, item.experts) * item.experts * (item.inputs + item.outputs) * len(item.layers) for item in stacks
    )
    adapted = {item.name: layers for item, layers in targets}
    biases = 0
    if bias != "none":
        for item in model.linears:
            layers = adapted.get(item.name, 0) if bias == "lora_only" else len(item.layers)
            biases += item.outputs * layers if item.bias else 0
    whole, copies, unknown = _saved(model, modules_to_save)
    return Adapter(
        rank=r,
        targets=tuple(targets),
        stacks=tuple(stacks),
        lora=lora,
        magnitudes=sum(item.outputs * layers for item, layers in targets) if use_dora else 0,
        biases=biases,
        saved_modules=whole,
        saved_copies=copies,
        missing=(*missing, *unknown),
        wrapped=frozenset(by_weight),
        frozen_experts=sum(
            item.weights * len(item.layers) for item in model.stacks if item.is_expert and item not in stacks
        )
        + sum(item.weights * layers for item, layers in left_out),
    )


def expert_rank(r: int, experts: int) -> int:
    """The rank of each expert of a stack, by which all of them together have about the parameters of one dense layer
    of rank r (peft's guide to LoRA, "MoE expert parameters and vLLM")."""
    return max(1, r // experts)


def is_renamed(family: str, leaf: str) -> bool:
    """Whether peft takes a linear module's name for that of experts, so that its weight is adapted as a parameter."""
    return family in RENAMED_BY_PEFT and leaf in EXPERT_NAMES


def cannot_learn(family: str, path: str) -> bool:
    """Whether an adapter on a linear module is refused or without effect: the model reads its weight past the module,
    or chooses tokens by it without a gradient (the indexer of sparse attention)."""
    leaf = path.rpartition(".")[2]
    refused = family in MAMBA and leaf in NOT_ON_MAMBA
    return refused or (family in PAST_THE_MODULE and leaf == "dt_proj") or ".indexer." in path


def names(setting: str) -> list[str]:
    """A comma-separated setting as its names."""
    return list(dict.fromkeys(name.strip() for name in setting.split(",") if name.strip()))


def _targets(model: Architecture, setting: str) -> tuple[list[tuple[Linear, int]], list[Stack], list[str]]:
    """The linear modules and expert stacks that a `lora.target_modules` setting names, and the names that fit none."""
    setting = setting.strip()
    usable = [item for item in model.linears if not cannot_learn(model.family, item.name)]
    if setting.lower() == ALL_LINEAR:
        stacks = [item for item in model.stacks if not item.flat]
        return [(item, len(item.layers)) for item in usable], stacks, []
    if is_regular_expression(setting):
        hit = set(matching(setting, [path for item in model.linears for path in item.paths]))
        matched = [(item, sum(path in hit for path in item.paths)) for item in model.linears]
        targets = [(item, layers) for item, layers in matched if layers]
        return targets, [], [] if targets else [setting]
    if setting in NAMED:
        targets = [(item, len(item.layers)) for item in usable if item.leaf in NAMED[setting]]
        return targets, [], [] if targets else [setting]
    modules = names(setting)
    targets = [
        (item, len(item.layers)) for item in model.linears if any(ends_with(item.name, name) for name in modules)
    ]
    stacks = [item for item in model.stacks if not item.flat and any(names_stack(name, item.name) for name in modules)]
    targeted = [item.name for item, _ in targets]
    missing = [
        name
        for name in modules
        if not any(ends_with(path, name) for path in targeted)
        and not any(names_stack(name, item.name) for item in stacks)
    ]
    return targets, stacks, missing


def ends_with(path: str, name: str) -> bool:
    """peft takes a name for every module whose path ends with it."""
    return path == name or path.endswith(f".{name}")


def names_stack(name: str, path: str) -> bool:
    """Whether a name of a setting means the stacked experts of that path: by their own name or by their module's."""
    return ends_with(path, name) or ends_with(path.rpartition(".")[0], name)


def _saved(model: Architecture, modules: Sequence[str]) -> tuple[int, int, list[str]]:
    """Parameters of modules trained whole, those that their copies add, and unknown names.

    peft takes a name for every module whose path ends with it, and with a module all that is inside.
    """
    sizes = {"model.embed_tokens": model.embeddings, "lm_head": model.vocabulary * (model.hidden + model.head_bias)}
    for item in model.linears:
        sizes |= dict.fromkeys(item.paths, item.weights + (item.outputs if item.bias else 0))
    for norm in model.norms:
        sizes |= dict.fromkeys(norm.paths, norm.size)
    whole = {path for path in sizes if any(_inside(path, name) for name in modules)}
    total = sum(sizes[path] for path in whole)
    return total, total, [name for name in modules if not any(_inside(path, name) for path in sizes)]


def _inside(path: str, name: str) -> bool:
    """Whether a module or one that it stands in has a path that ends with that name."""
    parts = path.split(".")
    return any(".".join(parts[:depth]).endswith(name) for depth in range(1, len(parts) + 1))
