"""Runs that go on: after a stop inside a step, for more epochs than planned, after a kill, and after a full disk."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import modules
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments, get_cosine_schedule_with_warmup

from lora_studio.engine import runtime
from lora_studio.engine.accelerator import RandomNumbers
from lora_studio.engine.chat.session import Call, SessionWorker
from lora_studio.engine.evaluate import worker
from lora_studio.engine.runtime import EventLog
from lora_studio.engine.train.callbacks import ReportCallback
from lora_studio.engine.train.rows import other_rows
from lora_studio.engine.train.settings import lengthen
from lora_studio.engine.train.trainers import follow_schedule
from lora_studio.jobs.events import (
    CheckpointSaved,
    DataPrepared,
    Event,
    Extended,
    Finished,
    OtherRowsAccepted,
    RunStarted,
    StepLogged,
    Warned,
    fold,
    from_line,
    to_line,
)
from lora_studio.jobs.protocol import Load
from lora_studio.models.adapters import read_card
from lora_studio.runs.checkpoints import MANIFEST, last_whole_checkpoint
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, events, run_worker
from tests.engine.exporting import take_away

Train = Callable[..., int]


def losses(run: RunFolder) -> list[tuple[int, float]]:
    return [(point.step, point.loss) for point in fold(events(run)).steps]


def test_more_epochs_are_added_to_epochs_or_to_steps(tmp_path: Any) -> None:
    by_epochs = TrainingArguments(output_dir=str(tmp_path), num_train_epochs=2.5)
    lengthen(by_epochs, 1.5, steps_an_epoch=10)
    assert (by_epochs.num_train_epochs, by_epochs.max_steps) == (4.0, -1)
    by_steps = TrainingArguments(output_dir=str(tmp_path), max_steps=12)
    lengthen(by_steps, 0.25, steps_an_epoch=10)
    assert by_steps.max_steps == 15


@pytest.mark.slow
def test_a_run_whose_rows_changed_goes_on_only_when_told_to(
    make_run: MakeRun, train: Train, data_file: Path, tmp_path: Path
) -> None:
    lines = data_file.read_text(encoding="utf-8").splitlines(keepends=True)
    files = {"train": lines[:16], "held": lines[16:20]}

    def write(**changed: list[str]) -> None:
        for name, rows in (files | changed).items():
            (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")

    write()
    run = make_run(
        data__train_file=str(tmp_path / "train.jsonl"),
        data__validation_file=str(tmp_path / "held.jsonl"),
        data__validation_fraction=0.0,
        training__num_train_epochs=1,
    )
    assert train(run) == 0
    with run.events.open("a", encoding="utf-8") as log:
        log.write(to_line(Extended(time.time(), 1.0)))
    reworded = [line.replace("red", "blue") for line in files["train"]]
    changes = {
        "added": {"train": lines},
        "reversed": {"train": files["train"][::-1]},
        "reworded": {"train": reworded},
        "held out": {"held": lines[20:24]},
    }
    for name, changed in changes.items():
        write(**changed)
        assert train(run, "--resume") == 2, name
        ended = events(run, Finished)[-1]
        assert "The rows differ from those this run started with: 16 rows of" in ended.message
        assert "--other-rows" in ended.hint
        assert json.loads(run.complete.read_text(encoding="utf-8"))["other_rows"] is True
    with run.events.open("a", encoding="utf-8") as log:
        log.write(to_line(OtherRowsAccepted(time.time())))
    write(train=reworded)
    assert train(run, "--resume") == 0
    assert events(run, StepLogged)[-1].step == 4
    assert any("continues with different rows" in event.message for event in events(run, Warned))
    with run.events.open("a", encoding="utf-8") as log:
        log.write(to_line(Extended(time.time(), 1.0)))
    assert train(run, "--resume") == 0, "these are the run's rows from now on"


def prepared_as(**changes: Any) -> DataPrepared:
    usual = DataPrepared(0.0, 10, 2, 0, 0, 500, 100, "files and program", "chat", "rows")
    return replace(usual, **changes)


def test_rows_are_compared_by_their_tokens_and_those_of_earlier_versions_by_what_was_noted() -> None:
    assert not other_rows(None, prepared_as())
    assert not other_rows(prepared_as(), prepared_as(fingerprint="a newer program"))
    assert "but different ones" in other_rows(prepared_as(), prepared_as(fingerprint="else", rows_digest="else"))
    old = prepared_as(rows_digest="")
    assert not other_rows(old, prepared_as(fingerprint="a newer program"))
    assert "500 tokens" in other_rows(old, prepared_as(fingerprint="else", tokens=501))
    today = prepared_as(fingerprint="the next day", rows_digest="", tokens=501)
    assert not other_rows(old, today), "a template that writes the date changes tokens every day"
    assert other_rows(old, replace(today, train_rows=11))


def test_a_rate_that_had_fallen_to_zero_steps_up_to_the_longer_schedule() -> None:
    def begin(total: int) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, get_cosine_schedule_with_warmup(optimizer, 2, total)

    optimizer, schedule = begin(10)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)
    longer, goes_on = begin(20)
    longer.load_state_dict(optimizer.state_dict())
    goes_on.load_state_dict(schedule.state_dict())
    follow_schedule(longer, goes_on)
    assert longer.param_groups[0]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * 8 / 18)))
    assert goes_on.get_last_lr() == [longer.param_groups[0]["lr"]]


def test_random_numbers_come_again_after_they_were_set_back() -> None:
    kept = RandomNumbers()
    first = torch.rand(3)
    kept.restore()
    assert torch.equal(torch.rand(3), first)


@pytest.mark.slow
def test_a_run_that_is_done_goes_on_for_more_epochs_and_learns_on(make_run: MakeRun, train: Train) -> None:
    run = make_run(training__num_train_epochs=1)
    assert train(run) == 0
    before = losses(run)
    with run.events.open("a", encoding="utf-8") as file:
        file.write(to_line(Extended(time.time(), 2)))
    assert train(run, "--resume") == 0
    state = fold(events(run))
    assert (state.state, state.step, state.total_steps, state.steps[-1].epoch) == ("done", 12, 12, 3.0)
    assert losses(run)[:4] == before
    rates = {point.step: point.learning_rate for point in state.steps}
    for step in range(5, 13):  # one step of warm-up, then a half cosine over the other eleven
        assert rates[step] == pytest.approx(0.005 * (1 + math.cos(math.pi * (step - 2) / 11)), abs=1e-9)
    assert state.steps[-1].loss < before[-1][1]


@pytest.mark.slow
def test_a_stop_inside_a_long_step_saves_the_step_before_and_loses_no_random_number(
    trained: RunFolder, make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    asked = ReportCallback.on_substep_end

    def stop_inside_step_three(self: ReportCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        asked(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ReportCallback, "on_substep_end", stop_inside_step_three)
        patch.setattr(runtime, "STEP_SECONDS", -1.0)
        assert train(run) == 130
    assert [item.step for item in events(run, CheckpointSaved)] == [2]
    assert train(run, "--resume") == 0
    assert losses(run) == losses(trained)


@contextmanager
def small_disk(run: RunFolder, aside: Path) -> Iterator[Callable[[int], None]]:
    """The run's folder on a disk of its own; what it gives fills that disk but for so many bytes.

    Without the right to mount one, no file may grow beyond that size instead. Afterwards the folder is where it was,
    with what was written in it, which is kept `aside` in between.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = {file.name: file.read_bytes() for file in run.path.iterdir() if file.is_file()}
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "lora-studio-test", str(run.path)]
    if subprocess.run(command, capture_output=True).returncode:
        try:
            yield lambda room: resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    try:
        for name, content in kept.items():
            (run.path / name).write_bytes(content)
        filler = run.path / "filler"
        yield lambda room: fill(filler, shutil.disk_usage(run.path).free - room)
        filler.unlink(missing_ok=True)
        shutil.copytree(run.path, aside)
    finally:
        subprocess.run(["umount", "--lazy", str(run.path)], check=True)
    shutil.copytree(aside, run.path, dirs_exist_ok=True)


