"""A base in memory with any number of adapters, and which of them can answer in one batch.

Adapters are read from safetensors only. An adapter beyond plain LoRA (DoRA, full modules, prompt learning) replaces the
base's modules only while it answers. Biases that peft trains inside the base are restored.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora import Linear, Linear4bit, Linear8bitLt
from torch.nn.functional import linear
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_studio.data.chat_templates import choose_template
from lora_studio.engine.models.load import load_model, make_full, rounding_of
from lora_studio.engine.models.source import Phases, adapter_tokenizer, first_line, load_tokenizer, read_config
from lora_studio.engine.models.weights import AdapterWeights, own_embeddings, put_on, read_weights
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.models.adapter_files import KINDS, NEED_FULL_BASE, read_settings, virtual_tokens
from lora_studio.models.adapters import read_card
from lora_studio.models.shape import architecture

Biases = list[tuple[torch.nn.Parameter, torch.Tensor]]
"""Values for the biases of a model."""


def biases_of(model: Any) -> Biases:
    """All biases of a model with their current values."""
    return [
        (parameter, parameter.detach().clone())
        for name, parameter in model.named_parameters()
        if name.endswith(".bias") and ".lora_" not in name
    ]


def put_in(biases: Biases) -> None:
    """Sets the model's biases to these values permanently."""
    for parameter, values in biases:
        parameter.data.copy_(values)


@contextmanager
def with_biases(biases: Biases) -> Iterator[None]:
    """Sets the model's biases to these values inside, and restores the previous ones afterwards."""
    present: Biases = [(parameter, parameter.detach().clone()) for parameter, _ in biases]
    put_in(biases)
    try:
        yield
    finally:
        put_in(present)


ADAPTER = "adapter"
"""peft's name for an adapter in its own wrapper."""
ModuleMap = dict[tuple[torch.nn.Module, str], torch.nn.Module]
"""Modules by their place: a name in a parent."""


def current_modules(model: torch.nn.Module) -> ModuleMap:
    """The model's current modules by their places."""
    return {(parent, name): child for parent in model.modules() for name, child in parent.named_children()}


def put(modules: ModuleMap) -> None:
    """Puts each module into its place."""
    for (parent, name), module in modules.items():
        setattr(parent, name, module)


@contextmanager
def swap_modules(modules: ModuleMap) -> Iterator[None]:
    """Puts these modules into their places inside, and restores the previous ones afterwards."""
    before = {(parent, name): parent.get_submodule(name) for parent, name in modules}
    put(modules)
    try:
        yield
    finally:
        put(before)


@dataclass
class NonLoraAdapter:
    """An adapter beyond plain LoRA. `model` is peft's wrapper, `around` the modules that it puts in the base's places.

    `virtual_tokens` precede each prompt (prompt learning); `scores_before` is how many of them have logits: those that
    are part of the input, unlike cached keys and values (prefix tuning).
    """

    model: PeftModel
    around: ModuleMap
    biases: Biases
    virtual_tokens: int
    scores_before: int

    @contextmanager
    def answering(self) -> Iterator[PeftModel]:
        """Inside, the base with this adapter; the base's own modules have to be in place."""
        with swap_modules(self.around), with_biases(self.biases):
            yield self.model


def wrap_adapter(base: PreTrainedModel, weights: AdapterWeights, own: ModuleMap, name: str) -> NonLoraAdapter:
    """Wraps an adapter around the base without changing it.

    `name` is the base's name. Raises `StudioError`, or what peft raises if it does not fit.
    """
    biases = biases_of(base)
    tying = base.config.tie_word_embeddings
    noted: Any = base.__dict__.pop("peft_config", None)  # peft would take LoRA's note of itself for this adapter's
    try:
        for path, module in own_embeddings(base, weights.matrices).items() if weights.matrices else ():
            base.set_submodule(path, module)
        model = put_on(base, weights, ADAPTER, name).eval()
        around = {place: now for place in own if (now := place[0].get_submodule(place[1])) is not own[place]}
        trained = [(bias, values) for bias, values in biases_of(base) if not _has(biases, bias, values)]
    finally:
        put(own)
        put_in(biases)
        base.config.tie_word_embeddings = tying
        base.__dict__.pop("peft_config", None)
        if noted is not None:
            base.peft_config = noted
    settings: Any = model.active_peft_config
    virtual_tokens = settings.num_virtual_tokens if settings.is_prompt_learning else 0
    in_text = settings.peft_type != PeftType.PREFIX_TUNING
    return NonLoraAdapter(model, around, trained, virtual_tokens, virtual_tokens if in_text else 0)


