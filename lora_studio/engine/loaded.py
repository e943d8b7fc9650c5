"""A base in memory with any number of adapters on top: who can answer together, and as whom the model answers.

Adapters are read from safetensors only.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_studio.adapter_files import read_studio_card, read_template
from lora_studio.adapter_source import KINDS, LORA, NEED_FULL_BASE, read_settings
from lora_studio.data.encode import choose_template
from lora_studio.engine.apart import Apart, Standing, put, put_apart, standing, with_modules
from lora_studio.engine.biases import Biases, biases_of, put_in, with_biases
from lora_studio.engine.load import load_model, make_full, rounding_of
from lora_studio.engine.tokenizer import first_line, load_tokenizer
from lora_studio.errors import StudioError
from lora_studio.module_patterns import check_settings

_NUMBERS = itertools.count()


@dataclass
class LoadedModel:
    """A base with any number of adapters on top. `adapters` maps a column's name to peft's name for the adapter.

    `templates` holds the chat template (Jinja text) that each adapter was trained with, by column name; None stands for
    the base. `cards` are the adapters' studio.json. `biases` are the base's biases with what an adapter puts in their
    place. `own` are the base's own modules, `apart` the columns whose adapters are of another kind than LoRA.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    own: Standing
    adapters: dict[str, str] = field(default_factory=dict)
    templates: dict[str | None, str] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    biases: dict[str, Biases] = field(default_factory=dict)
    apart: dict[str, Apart] = field(default_factory=dict)

    @property
    def base(self) -> PreTrainedModel:
        """The model that all adapters are put on."""
        found: Any = self.model.base_model.model if isinstance(self.model, PeftModel) else self.model
        return cast("PreTrainedModel", found)

    @property
    def lora(self) -> dict[str, str]:
        """Those of `adapters` that peft holds together on one model."""
        return {column: inner for column, inner in self.adapters.items() if column not in self.apart}

    def shares(self, columns: Iterable[str | None]) -> bool:
        """Whether these can answer in one batch.

        peft can't mix DoRA adapters, those that brought biases, nor other kinds than LoRA; and none where one of them
        holds whole modules.
        """
        lora = self.lora
        if any(self.model.peft_config[inner].modules_to_save for inner in lora.values()):
            return False
        named = [name for name in columns if name is not None]
        if any(name in self.apart for name in named):
            return False
        settings = [self.model.peft_config[lora[name]] for name in named]
        return not any(one.use_dora or one.bias != "none" for one in settings)

    def groups(self, columns: Sequence[str | None]) -> list[list[int]]:
        """Positions of the columns that answer together; those that share no batch come last, each adapter by itself.

        After virtual tokens a prompt bears no padding: peft would count its positions from the padding on.
        """
        together = [position for position, name in enumerate(columns) if self.shares([name])]
        groups: dict[tuple[str | None, int], list[int]] = {}
        for position, name in enumerate(columns):
            if position not in together:
                groups.setdefault((name, position if self.virtual_tokens(name) else 0), []).append(position)
        return [*([together] if together else []), *groups.values()]

    def virtual_tokens(self, column: str | None) -> int:
        """Tokens that an adapter of prompt learning puts before each prompt; 0 for all others."""
        return self.apart[column].virtual_tokens if column in self.apart else 0

    @contextmanager
    def answering_as(self, column: str | None) -> Iterator[Any]:
        """Inside, the model that it gives is the base with that one adapter, or the bare base (None)."""
        if column in self.apart:
            with with_modules(self.own), self.apart[column].answering() as model:
                yield model
        elif column is not None:
            self.model.set_adapter(self.adapters[column], inference_mode=True)
            with with_biases(self.biases.get(column, [])):
                yield self.model
        elif self.lora:
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self.model

    @property
    def longest_text(self) -> int | None:
        """Tokens that the model can read, prompt and answer together, where its config says so."""
        limit = self.model.config.get_text_config().to_dict().get("max_position_embeddings")
        return int(limit) if limit else None

    def template(self, column: str | None) -> str:
        """The chat template of an adapter or of the base (None).

        A base without one is asked as its adapters are; without adapters as ChatML, like training would.
        """
        if column in self.templates:
            return self.templates[column]
        for known in (*self.adapters, None):
            if known in self.templates:
                return self.templates[known]
        return choose_template(self.tokenizer, "auto").source

    def without_adapters(self) -> "LoadedModel":
        """The same base in the same memory; this value must not be used any more."""
        put(self.own)
        self.base.__dict__.pop("peft_config", None)
        return LoadedModel(self.name, self.base, self.tokenizer, self.own, templates=own_template(self.tokenizer))


