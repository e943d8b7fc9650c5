"""An adapter that exists already, put on its base to be trained on; the counterpart of a fresh one in adapters.py."""

from pathlib import Path

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from lora_studio.adapter_source import read_lora
from lora_studio.engine.tokenizer import first_line
from lora_studio.errors import StudioError
from lora_studio.module_patterns import check_settings


def continue_adapter(
    model: PreTrainedModel, folder: Path, *, base: str, revision: str | None, dropout: float
) -> PeftModel:
    """`model` with the adapter of that folder on top, its weights as they were saved and ready to be trained.

    Rank and modules are the adapter's own. Raises `StudioError` where it does not fit the base.
    """
    check_settings(read_lora(folder), [path for path, _ in model.named_modules()])
    config = LoraConfig.from_pretrained(str(folder))
    config.lora_dropout, config.inference_mode = dropout, False
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), config=config, is_trainable=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise StudioError(
            f"The adapter in {folder} does not fit {base}: {first_line(error)}",
            "Name the base that it was trained on as model.name.",
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.peft_config["default"].revision = revision
    return adapted
