"""Whether an adapter from anywhere may be put on a base: its kind, its task, its base, and the shape of every matrix.

No torch: adapter_config.json, the header of adapter_model.safetensors and the base's config.json are all that is read.
"""

import json
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_studio.adapter_card import AdapterCard, read_card
from lora_studio.adapter_files import WEIGHTS_FILE, check_small_files
from lora_studio.adapter_keys import lora_place, plain_name, ranks_held, some
from lora_studio.adapter_settings import LORA, PROMPT_LEARNING, read_settings
from lora_studio.architecture import Architecture, architecture, read_config
from lora_studio.base_identity import fingerprint, same_base
from lora_studio.errors import StudioError
from lora_studio.module_patterns import is_regular_expression

MAX_HEADER, MIN_HEADER = 16 * 1024**2, 1 << 16
"""Bytes of names and shapes: the most there can be, and the most that there can be with hardly any numbers."""
_LAYER = re.compile(r"layers\.(\d+)\.")


def unlike(card: AdapterCard, base: str) -> str:
    """Why an adapter's own base is not the model of that name; "" where it is, or nothing says otherwise.

    A Hub model that is not on this machine can't be compared: a folder of its last name passes for a copy of it.
    """
    if not card.base:
        return ""
    same = same_base(card.base, base, card.base_fingerprint)
    if same is None:
        return "" if unproved(card, base) else "they can't be compared on this machine, and their names differ."
    if same:
        return ""
    alike = Path(card.base).name.lower() == Path(base).name.lower()
    return "they are other models under one last name." if alike else "its weights mean nothing there."


def unproved(card: AdapterCard, base: str) -> bool:
    """Whether base and adapter's base pass for one model only by their last name, and nothing here can prove it."""
    if not card.base or same_base(card.base, base, card.base_fingerprint) is not None:
        return False
    on_hub = is_hub_id(card.base) != is_hub_id(base)
    return on_hub and Path(card.base).name.lower() == Path(base).name.lower()


def changed(card: AdapterCard, base: str, revision: str | None = None) -> str:
    """That the base under an adapter is not what it was in its training, in words; "" where it is, or no one knows."""
    now = fingerprint(base, revision) if card.base_fingerprint else ""
    if now in ("", card.base_fingerprint):
        return ""
    return (
        f"{base} is not what it was when {card.name} was trained: its config or weights changed since. What the "
        "adapter learned belongs to the base as it was."
    )


def is_hub_id(name: str) -> bool:
    """Whether a name is an id of the Hub, and no folder of this machine or another."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and not os.path.isdir(name)


def together(cards: Sequence[AdapterCard]) -> list[str]:
    """What a person should know of adapters that answer side by side, on the first one's base in its precision.

    Raises `StudioError` where they are of different bases or revisions.
    """
    first, told = cards[0], []
    for other in cards[1:]:
        if other.base and (why := _unlike_first(other, first)):
            raise StudioError(
                f"{other.name} was trained on {other.base}, and {first.name} on {first.base}: {why}",
                "All columns share one base: choose adapters of the same base.",
            )
        if other.revision != first.revision and other.revision and first.revision:
            raise StudioError(
                f"{other.name} was trained on revision {other.revision} of its base, and {first.name} on "
                f"{first.revision}.",
                "All columns share one base: choose adapters of the same revision.",
            )
        if other.quantization != first.quantization:
            told.append(
                f"{other.name} was trained on {precision(other)}; here it answers on {precision(first)}, as "
                f"{first.name} was trained. Base and {other.name} can differ from what they are by themselves."
            )
        if first.base and unproved(other, first.base):
            told.append(f"{other.base} is not on this machine: {first.base} passes for a copy of it by its name alone.")
    return told


def _unlike_first(other: AdapterCard, first: AdapterCard) -> str:
    """Fingerprints that both adapters recorded decide, also where neither base is where it was."""
    if first.base_fingerprint and first.base_fingerprint == other.base_fingerprint:
        return ""
    return unlike(other, first.base) if first.base else ""


def precision(card: AdapterCard) -> str:
    """The base of an adapter's training, by its precision."""
    bits = {"4bit": "4 bits", "8bit": "8 bits"}.get(card.quantization)
    return f"the base in {bits}" if bits else "the full base"