def _has(biases: Biases, parameter: torch.nn.Parameter, values: torch.Tensor) -> bool:
    return any(bias is parameter and torch.equal(own, values) for bias, own in biases)


_NUMBERS = itertools.count()


@dataclass
class LoadedModel:
    """A base with any number of adapters on top. `adapters` maps a column's name to peft's name for the adapter.

    `templates` holds the chat template (Jinja text) of each adapter by column name; None is the base. `tokenizers` are
    those of adapters whose tokenizer differs from the base's, `cards` the values of their studio.json, `notes` what was
    not taken over unchanged. `own` are the base's own modules, `non_lora` the columns with adapters beyond plain LoRA,
    `flat` the modules that see a batch as one row of tokens, once known.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    own: ModuleMap
    adapters: dict[str, str] = field(default_factory=dict)
    templates: dict[str | None, str] = field(default_factory=dict)
    cards: dict[str, JsonObject] = field(default_factory=dict)
    tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    non_lora: dict[str, NonLoraAdapter] = field(default_factory=dict)
    flat: frozenset[str] | None = None

    @property
    def base(self) -> PreTrainedModel:
        """The model that all adapters are put on."""
        model: Any = self.model.base_model.model if isinstance(self.model, PeftModel) else self.model
        return cast("PreTrainedModel", model)

    @property
    def lora(self) -> dict[str, str]:
        """The `adapters` that peft holds together on one model."""
        return {column: inner for column, inner in self.adapters.items() if column not in self.non_lora}

    def shares(self, columns: Iterable[str | None]) -> bool:
        """Whether these columns can answer in one batch: the base and plain LoRA adapters."""
        return not any(name in self.non_lora for name in columns)

    def tokenizer_of(self, column: str | None) -> PreTrainedTokenizerBase:
        """The tokenizer that an adapter was trained with, or the base's (None)."""
        return self.tokenizer if column is None else self.tokenizers.get(column, self.tokenizer)

    def rows(self, column: str | None) -> int:
        """The number of tokens in this column's embeddings; plain LoRA has the base's."""
        if column not in self.non_lora:
            return _rows_of(self.base)
        with self.use_adapter(column) as model:
            return _rows_of(model)

    def groups(self, columns: Sequence[str | None]) -> list[list[int]]:
        """Positions of the columns that share a batch; adapters beyond plain LoRA come last, each in a batch of its
        own.

        Virtual tokens do not allow padded prompts: peft would count positions from the padding on.
        """
        together = [position for position, name in enumerate(columns) if self.shares([name])]
        groups: dict[tuple[str | None, int], list[int]] = {}
        for position, name in enumerate(columns):
            if position not in together:
                groups.setdefault((name, position if self.virtual_tokens(name) else 0), []).append(position)
        return [*([together] if together else []), *groups.values()]

    def virtual_tokens(self, column: str | None) -> int:
        """The number of virtual tokens before each prompt (prompt learning); 0 for all others."""
        return self.non_lora[column].virtual_tokens if column in self.non_lora else 0

    @contextmanager
    def use_adapter(self, column: str | None) -> Iterator[Any]:
        """Inside, the model with only that adapter, or the bare base (None)."""
        if column in self.non_lora:
            with swap_modules(self.own), self.non_lora[column].answering() as model:
                yield model
        elif column is not None:
            self.model.set_adapter(self.adapters[column], inference_mode=True)
            yield self.model
        elif self.lora:
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.model

    @property
    def longest_text(self) -> int | None:
        """The context length in tokens, if the model's config gives one."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)  # GPT-2: n_positions
        return int(limit) if limit else None

    def cached_tokens(self, memory: int) -> int | None:
        """Tokens of prompt and answer whose keys and values so many bytes hold; None for a base with other layers."""
        numbers = architecture(self.base.config.to_dict())
        return None if numbers is None else max(0, memory) // numbers.cache_bytes(self.base.dtype.itemsize)

    def template(self, column: str | None) -> str:
        """The chat template of an adapter or of the base (None).

        A base without a template uses an adapter's; without adapters ChatML, as training does.
        """
        if column in self.templates:
            return self.templates[column]
        for candidate in (*self.adapters, None):
            if candidate in self.templates:
                return self.templates[candidate]
        return choose_template(self.tokenizer, "auto").source

    def without_adapters(self) -> "LoadedModel":
        """The same base in the same memory; this object must not be used afterwards."""
        put(self.own)
        self.base.__dict__.pop("peft_config", None)
        templates = own_template(self.tokenizer)
        return LoadedModel(self.name, self.base, self.tokenizer, self.own, templates=templates, flat=self.flat)


def _rows_of(model: Any) -> int:
    parts = model.get_input_embeddings().modules()
    return max(len(module.weight) for module in parts if getattr(module, "weight", None) is not None)


def longest_text(base: str, revision: str | None, adapters: Sequence[Path]) -> int | None:
    """Tokens that the base can read beside the virtual tokens of any of the adapters; None if it has no limit."""
    longest = read_config(base, revision).get_text_config().to_dict().get("max_position_embeddings")
    return longest - max(map(virtual_tokens, adapters)) if longest else None


def load_base(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    quantization: str = "none",
    four_bit: Mapping[str, Any] | None = None,
    log: Phases | None = None,
    phase: str = "model",
    in_full: bool = False,
) -> LoadedModel:
    """Base and tokenizer, without any adapter; `log` and `phase` are those of `load_model`.

    With `in_full`, a base stored in 4 or 8 bits is dequantized.
    """
    tokenizer = load_tokenizer(name, revision)
    model = load_model(
        name,
        revision=revision,
        dtype=dtype,
        quantization=quantization,
        four_bit=four_bit,
        log=log,
        phase=phase,
    )
    if in_full and rounding_of(name, revision):
        make_full(model)
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return LoadedModel(name, model, tokenizer, current_modules(model), templates=own_template(tokenizer))


def _contiguous(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Makes the last position of every column contiguous: for a slice, PyTorch copies the whole matrix once per column.

    Reshapes to two dimensions, since `contiguous` alone keeps the strides of a slice of one column.
    """
    hidden = inputs[0]
    return (hidden.reshape(-1, hidden.shape[-1]).contiguous().view(hidden.shape), *inputs[1:])


