"""The shape of a model, computed from its config.json: modules, experts and parameters.

Arithmetic only: no weights, no torch, no network. Known families are exact, and a test compares them with the models
themselves. Others use the layout that a child took from the model; before that they are counted as Llama (`exact`).
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.workspace import model_source, write_atomically

LAYOUT_VERSION = 4
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "smollm3", "olmo2")
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
LAYER, ATTENTION = "model.layers.{}.", "model.layers.{}.self_attn."
BEFORE_BOTH = ("input_layernorm", "post_attention_layernorm")
AFTER_BOTH = ("post_attention_layernorm", "post_feedforward_layernorm")
AROUND_BOTH = (*BEFORE_BOTH, "pre_feedforward_layernorm", "post_feedforward_layernorm")
"""The norms of a layer: before attention and feed-forward part, after them, or around them."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear module that stands in several layers; `{}` in its name is the layer's number."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    layers: tuple[int, ...]

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def paths(self) -> list[str]:
        """The whole name in every layer."""
        return [self.name.format(layer) for layer in self.layers]

    @property
    def weights(self) -> int:
        """Numbers in one layer's matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Stack:
    """The same matrix of every expert of a layer, kept as one tensor, which is no linear module.

    A `flat` one has no dimension of experts: a router, or matrices of experts below each other.
    """

    name: str
    experts: int
    inputs: int
    outputs: int
    layers: tuple[int, ...]
    flat: bool = False

    @property
    def weights(self) -> int:
        return self.experts * self.inputs * self.outputs

    @property
    def is_expert(self) -> bool:
        """Whether these are experts' matrices and not a router's."""
        return not self.flat or "expert" in self.name


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm that stands in several layers, or once, without `{}` in its name."""

    name: str
    size: int
    layers: tuple[int, ...] = (0,)

    @property
    def paths(self) -> list[str]:
        """The whole name in every layer."""
        return [self.name.format(layer) for layer in self.layers]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A causal language model in numbers. `longest` is how many tokens it can read; `other_parameters` are in none of
    the parts that have names here; `stored` is the quantization that its checkpoint has itself.

    `counted` says that the parameters are the model's own and no guess, `exact` that all of its layout is known here.
    """

    family: str
    hidden: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_size: int
    linears: tuple[Linear, ...]
    stacks: tuple[Stack, ...] = ()
    norms: tuple[Norm, ...] = ()
    tied: bool = False
    head_bias: bool = False
    active_experts: int = 0
    sliding_window: int | None = None
    longest: int | None = None
    other_parameters: int = 0
    stored: str = "none"
    counted: bool = True
    exact: bool = True

    @property
    def embeddings(self) -> int:
        """Parameters that turn tokens into vectors."""
        return self.vocabulary * self.hidden

    @property
    def output_layer(self) -> int:
        """Parameters of the output layer, where it is not the embeddings themselves."""
        return (0 if self.tied else self.embeddings) + (self.vocabulary if self.head_bias else 0)

    def cache_bytes(self, width: int) -> int:
        """A token's keys and values in all layers, of `width` bytes a number (transformers' `DynamicCache`)."""
        return 2 * self.layers * self.kv_heads * self.head_size * width

    @property
    def head_norms(self) -> bool:
        """Whether queries and keys are normed."""
        return any(item.name.startswith(ATTENTION) for item in self.norms)

    @property
    def norms_a_layer(self) -> int:
        """Norms of what goes from layer to layer."""
        return sum("{}" in item.name and not item.name.startswith(ATTENTION) for item in self.norms)

    @property
    def linear_weights(self) -> int:
        return sum(item.weights * len(item.layers) for item in self.linears)

    @property
    def stacked_weights(self) -> int:
        return sum(item.weights * len(item.layers) for item in self.stacks)

    @property
    def parameters(self) -> int:
        biases = sum(item.outputs * len(item.layers) for item in self.linears if item.bias)
        return (
            self.embeddings
            + self.output_layer
            + self.linear_weights
            + self.stacked_weights
            + biases
            + sum(item.size * len(item.layers) for item in self.norms)
            + self.other_parameters
        )


def read_config(name: str, revision: str | None = None) -> JsonObject | None:
    """The config.json of a model's folder, or of a Hub model that is in this machine's cache; None where neither is.

    Nothing is fetched: a Hub model that was never loaded here has no numbers yet.
    """
    folder = model_folder(name, revision)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else None
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def model_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder that a model's name stands for on this machine: its own, or the cache's of a Hub model; else None."""
    source = Path(model_source(name))
    return source if os.path.isdir(source) else _cached(name, revision)


