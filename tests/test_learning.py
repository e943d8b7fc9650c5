"""The proof that training teaches: an adapter on the built-in model answers held-out questions that the base can't.

Everything goes the product's own way: a run folder, the worker as a child process, the adapter loaded from the run.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from lora_studio.config.parsing import parse, read_yaml, resolve, to_yaml
from lora_studio.data.dataset import prepare
from lora_studio.engine.evaluate.answer import Voice, read_asked_file
from lora_studio.engine.evaluate.batches import answer_in_batches
from lora_studio.engine.evaluate.metrics import summary
from lora_studio.engine.evaluate.tasks import choose_task
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base
from lora_studio.jobs.events import fold, from_line
from lora_studio.workspace import RunFolder, Workspace, shipped_data
from tests.cpu_time import slowness
from tools.demo_model.conversations import Dialogue
from tools.demo_model.pretrain import answers

MAX_SECONDS = 90


def held_out() -> list[Dialogue]:
    lines = shipped_data()["pirate"].heldout.read_text(encoding="utf-8").splitlines()
    return [Dialogue("pirate", "pirate", tuple(json.loads(line)["messages"])) for line in lines]


def exact(loaded: LoadedModel) -> float:
    """The share of held-out questions whose answer is exactly the expected one."""
    dialogues = held_out()
    said = answers(loaded.model, loaded.tokenizer, dialogues)
    right = [text.strip() == d.messages[-1]["content"] for text, d in zip(said, dialogues, strict=True)]
    return sum(right) / len(right)


YES_OR_NO = {
    "data.train_file": "recommender",
    "data.validation_file": str(shipped_data()["recommender"].heldout),
    "data.max_eval_samples": 60,
    "training.num_train_epochs": 4,
    "training.learning_rate": 2e-3,
    "training.save_strategy": "no",
    "evaluation.eval_strategy": "steps",
    "evaluation.eval_steps": 76,
    "evaluation.labels": "Yes, No",
    "evaluation.gen_eval_samples": 2,
}


def train(workspace: Workspace, overrides: Mapping[str, Any]) -> RunFolder:
    """Trains the demo preset in a worker and returns its run."""
    config = resolve("demo", overrides)
    run = workspace.create_run("learning", to_yaml(config), {"seed": config.training.seed})
    command = [sys.executable, "-m", "lora_studio.engine.train.worker", str(run.path)]
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
    assert seconds / slowness() <= MAX_SECONDS


@pytest.mark.slow
def test_accuracy_and_f1_rise_in_training_and_are_those_of_the_answers_given_afterwards(workspace):
    run = train(workspace, YES_OR_NO)
    state = fold(event for event in map(from_line, run.events.read_text(encoding="utf-8").splitlines()) if event)
    first, last = state.evaluations[0].metrics, state.evaluations[-1].metrics
    assert last["accuracy"] > first["accuracy"]
    assert last["f1"] > first["f1"]
    assert last["accuracy"] >= 0.85

    loaded = load_base("demo")
    add_adapters(loaded, {"films": run.adapter})
    settings = parse(read_yaml(run.config)).data.model_dump()
    prepared = prepare(tokenizer=loaded.tokenizer, **settings)
    rows = set(prepared.validation.row_numbers.tolist())
    file = read_asked_file(YES_OR_NO["data.validation_file"], loaded.tokenizer, {"films": Voice.of(run.adapter)})
    asked = [row for row in file.rows if row.row in rows]
    task = choose_task([row.reference for row in asked])
    settings = parse({"generation": {"max_new_tokens": 8}}).generation
    batches = answer_in_batches(loaded, asked, {"films": "films"}, task, settings, batch_size=20)
    answered = [row for batch in batches for row in batch]
    measured = summary(task, answered, ["films"])["metrics"]
    assert (len(answered), set(task.labels)) == (60, {"Yes", "No"})
    assert measured["accuracy"]["films"]["value"] == pytest.approx(last["accuracy"])
    assert measured["f1"]["films"]["value"] == pytest.approx(last["f1"])
    unanswered = sum(row["films"]["given"] is None for row in answered) / len(answered)
    assert unanswered == pytest.approx(last["unanswered"])
    losses = [sum(row["films"][name] for row in answered) for name in ("loss", "expected_tokens")]
    assert losses[0] / losses[1] == pytest.approx(state.evaluations[-1].loss, rel=1e-3)
    assert state.questions is not None
    assert len(state.answers) == len(state.evaluations)
