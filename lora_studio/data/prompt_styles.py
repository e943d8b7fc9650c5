"""Chooses the chat template of a run: the tokenizer's own, trl's training variant of it, or a built-in one.

The template is chosen once, before anything is rendered, and is saved with the adapter.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.errors import StudioError

OWN_STYLES = ("chatml", "alpaca", "plain")
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Template:
    """A chat template: its Jinja `source`, and a sentence on its `origin`."""

    name: str
    source: str
    origin: str

    @property
    def has_marks(self) -> bool:
        """Whether the template has `{% generation %}` marks."""
        return _MARK.search(self.source) is not None

    @property
    def writes_date(self) -> bool:
        """Whether the template writes the current date."""
        return "strftime_now" in self.source


def choose_template(tokenizer: Any, prompt_style: str) -> Template:
    """The template for a prompt style: auto, chat (the tokenizer's own), chatml, alpaca or plain.

    auto is the tokenizer's own template, and chatml for a tokenizer without one. A known family's template without
    generation marks is exchanged for trl's training variant, which has them.
    """
    own = _own_template(tokenizer)
    if prompt_style in OWN_STYLES:
        return _built_in(tokenizer, prompt_style, f"The prompt style {prompt_style} was selected.")
    if prompt_style not in ("auto", "chat"):
        styles = ", ".join(("auto", "chat", *OWN_STYLES))
        raise StudioError(f"There is no prompt style {prompt_style!r}.", f"Choose one of {styles}.")
    if own is None:
        if prompt_style == "chat":
            raise StudioError("The model's tokenizer has no chat template.", "Choose auto, chatml, alpaca or plain.")
        return _built_in(tokenizer, "chatml", "ChatML, because the model's tokenizer has no chat template.")
    if _MARK.search(own):
        return Template("chat", own, "The model's chat template; its generation marks define the loss mask.")
    training = _training_variant(own)
    if training is not None:
        family, source = training
        return Template("chat", source, f"TRL's training version of the model's chat template (family {family}).")
    return Template("chat", own, "The model's chat template; the loss mask is found by rendering message by message.")


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer adds a beginning-of-text token by itself."""
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 1 and ids[0] == tokenizer.bos_token_id


def _own_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return template.get("default")
    return template


def _built_in(tokenizer: Any, name: str, why: str) -> Template:
    """A built-in template. It writes the beginning-of-text token, as text is tokenised without special tokens."""
    source = (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    if tokenizer.eos_token is None:
        raise StudioError(
            "The tokenizer has no end-of-text token, so the model could not learn to stop with the prompt style "
            f"{name}.",
            "Choose a model whose tokenizer defines an eos_token.",
        )
    return Template(name, ("{{- bos_token }}" if adds_bos(tokenizer) else "") + source, why[0].upper() + why[1:])


def _training_variant(own: str) -> tuple[str, str] | None:
    """trl's variant with generation marks of the same template, by family name.

    Reads trl's template files instead of calling it: importing trl takes three seconds, and the data tab waits.
    """
    package = importlib.util.find_spec("trl")
    for folder in package.submodule_search_locations or [] if package else []:
        for path in sorted((Path(folder) / "chat_templates").glob("*_training.jinja")):
            original = path.with_name(path.name.replace("_training", ""))
            if original.is_file() and original.read_text(encoding="utf-8") == own:
                return original.stem, path.read_text(encoding="utf-8")
    return None
