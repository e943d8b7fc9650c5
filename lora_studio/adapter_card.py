"""What is known of an adapter without loading it: base, precision, chat template, tokenizer and system prompt.

The one place that reads an adapter's folder for page, terminal, evaluation and export alike. No torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.adapter_files import TOKENIZER_SETTINGS, read_studio_card, read_template
from lora_studio.adapter_settings import KINDS, read_settings

VOCABULARIES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
)


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What is known of an adapter. `template` is the chat template it was trained with, "" for the base's own.

    `base_fingerprint` is what the base was when the adapter was trained, "" where nothing noted it; `values` is
    everything that stands beside the weights, by the names of studio.json.
    """

    name: str
    base: str
    revision: str | None
    base_fingerprint: str
    quantization: str
    system_prompt: str
    prompt_style: str
    enable_thinking: bool | None
    template: str
    kind: str
    r: int
    values: dict[str, Any]

    @property
    def thinks(self) -> bool:
        """Whether the template has a thinking switch."""
        return "enable_thinking" in self.template


def read_card(folder: Path) -> AdapterCard:
    """The adapter's card, from studio.json where there is one, else from what peft wrote."""
    settings = read_settings(folder)
    values = read_studio_card(folder)
    base = values.get("base_model") or settings.get("base_model_name_or_path") or None
    values |= {"base_model": base, "revision": values.get("revision") or settings.get("revision")}
    thinking = values.get("enable_thinking")
    return AdapterCard(
        name=folder.name,
        base=str(base or ""),
        revision=values["revision"],
        base_fingerprint=str(values.get("base_fingerprint") or ""),
        quantization=str(values.get("quantization") or "none"),
        system_prompt=str(values.get("system_prompt") or ""),
        prompt_style=str(values.get("prompt_style") or "chat"),
        enable_thinking=thinking if isinstance(thinking, bool) else None,
        template=read_template(folder),
        kind=KINDS[settings["peft_type"]],
        r=int(settings.get("r") or 0),
        values=values,
    )


def brings_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's vocabulary, or at least its settings, stand beside the adapter's weights."""
    return (folder / TOKENIZER_SETTINGS).is_file() or any((folder / name).is_file() for name in VOCABULARIES)
