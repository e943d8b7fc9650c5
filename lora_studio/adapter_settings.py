"""The kinds of adapters that can be used here, and their settings: what peft may be handed, and what is refused."""

from pathlib import Path
from typing import Any

from lora_studio.adapter_files import SETTINGS_FILE, WEIGHTS_FILE, read_adapter_settings
from lora_studio.errors import StudioError

LORA = "LORA"
KINDS = {
    LORA: "LoRA",
    "ADALORA": "AdaLoRA",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "VERA": "VeRA",
    "OFT": "OFT",
    "IA3": "(IA)³",
    "LN_TUNING": "layer norm tuning",
    "PROMPT_TUNING": "prompt tuning",
    "P_TUNING": "P-tuning",
    "PREFIX_TUNING": "prefix tuning",
}
"""Kinds of adapters that can answer, by peft's word for them. None of them reads another file or fetches anything."""
PROMPT_LEARNING = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
NEED_FULL_BASE = ("LOHA", "LOKR")
"""Kinds that peft can't put on a base in 4 or 8 bits."""
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""First weights (`init_lora_weights`) whose loading takes something out of the base itself."""
WRITE_TEXT = ("CAUSAL_LM", "SEQ_2_SEQ_LM", None)
"""Task types of adapters that write text; some tools mark those of multimodal bases as SEQ_2_SEQ_LM."""


def read_settings(folder: Path) -> dict[str, Any]:
    """The adapter's `adapter_config.json`.

    Raises `StudioError` unless it is of a known kind, in safetensors, which run no code, and leaves its base alone.
    """
    if not (folder / SETTINGS_FILE).is_file():
        raise StudioError(f"There is no adapter in {folder}.", "Choose a finished run or a checkpoint.")
    if not (folder / WEIGHTS_FILE).is_file():
        raise StudioError(
            f"The adapter in {folder} is not stored as safetensors.",
            "Other formats can run code when read; convert it.",
        )
    settings = read_adapter_settings(folder / SETTINGS_FILE)
    _check_usable(folder, settings)
    return settings


def _check_usable(folder: Path, settings: dict[str, Any]) -> None:
    """Raises `StudioError` unless the adapter is of a known kind, writes text and leaves its base alone."""
    kind, start, task = settings["peft_type"], str(settings.get("init_lora_weights")), settings.get("task_type")
    if kind not in KINDS:
        raise StudioError(
            f"The adapter in {folder} is of the kind {kind[:60]}, which is not known here.",
            f"Known are {', '.join(KINDS.values())}.",
        )
    if task not in WRITE_TEXT:
        raise StudioError(
            f"This adapter was trained for {str(task)[:60]}, not to write text.", "Only CAUSAL_LM adapters can chat."
        )
    if kind in PROMPT_LEARNING and not settings.get("num_virtual_tokens"):
        raise StudioError(f"The adapter in {folder} does not say how many virtual tokens it has.", "Save it again.")
    if start.startswith(CHANGE_THE_BASE):
        raise StudioError(
            f"The adapter in {folder} begins with {start[:60]}, which changes the base when it is loaded.",
            "Save it with peft's path_initial_model_for_weight_conversion: that makes a plain LoRA adapter of it.",
        )
    if settings.get("layer_replication"):
        raise StudioError(
            f"The adapter in {folder} repeats layers of its base (layer_replication): the base would be another model.",
            "Nothing can stand beside it; use it with peft alone.",
        )


def virtual_tokens(folder: Path) -> int:
    """Tokens that an adapter of prompt learning puts before each prompt; 0 for all others."""
    settings = read_settings(folder)
    return int(settings["num_virtual_tokens"]) if settings["peft_type"] in PROMPT_LEARNING else 0


def read_lora(folder: Path) -> dict[str, Any]:
    """The same for what only LoRA can be used for. Raises `StudioError` for all other kinds."""
    settings = read_settings(folder)
    if settings["peft_type"] != LORA:
        raise StudioError(
            f"The adapter in {folder} is {KINDS[settings['peft_type']]}, not LoRA.",
            "It can answer in chat and be evaluated; only LoRA adapters can be trained further or exported.",
        )
    return settings