def own_template(tokenizer: PreTrainedTokenizerBase) -> dict[str | None, str]:
    """The base's own chat template, if any; of several the default."""
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    return {None: template} if isinstance(template, str) else {}


def add_adapters(loaded: LoadedModel, folders: Mapping[str, Path]) -> None:
    """Puts a trained adapter per column onto the base, in the base's precision: half the memory of float32.

    Plain LoRA adapters share peft's model, others get a wrapper each. Raises `StudioError` for an adapter that does not
    fit the base; the base may then be partly changed.
    """
    kinds = {column: read_settings(folder)["peft_type"] for column, folder in folders.items()}
    needing = [column for column, kind in kinds.items() if kind in NEED_FULL_BASE]
    if needing and "quantization_config" in loaded.base.config.to_dict():
        raise StudioError(
            f"{needing[0]} is {KINDS[kinds[needing[0]]]}, which cannot be used on a base in 4 or 8 bits.",
            "Remove adapters that were trained on a quantized base; the base is then loaded unquantized.",
        )
    for column, folder in folders.items():
        with fitting(folder, loaded.name), swap_modules(loaded.own):
            weights = read_weights(folder, loaded.base, loaded.name)
            together = weights.plain and _mixes(loaded, weights)
            if not together:
                loaded.non_lora[column] = wrap_adapter(loaded.base, weights, loaded.own, loaded.name)
        inner = f"adapter{next(_NUMBERS)}"  # peft allows no dots in names, people do
        if together:
            with fitting(folder, loaded.name):
                loaded.model = put_on(loaded.model, weights, inner, loaded.name)
                mix_without_copies(loaded.model)
        loaded.adapters[column] = inner
        card = read_card(folder)
        loaded.cards[column] = card.values
        if card.template:
            loaded.templates[column] = card.template
        tokenizer, lacking = adapter_tokenizer(folder, loaded.tokenizer, weights.rows)
        if tokenizer is not loaded.tokenizer:
            loaded.tokenizers[column] = tokenizer
        loaded.notes[column] = [*weights.notes, *([lacking] if lacking else [])]
    loaded.model.eval()


@contextmanager
def fitting(folder: Path, base: str) -> Iterator[None]:
    """Converts what peft raises inside to a `StudioError` about an adapter that does not fit."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise StudioError(
            f"The adapter {folder.name} does not fit {base}: {first_line(error)}",
            "Load the base model it was trained on, in the same size and version.",
        ) from error


def _mixes(loaded: LoadedModel, weights: AdapterWeights) -> bool:
    """Whether peft can select this adapter per row: each of its modules sees the batch's rows as columns."""
    if loaded.flat is None:
        loaded.flat = flattening(loaded.base)
    entry, output = loaded.base.get_input_embeddings(), loaded.base.get_output_embeddings()
    ends = {path for path, module in loaded.base.named_modules() if module is entry or module is output}
    return not (loaded.flat | ends) & weights.places


