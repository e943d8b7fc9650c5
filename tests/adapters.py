"""Adapters for tests, written without torch: files with the right names, headers and shapes."""

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

from lora_studio.architecture import architecture, read_config

SETTINGS = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "demo", "r": 2}


def safetensors(shapes: dict[str, list[int]]) -> bytes:
    """A file of zeros with these tensors, 32 bits each."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = 4
        for number in shape:
            size *= number
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def shapes_on(model: str = "demo", r: int = 2) -> dict[str, list[int]]:
    """What a LoRA adapter on two modules of the first layer holds."""
    numbers = read_config(model)
    assert numbers is not None
    linears = [linear for linear in architecture(numbers).linears if linear.leaf in ("q_proj", "down_proj")]
    found: dict[str, list[int]] = {}
    for linear in linears:
        place = f"base_model.model.{linear.paths[0]}"
        found[f"{place}.lora_A.weight"] = [r, linear.inputs]
        found[f"{place}.lora_B.weight"] = [linear.outputs, r]
    return found


def files(shapes: dict[str, list[int]] | None = None, **settings: Any) -> dict[str, bytes]:
    """The files of an adapter by name."""
    return {
        "adapter_config.json": json.dumps(SETTINGS | settings).encode(),
        "adapter_model.safetensors": safetensors(shapes or shapes_on()),
    }


def write(folder: Path, given: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in given.items():
        (folder / name).write_bytes(content)
    return folder


def zipped(path: Path, given: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in given.items():
            archive.writestr(name, content)
    return path