def check_fit(folder: Path, base: str | None = None, check_path: Callable[[str], None] = lambda name: None) -> str:
    """The base that an adapter belongs on: `base` where it is the same model, else the one that the adapter names.

    Raises `StudioError` with the reason where task, base or shapes are wrong. `check_path` raises it for a base that
    may not be read, before anything tells whether it is there. A Hub model that was never fetched has
    no numbers to compare with: it is checked when it is loaded.
    """
    settings, card = read_settings(folder), read_card(folder)
    check_small_files(folder)
    named = card.base
    for name in filter(None, (named, settings.get("base_model_name_or_path"))):
        check_path(str(name))
    if base and (why := unlike(card, base)):
        raise StudioError(
            f"This adapter was trained on {named}; the columns here are on {base}.",
            f"{why[0].upper()}{why[1:]} All columns share one base: choose adapters of the same base, or take the "
            "others out first.",
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
        _check_places(header, settings, model, found)
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
    """The settings' rank of each module is that of its matrices: peft makes matrices of the settings' ranks first.

    A pattern is taken as the end of a module's name; what more it means is for the engine to say.
    """
    if settings["peft_type"] != LORA or settings.get("target_parameters"):
        return
    patterns: Mapping[str, int] = settings.get("rank_pattern") or {}
    for module, held in ranks_held({name: tuple(tensor["shape"]) for name, tensor in header.items()}).items():
        ends = (rank for end, rank in patterns.items() if f".{module}".endswith(f".{end}"))
        named = next(ends, None if any(map(is_regular_expression, patterns)) else int(settings.get("r") or 8))
        if named is not None and named != held:
            matrix = "its largest matrix" if named > held else "its matrix"
            raise StudioError(
                f"The adapter's settings say rank {named:,}, and {matrix} has {held:,} rows "
                f"({module.removeprefix('base_model.model.')}).",
                "Copy adapter_config.json and the weights from the same adapter.",
            )


def _check_places(header: Mapping[str, Any], settings: Mapping[str, Any], model: Architecture, base: str) -> None:
    """At least one LoRA matrix of the file is of a module that the base has, where the base's modules are all known."""
    known = {plain_name(path) for linear in model.linears for path in linear.paths}
    places = {place[0] for name in header if (place := lora_place(name))}
    if settings["peft_type"] != LORA or settings.get("target_parameters") or not model.exact or not places:
        return
    elsewhere = ("embed_tokens", "lm_head", "experts", "router", "gate")
    if not any(plain_name(place) in known or plain_name(place).endswith(elsewhere) for place in places):
        raise StudioError(
            f"None of the adapter's weights has a place in {base}: it holds {some(sorted(places), 2)}.",
            f"It was trained on another model: {base} has {some(sorted(known), 2)}.",
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
    known = {plain_name(path): linear for linear in model.linears for path in linear.paths}
    for name, tensor in header.items():
        place = lora_place(name)
        if place is None or place[1] not in ("A", "B") or len(tensor["shape"]) != 2:
            continue
        (module, side), shape = (plain_name(place[0]), place[1]), tuple(tensor["shape"])
        layer = _LAYER.match(module)
        if layer and int(layer[1]) >= model.layers:
            raise StudioError(
                f"The adapter has weights for layer {int(layer[1]) + 1}, and {base} has {model.layers} layers.",
                "It was trained on another model.",
            )
        if module in known:
            wanted = known[module].inputs if side == "A" else known[module].outputs
            found = shape[-1] if side == "A" else shape[0]
            if found != wanted:
                counted = "columns" if side == "A" else "rows"
                shown = place[0].removeprefix("base_model.model.")
                raise StudioError(
                    f"The adapter's matrix for {shown} has {found:,} {counted}; on {base} it needs {wanted:,}.",
                    "It was trained on another model.",
                )
