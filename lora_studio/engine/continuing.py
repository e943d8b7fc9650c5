"""An adapter that exists already, put on its base to be trained on; the counterpart of a fresh one in adapters.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_studio.adapter_files import read_template
from lora_studio.adapter_settings import read_lora
from lora_studio.engine.adapter_weights import put_on, read_weights
from lora_studio.engine.loaded import fitting
from lora_studio.engine.tokenizer import adapter_tokenizer
from lora_studio.errors import StudioError


def continue_adapter(
    model: PreTrainedModel, folder: Path, *, base: str, revision: str | None, dropout: float
) -> tuple[PeftModel, list[str]]:
    """`model` with the adapter of that folder on top, its weights as they were saved and ready to be trained; and what
    could not be taken as it is, in sentences.

    Rank and modules are the adapter's own. Raises `StudioError` where it does not fit the base.
    """
    read_lora(folder)
    with fitting(folder, base):
        weights = read_weights(folder, model, base)
        config: Any = weights.config
        if weights.matrices:
            raise StudioError(
                f"{folder.name} brings its own embeddings of {weights.rows:,} tokens: it can't be trained further "
                f"on {base} as it is.",
                "Export it merged, and train a fresh adapter on the merged model.",
            )
        if config.target_parameters and dropout:
            raise StudioError(
                f"{folder.name} is on stacked matrices (target_parameters), which can't have dropout.",
                "Set lora.lora_dropout to 0.",
            )
        config.lora_dropout = dropout
        adapted = put_on(model, weights, "default", base, trainable=True)
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise StudioError(
            f"{folder.name} has matrices on the output layer, which the loss here reads by its weights alone: they "
            "would not be trained.",
            "Export it merged, and train a fresh adapter on the merged model.",
        )
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.peft_config["default"].revision = revision
    return adapted, weights.told


def other_text(folder: Path, tokenizer: PreTrainedTokenizerBase, template: str, rows: int) -> Iterator[str]:
    """Where a run's text is another than the adapter was trained on; `rows` are the tokens that the base knows."""
    own, lacking = adapter_tokenizer(folder, tokenizer, rows)
    if lacking or own is not tokenizer:
        yield (
            f"{folder.name} brings a tokenizer of its own, and this run trains with the base's: tokens and ends that "
            "only the adapter's has are not used."
        )
    before = read_template(folder)
    if before and before != template:
        yield (
            f"{folder.name} was trained with another chat template than this run trains with: its answers will take "
            "the new form. data.prompt_style says which."
        )
