"""Each trouble of a run is found where it is, and none in a run that is well."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import merge, nest, parse
from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten
from lora_studio.jobs.events import DataPrepared, Evaluated, RunState, StepLogged, fold, from_line
from lora_studio.runs import health

HEALTHY = Path(__file__).parent.parent / "events" / "healthy.jsonl"  # a real run of the demo preset
CONFIG = Config()
Change = Callable[[StepLogged], StepLogged]


def healthy() -> RunState:
    lines = HEALTHY.read_text(encoding="utf-8").splitlines()
    return fold(event for event in map(from_line, lines) if event is not None)


def altered(change: Change, last: int = 1000) -> RunState:
    """The healthy run with its last points changed, as it goes on."""
    run = healthy()
    run.steps = [*run.steps[:-last], *map(change, run.steps[-last:])]
    run.state = "running"
    return run


def at_half(change: Change) -> RunState:
    """The healthy run after half of its steps, with all points changed."""
    run = altered(change)
    run.steps = [item for item in run.steps if item.step <= run.total_steps / 2]
    run.step = run.steps[-1].step
    return run


def evaluated(*losses: float) -> RunState:
    run = healthy()
    run.evaluations = [Evaluated(float(epoch), 10 * epoch, float(epoch), loss) for epoch, loss in enumerate(losses, 1)]
    return run


def prepared(**numbers: Any) -> RunState:
    run = healthy()
    assert run.data is not None
    run.data = replace(run.data, **numbers)
    return run


ILL: dict[str, tuple[health.Check, RunState]] = {
    "not-a-number": (health.not_a_number, altered(lambda item: replace(item, loss=math.nan), 2)),
    "no-gradient": (health.no_gradient, altered(lambda item: replace(item, grad_norm=0.0))),
    "exploding-gradient": (health.exploding_gradient, altered(lambda item: replace(item, grad_norm=50.0))),
    "flat-loss": (
        health.flat_loss,
        altered(lambda item: replace(item, loss=2.0 + math.sin(item.step) / 50, entropy=2.0)),
    ),
    "overfitting": (health.overfitting, evaluated(1.0, 0.6, 0.7, 0.9)),
    "slower": (
        health.slower,
        altered(lambda item: replace(item, tokens_per_second=50.0), 20),
    ),
    "few-labels": (health.few_labels, prepared(trained_tokens=20)),
    "no-learning-rate": (health.no_learning_rate, at_half(lambda item: replace(item, learning_rate=0.0))),
    "little-memory": (
        health.little_memory,
        altered(lambda item: replace(item, memory_peak_bytes=97 * 10**8, memory_available_bytes=10**10)),
    ),
    "collapsed-entropy": (health.collapsed_entropy, altered(lambda item: replace(item, loss=0.9, entropy=0.05))),
    "too-easy": (health.too_easy, altered(lambda item: replace(item, loss=1e-4, epoch=item.epoch / 10))),
}


def test_a_healthy_run_has_no_diagnosis_at_any_of_its_moments() -> None:
    lines = HEALTHY.read_text(encoding="utf-8").splitlines()
    run = RunState()
    for line in lines:
        event = from_line(line)
        assert event is not None
        fold([event], run)
        assert health.diagnose(run, CONFIG, event.time + 1) == []
    assert len(run.steps) > 50


@pytest.mark.parametrize("name", ILL)
def test_each_trouble_is_found_with_cause_and_cure(name: str) -> None:
    check, run = ILL[name]
    found = check(run, CONFIG)
    assert found is not None
    assert found.name == name
    assert found.severity in health.SEVERITIES
    assert all(
        sentence.endswith(".") or sentence.endswith("?") for sentence in (found.finding, found.cause, found.cure)
    )
    assert found in health.diagnose(run, CONFIG, run.last_event or 0.0)


def test_every_check_has_a_run_that_it_finds_ill() -> None:
    assert {check for check, _ in ILL.values()} == set(health.CHECKS)


@pytest.mark.parametrize("name", ILL)
def test_what_a_diagnosis_changes_is_a_config_and_something_else_than_before(name: str) -> None:
    check, run = ILL[name]
    found = check(run, CONFIG)
    assert found is not None
    changed = flatten(parse(merge(CONFIG.model_dump(), nest(found.settings))))
    assert {path: changed[path] for path in found.settings} == found.settings
    assert not found.settings or changed != flatten(CONFIG)


def test_an_overfitting_run_is_told_its_best_step() -> None:
    found = health.overfitting(evaluated(1.0, 0.6, 0.7, 0.9), CONFIG)
    assert found is not None
    assert "step 20" in found.finding
    assert found.settings["training.num_train_epochs"] == 2.0
    assert health.overfitting(evaluated(1.0, 0.6, 0.61, 0.605), CONFIG) is None


@pytest.mark.parametrize("strategy", ["no", "epoch", "steps"])
def test_the_cure_of_overfitting_is_a_config_that_measures_and_keeps_the_best(strategy: str) -> None:
    config = parse({"evaluation": {"eval_strategy": strategy, "eval_steps": 10}, "training": {"max_steps": 40}})
    found = health.overfitting(evaluated(1.0, 0.6, 0.7, 0.9), config)
    assert found is not None
    cured = parse(merge(config.model_dump(), nest(found.settings)))
    assert cured.evaluation.eval_strategy == cured.training.save_strategy != "no"
    assert cured.evaluation.load_best_model_at_end
    assert cured.training.max_steps == 20


def test_a_quantized_model_without_gradient_is_taken_whole() -> None:
    config = parse({"model": {"quantization": "4bit"}})
    found = health.no_gradient(ILL["no-gradient"][1], config)
    assert found is not None
    assert found.settings == {"model.quantization": "none"}


def test_a_warm_up_or_the_end_of_a_schedule_is_not_a_learning_rate_of_nothing() -> None:
    config = parse({"training": {"warmup_ratio": 0.6}})
    assert health.no_learning_rate(at_half(lambda item: replace(item, learning_rate=0.0)), config) is None
    assert health.no_learning_rate(altered(lambda item: replace(item, learning_rate=0.0), 3), CONFIG) is None


def test_rows_that_were_left_out_are_counted() -> None:
    found = health.few_labels(prepared(dropped_rows=100), CONFIG)
    assert found is not None
    assert "100 of 325 rows" in found.finding


def test_a_run_that_is_silent_for_long_is_said_to_stall() -> None:
    run = altered(lambda item: item)
    run.phase = "train"
    last = run.last_event or 0.0
    assert health.stalled(run, last + 30) is None
    found = health.stalled(run, last + 300)
    assert found is not None
    assert "5 min" in found.finding
    run.phase = "model"
    assert health.stalled(run, last + 300) is None
    assert health.stalled(run, last + 700) is not None
    run.state = "done"
    assert health.stalled(run, last + 9000) is None


def test_a_diagnosis_in_words_names_the_settings() -> None:
    found = health.no_gradient(ILL["no-gradient"][1], parse({"model": {"quantization": "4bit"}}))
    assert found is not None
    assert health.in_words(found).endswith("(model.quantization = none)")


def test_a_run_without_any_events_has_nothing_wrong() -> None:
    assert health.diagnose(RunState(), CONFIG, 1e9) == []
    empty = RunState(data=DataPrepared(0.0, 0, 0, 0, 0, 0, 0, "", ""))
    assert health.diagnose(empty, CONFIG, 1e9) == []


def test_a_base_that_is_sure_of_what_is_wrong_may_still_be_learning() -> None:
    check, _ = ILL["collapsed-entropy"]
    falling = altered(lambda item: replace(item, loss=12.0 - 0.1 * item.step, entropy=1.0))
    assert check(replace(falling, steps=falling.steps[:30]), CONFIG) is None


def test_a_loss_of_comparisons_is_not_held_against_the_entropy_of_tokens() -> None:
    check, run = ILL["collapsed-entropy"]
    assert check(run, CONFIG)
    assert check(run, parse({"training": {"method": "dpo"}})) is None


def test_of_two_that_advise_opposite_rates_only_the_cause_is_told() -> None:
    low = parse({"training": {"learning_rate": 1e-7}})
    run = altered(lambda item: replace(item, loss=2.0, entropy=0.05, grad_norm=50.0))
    rates = [item.settings["training.learning_rate"] for item in health.diagnose(run, low, run.last_event or 0.0)]
    assert rates == [5e-4]  # no step of such a rate is too large
    for rate in (1e-5, 2e-4, 1e-3, 5e-3):
        config = parse({"training": {"learning_rate": rate}})
        told = [item.settings.get("training.learning_rate") for item in health.diagnose(run, config, 0.0)]
        assert len({value for value in told if value is not None}) == 1


@pytest.mark.parametrize(
    ("method", "rate", "better"), [("sft", 5e-3, 2e-4), ("sft", 2e-4, 6e-4), ("dpo", 1e-3, 5e-6), ("dpo", 5e-6, 1.5e-5)]
)
def test_a_loss_that_does_not_fall_is_told_a_rate_within_what_is_stable(
    method: str, rate: float, better: float
) -> None:
    run = altered(lambda item: replace(item, loss=2.0 + math.sin(item.step) / 50, entropy=None))
    diagnosis = health.flat_loss(run, parse({"training": {"method": method, "learning_rate": rate}}))
    assert diagnosis is not None
    assert diagnosis.settings == {"training.learning_rate": pytest.approx(better)}
    assert ("too high" in diagnosis.cause) is (better < rate)


def test_an_adapter_that_is_worse_than_its_base_is_an_error_with_a_lower_rate() -> None:
    measured = {"base_loss": 3.1, "adapter_loss": 5.2, "moves": True}
    diagnosis = health.diagnose(healthy(), CONFIG, 0.0, measured)[0]
    assert (diagnosis.name, diagnosis.severity) == ("worse-than-base", "error")
    assert diagnosis.settings["training.learning_rate"] < CONFIG.training.learning_rate
    assert health.diagnose(healthy(), CONFIG, 0.0, {**measured, "adapter_loss": 2.0}) == []
    assert health.is_worse({"base_loss": None, "adapter_loss": 5.2}, "dpo")
    assert not health.is_worse(measured, "dpo")
