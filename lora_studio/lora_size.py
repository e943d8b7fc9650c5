"""Which modules an adapter sits on and how many parameters it trains, from a model's numbers and the LoRA settings.

The same choice that the engine hands to peft, made without peft: a test compares both on the models themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.architecture import EXPERTS_TAKE_LORA, Architecture, Linear, Stack
from lora_studio.module_patterns import is_regular_expression, matching

# The projections of attention, and of queries and values alone, under the names that the known families use.
NAMED = {
    "attention": (
        "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "out_proj",
    ),
    "q_v": ("q_proj", "v_proj", "query", "value", "q_lin", "v_lin", "wq", "wv"),
}  # fmt: skip

EXPERT_NAMES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in numbers. `targets` are (module, layers it sits in); `missing` are names that the model has not."""

    rank: int
    targets: tuple[tuple[Linear, int], ...]
    stacks: tuple[Stack, ...]
    lora: int
    magnitudes: int
    biases: int
    saved_modules: int
    saved_copies: int
    missing: tuple[str, ...]

    @property
    def trainable(self) -> int:
        """Parameters that learn."""
        return self.lora + self.magnitudes + self.biases + self.saved_modules

    @property
    def added(self) -> int:
        """Parameters that are in memory besides the base's."""
        return self.lora + self.magnitudes + self.saved_copies


def adapter(
    model: Architecture,
    *,
    r: int,
    target_modules: str = "all-linear",
    bias: str = "none",
    use_dora: bool = False,
    modules_to_save: Sequence[str] = (),
) -> Adapter:
    """The adapter of these settings (Hu et al. 2021, section 4.1: r x (inputs + outputs) for each matrix).

    DoRA (Liu et al. 2024, arXiv:2402.09353) adds one magnitude an output; a module saved whole is trained in a copy.
    Raises `PatternError` for an expression that takes too long.
    """
    targets, missing = _targets(model, target_modules)
    stacks = model.stacks if _reaches_experts(model, target_modules) else ()
    lora = sum(r * (item.inputs + item.outputs) * layers for item, layers in targets)
    lora += sum(_rank(item, r) * item.experts * (item.inputs + item.outputs) * len(item.layers) for item in stacks)
    chosen = {item.name: layers for item, layers in targets}
    biases = 0
    if bias != "none":
        for item in model.linears:
            layers = chosen.get(item.name, 0) if bias == "lora_only" else len(item.layers)
            biases += item.outputs * layers if item.bias else 0
    whole, copies, unknown = _saved(model, modules_to_save)
    return Adapter(
        rank=r,
        targets=tuple(targets),
        stacks=stacks,
        lora=lora,
        magnitudes=sum(item.outputs * layers for item, layers in targets) if use_dora else 0,
        biases=biases,
        saved_modules=whole,
        saved_copies=copies,
        missing=(*missing, *unknown),
    )


def _rank(item: Stack, r: int) -> int:
    """peft doubles the rank of the two expert matrices that transformers 5 keeps as one (`rank_pattern`)."""
    return 2 * r if item.name.endswith("gate_up_proj") else r


def _reaches_experts(model: Architecture, target_modules: str) -> bool:
    return model.family in EXPERTS_TAKE_LORA and target_modules.strip().lower() == "all-linear"


def names(setting: str) -> list[str]:
    """A comma-separated setting as its names."""
    return list(dict.fromkeys(name.strip() for name in setting.split(",") if name.strip()))


def _targets(model: Architecture, setting: str) -> tuple[list[tuple[Linear, int]], list[str]]:
    """The linear modules that a `lora.target_modules` setting names, and the names that fit none."""
    setting = setting.strip()
    if setting.lower() == "all-linear":
        # peft turns these names into those of the experts, and then leaves layers without experts out.
        lost = EXPERT_NAMES if _reaches_experts(model, setting) else ()
        return [(item, len(item.layers)) for item in model.linears if item.leaf not in lost], []
    if is_regular_expression(setting):
        hit = set(matching(setting, [path for item in model.linears for path in item.paths]))
        matched = [(item, sum(path in hit for path in item.paths)) for item in model.linears]
        found = [(item, layers) for item, layers in matched if layers]
        return found, [] if found else [setting]
    wanted = NAMED.get(setting) or names(setting)
    found = [(item, len(item.layers)) for item in model.linears if any(_ends_with(item, name) for name in wanted)]
    if setting in NAMED:
        return found, [] if found else [setting]
    return found, [name for name in wanted if not any(_ends_with(item, name) for item in model.linears)]


def _ends_with(item: Linear, name: str) -> bool:
    """peft takes a name for every module whose path ends with it."""
    return item.name == name or item.name.endswith(f".{name}")


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
