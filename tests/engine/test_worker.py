"""A whole training, seen from outside: what a run folder holds afterwards, stops, crashes, resumes and failures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_studio.engine.runtime import EventLog
from lora_studio.jobs.events import (
    CheckpointSaved,
    DataPrepared,
    Evaluated,
    Event,
    Finished,
    ModelLoaded,
    PhaseStarted,
    RunStarted,
    StepLogged,
    Warned,
    fold,
)
from lora_studio.workspace import RunFolder
from tests.cpu_time import CpuTime, of_children, of_process
from tests.engine.conftest import MakeRun, events

pytestmark = pytest.mark.slow
Train = Callable[..., int]


def losses(run: RunFolder) -> list[tuple[int, float]]:
    """Step and loss as the run's state has them, resumed or not."""
    return [(point.step, point.loss) for point in fold(events(run)).steps]


def stop_at(monkeypatch: pytest.MonkeyPatch, moment: Callable[[Event], bool]) -> None:
    """Sends this process the signal that a stop is, as soon as such an event is written."""
    emit = EventLog.emit
    sent = []

    def emit_and_signal(self: EventLog, event: Event) -> None:
        emit(self, event)
        if not sent and moment(event):
            sent.append(event)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EventLog, "emit", emit_and_signal)


def test_a_finished_run_holds_adapter_checkpoints_report_and_numbers(trained: RunFolder) -> None:
    numbers = json.loads(trained.complete.read_text(encoding="utf-8"))
    assert numbers["state"] == "done"
    assert numbers["run"] == trained.id
    assert numbers["steps"] == 8
    assert numbers["train_loss"] > numbers["last_loss"] > 0
    assert numbers["eval_loss"] > 0
    assert Path(numbers["adapter"]) == trained.adapter
    names = {path.name for path in trained.adapter.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert "training_args.bin" not in {path.name for path in trained.path.rglob("*")}
    assert [path.name for path in trained.checkpoint_folders()] == ["checkpoint-4", "checkpoint-8"]
    assert list(trained.tensorboard.glob("events.out.tfevents.*"))
    report = trained.report.read_text(encoding="utf-8")
    assert "| validation loss |" in report
    assert f"| Tokens/s (without padding) | {numbers['tokens_per_second']:,.0f} |" in report


def test_phases_and_numbers_come_as_events_in_order(trained: RunFolder) -> None:
    phases = [phase for phase, _ in groupby(event.phase for event in events(trained, PhaseStarted))]
    assert phases == ["start", "data", "model", "train", "evaluate", "train", "evaluate", "save", "compare"]
    (data,) = events(trained, DataPrepared)
    assert (data.train_rows, data.validation_rows, data.bad_rows) == (32, 8, 0)
    (model,) = events(trained, ModelLoaded)
    assert 0 < model.trainable_parameters < model.parameters
    points = events(trained, StepLogged)
    assert [point.step for point in points] == list(range(1, 9))
    assert points[-1].tokens == 2 * data.tokens
    assert all(point.tokens_per_second > 0 and point.token_accuracy is not None for point in points)
    assert [event.step for event in events(trained, Evaluated)] == [4, 8]
    assert isinstance(events(trained)[-1], Finished)


def test_every_checkpoint_can_be_chatted_with(trained: RunFolder) -> None:
    for checkpoint in trained.checkpoint_folders():
        card = json.loads((checkpoint / "studio.json").read_text(encoding="utf-8"))
        assert card == json.loads((trained.adapter / "studio.json").read_text(encoding="utf-8"))
        assert (checkpoint / "chat_template.jinja").read_text(encoding="utf-8")
        assert (checkpoint / "tokenizer.json").is_file()


def test_the_adapter_names_its_base_as_the_config_does(trained: RunFolder, base: Path) -> None:
    config = json.loads((trained.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(base)
    assert not (trained.adapter / "README.md").exists()


def test_the_same_seed_gives_the_same_losses(trained: RunFolder, make_run: MakeRun, train: Train) -> None:
    again = make_run()
    assert train(again) == 0
    assert losses(again) == losses(trained)


def test_a_stop_saves_the_step_and_resuming_equals_never_having_stopped(
    trained: RunFolder, make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    with monkeypatch.context() as patch:
        stop_at(patch, lambda event: isinstance(event, StepLogged) and event.step == 3)
        assert train(run) == 130
    assert events(run, Finished)[-1].state == "stopped"
    assert json.loads(run.complete.read_text(encoding="utf-8"))["state"] == "stopped"
    (saved,) = events(run, CheckpointSaved)
    assert saved.step in (3, 4)
    assert train(run, "--resume") == 0
    assert events(run, RunStarted)[-1].resumed_from_step == saved.step
    assert losses(run) == losses(trained)
    assert fold(events(run)).steps[-1].tokens == events(trained, StepLogged)[-1].tokens
    whole, resumed = (load_file(each.adapter / "adapter_model.safetensors") for each in (trained, run))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_stop_in_an_evaluation_loses_no_step(
    trained: RunFolder, make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    with monkeypatch.context() as patch:
        stop_at(patch, lambda event: isinstance(event, PhaseStarted) and event.phase == "evaluate")
        assert train(run) == 130
    assert train(run, "--resume") == 0
    assert events(run, RunStarted)[-1].resumed_from_step == 4
    assert losses(run) == losses(trained)


def test_a_run_that_was_stopped_after_its_last_step_only_has_to_be_finished(
    trained: RunFolder, make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    with monkeypatch.context() as patch:
        stop_at(patch, lambda event: isinstance(event, PhaseStarted) and event.phase == "save")
        assert train(run) == 130
    assert train(run, "--resume") == 0
    numbers, expected = (json.loads(each.complete.read_text(encoding="utf-8")) for each in (run, trained))
    assert {name: numbers[name] for name in ("state", "steps", "eval_loss", "tokens")} == {
        name: expected[name] for name in ("state", "steps", "eval_loss", "tokens")
    }
    assert numbers["train_loss"] == pytest.approx(expected["train_loss"])
    assert len(fold(events(run)).evaluations) == 2


def test_gradient_checkpointing_changes_no_loss(trained: RunFolder, make_run: MakeRun, train: Train) -> None:
    run = make_run(training__gradient_checkpointing=True, training__max_steps=4)
    again = make_run(training__max_steps=4)
    assert train(run) == train(again) == 0
    assert losses(run) == losses(again)


def test_rows_accumulated_or_at_once_give_the_same_loss(make_run: MakeRun, train: Train, tmp_path: Path) -> None:
    """Answers are of very different lengths: a mean over rows, instead of over trained tokens, would show at once."""
    colours = ("red", "green", "blue", "white", "black")
    talk = [
        [
            {"role": "user", "content": f"Paint it {colours[number % 5]}."},
            {"role": "assistant", "content": f"It is {colours[number % 3]}." * (1 + number % 7)},
        ]
        for number in range(32)
    ]
    file = tmp_path / "uneven.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talk), encoding="utf-8")
    settings = {
        "data__train_file": str(file),
        "data__validation_fraction": 0,
        "lora__lora_dropout": 0,
        "training__train_sampling_strategy": "random",
    }
    apart = make_run(training__per_device_train_batch_size=1, training__gradient_accumulation_steps=8, **settings)
    together = make_run(training__per_device_train_batch_size=8, training__gradient_accumulation_steps=1, **settings)
    assert train(apart) == train(together) == 0
    one, other = (fold(events(run)).steps for run in (apart, together))
    assert [point.step for point in one] == list(range(1, 9))
    assert [point.loss for point in one] == pytest.approx([point.loss for point in other], rel=1e-5)
    assert [point.grad_norm for point in one] == pytest.approx([point.grad_norm for point in other], rel=1e-5)


def test_resuming_also_equals_with_packing_and_steps_of_its_own(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"training__packing": True, "training__save_strategy": "steps", "training__save_steps": 2}
    whole, run = make_run(**settings), make_run(**settings)
    assert train(whole) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, lambda event: isinstance(event, StepLogged) and event.step == 2)
        assert train(run) == 130
    assert train(run, "--resume") == 0
    assert losses(run) == losses(whole)


@pytest.mark.parametrize("phase", ["start", "data", "model", "evaluate"])
def test_a_stop_ends_every_phase(phase: str, make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    stop_at(monkeypatch, lambda event: isinstance(event, PhaseStarted) and event.phase == phase)
    assert train(run) == 130
    assert events(run)[-1].state == "stopped"
    assert events(run, PhaseStarted)[-1].phase == phase
    assert [path.name for path in run.checkpoint_folders()] == (["checkpoint-4"] if phase == "evaluate" else [])


def test_a_killed_worker_resumes_from_its_last_whole_checkpoint(
    trained: RunFolder, make_run: MakeRun, train: Train
) -> None:
    run = make_run(training__save_strategy="steps", training__save_steps=3, training__save_total_limit=5)
    assert train(run) == 0
    torn = run.checkpoints / "checkpoint-8"
    (torn / "trainer_state.json").write_text('{"global_st', encoding="utf-8")
    (run.checkpoints / "checkpoint-7").mkdir()
    with run.events.open("a", encoding="utf-8") as file:
        file.write('{"event": "StepLogged", "ti')
    assert train(run, "--resume") == 0
    assert events(run, RunStarted)[-1].resumed_from_step == 6
    assert not (run.checkpoints / "checkpoint-7").exists()
    assert losses(run) == losses(trained)


def test_resuming_without_a_checkpoint_starts_anew_and_says_so(make_run: MakeRun, train: Train) -> None:
    run = make_run(training__max_steps=2)
    assert train(run, "--resume") == 0
    assert "starts from the beginning" in events(run, Warned)[0].message


def test_a_wrong_target_module_is_told_before_training_with_those_there_are(make_run: MakeRun, train: Train) -> None:
    run = make_run(lora__target_modules="q_proj, query")
    assert train(run) == 2
    last = events(run)[-1]
    assert last.state == "failed"
    assert "query" in last.message
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj" in last.hint
    assert "train" not in [event.phase for event in events(run, PhaseStarted)]


def test_a_missing_model_is_a_plain_sentence(make_run: MakeRun, train: Train) -> None:
    run = make_run(model__name="/nowhere/at/all")
    assert train(run) == 2
    assert events(run)[-1].message == "There is no model folder /nowhere/at/all."


def test_running_out_of_memory_says_what_helps(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("lora_studio.engine.train.model.load_model", too_much)
    run = make_run()
    assert train(run) == 1
    last = events(run)[-1]
    assert last.message.startswith("The machine ran out of memory; 20.00 GiB more requested")
    assert last.hint


def test_the_best_checkpoint_is_handed_out_when_asked_for(make_run: MakeRun, train: Train) -> None:
    run = make_run(evaluation__load_best_model_at_end=True, training__learning_rate=0.5, training__num_train_epochs=4)
    assert train(run) == 0
    numbers = json.loads(run.complete.read_text(encoding="utf-8"))
    best = fold(events(run)).best
    assert best is not None
    assert numbers["best_checkpoint"] == f"checkpoint-{best.step}"
    assert numbers["eval_loss"] == pytest.approx(best.loss)
    handed_out = load_file(run.adapter / "adapter_model.safetensors")
    checkpoint = load_file(run.checkpoints / numbers["best_checkpoint"] / "adapter_model.safetensors")
    assert all(torch.equal(handed_out[name], checkpoint[name]) for name in handed_out)


def test_without_validation_rows_nothing_is_measured(make_run: MakeRun, train: Train) -> None:
    run = make_run(data__validation_fraction=0, training__max_steps=2, training__save_strategy="no")
    assert train(run) == 0
    assert json.loads(run.complete.read_text(encoding="utf-8"))["eval_loss"] is None
    assert not events(run, Evaluated)


def test_a_run_on_marked_answers_learns_from_the_good_ones_and_says_so(
    make_run: MakeRun, train: Train, data_file: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in data_file.read_text(encoding="utf-8").splitlines()]
    marked = tmp_path / "marked.jsonl"
    marked.write_text("".join(json.dumps({**row, "label": n < 12}) + "\n" for n, row in enumerate(rows)))
    run = make_run(data__train_file=str(marked), data__validation_fraction=0, training__max_steps=1)
    assert train(run) == 0
    assert events(run, DataPrepared)[0].train_rows == 12
    said = "12 answers labelled good are trained; 28 labelled bad are ignored."
    assert said in [event.message for event in events(run, Warned)]
    report = run.report.read_text(encoding="utf-8")
    assert said in report
    assert "Hold out 10 % of the rows: `--data.validation_fraction 0.1`" in report.partition("## Advice")[2]


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantized_base_trains_on_the_cpu(quantization: str, make_run: MakeRun, train: Train) -> None:
    run = make_run(model__quantization=quantization)
    assert train(run) == 0
    points = losses(run)
    assert points[-1][1] < points[0][1]
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_the_process_obeys_a_signal_within_ten_seconds(make_run: MakeRun) -> None:
    run = make_run(training__num_train_epochs=500, evaluation__eval_strategy="no")
    with run.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_studio.engine.train.worker", str(run.path)], stdout=log, stderr=log
        )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (run.events.is_file() and events(run, StepLogged)):
        time.sleep(0.1)
    before = of_process(process.pid)
    with CpuTime(of_children) as whole:
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 130
    assert whole.seconds - before < 10
    assert events(run)[-1].state == "stopped"
    assert run.checkpoint_folders()