@torch.no_grad()
def flattening(base: PreTrainedModel) -> frozenset[str]:
    """Names of modules that see the tokens of all rows as one row, or only some of them (experts, OPT).

    Determined by running two rows of one token. On the CPU, oneDNN keeps programs of some hundred kB for each shape of
    a product, and an answer of two columns needs those of this shape anyway.
    """
    straight: set[str] = set()
    watched = {path: module for path, module in base.named_modules() if isinstance(module, torch.nn.Module)}

    def watch(path: str) -> Any:
        def seen(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].shape[:2] == (2, 1):
                straight.add(path)

        return seen

    hooks = [module.register_forward_pre_hook(watch(path)) for path, module in watched.items()]
    try:
        ids = torch.tensor([[1], [2]], device=base.device)
        base(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(watched) - straight


def mix_without_copies(model: torch.nn.Module) -> None:
    """Lets the linear LoRA modules of a model add to the rows of a batch in place, with the results of peft."""
    for module in model.modules():
        if type(module) in (Linear, Linear4bit, Linear8bitLt):
            setattr(module, "_mixed_batch_forward", MethodType(_mixed_batch_forward, module))  # noqa: B010


def _mixed_batch_forward(
    layer: Any, x: torch.Tensor, *args: Any, adapter_names: Sequence[str], **kwargs: Any
) -> torch.Tensor:
    """The same as `_mixed_batch_forward` of peft's layers, without its copies.

    peft takes rows out by a list of their numbers and puts them back, each a copy; here rows that stand together are a
    slice of the batch, which is written to where it is. On a GPU each such list is sent there first, and waited for:
    three times an adapter in every module. Variants of LoRA (DoRA) and dropout are left to peft.
    """
    rows = _rows_by_adapter(tuple(adapter_names))
    given = any(value is not None for value in kwargs.values())  # peft hands on what variants of LoRA might be given
    if given or layer.training or any(name in layer.lora_variant for name in rows):
        theirs = type(layer)._mixed_batch_forward
        own: torch.Tensor = theirs(layer, x, *args, adapter_names=list(adapter_names), **kwargs)
        return own
    result: torch.Tensor = layer.base_layer(x, *args)
    for name, places in rows.items():
        if name in layer.lora_A:
            down, up = layer.lora_A[name], layer.lora_B[name]
            numbers = None if isinstance(places, slice) else _numbers_on(x.device, places)
            own_rows = x[places] if numbers is None else x.index_select(0, numbers)
            inner = linear(own_rows.to(down.weight.dtype), down.weight, down.bias)
            added = (linear(inner, up.weight, up.bias) * layer.scaling[name]).to(result.dtype)
            if numbers is None:
                result[places].add_(added)
            else:
                result.index_add_(0, numbers, added)
    return result


@lru_cache(maxsize=64)
def _numbers_on(device: torch.device, places: tuple[int, ...]) -> torch.Tensor:
    """The numbers of rows on a device, sent there once."""
    return torch.tensor(places, device=device)


@lru_cache(maxsize=64)
def _rows_by_adapter(names: tuple[str, ...]) -> dict[str, slice | tuple[int, ...]]:
    """The rows of a batch that each adapter answers, as a slice where they stand together."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return {
        name: slice(places[0], places[-1] + 1) if places[-1] - places[0] < len(places) else tuple(places)
        for name, places in rows.items()
    }


def remove_adapters(loaded: LoadedModel, columns: Sequence[str]) -> LoadedModel:
    """The model without these adapters, in the same memory; the argument must not be used afterwards."""
    if len(columns) == len(loaded.adapters):
        return loaded.without_adapters()
    for column in columns:
        if column not in loaded.non_lora:
            loaded.model.delete_adapter(loaded.adapters[column])
        by_column: tuple[dict[Any, Any], ...] = (loaded.adapters, loaded.templates, loaded.cards, loaded.non_lora)
        for values in (*by_column, loaded.tokenizers, loaded.notes):
            values.pop(column, None)
    if not loaded.lora:
        loaded.model = loaded.without_adapters().model
    return loaded
