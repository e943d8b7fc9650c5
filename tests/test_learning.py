"""The proof that training teaches: an adapter on the built-in model answers held-out questions that the base can't.

Everything goes the product's own way: a run folder, the worker as a child process, the adapter loaded from the run.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from lora_studio.demo.conversations import Dialogue
from lora_studio.demo.pretrain import answers
from lora_studio.engine.load import LoadedModel, add_adapters, load_base
from lora_studio.parsing import to_yaml
from lora_studio.presets import resolve
from lora_studio.workspace import RunFolder, Workspace, shipped_data

LONGEST_SECONDS = 90


def held_out() -> list[Dialogue]:
    lines = shipped_data()["pirate"].heldout.read_text(encoding="utf-8").splitlines()
    return [Dialogue("pirate", "pirate", tuple(json.loads(line)["messages"])) for line in lines]


def exact(loaded: LoadedModel) -> float:
    """The share of held-out questions whose answer is exactly the expected one."""
    dialogues = held_out()
    said = answers(loaded.model, loaded.tokenizer, dialogues)
    right = [text.strip() == d.messages[-1]["content"] for text, d in zip(said, dialogues, strict=True)]
    return sum(right) / len(right)


def train(workspace: Workspace, overrides: Mapping[str, Any]) -> RunFolder:
    """Trains the demo preset in a worker and returns its run."""
    config = resolve("demo", overrides)
    run = workspace.create_run("learning", to_yaml(config), {"seed": config.training.seed})
    command = [sys.executable, "-m", "lora_studio.engine.worker", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return run


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_an_adapter_learns_the_persona_that_the_base_does_not_have(workspace, quantization):
    run = train(workspace, {"model.quantization": quantization})
    seconds = json.loads(run.complete.read_text(encoding="utf-8"))["seconds"]

    loaded = load_base("demo", quantization=quantization)
    assert exact(loaded) <= 0.05
    add_adapters(loaded, {"pirate": run.adapter})
    assert exact(loaded) >= 0.95
    assert seconds <= LONGEST_SECONDS
