"""The verdict on a run, and the winner of several."""

import math
from dataclasses import replace
from typing import Any

import pytest

from lora_studio.config.parsing import parse
from lora_studio.config.sections import Config
from lora_studio.jobs.events import DataPrepared, Evaluated, Reason, RunState, StepLogged
from lora_studio.models.hub import Charge
from lora_studio.runs.health import Diagnosis, diagnose, verdict, winner
from lora_studio.runs.summary import Overview, Tags

CONFIG = Config()
MEASURED = {"base_loss": 3.0, "adapter_loss": 1.0, "moves": True, "changed_tokens": 0.2, "divergence": 1.5, "rows": 9}


def run_of(state: str, losses: tuple[float, ...] = (), measured: tuple[float, ...] = (), **more: Any) -> RunState:
    steps = [StepLogged(float(at), at, 9, at / 9, loss, 1e-4, 0.5) for at, loss in enumerate(losses, 1)]
    evaluations = [Evaluated(float(at), at, at / 9, loss) for at, loss in enumerate(measured, 1)]
    return RunState("id", "run", state, steps=steps, evaluations=evaluations, step=len(steps), total_steps=9, **more)


@pytest.mark.parametrize(
    ("run", "comparison", "kind", "tone"),
    [
        (run_of("queued"), None, "queued", "idle"),
        (run_of("running", (2.0, 1.0)), None, "training", "running"),
        (run_of("done", (2.0, 1.0)), None, "learned", "good"),
        (run_of("done", (2.0, 2.0)), None, "flat", "warning"),
        (run_of("done", (2.0, 1.0), (1.5, 1.6)), None, "flat", "warning"),
        (run_of("done", (2.0, 1.0)), MEASURED, "learned", "good"),
        (run_of("done", (2.0, 1.0)), MEASURED | {"moves": False}, "flat", "warning"),
        (run_of("done", (2.0, 1.0)), MEASURED | {"adapter_loss": 4.0}, "collapsed", "error"),
        (run_of("done", (2.0, 1.0), (0.5, 0.8, 0.9)), MEASURED, "overfitting", "warning"),
        (run_of("running", (2.0, math.nan)), None, "collapsed", "error"),
        (run_of("stopped", (2.0, 1.0)), None, "stopped", "warning"),
        (run_of("failed", (2.0,), message="Out of memory."), None, "crashed", "error"),
        (run_of("failed", (2.0, math.nan), reason=Reason.DIVERGED), None, "collapsed", "error"),
    ],
)
def test_every_ending_has_its_verdict(run: RunState, comparison: Any, kind: str, tone: str) -> None:
    result = verdict(run, diagnose(run, CONFIG, 10.0, comparison), comparison)
    assert (result.kind, result.tone) == (kind, tone)


def test_the_one_fix_is_the_change_of_the_trouble_or_going_on() -> None:
    ill = run_of("running", (2.0, math.nan))
    result = verdict(ill, diagnose(ill, CONFIG, 10.0))
    assert result.diagnosis is not None
    assert "training.learning_rate" in result.diagnosis.settings
    assert verdict(run_of("failed", message="Killed."), []).resume
    advice = Diagnosis("little-memory", "warning", "Nearly full.", "", "")
    assert verdict(run_of("done", (2.0, 1.0)), [advice]).kind == "learned"  # advice is no verdict


def test_an_adapter_without_effect_is_advised_a_higher_rate_and_never_a_lower_one() -> None:
    def rate_of(config: Config) -> Any:
        found = diagnose(run_of("done"), config, 0.0, MEASURED | {"moves": False})
        return next(item for item in found if item.name == "no-effect").settings.get("training.learning_rate")

    assert rate_of(parse({"training": {"learning_rate": 1e-5}})) == 2e-4
    assert rate_of(parse({"training": {"learning_rate": 1e-3}})) is None


def overview(title: str, best: float | None) -> Overview:
    return Overview(title, title, "done", "demo", "pirate", Tags(), 0.0, best_loss=best)


def test_the_winner_has_the_lowest_validation_loss_on_the_same_rows() -> None:
    runs = [(overview("a", 1.5), run_of("done")), (overview("b", 1.25), run_of("done"))]
    other_rank = parse({"lora": {"r": 4}})
    best = winner(runs, [CONFIG, other_rank])
    assert (best.place, best.reason) == (1, "b has the lowest validation loss: 1.25.")
    assert winner(runs, [CONFIG, parse({"data": {"max_length": 64}})]).place is None
    assert winner([runs[0], (overview("c", None), run_of("done"))], [CONFIG, CONFIG]).place is None
    assert winner([runs[0], (overview("c", 1.5), run_of("done"))], [CONFIG, CONFIG]).place is None
    assert winner(runs, [CONFIG, parse({"training": {"method": "dpo"}})]).place is None


def test_the_same_tokens_are_the_same_rows_whatever_the_files_are_called() -> None:
    data = DataPrepared(0.0, 90, 10, 0, 0, 900, 400, "f", "chat", rows_digest="abc")
    runs = [(overview(name, loss), run_of("done", data=data)) for name, loss in (("a", 1.0), ("b", 2.0))]
    assert winner(runs, [CONFIG, parse({"data": {"train_file": "copy.jsonl"}})]).place == 0


def test_a_run_that_cannot_be_followed_says_so_and_that_it_goes_on() -> None:
    away = Charge("Nvidia T4 - small", 0.4, 7200.0, running=True, trouble="No connection to the Hub.")
    run = RunState(state="running", target="hf-jobs:t4", charge=away)
    assert verdict(run, []).sentence == "No connection to the Hub. The run continues on hf-jobs:t4."
    assert verdict(replace(run, charge=replace(away, trouble="")), []).tone == "running"
