"""One run in several processes: they share the batches of a step, agree on stops, and end when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from peft import PeftModel
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from lora_studio.config.compute import Compute, accumulation
from lora_studio.config.sections import Config
from lora_studio.data import render_process
from lora_studio.engine import ranks
from lora_studio.engine.models.adapter import add_adapter
from lora_studio.engine.models.load import load_model, shard_base
from lora_studio.engine.runtime import EventLog, Stopped, StopSignal
from lora_studio.engine.train import processes, worker
from lora_studio.engine.train.rows import RankBatches, blank, is_blank, tokens_of
from lora_studio.engine.train_script import EpochOrder
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Reason, RunStarted, Warned, fold, read_state
from lora_studio.jobs.launchers.local import child_environment, worker_command
from lora_studio.runs.checkpoints import damage
from lora_studio.workspace import RunFolder
from tests.engine.conftest import COLOURS, THINGS, MakeRun, events, run_worker

Train = Callable[..., int]
TRAINER = "lora_studio.engine.train.worker"


def batches_of(rows: int, size: int, rank: int, of: int, lengths: list[int] | None = None) -> list[list[int]]:
    order = EpochOrder(rows, size, 7, lengths)
    order.set_epoch(3)
    return list(RankBatches(order, size, ranks.World(rank, of, rank)))


@pytest.mark.parametrize("rows", [1, 5, 8, 23])
@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("of", [2, 3, 4])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_processes_share_the_batches_of_one(rows: int, size: int, of: int, grouped: bool) -> None:
    lengths = [row * 7 % 11 for row in range(rows)] if grouped else None
    (alone,) = [batches_of(rows, size, 0, 1, lengths)]
    shares = [batches_of(rows, size, rank, of, lengths) for rank in range(of)]
    assert len({len(share) for share in shares}) == 1, "all keep step"
    together = [batch for turn in zip(*shares, strict=True) for batch in turn]
    assert together[: len(alone)] == alone
    assert not any(together[len(alone) :]), "what is left over is empty"
    assert len(together) - len(alone) < of


def test_a_blank_batch_trains_nothing_and_keeps_its_shape() -> None:
    sft = {
        "input_ids": torch.ones(2, 3),
        "labels": torch.tensor([[-100, 4, 5]] * 2),
        "attention_mask": torch.ones(2, 3),
    }
    pairs = {"input_ids": torch.ones(4, 3), "completion_mask": torch.tensor([[0, 1, 1]] * 4)}
    for batch in (sft, pairs):
        assert not is_blank(batch)
        assert is_blank(blank(batch))
        assert blank(batch)["input_ids"].shape == batch["input_ids"].shape
    assert tokens_of(sft) == 6
    assert tokens_of({"position_ids": torch.arange(5).reshape(1, 5)}) == 5


@pytest.mark.parametrize(
    ("steps", "before", "now", "after"),
    [(4, 1, 1, 4), (1, 2, 1, 2), (4, 1, 2, 2), (2, 3, 2, 3), (1, 4, 2, 2), (1, 2, 3, 1), (3, 1, 2, 2), (1, 1, 8, 1)],
)
def test_another_number_of_processes_keeps_the_effective_batch_where_it_divides(
    steps: int, before: int, now: int, after: int
) -> None:
    found, words = accumulation(steps, before, now)
    assert found == after
    assert bool(words) == (before != now)
    assert ("counted anew" in words) == (found * now != steps * before)


def test_the_place_of_a_process_is_that_of_torchs_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    assert ranks.world() == ranks.World(0, 1, 0)
    assert ranks.total([1.0, 2.0]) == [1.0, 2.0]
    assert ranks.collect("here") == ["here"]
    monkeypatch.setenv("RANK", "3")  # of a program around this one, without a size
    assert ranks.world() == ranks.World(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert ranks.world() == ranks.World(3, 4, 1)
    assert not ranks.world().is_first
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert ranks.world() == ranks.World(2, 4, 1)


def test_a_worker_does_not_inherit_the_place_of_the_studio_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    assert not {"WORLD_SIZE", "RANK"} & child_environment().keys()


def test_a_stop_that_one_process_hears_waits_for_the_others() -> None:
    stop, before = StopSignal(), signal.getsignal(signal.SIGUSR1)
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        stop.share(signal.SIGUSR1)
        stop.finish_step_first()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (stop.heard, stop.asked) == (True, False)
        stop.check_long_step()
        stop.agree(asked=True, overdue=True)
        assert stop.asked
        with pytest.raises(Stopped):
            stop.check_long_step()
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGTERM, terminate)


def test_where_the_base_is_shared_out_a_stop_counts_once_all_have_agreed() -> None:
    stop = StopSignal()
    stop.only_together()
    stop.heard = True
    stop.check()
    stop.agree(asked=True, overdue=False)
    with pytest.raises(Stopped):
        stop.check()


def test_another_process_folds_the_events_and_writes_none(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).emit(Warned(1.0, "first"))
    other = EventLog(path, writes=False)
    other.emit(Warned(2.0, "second"))
    assert other.state().warnings == ["first", "second"]
    assert read_state(path).warnings == ["first"]


def test_a_run_remembers_in_how_many_processes_it_began() -> None:
    def started(step: int, count: int) -> RunStarted:
        return RunStarted(1.0, 1, "CPU", "float32", step, "cpu", count)

    state = fold([started(0, 2), started(30, 1)])
    assert (state.first_processes, state.processes) == (2, 1)
    assert fold([started(0, 2), started(0, 1)]).first_processes == 1, "it began anew"


def test_the_end_of_another_process_is_told_in_its_own_words_where_it_left_some(make_run: MakeRun) -> None:
    run = make_run()
    ending, details = processes.ending_of_other(run, 1, 2, -9, out_of_memory=False)
    assert (ending.reason, details) == (Reason.KILLED, {})
    assert ending.message == "Process 2 of 2 was killed: Killed (signal 9). The other could not go on without it."
    ending, _ = processes.ending_of_other(run, 3, 4, -9, out_of_memory=True)
    assert ending.reason is Reason.MEMORY_KILL
    ending, _ = processes.ending_of_other(run, 1, 3, 77, out_of_memory=False)
    assert "exit code 77" in ending.message
    said = {"reason": "out_of_memory", "message": "The GPU ran out of memory.", "hint": "Halve it.", "retry": None}
    ranks.last_words(run, 1).write_text(json.dumps(said), encoding="utf-8")
    ending, details = processes.ending_of_other(run, 1, 2, 1, out_of_memory=False)
    assert (ending.message, ending.hint) == ("Process 2 of 2: The GPU ran out of memory.", "Halve it.")
    assert (ending.reason, details["retry"]) == (Reason.OUT_OF_MEMORY, None)


def test_a_run_in_several_processes_is_started_by_the_program_that_watches_over_them(make_run: MakeRun) -> None:
    assert worker_command(make_run(), TRAINER)[-1] == TRAINER
    several = worker_command(make_run(compute__processes=2), TRAINER)
    assert several[-2:] == ["lora_studio.engine.train.processes", "2"]
    assert Compute(device="0,1").world_size == 2
    assert Compute(device="0,1", strategy="balanced").world_size == 1


def start(run: RunFolder, *flags: str) -> "subprocess.Popen[bytes]":
    with run.log.open("ab") as log:
        command = [*worker_command(run, TRAINER), str(run.path), *flags]
        return subprocess.Popen(command, stdout=log, stderr=log, env=child_environment(), start_new_session=True)


def train_in_ranks(run: RunFolder, count: int, *flags: str) -> list[int]:
    """Trains a run in forks of this process, which have torch already, and gives their exit codes by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    forks = []
    for rank in range(count):
        fork = os.fork()
        if not fork:
            code = 70
            try:
                render_process._processes.cache_clear()  # they answer the process that began them
                AcceleratorState._reset_state(reset_partial_state=True)
                os.environ.update(place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
                code = run_worker(run, *flags)
                torch.distributed.destroy_process_group()
            finally:
                os._exit(code)
        forks.append(fork)
    return [os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) for fork in forks]


