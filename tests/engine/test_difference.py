"""Base and adapter on the same rows: is the adapter doing anything, and are the numbers right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_studio.data.dataset import prepare
from lora_studio.data.encode import Example
from lora_studio.data.messages import IGNORED
from lora_studio.engine.chat import logprobs as module
from lora_studio.engine.chat.logprobs import Difference, against_base, difference, spread
from lora_studio.engine.models.adapter import add_adapter
from lora_studio.engine.models.load import load_model
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.runtime import EventLog
from lora_studio.jobs.events import PhaseStarted, Progress
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, events

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "use_rslora": False, "use_dora": False}


def fresh(base: Path) -> Any:
    """The tiny model with an adapter that was never trained."""
    model = load_model(str(base))
    return add_adapter(model, base=str(base), revision=None, target="all-linear", seed=1, **LORA)


def moved(model: Any) -> Any:
    """The same with an adapter that does something."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    return model


@pytest.fixture(scope="module")
def examples(base: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    cache = tmp_path_factory.mktemp("cache")
    prepared = prepare(
        str(data_file), load_tokenizer(str(base)), validation_fraction=0.0, max_length=64, cache_folder=cache
    )
    return prepared.train[:20]


def by_hand(model: Any, rows: list[Example]) -> tuple[float, float]:
    """Loss and token accuracy, row by row, as the definition has it."""
    nats, right, count = 0.0, 0, 0
    model.eval()
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].double()
        wanted = torch.tensor(row.labels[1:])
        there = wanted != IGNORED
        nats += float(torch.nn.functional.cross_entropy(logits[there], wanted[there], reduction="sum"))
        right += int((logits[there].argmax(-1) == wanted[there]).sum())
        count += int(there.sum())
    return nats / count, right / count


def test_an_adapter_that_was_never_trained_does_nothing_at_all(base: Path, examples: list[Example]) -> None:
    model = fresh(base)
    found = difference(model, examples, base=model.disable_adapter)
    assert found.base_loss == found.adapter_loss
    assert (found.divergence, found.changed_tokens, found.moves) == (0.0, 0.0, False)
    assert "no effect" in found.sentence()


def test_losses_and_accuracies_are_those_of_base_and_adapter(base: Path, examples: list[Example]) -> None:
    model = moved(fresh(base))
    found = difference(model, examples, base=model.disable_adapter)
    loss, accuracy = by_hand(model, examples)
    base_loss, base_accuracy = by_hand(load_model(str(base)), examples)
    assert found.adapter_loss == pytest.approx(loss, rel=1e-5)
    assert found.base_loss == pytest.approx(base_loss, rel=1e-5)
    assert (found.adapter_token_accuracy, found.base_token_accuracy) == pytest.approx((accuracy, base_accuracy))
    assert found.divergence > 0.01
    assert 0 < found.changed_tokens <= 1
    assert found.moves
    assert "of top-1 tokens differ" in found.sentence()
    assert found.tokens == sum(label != IGNORED for row in examples for label in row.labels[1:])


@pytest.mark.slow
def test_little_memory_changes_nothing_but_the_pieces(
    base: Path, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved(fresh(base))
    whole = difference(model, examples, base=model.disable_adapter)
    monkeypatch.setattr(module, "MAX_SCORES", 3 * model.config.vocab_size)
    pieces = difference(model, examples, base=model.disable_adapter)
    for name in ("tokens", "base_loss", "adapter_loss", "divergence", "changed_tokens", "adapter_token_accuracy"):
        assert vars_of(pieces)[name] == pytest.approx(vars_of(whole)[name], rel=1e-5), name


def vars_of(found: Difference) -> dict[str, Any]:
    return found.to_dict("")


def test_when_the_time_is_over_what_was_measured_counts(base: Path, examples: list[Example]) -> None:
    model = fresh(base)
    found = difference(model, examples, base=model.disable_adapter, most_seconds=0.0)
    assert (found.rows, found.asked) == (8, 20)


def test_a_stop_ends_the_measurement_and_leaves_the_model_as_it_was(base: Path, examples: list[Example]) -> None:
    model = fresh(base).train()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        difference(model, examples, base=model.disable_adapter, check=stop)
    assert model.training


def test_rows_are_taken_evenly_and_never_twice(examples: list[Example]) -> None:
    assert spread(examples, 50) == examples
    assert [row.row for row in spread(examples, 4)] == [examples[at].row for at in (0, 5, 10, 15)]
    assert spread([], 4) == []


def test_what_is_no_number_is_said_and_kept_out_of_the_files() -> None:
    found = Difference(1, 1, 1, 1.0, float("nan"), 0.5, 0.5, float("nan"), 1.0, 0.1)
    assert not found.moves
    assert "not finite" in found.sentence()
    assert json.loads(json.dumps(found.to_dict("x"), allow_nan=False))["adapter_loss"] is None


def test_an_adapter_that_makes_worse_is_told_so() -> None:
    found = Difference(1, 1, 1, 1.0, 2.0, 0.5, 0.5, 0.7, 0.3, 0.1)
    assert "worse than the base" in found.sentence()
    assert "almost no effect" in Difference(1, 1, 1, 1.0, 1.0, 0.5, 0.5, 0.001, 0.0, 0.1).sentence()


def test_rows_that_were_trained_on_stand_in_where_none_are_held_out(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    model = fresh(base)
    here: dict[str, Any] = {"log": EventLog(run.events), "check": lambda: None, "base": model.disable_adapter}
    found = against_base(model, examples, [], **here)
    assert found is not None
    assert "training rows" in found["rows_sentence"]
    held = against_base(model, examples, examples[:3], **here)
    assert held is not None
    assert held["rows_sentence"].endswith("of all 3 validation rows.")
    here["log"].state()  # writes what waits to be written
    assert events(run, PhaseStarted)[-1].phase == "compare"
    assert events(run, Progress)[-1].done == 3


@pytest.mark.slow
def test_a_run_reports_what_its_adapter_does(trained: RunFolder) -> None:
    numbers = json.loads(trained.complete.read_text(encoding="utf-8"))
    measured = numbers["difference"]
    assert measured["moves"]
    assert measured["rows"] == 8
    assert measured["adapter_loss"] == pytest.approx(numbers["eval_loss"], rel=1e-3)
    assert measured["adapter_loss"] < measured["base_loss"]
    report = trained.report.read_text(encoding="utf-8")
    assert "of top-1 tokens differ" in report
    assert "| Loss (nats/token) |" in report
    assert "8 rows (4 × 2)" in report
    for part in ("## Model and adapter", "## Data", "## Template and tokens", "## Files", "adapter_model.safetensors"):
        assert part in report


@pytest.mark.slow
def test_a_run_that_learned_nothing_says_so(make_run: MakeRun, train: Callable[..., int]) -> None:
    run = make_run(training__learning_rate=1e-12, training__max_steps=1, data__validation_fraction=0.0)
    assert train(run) == 0
    measured = json.loads(run.complete.read_text(encoding="utf-8"))["difference"]
    assert not measured["moves"]
    assert "no effect" in measured["sentence"]
    assert "training rows" in run.report.read_text(encoding="utf-8")