def load_base(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    quantization: str = "none",
    four_bit: Mapping[str, Any] | None = None,
    tqdm_class: type | None = None,
    in_full: bool = False,
) -> LoadedModel:
    """Base and tokenizer, without any adapter; `tqdm_class` is the progress bar of a download.

    With `in_full` a base whose files hold it in 4 or 8 bits gets plain weights.
    """
    tokenizer = load_tokenizer(name, revision)
    how: dict[str, Any] = {"quantization": quantization, "four_bit": four_bit, "tqdm_class": tqdm_class}
    model = load_model(name, revision=revision, dtype=dtype, **how)
    if in_full and rounding_of(name, revision):
        make_full(model)
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return LoadedModel(name, model, tokenizer, standing(model), templates=own_template(tokenizer))


def _contiguous(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The last position of every column in one piece: for a slice PyTorch copies the whole matrix, once a column.

    Through two dimensions, since `contiguous` alone leaves the strides of a slice of one column as they are.
    """
    hidden = inputs[0]
    return (hidden.reshape(-1, hidden.shape[-1]).contiguous().view(hidden.shape), *inputs[1:])


def own_template(tokenizer: PreTrainedTokenizerBase) -> dict[str | None, str]:
    """The chat template that the base brings, if it brings one."""
    return {None: tokenizer.chat_template} if isinstance(tokenizer.chat_template, str) else {}


def add_adapters(loaded: LoadedModel, folders: Mapping[str, Path]) -> None:
    """Puts one trained adapter per column name onto the base, in the base's precision: half the memory of float32.

    Raises `StudioError` before anything changes.
    """
    given = {column: read_settings(folder) for column, folder in folders.items()}
    for settings in given.values():
        check_settings(settings, [path for path, _ in loaded.base.named_modules()])
    kinds = {column: settings["peft_type"] for column, settings in given.items()}
    needing = [column for column, kind in kinds.items() if kind in NEED_FULL_BASE]
    if needing and "quantization_config" in loaded.base.config.to_dict():
        raise StudioError(
            f"{needing[0]} is {KINDS[kinds[needing[0]]]}, which can't be put on a base in 4 or 8 bits.",
            "Leave out adapters that were trained on a quantized base: then it is loaded in full.",
        )
    for column, folder in folders.items():
        try:
            if kinds[column] == LORA:
                _add_lora(loaded, column, folder)
            else:
                with with_modules(loaded.own):
                    loaded.apart[column] = put_apart(loaded.base, folder, loaded.own)
                loaded.adapters[column] = f"adapter{next(_NUMBERS)}"
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise StudioError(
                f"The adapter {folder.name} does not fit {loaded.name}: {first_line(error)}",
                "Load the base that it was trained on.",
            ) from error
        loaded.cards[column] = read_card(folder)
        if template := read_template(folder):
            loaded.templates[column] = template
    loaded.model.eval()


def _add_lora(loaded: LoadedModel, column: str, folder: Path) -> None:
    own = biases_of(loaded.model)
    inner = f"adapter{next(_NUMBERS)}"  # peft allows no dots in names, people do
    if loaded.lora:
        loaded.model.load_adapter(str(folder), adapter_name=inner, autocast_adapter_dtype=False)
    else:
        loaded.model = PeftModel.from_pretrained(
            loaded.model, str(folder), adapter_name=inner, autocast_adapter_dtype=False
        )
    loaded.adapters[column] = inner
    if loaded.model.peft_config[inner].bias != "none":
        loaded.biases[column] = biases_of(loaded.model)
        put_in(own)  # peft keeps one set of biases for all: the base's stay in place


def remove_adapters(loaded: LoadedModel, columns: Sequence[str]) -> LoadedModel:
    """The model without these adapters, in the same memory; the value given must not be used any more."""
    if len(columns) == len(loaded.adapters):
        return loaded.without_adapters()
    for column in columns:
        if column not in loaded.apart:
            loaded.model.delete_adapter(loaded.adapters[column])
        for kept in (loaded.adapters, loaded.templates, loaded.cards, loaded.biases, loaded.apart):
            kept.pop(column, None)
    if not loaded.lora:
        loaded.model = loaded.without_adapters().model
    return loaded


def read_card(folder: Path) -> dict[str, Any]:
    """What training noted beside an adapter; for an adapter from elsewhere only the base that peft names."""
    if card := read_studio_card(folder):
        return card
    settings = read_settings(folder)
    return {"base_model": settings.get("base_model_name_or_path"), "revision": settings.get("revision")}