def hub_cache() -> Path:
    """Where the Hugging Face libraries keep what they fetched, by their own environment variables."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _cached(name: str, revision: str | None) -> Path | None:
    folder = hub_cache() / f"models--{name.replace('/', '--')}"
    branch = revision or "main"
    reference = folder / "refs" / branch
    commit = reference.read_text(encoding="utf-8").strip() if os.path.isfile(reference) else branch
    snapshot = folder / "snapshots" / commit
    return snapshot if os.path.isfile(snapshot / "config.json") else None


def architecture(config: Mapping[str, Any]) -> Architecture | None:
    """The model that a config.json describes; None where it lacks the numbers of a language model.

    A family whose layout is not known here has that of the model itself, where a child has taken it before.
    """
    model = _by_family(config)
    if model is None or not model.exact:
        model = kept_layout(config) or model
    return model and replace(model, stored=stored_quantization(config))


def shape_of(name: str, revision: str | None = None) -> Architecture | None:
    """The shape of a model on this machine; None where its config is not here, or is not that of a language model."""
    numbers = read_config(name, revision)
    return architecture(numbers) if numbers else None


def stored_quantization(config: Mapping[str, Any]) -> str:
    """In how many bits bitsandbytes stored the checkpoint: "4bit", "8bit" or "none"."""
    how = config.get("quantization_config")
    if not isinstance(how, Mapping) or how.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return "none"
    return "4bit" if how.get("load_in_4bit") else "8bit" if how.get("load_in_8bit") else "none"


def layout_file(config: Mapping[str, Any]) -> Path:
    """Where the layout that a child took of such a model is kept for this machine's user."""
    version = importlib.metadata.version("transformers")
    whole = json.dumps([LAYOUT_VERSION, version, config], sort_keys=True, default=str)
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "lora-studio" / "layouts" / f"{hashlib.sha256(whole.encode()).hexdigest()[:32]}.json"


def keep_layout(config: Mapping[str, Any], layout: Architecture) -> None:
    """Keeps the layout of a model with that config.json; a disk that takes nothing more only costs time later."""
    file = layout_file(config)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(asdict(layout)))


