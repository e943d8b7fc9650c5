"""Adapters that are more than plain LoRA (DoRA, whole modules, experts, prompt learning and others), each in a wrapper
of its own around the one base.

The base is in memory once. What such an adapter puts around the base's modules stands there only while it answers, so
that nobody else computes with it: `Standing` is which module stands in which place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, PeftType
from transformers import PreTrainedModel

from lora_studio.engine.adapter_weights import AdapterWeights, own_embeddings, put_on
from lora_studio.engine.biases import Biases, biases_of, put_in, with_biases

ADAPTER = "adapter"
"""peft's name for an adapter in its own wrapper."""

Standing = dict[tuple[torch.nn.Module, str], torch.nn.Module]
"""The module that stands in each place: under a name in a parent."""


def standing(model: torch.nn.Module) -> Standing:
    """What stands in each place of a model now."""
    return {(parent, name): child for parent in model.modules() for name, child in parent.named_children()}


def put(modules: Standing) -> None:
    """Puts each module into its place."""
    for (parent, name), module in modules.items():
        setattr(parent, name, module)


@contextmanager
def with_modules(modules: Standing) -> Iterator[None]:
    """These modules stand in their places within, and those of before again afterwards."""
    before = {(parent, name): parent.get_submodule(name) for parent, name in modules}
    put(modules)
    try:
        yield
    finally:
        put(before)


@dataclass
class Apart:
    """One such adapter. `model` is peft's wrapper, `around` what stands in the base's places while it answers.

    `virtual_tokens` are read before each prompt (prompt learning), and `scores_before` says how many of them its scores
    have places for: those that stand in the text, other than keys and values of the cache (prefix tuning).
    """

    model: PeftModel
    around: Standing
    biases: Biases
    virtual_tokens: int
    scores_before: int

    @contextmanager
    def answering(self) -> Iterator[PeftModel]:
        """Inside, the base with this adapter; the base's own modules have to stand in its places."""
        with with_modules(self.around), with_biases(self.biases):
            yield self.model


def put_apart(base: PreTrainedModel, weights: AdapterWeights, own: Standing, name: str) -> Apart:
    """Puts an adapter around a base whose own modules stand in its places, and leaves the base as it was.

    `name` is what the base is called. Raises `StudioError` or what peft raises where it does not fit.
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
    return Apart(model, around, trained, virtual_tokens, virtual_tokens if in_text else 0)


def _has(biases: Biases, wanted: torch.nn.Parameter, values: torch.Tensor) -> bool:
    return any(bias is wanted and torch.equal(own, values) for bias, own in biases)
