"""A training whose loss is no number ends at once, as failed, with reason and advice, and leaves valid JSON."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_studio.engine.train.callbacks import DivergedError, check_weights
from lora_studio.engine.train.trainers import StudioTrainer
from lora_studio.jobs.events import CheckpointSaved, Evaluated, Finished, StepLogged, fold
from lora_studio.runs.checkpoints import checkpoints
from lora_studio.runs.health import of_folder
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, events

Train = Callable[..., int]


def result_of(run: RunFolder) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found: dict[str, Any] = json.loads(run.complete.read_text(encoding="utf-8"), parse_constant=refuse)
    return found


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Sets an adapter's weight to a value after so many steps, as an overflow does."""
    whole = StudioTrainer.training_step

    def training_step(self: StudioTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == step:
            model: Any = self.model
            next(item for item in model.parameters() if item.requires_grad).data[0, 0] = value
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(StudioTrainer, "training_step", training_step)


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_at_that_step(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    run = make_run(tracking__logging_steps=10)
    spoil(monkeypatch, 5, value)
    assert train(run) == 1
    result = result_of(run)
    (ended,) = events(run, Finished)
    assert (ended.state, result["state"], result["steps"], result["train_loss"]) == ("failed", "failed", 6, None)
    assert "training loss is not a number (NaN) at step 6" in ended.message
    assert "training.learning_rate to 0.0033" in ended.hint
    assert not math.isfinite(events(run, StepLogged)[-1].loss)
    assert [saved.step for saved in events(run, CheckpointSaved)] == [4]
    assert not run.adapter.exists()
    state = fold(events(run))
    assert state.best is not None
    assert state.best.step == 4
    assert [found.name for found in of_folder(state, run.config, 0.0)] == ["not-a-number"]


@pytest.mark.slow
def test_a_base_that_computes_no_number_is_told_at_the_first_step(
    make_run: MakeRun, train: Train, base: Path, tmp_path: Path
) -> None:
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], math.inf)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    run = make_run(model__name=str(tmp_path))
    assert train(run) == 1
    assert "the base model itself computes NaN" in result_of(run)["message"]


@pytest.mark.slow
def test_a_validation_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(evaluation__load_best_model_at_end=True)

    def prediction_step(self: StudioTrainer, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None, None]:
        self._eval_nats = math.nan
        return torch.tensor(math.nan), None, None

    monkeypatch.setattr(StudioTrainer, "prediction_step", prediction_step)
    assert train(run) == 1
    assert "validation loss is not a number (NaN) at step 4" in result_of(run)["message"]
    assert not events(run, CheckpointSaved)


def test_weights_that_are_no_numbers_are_not_saved() -> None:
    model = torch.nn.Linear(2, 2)
    check_weights(model, 3)
    model.weight.data[0, 0] = math.nan
    with pytest.raises(DivergedError, match="adapter is not a number"):
        check_weights(model, 3)


@pytest.mark.slow
def test_a_checkpoint_that_measured_no_number_is_never_the_best(trained: RunFolder) -> None:
    state = fold([*events(trained), Evaluated(0.0, 4, 1.0, math.nan)])
    assert state.best is not None
    assert state.best.step == 8
    state.checkpoints = []
    whole = checkpoints(RunFolder(trained.path), state)
    assert [found.name for found in whole if found.best] in ([], ["checkpoint-8"])
