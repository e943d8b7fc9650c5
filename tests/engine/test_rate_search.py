"""The search for a learning rate: its rates are exponential, its losses those of its steps, its rule is documented."""

import math

import pytest

from lora_studio.config.parsing import parse
from lora_studio.config.sections import Config
from lora_studio.engine.train import rate_search as program
from lora_studio.errors import StudioError
from lora_studio.jobs.events import StepLogged, read_state
from lora_studio.runs import rate_search
from lora_studio.runs.rate_search import as_searched, growth, has_diverged, rate_curve, search_steps, smoothed
from tests.engine.conftest import MakeRun, run_worker


@pytest.mark.slow
def test_a_search_trains_with_rates_that_rise_exponentially_and_leaves_no_adapter(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_search, "MIN_STEPS", 10)
    run = make_run(lora__loraplus_lr_ratio=4.0, evaluation__gen_eval_samples=2, evaluation__early_stopping_patience=1)
    assert run_worker(run, program=program.main) == 0
    state = read_state(run.events)
    assert state.state == "done"
    ratio = (1e-1 / 1e-7) ** (1 / 9)
    assert [point.learning_rate for point in state.steps] == pytest.approx(
        [1e-7 * ratio**n for n in range(len(state.steps))]
    )
    assert len(state.steps) <= 10
    assert not run.checkpoints.exists()
    assert not run.adapter.exists()
    assert not state.evaluations
    result = run.read_result()
    curve = rate_curve(state.steps)
    assert (result["suggestion"], result["rule"]) == (curve.suggestion, curve.words)
    assert curve.losses == tuple(point.loss for point in state.steps[1:])


def test_a_search_takes_a_twentieth_of_the_run_within_its_bounds() -> None:
    assert [search_steps(steps) for steps in (10, 800, 1200, 2000, 100_000)] == [40, 40, 60, 100, 100]
    assert growth(61) ** 60 == pytest.approx(1e6)


def points(losses: list[float]) -> list[StepLogged]:
    """Steps with these losses, each after a step with a tenth of the next rate."""
    return [StepLogged(0.0, n, 9, 0.0, loss, 1e-7 * 10**n) for n, loss in enumerate(losses)]


def test_a_tenth_of_the_rate_of_the_lowest_smoothed_loss_is_suggested() -> None:
    curve = rate_curve(points([4.0, 4.0, 4.0, 3.0, 2.0, 1.0, 9.0]))
    assert curve.rates[-1] == pytest.approx(1e-7 * 10**5)
    assert curve.losses == (4.0, 4.0, 3.0, 2.0, 1.0, 9.0)
    by_hand = (4.0 * 0.7**3 + 4.0 * 0.7**2 * 1.0 + 3.0 * 0.7 + 2.0) * 0.3 / (1 - 0.7**4)
    assert curve.smooth[3] == pytest.approx(by_hand)
    lowest = curve.rates[curve.smooth.index(min(curve.smooth))]
    assert curve.suggestion == pytest.approx(lowest / 10, rel=0.05)
    assert "a tenth of the rate at which the smoothed loss is lowest" in curve.words


def test_nothing_is_suggested_where_the_losses_say_nothing() -> None:
    flat = rate_curve(points([2.0, 2.0, 2.0, 2.1, 2.2]))
    assert (flat.suggestion, flat.words) == (None, "The loss did not fall at any rate, so there is nothing to suggest.")
    assert rate_curve(points([2.0])).suggestion is None


def test_a_search_ends_where_the_loss_is_four_times_the_lowest_or_no_number() -> None:
    assert not has_diverged([2.0, 1.0, 1.5])
    assert has_diverged([2.0, 1.0, 1.0, 30.0])
    assert has_diverged([2.0, math.nan])
    assert smoothed([2.0, math.inf, 1.0]) == [2.0]


def test_several_processes_search_as_one_with_the_same_batch() -> None:
    several = parse({"compute": {"processes": 4}, "training": {"gradient_accumulation_steps": 2}})
    alone = as_searched(several)
    assert (alone.compute.world_size, alone.training.gradient_accumulation_steps) == (1, 8)
    assert as_searched(Config()) == Config()
    with pytest.raises(StudioError, match="one process"):
        as_searched(parse({"compute": {"processes": 2, "strategy": "fsdp"}}))