def fill(file: Path, octets: int) -> None:
    file.write_bytes(bytes(octets))


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_leaves_the_last_checkpoint_whole(
    trained: RunFolder, make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make_run(training__save_strategy="steps", training__save_steps=2, training__save_total_limit=5)
    emit = EventLog.emit

    with monkeypatch.context() as patch, small_disk(run, tmp_path / "aside") as leave:

        def emit_and_fill(self: EventLog, event: Event) -> None:
            emit(self, event)
            if isinstance(event, CheckpointSaved) and event.step == 4:
                leave((run.checkpoints / event.name / "optimizer.pt").stat().st_size - 1000)

        patch.setattr(EventLog, "emit", emit_and_fill)
        assert train(run) == 1
        last = events(run, Finished)[-1]
        assert (last.state, "is full" in last.message, "checkpoint-4 is complete" in last.hint) == (
            "failed",
            True,
            True,
        )
        assert sorted(folder.name for folder in run.checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert train(run, "--resume") == 0
    assert events(run, RunStarted)[-1].resumed_from_step == 4
    assert losses(run) == losses(trained)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_at_most_the_steps_since_its_last_checkpoint(
    trained: RunFolder, make_run: MakeRun, train: Train
) -> None:
    run = make_run(training__save_strategy="steps", training__save_steps=2)
    with run.log.open("wb") as log:
        command = [sys.executable, "-m", "lora_studio.engine.train.worker", str(run.path)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 300
        while not (run.events.is_file() and fold(events(run)).step >= 5) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    reached = max(point.step for point in events(run, StepLogged))
    assert train(run, "--resume") == 0
    again = events(run, RunStarted)[-1].resumed_from_step
    assert reached - 2 <= again <= reached
    for (step, loss), (expected_step, expected) in zip(losses(run), losses(trained), strict=True):
        assert (step, loss) == (expected_step, pytest.approx(expected, abs=1e-6))


SAVED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "flipped":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content))}[how])


