"""Every preset trains: three steps of the built-in model in place of its own, on short rows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lora_studio.config.parsing import presets, resolve, to_yaml
from lora_studio.jobs.events import StepLogged
from lora_studio.workspace import RunFolder, Workspace
from tests.engine.conftest import events

pytestmark = pytest.mark.slow

# What only a GPU can do, and what takes its place without one.
WITHOUT_A_GPU = {
    "instruction-follower": {"model.dtype": "float32", "model.bnb_4bit_compute_dtype": "float32"},
    "preference": {"data.train_file": "preference"},  # the data stay those of whoever takes it
    "kto": {"data.train_file": "feedback"},
    "gpu-8gb": {"training.optim": "adamw_8bit"},
}
SMALL = {
    "model.name": "demo",
    "data.max_samples": 24,
    "data.max_eval_samples": 2,
    "data.max_length": 32,
    "training.max_steps": 3,
    "training.gradient_accumulation_steps": 1,
    "evaluation.eval_strategy": "no",
    "evaluation.load_best_model_at_end": False,
    "evaluation.labels": "",
    "evaluation.metric_for_best_model": "loss",
    "evaluation.early_stopping_patience": 0,
    "evaluation.gen_eval_samples": 0,
    "training.save_strategy": "no",
}


@pytest.mark.parametrize("name", presets())
def test_a_preset_trains_three_steps(name: str, train: Callable[..., int], tmp_path: Path) -> None:
    instead = {} if torch.cuda.is_available() else WITHOUT_A_GPU.get(name, {})
    config = resolve(name, {**SMALL, **instead})
    run: RunFolder = Workspace(tmp_path).create_run(name, to_yaml(config), {})
    assert train(run) == 0
    assert json.loads(run.complete.read_text(encoding="utf-8"))["steps"] == 3
    assert all(point.loss > 0 and point.grad_norm for point in events(run, StepLogged))