def kept_layout(config: Mapping[str, Any]) -> Architecture | None:
    """The layout that was kept for a model with that config.json."""
    try:
        return layout_from(json.loads(layout_file(config).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def layout_from(values: Mapping[str, Any]) -> Architecture:
    """The layout that `dataclasses.asdict` made these values of, once they were JSON."""
    kinds: dict[str, type[Linear] | type[Stack] | type[Norm]] = {"linears": Linear, "stacks": Stack, "norms": Norm}
    parts = {
        name: tuple(kind(**{**item, "layers": tuple(item["layers"])}) for item in values[name])
        for name, kind in kinds.items()
    }
    return Architecture(**{**values, **parts})


def _by_family(config: Mapping[str, Any]) -> Architecture | None:
    text = config.get("text_config")
    numbers = dict(text) if isinstance(text, Mapping) else dict(config)
    try:
        family = str(numbers.get("model_type", ""))
        build: Callable[[str, JsonObject], Architecture]
        build = {"phi3": _phi3, "phi": _phi}.get(family, _mixture if family in MIXTURES else _llama)
        return build(family, numbers)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


HEAD_SIZES = {"qwen3": 128, "gemma": 256, "gemma2": 256, "gemma3_text": 256}
"""What transformers takes for a config.json without `head_dim`; elsewhere it is hidden / heads."""


class Sizes(TypedDict):
    """What all families have, under their common names."""

    hidden: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_size: int
    sliding_window: int | None
    longest: int | None


def _sizes(numbers: Mapping[str, Any]) -> Sizes:
    hidden, heads = int(numbers["hidden_size"]), int(numbers["num_attention_heads"])
    window = numbers.get("sliding_window") if numbers.get("use_sliding_window", True) else None
    return {
        "hidden": hidden,
        "layers": int(numbers["num_hidden_layers"]),
        "vocabulary": int(numbers["vocab_size"]),
        "heads": heads,
        "kv_heads": int(numbers.get("num_key_value_heads") or heads),
        "head_size": int(numbers.get("head_dim") or HEAD_SIZES.get(str(numbers.get("model_type"))) or hidden // heads),
        "sliding_window": window,
        "longest": numbers.get("max_position_embeddings"),
    }


def _attention(numbers: Mapping[str, Any], sizes: Sizes, bias: bool, output_bias: bool) -> list[Linear]:
    every = tuple(range(sizes["layers"]))
    queries, keys = sizes["heads"] * sizes["head_size"], sizes["kv_heads"] * sizes["head_size"]
    return [
        Linear(ATTENTION + "q_proj", sizes["hidden"], queries, bias, every),
        Linear(ATTENTION + "k_proj", sizes["hidden"], keys, bias, every),
        Linear(ATTENTION + "v_proj", sizes["hidden"], keys, bias, every),
        Linear(ATTENTION + "o_proj", queries, sizes["hidden"], output_bias, every),
    ]


def _norms(sizes: Sizes, names: Sequence[str], heads: tuple[int, int] | None = None) -> tuple[Norm, ...]:
    """Those of each layer by name, of queries and keys with those sizes where there are some, and the last one."""
    every, hidden = tuple(range(sizes["layers"])), sizes["hidden"]
    norms = [Norm(LAYER + name, hidden, every) for name in names]
    if heads:
        norms += [Norm(ATTENTION + "q_norm", heads[0], every), Norm(ATTENTION + "k_norm", heads[1], every)]
    return (*norms, Norm("model.norm", hidden))


def _mlp(place: str, hidden: int, inner: int, bias: bool, layers: tuple[int, ...]) -> list[Linear]:
    return [
        Linear(place + "gate_proj", hidden, inner, bias, layers),
        Linear(place + "up_proj", hidden, inner, bias, layers),
        Linear(place + "down_proj", inner, hidden, bias, layers),
    ]


def _attention_biases(family: str, numbers: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether queries, keys and values have biases, and whether the output projection has."""
    if family in ("qwen2", "qwen2_moe"):
        return True if family == "qwen2" else bool(numbers.get("qkv_bias", True)), False
    both = bool(numbers.get("attention_bias", False))
    return both, both


def _llama(family: str, numbers: JsonObject) -> Architecture:
    """Llama and the families that differ from it by biases and norms only."""
    sizes = _sizes(numbers)
    every = tuple(range(sizes["layers"]))
    hidden, size = sizes["hidden"], sizes["head_size"]
    linears = _attention(numbers, sizes, *_attention_biases(family, numbers))
    linears += _mlp(
        "model.layers.{}.mlp.", hidden, int(numbers["intermediate_size"]), bool(numbers.get("mlp_bias")), every
    )
    names = {"gemma2": AROUND_BOTH, "gemma3_text": AROUND_BOTH, "olmo2": AFTER_BOTH}.get(family, BEFORE_BOTH)
    heads = (size, size) if family in ("qwen3", "gemma3_text") else None
    if family == "olmo2":
        heads = sizes["heads"] * size, sizes["kv_heads"] * size
    return Architecture(
        family=family,
        **sizes,
        linears=tuple(linears),
        norms=_norms(sizes, names, heads),
        tied=bool(numbers.get("tie_word_embeddings", family.startswith("gemma"))),
        exact=family in LLAMA_LIKE,
        counted=family in LLAMA_LIKE,
    )


def _phi3(family: str, numbers: JsonObject) -> Architecture:
    """Phi-3 and 4: Llama with queries, keys and values in one matrix, and gate and up in one."""
    sizes = _sizes(numbers)
    every = tuple(range(sizes["layers"]))
    hidden, size, inner = sizes["hidden"], sizes["head_size"], int(numbers["intermediate_size"])
    queries = sizes["heads"] * size
    linears = (
        Linear("model.layers.{}.self_attn.qkv_proj", hidden, queries + 2 * sizes["kv_heads"] * size, False, every),
        Linear("model.layers.{}.self_attn.o_proj", queries, hidden, False, every),
        Linear("model.layers.{}.mlp.gate_up_proj", hidden, 2 * inner, False, every),
        Linear("model.layers.{}.mlp.down_proj", inner, hidden, False, every),
    )
    tied = bool(numbers.get("tie_word_embeddings", False))
    return Architecture(family=family, **sizes, linears=linears, norms=_norms(sizes, BEFORE_BOTH), tied=tied)


def _phi(family: str, numbers: JsonObject) -> Architecture:
    """Phi-1 to 2: biases everywhere, one norm a layer (scale and shift), two matrices in the feed-forward part."""
    sizes = _sizes(numbers)
    every = tuple(range(sizes["layers"]))
    hidden, inner = sizes["hidden"], int(numbers["intermediate_size"])
    linears = _attention(numbers, sizes, True, True)
    output = linears.pop()
    linears += [
        Linear("model.layers.{}.self_attn.dense", output.inputs, hidden, True, every),
        Linear("model.layers.{}.mlp.fc1", hidden, inner, True, every),
        Linear("model.layers.{}.mlp.fc2", inner, hidden, True, every),
    ]
    norms = [Norm(LAYER + "input_layernorm", 2 * hidden, every), Norm("model.final_layernorm", 2 * hidden)]
    if numbers.get("qk_layernorm"):
        norms += [Norm(f"{ATTENTION}{name}_layernorm", 2 * sizes["head_size"], every) for name in ("q", "k")]
    return Architecture(
        family=family,
        **sizes,
        linears=tuple(linears),
        norms=tuple(norms),
        tied=bool(numbers.get("tie_word_embeddings", False)),
        head_bias=True,
    )


def _mixture(family: str, numbers: JsonObject) -> Architecture:
    """Mixtures of experts, as transformers 5 keeps them: a router, and the experts' matrices stacked."""
    sizes = _sizes(numbers)
    hidden, size = sizes["hidden"], sizes["head_size"]
    dense, sparse = _dense_and_sparse(numbers, sizes["layers"])
    experts = int(numbers.get("num_local_experts") or numbers["num_experts"])
    inner = int(numbers.get("moe_intermediate_size") or numbers["intermediate_size"])
    linears = _attention(numbers, sizes, *_attention_biases(family, numbers))
    if dense:
        linears += _mlp("model.layers.{}.mlp.", hidden, int(numbers["intermediate_size"]), False, dense)
    if family == "qwen2_moe":
        shared = int(numbers["shared_expert_intermediate_size"])
        linears += _mlp("model.layers.{}.mlp.shared_expert.", hidden, shared, False, sparse)
        linears.append(Linear("model.layers.{}.mlp.shared_expert_gate", hidden, 1, False, sparse))
    place = "model.layers.{}.mlp.experts."
    stacks = (
        Stack("model.layers.{}.mlp.gate.weight", 1, hidden, experts, sparse, flat=True),
        Stack(place + "gate_up_proj", experts, hidden, 2 * inner, sparse),
        Stack(place + "down_proj", experts, inner, hidden, sparse),
    )
    return Architecture(
        family=family,
        **sizes,
        linears=tuple(linears),
        stacks=stacks,
        norms=_norms(sizes, BEFORE_BOTH, (size, size) if family == "qwen3_moe" else None),
        tied=bool(numbers.get("tie_word_embeddings", False)),
        active_experts=int(numbers["num_experts_per_tok"]),
    )


def _dense_and_sparse(numbers: Mapping[str, Any], layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the layers without and with experts (`mlp_only_layers`, `decoder_sparse_step`)."""
    only, step = numbers.get("mlp_only_layers") or [], int(numbers.get("decoder_sparse_step") or 1)
    sparse = tuple(layer for layer in range(layers) if layer not in only and (layer + 1) % step == 0)
    return tuple(layer for layer in range(layers) if layer not in sparse), sparse


def beyond(name: str, *, embeddings: int, positions: int | None, largest_id: int, longest: int) -> StudioError | None:
    """What a model can't read of rows with ids up to `largest_id` and up to `longest` tokens; None where it can all.

    `embeddings` are the tokens that it has vectors for, `positions` the tokens in a row where these are learned, as in
    GPT-2 and OPT; other models have positions without end.
    """
    if largest_id >= embeddings:
        return StudioError(
            f"The tokenizer has ids up to {largest_id:,}, but {name} has embeddings for {embeddings:,} tokens.",
            "Use the tokenizer of the model, or resize the model's embeddings first.",
        )
    if positions is not None and longest > positions:
        return StudioError(
            f"Rows have up to {longest:,} tokens, but {name} supports {positions:,} positions.",
            f"Set data.max_length to {positions} at most.",
        )
    return None


LINEAR_LAYERS = frozenset(
    ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "gated_delta_net", "rwkv", "ssm")
)
LINEAR_FAMILIES = ("mamba", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "bamba", "zamba", "falcon_h1", "xlstm")


def linear_layers(values: Mapping[str, Any]) -> str:
    """The kind of layer in a model's config that carries a state from token to token, by which rows of one sequence can
    see each other; "" for a model of attention alone."""
    text = values.get("text_config")
    text = text if isinstance(text, Mapping) else values
    kinds = text.get("layer_types") or text.get("layers_block_type") or ()
    linear = [str(kind) for kind in kinds if str(kind) in LINEAR_LAYERS]
    family = str(text.get("model_type", ""))
    return linear[0] if linear else family if family.startswith(LINEAR_FAMILIES) else ""