@pytest.fixture(scope="module")
def interrupted(make_run: MakeRun) -> RunFolder:
    """A run of eight steps with checkpoints at 3, 6 and 8."""
    run = make_run(training__save_strategy="steps", training__save_steps=3, training__save_total_limit=5)
    assert run_worker(run) == 0
    return run


@pytest.mark.parametrize("how", ["cut", "flipped", "missing", "empty", "zeros"])
@pytest.mark.parametrize("name", SAVED)
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before_and_that_is_told(
    name: str, how: str, interrupted: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(Path(shutil.copytree(interrupted.path, tmp_path / "run")))
    assert last_whole_checkpoint(run) == (run.checkpoints / "checkpoint-8", [])
    spoil(run.checkpoints / "checkpoint-8" / name, how)
    found, (words,) = last_whole_checkpoint(run)
    assert found == run.checkpoints / "checkpoint-6"
    assert words.startswith(f"checkpoint-8 is damaged: {name} ")
    assert (run.checkpoints / "damaged-checkpoint-8").is_dir()
    assert [folder.name for folder in run.checkpoint_folders()] == ["checkpoint-3", "checkpoint-6"]
    assert last_whole_checkpoint(run) == (run.checkpoints / "checkpoint-6", [])


@pytest.mark.parametrize("how", ["cut", "missing", "empty", "zeros"])
@pytest.mark.parametrize("name", SAVED)
def test_of_a_checkpoint_without_a_manifest_what_shows_is_seen(
    name: str, how: str, interrupted: RunFolder, tmp_path: Path
) -> None:
    run = RunFolder(Path(shutil.copytree(interrupted.path, tmp_path / "run")))
    (run.checkpoints / "checkpoint-8" / MANIFEST).unlink()
    assert last_whole_checkpoint(run)[0] == run.checkpoints / "checkpoint-8"
    spoil(run.checkpoints / "checkpoint-8" / name, how)
    assert last_whole_checkpoint(run)[0] == run.checkpoints / "checkpoint-6"


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_end(
    interrupted: RunFolder, trained: RunFolder, make_run: MakeRun, train: Train
) -> None:
    run = make_run(training__save_strategy="steps", training__save_steps=3, training__save_total_limit=5)
    shutil.copytree(interrupted.checkpoints, run.checkpoints)
    shutil.copyfile(interrupted.events, run.events)
    spoil(run.checkpoints / "checkpoint-8" / "optimizer.pt", "flipped")
    assert train(run, "--resume") == 0
    assert events(run, RunStarted)[-1].resumed_from_step == 6
    assert any("checkpoint-8 is damaged: optimizer.pt" in event.message for event in events(run, Warned))
    assert losses(run) == losses(trained)


@pytest.mark.slow
def test_a_run_on_a_base_in_4_bits_that_is_measured_in_between_goes_on_to_the_same_end(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)  # such a CPU has a packed layout for measuring
    settings = {
        **{"model__quantization": "4bit", "training__max_steps": 6, "training__save_strategy": "steps"},
        **{"training__save_steps": 4, "evaluation__eval_strategy": "steps", "evaluation__eval_steps": 3},
    }
    whole, run = make_run(**settings), make_run(**settings)
    assert train(whole) == 0
    shutil.copytree(whole.checkpoints / "checkpoint-4", run.checkpoints / "checkpoint-4")
    shutil.copyfile(whole.events, run.events)
    assert train(run, "--resume") == 0
    assert events(run, RunStarted)[-1].resumed_from_step == 4
    assert losses(run) == losses(whole)
    assert [one.loss for one in fold(events(run)).evaluations] == [one.loss for one in fold(events(whole)).evaluations]
    own, other = (load_file(one.adapter / "adapter_model.safetensors") for one in (whole, run))
    assert all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.slow
def test_a_new_run_continues_from_an_adapter(trained: RunFolder, make_run: MakeRun, train: Train) -> None:
    run = make_run(
        model__adapter_name_or_path=str(trained.adapter), training__learning_rate=1e-6, training__num_train_epochs=1
    )
    assert train(run) == 0
    before, after = fold(events(trained)).evaluations[-1].loss, fold(events(run)).evaluations[-1].loss
    assert after == pytest.approx(before, rel=1e-3)  # so small a rate moves nothing: it began where the other ended
    card = json.loads((run.adapter / "studio.json").read_text(encoding="utf-8"))
    assert card["continued_from"] == str(trained.adapter)
    assert json.loads((run.adapter / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.slow
def test_a_base_that_changed_in_its_place_is_told_wherever_the_adapter_goes(
    base: Path, make_run: MakeRun, train: Train, tmp_path: Path
) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    run = make_run(model__name=str(own), training__max_steps=2)
    assert train(run) == 0
    child = SessionWorker()

    def load(number: int) -> list[str]:
        call = Call(number, Load(adapters={"it": str(run.adapter)}), lambda line: None)
        return [note for note in child.load(call).notes if "has changed since" in note]

    assert load(1) == []
    weights = load_file(own / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, own / "model.safetensors", {"format": "pt"})
    (told,) = load(2)
    assert f"{own} has changed since adapter was trained" in told
    assert child._loaded is not None
    held = child._loaded.base.get_input_embeddings().weight
    assert torch.equal(held, weights["model.embed_tokens.weight"] + 1), "answers are the base's as it is now"
    assert worker._same_base([read_card(run.adapter)]) == [told]
    folder = take_away(run, "zip", base_name="Owner/Base", trial=False)
    exported = map(from_line, folder.events.read_text(encoding="utf-8").splitlines())
    assert told in [event.message for event in exported if isinstance(event, Warned)]
    with run.events.open("a", encoding="utf-8") as log:
        log.write(to_line(Extended(time.time(), 1.0)))
    goes_on = make_run(
        model__name=str(own), model__adapter_name_or_path=str(run.adapter), training__max_steps=1, lora__lora_dropout=0
    )
    for again, flags in ((goes_on, ()), (run, ("--resume",))):  # an adapter that goes on belongs to the base as it is
        assert train(again, *flags) == 0
        assert any("has changed since" in event.message for event in events(again, Warned))
