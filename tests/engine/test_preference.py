"""Learning by comparison: what the trainer gets, what the reference is, resuming, and that it teaches."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from lora_studio.config.parsing import resolve, to_yaml
from lora_studio.data.dataset import prepare
from lora_studio.data.messages import IGNORED
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.runtime import EventLog
from lora_studio.engine.train_script import PairCollator
from lora_studio.jobs.events import Evaluated, Extended, Finished, StepLogged, fold
from lora_studio.workspace import RunFolder, Workspace, shipped_data
from tests.engine.conftest import COLOURS, THINGS, MakeRun, events
from tests.engine.test_worker import stop_at

Train = Callable[..., int]


def test_a_batch_is_what_trls_own_collator_makes_of_the_same_pairs() -> None:
    pairs = [([1, 2, 3], [4, 5], [6]), ([7, 8], [9], [10, 11, 12])]
    ours = [
        {
            "chosen_ids": prompt + better,
            "chosen_labels": [IGNORED] * len(prompt) + better,
            "rejected_ids": prompt + worse,
            "rejected_labels": [IGNORED] * len(prompt) + worse,
        }
        for prompt, better, worse in pairs
    ]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    theirs = DataCollatorForPreference(pad_token_id=0)([dict(zip(names, pair, strict=True)) for pair in pairs])
    batch = PairCollator(0)(ours)
    assert set(batch) == set(theirs)
    assert all(torch.equal(batch[name], theirs[name]) for name in batch)


@pytest.fixture(scope="module")
def pair_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": f"Paint the {thing} {colour}.", "chosen": f"The {thing} is {colour}.", "rejected": f"No {thing}."}
        for colour in COLOURS
        for thing in THINGS
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def make_dpo(make_run: MakeRun, pair_file: Path) -> MakeRun:
    settings = {"data__train_file": str(pair_file), "training__method": "dpo", "training__learning_rate": 1e-3}
    return lambda **more: make_run(**{**settings, **more})


@pytest.mark.slow
def test_a_stopped_comparison_resumes_as_if_it_had_never_stopped(
    make_dpo: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = make_dpo(), make_dpo()
    assert train(whole) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, lambda event: isinstance(event, StepLogged) and event.step == 3)
        assert train(run) == 130
    assert train(run, "--resume") == 0
    one, other = (fold(events(each)) for each in (whole, run))
    assert [point.loss for point in one.steps] == [point.loss for point in other.steps]
    assert [point.metrics for point in one.steps] == [point.metrics for point in other.steps]
    assert one.steps[0].loss == pytest.approx(0.6931, abs=1e-3)  # no step yet: base and adapter are the same
    rewards = {"reward_margin", "reward_accuracy", "chosen_reward", "rejected_reward"}
    assert rewards <= set(one.steps[0].metrics)
    assert rewards | {"token_accuracy"} == set(one.evaluations[0].metrics)
    config = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 4
    assert sorted(path.name for path in run.adapter.iterdir() if path.is_dir()) == []


@pytest.mark.slow
def test_a_comparison_from_an_adapter_goes_on_for_more_epochs_as_if_planned_so_and_keeps_its_best(
    make_dpo: MakeRun, train: Train
) -> None:
    """The reference stays where the run began: taken from the checkpoint, rewards would begin anew at 0."""
    first = make_dpo(training__max_steps=2, training__save_strategy="no")
    assert train(first) == 0
    settings = {
        "model__adapter_name_or_path": str(first.adapter),
        "training__lr_scheduler_type": "constant",
        "evaluation__metric_for_best_model": "reward_margin",
        "evaluation__load_best_model_at_end": True,
    }
    whole, longer = make_dpo(**settings), make_dpo(training__num_train_epochs=1, **settings)
    assert train(whole) == train(longer) == 0
    EventLog(longer.events).emit(Extended(time.time(), 1.0))
    longer.complete.unlink()
    assert train(longer, "--resume") == 0
    one, other = (fold(events(each)) for each in (whole, longer))
    assert [point.step for point in other.steps] == list(range(1, 9))
    assert [point.loss for point in one.steps] == [point.loss for point in other.steps]
    assert [point.metrics for point in one.steps] == [point.metrics for point in other.steps]
    assert one.steps[0].metrics["chosen_reward"] == pytest.approx(0, abs=1e-5)
    best = max(one.evaluations, key=lambda evaluation: evaluation.metrics["reward_margin"])
    assert json.loads(longer.complete.read_text(encoding="utf-8"))["best_checkpoint"] == f"checkpoint-{best.step}"


@pytest.mark.slow
def test_pairs_accumulated_or_at_once_give_the_same_loss(make_dpo: MakeRun, train: Train) -> None:
    settings = {"training__train_sampling_strategy": "random", "training__max_steps": 3}
    apart = make_dpo(training__per_device_train_batch_size=1, training__gradient_accumulation_steps=8, **settings)
    together = make_dpo(training__per_device_train_batch_size=8, training__gradient_accumulation_steps=1, **settings)
    assert train(apart) == train(together) == 0
    one, other = ([point.loss for point in fold(events(each)).steps] for each in (apart, together))
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["hinge", "ipo", "robust"])
def test_every_loss_trains(loss_type: str, make_dpo: MakeRun, train: Train) -> None:
    smoothing = 0.1 if loss_type == "robust" else 0.0
    run = make_dpo(preference__loss_type=loss_type, preference__label_smoothing=smoothing, training__num_train_epochs=3)
    assert train(run) == 0
    points = fold(events(run)).steps
    assert points[-1].metrics["reward_margin"] > points[0].metrics["reward_margin"]


@pytest.mark.slow
def test_answers_without_a_comparison_are_refused_in_a_sentence(
    data_file: Path, make_dpo: MakeRun, train: Train
) -> None:
    run = make_dpo(data__train_file=str(data_file))
    assert train(run) == 2
    assert "contain no preference data" in events(run, Finished)[-1].message


def preferred(loaded: Any, rows: Any) -> float:
    """The share of pairs whose better answer the model finds likelier, token for token."""

    def likelihood(ids: list[int], labels: list[int]) -> float:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            scores = loaded.model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        own = scores.gather(1, tokens[0, 1:, None])[:, 0]
        mask = torch.tensor(labels[1:]) != IGNORED
        return float(own[mask].mean())

    right = [
        likelihood(pair.chosen.input_ids, pair.chosen.labels)
        > likelihood(pair.rejected.input_ids, pair.rejected.labels)
        for pair in rows
    ]
    return sum(right) / len(right)


EVERY_12_STEPS = {"evaluation.eval_strategy": "steps", "evaluation.eval_steps": 12}


@pytest.mark.slow
def test_the_demo_model_learns_the_shipped_preference_on_rows_it_never_saw(workspace: Workspace, train: Train) -> None:
    shipped = shipped_data()["preference"]
    config = resolve("demo-preference", {"data.validation_file": str(shipped.heldout), **EVERY_12_STEPS})
    run: RunFolder = workspace.create_run("preference", to_yaml(config), {})
    assert train(run) == 0
    measured = events(run, Evaluated)
    assert measured[-1].metrics["reward_accuracy"] >= 0.9
    assert measured[-1].metrics["reward_margin"] > measured[0].metrics["reward_margin"] > 0
    assert json.loads(run.complete.read_text(encoding="utf-8"))["eval_metrics"] == measured[-1].metrics
    rows = prepare(str(shipped.heldout), load_tokenizer("demo"), goal="preference", validation_fraction=0).train
    loaded = load_base("demo")
    base = preferred(loaded, rows)
    add_adapters(loaded, {"polite": run.adapter})
    assert preferred(loaded, rows) > base
