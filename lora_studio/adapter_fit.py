"""Whether an adapter from anywhere may be put on a base: its kind, its task, its base, and the shape of every matrix.

No torch: adapter_config.json, the header of adapter_model.safetensors and the base's config.json are all that is read.
"""

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.adapter_files import WEIGHTS_FILE, check_small_files, read_studio_card, read_template
from lora_studio.adapter_source import KINDS, LORA, PROMPT_LEARNING, read_settings, same_model
from lora_studio.architecture import Architecture, architecture, read_config
from lora_studio.errors import StudioError

MAX_HEADER, MIN_HEADER = 16 * 1024**2, 1 << 16
"""Bytes of names and shapes: the most there can be, and the most that there can be with hardly any numbers."""
_MATRIX = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.(?:\w+\.)?weight")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of an adapter without loading it. `template` is the chat template it was trained with."""

    base: str
    revision: str | None
    quantization: str
    system_prompt: str
    prompt_style: str
    enable_thinking: bool | None
    template: str
    kind: str
    r: int

    @property
    def thinks(self) -> bool:
        """Whether the template has a thinking switch."""
        return "enable_thinking" in self.template


def read_card(folder: Path) -> Card:
    """The adapter's card, from studio.json where there is one, else from what peft wrote."""
    settings = read_settings(folder)
    card = read_studio_card(folder)
    return Card(
        base=str(card.get("base_model") or settings.get("base_model_name_or_path") or ""),
        revision=card.get("revision") or settings.get("revision"),
        quantization=str(card.get("quantization") or "none"),
        system_prompt=str(card.get("system_prompt") or ""),
        prompt_style=str(card.get("prompt_style") or "chat"),
        enable_thinking=card.get("enable_thinking"),
        template=read_template(folder),
        kind=KINDS[settings["peft_type"]],
        r=int(settings.get("r") or 0),
    )


def check_fit(folder: Path, base: str | None = None, check_path: Callable[[str], None] = lambda name: None) -> str:
    """The base that an adapter belongs on: `base` where it is the same model, else the one that the adapter names.

    Raises `StudioError` with the reason where task, base or shapes are wrong. `check_path` raises it for a base that
    may not be read, before anything tells whether it is there. A Hub model that was never fetched has
    no numbers to compare with: it is checked when it is loaded.
    """
    settings = read_settings(folder)
    check_small_files(folder)
    task = settings.get("task_type")
    if task not in ("CAUSAL_LM", None):
        raise StudioError(
            f"This adapter was trained for {task}, not to write text.", "Only CAUSAL_LM adapters can chat."
        )
    named = read_card(folder).base
    for name in filter(None, (named, settings.get("base_model_name_or_path"))):
        check_path(str(name))
    if base and named and not same_model(named, base):
        raise StudioError(
            f"This adapter was trained on {named}; the columns here are on {base}.",
            "All columns share one base: choose adapters of the same base, or take the others out first.",
        )
    found = base or named
    if not found:
        raise StudioError(
            "This adapter does not say which base it was trained on.", "Choose a column of its base first."
        )
    numbers = read_config(found)
    if numbers is None:
        if found.startswith((".", "/", "~")) or found.count("/") != 1:
            raise StudioError(f"The adapter's base {found} is not on this machine.", "Copy the model to that place.")
        return found
    header = read_header(folder / WEIGHTS_FILE)
    _check_ranks(header, settings)
    if model := architecture(numbers):  # one that is not counted here is checked when it is loaded
        _check_shapes(header, model, found)
        _check_prompt(header, settings, model, found)
    return found


def read_header(path: Path) -> dict[str, Any]:
    """Names, types and shapes of a safetensors file's tensors, without the numbers."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise StudioError(f"{path.name} is no safetensors file: its header is damaged.", "Save the adapter again.")
        if length > min(MAX_HEADER, max(MIN_HEADER, 2 * (size - 8 - length))):
            raise StudioError(
                f"{path.name} has {length:,} bytes of names for {size - 8 - length:,} bytes of numbers.",
                "No adapter is like that: save it again.",
            )
        try:
            header = json.loads(file.read(length))
            noted = header.pop("__metadata__", {})
            if not all(isinstance(value, str) for value in noted.values()):
                raise ValueError
            end = max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
            shapes = [[int(number) for number in tensor["shape"]] for tensor in header.values()]
            if any(number < 0 for shape in shapes for number in shape):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
            raise StudioError(f"The header of {path.name} can't be read.", "Save the adapter again.") from None
    if end != size - 8 - length or not shapes:
        raise StudioError(f"{path.name} is not whole: it should hold {end:,} bytes of numbers.", "Copy it again.")
    return dict(header)


def _check_ranks(header: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """No rank that the settings name may exceed what the file holds: peft makes matrices of that size first."""
    if settings["peft_type"] != LORA:
        return
    held = max((tensor["shape"][0] for name, tensor in header.items() if ".lora_A." in name), default=0)
    named = [settings.get("r"), *(settings.get("rank_pattern") or {}).values()]
    highest = max((rank for rank in named if isinstance(rank, int)), default=0)
    if held and highest > held:
        raise StudioError(
            f"The adapter's settings say rank {highest:,}, and its largest matrix has {held:,} rows.",
            "Copy adapter_config.json and the weights from the same adapter.",
        )


def _check_prompt(header: Mapping[str, Any], settings: Mapping[str, Any], model: Architecture, base: str) -> None:
    """The trained virtual tokens of prompt learning: as many as the settings say, and as wide as the base is."""
    kind = settings["peft_type"]
    if kind not in PROMPT_LEARNING:
        return
    keys_and_values = model.layers * 2 * model.kv_heads * model.head_size
    wanted = [settings.get("num_virtual_tokens"), keys_and_values if kind == "PREFIX_TUNING" else model.hidden]
    found = header.get("prompt_embeddings", {}).get("shape")
    if found != wanted or (settings.get("token_dim") not in (None, wanted[1]) and kind != "PREFIX_TUNING"):
        raise StudioError(
            f"The adapter's virtual tokens have the shape {found}; on {base} they need {wanted}.",
            "It was trained on another model, or its settings belong to another adapter.",
        )


def _check_shapes(header: Mapping[str, Any], model: Architecture, base: str) -> None:
    known = {path: linear for linear in model.linears for path in linear.paths}
    for name, tensor in header.items():
        match = _MATRIX.fullmatch(name)
        if match is None:
            continue
        module, shape = match["module"], tuple(tensor["shape"])
        layer = _LAYER.search(module)
        if layer and int(layer[1]) >= model.layers:
            raise StudioError(
                f"The adapter has weights for layer {int(layer[1]) + 1}, and {base} has {model.layers} layers.",
                "It was trained on another model.",
            )
        if module in known:
            wanted = known[module].inputs if match["side"] == "A" else known[module].outputs
            found = shape[-1] if match["side"] == "A" else shape[0]
            if found != wanted:
                side = "columns" if match["side"] == "A" else "rows"
                raise StudioError(
                    f"The adapter's matrix for {module} has {found:,} {side}; on {base} it needs {wanted:,}.",
                    "It was trained on another model.",
                )
