"""A fresh LoRA adapter on a base: which modules it sits on, checked against the modules that the model has."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lora_studio.errors import StudioError

ALL_LINEAR = "all-linear"
# The projections of attention under the names that the known families use.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "out_proj")


def linear_modules(model: Any) -> list[str]:
    """Last names of the model's linear modules, without the output layer, in the order of the model."""
    head = model.get_output_embeddings()
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        # Quantized layers are linear too; GPT-2's Conv1D is the same with its weight turned.
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D") and module is not head:
            found[name.rpartition(".")[2]] = None
    return list(found)


def target_modules(setting: str, available: list[str]) -> str | list[str]:
    """What peft takes for a `lora.target_modules` setting. Raises `StudioError` for modules the model has not."""
    if setting.strip() == ALL_LINEAR:
        return ALL_LINEAR
    if setting.strip() == "attention":
        names = [name for name in available if name in ATTENTION]
        if not names:
            raise StudioError(
                "None of this model's modules bears a name known for attention.",
                f"Name them: the model has {', '.join(available)}.",
            )
        return names
    names = list(dict.fromkeys(name.strip() for name in setting.split(",") if name.strip()))
    unknown = [name for name in names if name not in available]
    if unknown or not names:
        noun = "module" if len(unknown) == 1 else "modules"
        raise StudioError(
            f"The model has no linear {noun} {', '.join(unknown)}." if unknown else "No target module is named.",
            f"Its linear modules are: {', '.join(available)}. `all-linear` takes all of them.",
        )
    return names


def add_adapter(model: Any, *, base: str, revision: str | None, target: str, seed: int, **lora: Any) -> PeftModel:
    """`model` with a fresh adapter on top; `lora` are LoraConfig's own settings. The same seed gives the same start."""
    available = linear_modules(model)
    modules = target_modules(target, available)
    torch.manual_seed(seed)
    try:
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=modules, revision=revision, **lora)
        adapted = get_peft_model(model, config)
    except ValueError as error:  # peft knows what each kind of module can't bear (experts, state spaces)
        raise StudioError(
            f"No such adapter can be put on this model: {error}",
            f"Name other lora.target_modules (there are: {', '.join(available)}), or set lora.lora_dropout to 0.",
        ) from error
    # peft notes where the base was loaded from: for a folder that is a path of this machine, which nobody else has.
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted
