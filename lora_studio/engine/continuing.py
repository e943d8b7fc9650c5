"""An adapter that exists already, put on its base to be trained on; the counterpart of a fresh one in adapters.py."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from lora_studio.adapter_settings import read_lora
from lora_studio.engine.adapter_weights import put_on, read_weights
from lora_studio.engine.loaded import fitting
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
        config.lora_dropout = dropout
        adapted = put_on(model, weights, "default", base, trainable=True)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.peft_config["default"].revision = revision
    return adapted, weights.told
