"""The small files of an adapter, which may come from anywhere: each is read here, within bounds, against one schema.

What passes has the types that peft and the studio count on; all else is a `StudioError` that says what was found.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_studio.errors import StudioError
from lora_studio.module_patterns import check_settings
from lora_studio.parsing import plain_words

# Loading a pickle runs what is in it, and who only uses an adapter needs none of these.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
SETTINGS_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "studio.json"
TEMPLATE_FILE, TOKENIZER_SETTINGS = "chat_template.jinja", "tokenizer_config.json"
SMALL_FILES = (TOKENIZER_SETTINGS, "special_tokens_map.json", "added_tokens.json", "generation_config.json")
"""JSON files beside an adapter that are read when it answers."""
MAX_SETTINGS_BYTES, MAX_SMALL_BYTES, MAX_DEPTH = 8_000_000, 4_000_000, 32
Rank = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Names = list[str] | str | None
AGAIN = "Copy the adapter's files again, or save it again with peft."


class _Checked(BaseModel):
    """Known names with their types, and whatever else a newer library wrote."""

    model_config = ConfigDict(extra="allow", strict=True)


class AdapterSettings(_Checked):
    """`adapter_config.json` as peft 0.21 writes it, for every kind that can answer here."""

    peft_type: str
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    r: Annotated[int, Field(ge=0, le=65_536)] | None = None  # 0 is OFT's, whose blocks have sizes instead
    init_r: Rank | None = None
    target_r: Rank | None = None
    lora_alpha: float | int | None = None
    alpha: float | int | None = None
    lora_dropout: float | int | None = None
    bias: Literal["none", "all", "lora_only"] | None = None
    use_dora: bool | None = None
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | str | None = None
    target_modules: Names = None
    exclude_modules: Names = None
    feedforward_modules: Names = None
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[Count] | Count | None = None
    layers_pattern: Names = None
    rank_pattern: dict[str, Rank | list[bool]] | None = None
    alpha_pattern: dict[str, float | int] | None = None
    trainable_token_indices: list[Count] | dict[str, list[Count]] | None = None
    num_virtual_tokens: Count | None = None
    token_dim: Count | None = None
    num_layers: Count | None = None
    num_attention_heads: Count | None = None
    encoder_hidden_size: Count | None = None
    layer_replication: list[Any] | None = None
    megatron_config: None = None
    """Names a module of Python that peft would import."""


class StudioCard(_Checked):
    """`studio.json`, which the studio writes beside an adapter."""

    base_model: str | None = None
    revision: str | None = None
    quantization: Literal["none", "4bit", "8bit"] | None = None
    dtype: str | None = None
    system_prompt: str | None = None
    prompt_style: str | None = None
    enable_thinking: bool | None = None
    base_fingerprint: str | None = None
    max_length: Count | None = None
    four_bit: dict[str, Any] | None = None


def read_object(path: Path, most: int = MAX_SMALL_BYTES) -> dict[str, Any]:
    """A JSON object out of a file that may come from anywhere. Raises `StudioError` for everything else."""
    name = path.name
    try:
        size = path.stat().st_size
        if size > most:
            raise StudioError(f"{name} has {size:,} bytes, and {most:,} are the most that such a file needs.", AGAIN)
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise StudioError(f"{name} can't be read: {error.strerror}.", AGAIN) from None
    except UnicodeDecodeError:
        raise StudioError(f"{name} is not UTF-8.", AGAIN) from None
    except RecursionError:
        raise StudioError(f"{name} is nested too deeply.", AGAIN) from None
    except ValueError as error:
        raise StudioError(f"{name} can't be read: {error}", "It has to be a JSON file.") from None
    if not isinstance(found, dict):
        raise StudioError(f"{name} holds no settings.", "It has to be a JSON object.")
    _check_values(found, name)
    return found


def _refuse(word: str) -> None:
    raise ValueError(f"it holds {word}, which is no number.")


def _check_values(found: dict[str, Any], name: str) -> None:
    """No nesting that a library would fail at, no number without end, no half of a character."""
    waiting: list[tuple[Any, int]] = [(found, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise StudioError(f"{name} is nested too deeply.", AGAIN)
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise StudioError(f"{name} holds half of a character.", AGAIN) from None
        elif isinstance(value, float) and not math.isfinite(value):
            raise StudioError(f"{name} holds a number that is too large.", AGAIN)


def read_adapter_settings(path: Path) -> dict[str, Any]:
    """An `adapter_config.json` whose every known setting has its type, and whose expressions end in time."""
    found = read_object(path, MAX_SETTINGS_BYTES)
    _check(AdapterSettings, found, path.name)
    check_settings(found)
    return found


def read_studio_card(folder: Path) -> dict[str, Any]:
    """The `studio.json` of an adapter's folder; empty where there is none."""
    path = folder / CARD_FILE
    if not path.is_file():
        return {}
    found = read_object(path)
    _check(StudioCard, found, path.name)
    return found


def read_template(folder: Path) -> str:
    """The chat template beside an adapter's weights, where transformers looks for it: a file of its own, else in the
    tokenizer's settings, where several may stand by name; "" where there is none.
    """
    path = folder / TEMPLATE_FILE
    if not path.is_file():
        return _template_in_settings(folder / TOKENIZER_SETTINGS)
    try:
        if path.stat().st_size > MAX_SMALL_BYTES:
            raise StudioError(f"{path.name} is larger than {MAX_SMALL_BYTES:,} bytes, which no template needs.", AGAIN)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudioError(f"{path.name} can't be read: {error.strerror}.", AGAIN) from None
    except UnicodeDecodeError:
        raise StudioError(f"{path.name} is not UTF-8.", "Save it as UTF-8 and zip the adapter again.") from None


def _template_in_settings(path: Path) -> str:
    """The chat template in a tokenizer_config.json; of several the one called default."""
    found = read_object(path).get("chat_template") if path.is_file() else None
    if isinstance(found, list):
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    if found is not None and not isinstance(found, str):
        raise StudioError(f"The chat template in {path.name} is no text.", AGAIN)
    return found or ""


def check_small_files(folder: Path) -> None:
    """Raises `StudioError` where a file that an answer will need can't be read."""
    read_studio_card(folder)
    read_template(folder)
    for name in SMALL_FILES:
        if (folder / name).is_file():
            read_object(folder / name)


def _check(schema: type[_Checked], found: dict[str, Any], name: str) -> None:
    """Raises `StudioError` with everything that has a wrong type."""
    try:
        schema.model_validate(found)
    except ValidationError as error:
        wrong: dict[str, str] = {}
        for item in error.errors(include_url=False):
            key = ".".join(str(part) for part in item["loc"][:1])
            given = repr(found.get(key))
            shown = "it is missing" if key not in found else f"found {given[:80]}{'…' if len(given) > 80 else ''}"
            wrong.setdefault(key, f"{key} {plain_words(item)} ({shown})")
        raise StudioError(f"{name} is not what peft writes: {'; '.join(list(wrong.values())[:5])}.", AGAIN) from None
