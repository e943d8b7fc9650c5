"""Adapters for tests, written without torch: files with the right names, headers and shapes."""

import json
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lora_studio.config.parsing import parse, to_yaml
from lora_studio.jobs.events import Finished, RunStarted, to_line
from lora_studio.models.shape import architecture, read_config
from lora_studio.workspace import RunFolder, Workspace

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


def noise_run(
    workspace: Workspace,
    title: str = "Noise",
    data: str = "recommender",
    deviation: float = 0.5,
    steps: tuple[int, ...] = (),
) -> RunFolder:
    """A finished run whose adapter, and whose checkpoints at these steps, are noise: no training is waited for.

    Of the given deviation it often spoils what the base would say; of a tenth of it the base still answers.
    """
    config = parse({"title": title, "data": {"train_file": data}})
    run = workspace.create_run(title, to_yaml(config), {"model": "demo", "data": data})
    now = time.time()
    events = [RunStarted(now - 2, 1, "cpu", "float32"), Finished(now, "done", 4)]
    run.events.write_text("".join(map(to_line, events)), encoding="utf-8")
    numbers = np.random.default_rng(3)
    settings = {**SETTINGS, "target_modules": ["q_proj", "down_proj"], "lora_alpha": 2}
    for folder in (run.adapter, *(run.checkpoints / f"checkpoint-{step}" for step in steps)):
        folder.mkdir(parents=True)
        weights = {name: numbers.normal(0, deviation, shape).astype(np.float32) for name, shape in shapes_on().items()}
        save_file(weights, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        if folder != run.adapter:
            (folder / "trainer_state.json").write_text("{}", encoding="utf-8")
    return run