SETTINGS: dict[str, Any] = {
    "data__validation_fraction": 0.3,  # 28 rows: of the last batches of an epoch one is partial, and one is missing
    "data__max_samples": 25,
    "lora__lora_dropout": 0.0,
    "training__per_device_train_batch_size": 4,
    "training__train_sampling_strategy": "group_by_length",
    "training__max_steps": 60,
    "training__learning_rate": 3e-3,
    "training__save_strategy": "steps",
    "training__save_steps": 20,
    "evaluation__eval_strategy": "steps",
    "evaluation__eval_steps": 20,
    "evaluation__per_device_eval_batch_size": 5,
    "evaluation__load_best_model_at_end": True,
    "evaluation__gen_eval_samples": 2,
    "generation__max_new_tokens": 4,
}


@pytest.mark.slow
def test_two_processes_go_on_with_the_run_of_one_and_learn_what_it_would_have_learned(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make_run(**SETTINGS, training__gradient_accumulation_steps=2)
    assert train(alone) == 0
    shared = make_run(**SETTINGS, training__gradient_accumulation_steps=2)
    emit = EventLog.emit

    def stop_after_thirty(self: EventLog, event: Any) -> None:
        emit(self, event)
        if self.state().step == 30 and self.path == shared.events:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EventLog, "emit", stop_after_thirty)
    assert train(shared) == 130
    text = shared.config.read_text(encoding="utf-8")
    shared.config.write_text(text.replace("processes: auto", "processes: '2'"), encoding="utf-8")
    process = start(shared, "--resume")
    assert process.wait(600) == 0, shared.log.read_text(encoding="utf-8")[-3000:]

    one, two = read_state(alone.events), read_state(shared.events)
    assert [point.step for point in two.steps] == [point.step for point in one.steps]
    for first, second in zip(one.steps, two.steps, strict=True):
        assert second.loss == pytest.approx(first.loss, abs=1e-4)
        assert second.tokens == first.tokens
    assert [item.step for item in two.evaluations] == [20, 40, 60]
    for measured, other in zip(one.evaluations, two.evaluations, strict=True):
        assert other.loss == pytest.approx(measured.loss, abs=1e-4)
        assert other.metrics == pytest.approx(measured.metrics, abs=1e-4)
    assert [item.answers for item in two.answers] == [item.answers for item in one.answers]
    assert shared.read_result()["best_checkpoint"] == alone.read_result()["best_checkpoint"]
    assert (two.first_processes, two.processes, shared.read_result()["processes"]) == (1, 2, 2)
    assert any("1 gradient accumulation steps instead of 2" in words for words in two.warnings)
    assert shared.report.is_file()
    assert len(events(shared, RunStarted)) == 2, "one process writes"
    last = shared.checkpoint_folders()[-1]
    assert not damage(last)
    assert {path.name for path in last.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.slow
def test_processes_that_share_out_the_base_learn_what_one_process_learns(make_run: MakeRun, train: Train) -> None:
    settings = SETTINGS | {
        "training__max_steps": 6,
        "training__save_steps": 3,
        "evaluation__eval_steps": 3,
        "evaluation__gen_eval_samples": 0,
    }
    alone = make_run(**settings, training__gradient_accumulation_steps=2)
    assert train(alone) == 0
    shared = make_run(
        **settings, training__gradient_accumulation_steps=1, compute__processes=2, compute__strategy="fsdp"
    )
    assert train_in_ranks(shared, 2) == [0, 0]
    one, two = read_state(alone.events), read_state(shared.events)
    assert [point.loss for point in two.steps] == pytest.approx([point.loss for point in one.steps], abs=1e-4)
    losses = [[item.loss for item in state.evaluations] for state in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert any("no process has the whole base" in words for words in two.warnings)
    first, second = (load_file(run.adapter / "adapter_model.safetensors") for run in (alone, shared))
    assert first.keys() == second.keys()
    assert all(torch.allclose(second[name], value, atol=1e-5) for name, value in first.items())


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-five pairs of answers, which are seventy good and bad ones."""
    path = tmp_path_factory.mktemp("data") / "judged.jsonl"
    rows = [
        {"prompt": f"Paint the {thing} {colour}.", "chosen": f"The {thing} is {colour}.", "rejected": f"No {thing}."}
        for colour in COLOURS[:7]
        for thing in THINGS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "strategy", "quantization"),
    [("dpo", "ddp", "none"), ("dpo", "ddp", "4bit"), ("kto", "ddp", "none"), ("kto", "fsdp", "none")],
)
def test_judged_answers_teach_several_processes_what_they_teach_one(
    make_run: MakeRun, train: Train, judged: Path, method: str, strategy: str, quantization: str
) -> None:
    settings = {
        "model__quantization": quantization,
        "training__method": method,
        "training__learning_rate": 1e-3,
        "training__num_train_epochs": 1,
        "data__train_file": str(judged),
        "data__validation_fraction": 0.3,  # of the last batches of an epoch one is partial, and one is missing
        "evaluation__per_device_eval_batch_size": 4,
        "evaluation__gen_eval_samples": 0,
        "lora__lora_dropout": 0.0,
    }
    alone = make_run(**settings, training__gradient_accumulation_steps=2)
    assert train(alone) == 0
    shared = make_run(
        **settings, training__gradient_accumulation_steps=1, compute__processes=2, compute__strategy=strategy
    )
    assert train_in_ranks(shared, 2) == [0, 0]
    one, two = read_state(alone.events), read_state(shared.events)
    assert len(one.steps) > 3
    assert [point.loss for point in two.steps] == pytest.approx([point.loss for point in one.steps], abs=1e-5)
    assert [point.tokens for point in two.steps] == [point.tokens for point in one.steps]
    (measured,), (other,) = one.evaluations, two.evaluations
    assert other.loss == pytest.approx(measured.loss, abs=1e-5)
    assert other.metrics == pytest.approx(measured.metrics, abs=1e-4)
    assert measured.metrics.keys() >= {"reward_margin", "reward_accuracy"}
    adapters = [load_file(run.adapter / "adapter_model.safetensors") for run in (alone, shared)]
    assert all(torch.allclose(adapters[1][name], value, atol=1e-5) for name, value in adapters[0].items())


def test_the_frozen_weights_are_shared_out_and_the_adapter_is_not(tmp_path: Path) -> None:
    model = adapted()
    ids = torch.arange(20, 60).reshape(2, 20)
    with torch.no_grad():
        before = model(input_ids=ids).logits
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        shard_base(model, "demo")
        answer = model(input_ids=ids, labels=ids)
        answer.loss.backward()
        shared = {name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        whole = {name for name, _ in model.named_parameters()} - shared - trained
        assert whole == {"base_model.model.lm_head.weight"}
        assert not shared & trained
        assert set(model._ddp_params_and_buffers_to_ignore) >= shared | whole
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
        assert torch.equal(answer.logits, before)
    finally:
        torch.distributed.destroy_process_group()


def test_a_base_whose_layers_are_unknown_is_not_shared_out() -> None:
    model = adapted()
    model.get_base_model()._no_split_modules = []
    with pytest.raises(StudioError, match="cannot be trained with FSDP"):
        shard_base(model, "demo")


def adapted() -> PeftModel:
    """The built-in model with an adapter."""
    lora = Config().lora.model_dump(exclude={"target_modules", "loraplus_lr_ratio"})
    base = load_model("demo", dtype="float32", on_cpu=True)
    return add_adapter(base, base="demo", revision=None, target="all-linear", seed=0, **lora)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_a_sentence_and_the_run_goes_on(make_run: MakeRun) -> None:
    run = make_run(**SETTINGS, compute__processes=2)
    process = start(run)
    while not run.checkpoint_folders():
        time.sleep(0.05)
        assert process.poll() is None, run.log.read_text(encoding="utf-8")
    (other,) = (child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1")
    other.kill()
    assert process.wait(300) == 1
    state = read_state(run.events)
    assert (state.state, state.reason) == ("failed", Reason.KILLED)
    assert "Process 2 of 2 was killed" in state.message
    assert run.read_result()["state"] == "failed"
    assert train_in_ranks(run, 2, "--resume") == [0, 0]
    state = read_state(run.events)
    assert (state.state, [point.step for point in state.steps]) == ("done", [*range(1, 61)])
    assert state.resumed is not None


def test_what_no_process_can_do_alone_is_left_to_the_first(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    monkeypatch.setattr(worker, "SECONDS_TO_SPEAK", 0.0)
    ending = worker.Ending(1, "failed", Reason.DIVERGED, "It diverged.", "Lower the rate.")
    assert worker.leave_word(run, 1, ending, {}) == 1
    assert json.loads(ranks.last_words(run, 1).read_text(encoding="utf-8"))["message"] == "It diverged."
    assert not run.complete.exists()
    assert worker.leave_word(run, 1, worker.Ending(130, "stopped", Reason.STOPPED), {}) == 0
