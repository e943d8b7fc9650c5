"""The order of rows, the labels that reach the model, and how often a run draws a point."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lora_studio.config.parsing import parse, read_yaml
from lora_studio.data.dataset import prepare
from lora_studio.data.messages import IGNORED
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.runtime import EventLog, Stopped, StopSignal
from lora_studio.engine.train.report import mean_loss
from lora_studio.engine.train.rows import as_dataset
from lora_studio.engine.train.settings import logging_interval, trainer_settings
from lora_studio.engine.train.trainers import StudioTrainer
from lora_studio.engine.train_script import EpochOrder, length_grouped
from lora_studio.jobs.events import StepLogged, Warned
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, events


@pytest.mark.parametrize(
    ("asked", "steps", "interval"),
    [(0, 8, 1), (0, 99, 1), (0, 250, 5), (0, 100_000, 10), (5, 1000, 5), (100, 200, 10), (50, 10, 1), (1, 1, 1)],
)
def test_every_run_draws_at_least_twenty_points(asked: int, steps: int, interval: int) -> None:
    assert logging_interval(asked, steps) == interval
    assert steps // interval >= min(20, steps)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 64, 1001])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_grouping_by_length_keeps_every_row_once_and_the_longest_first(rows: int, batch_size: int) -> None:
    lengths = torch.randint(1, 500, (rows,), generator=generator()).tolist()
    order = length_grouped(lengths, batch_size, generator())
    assert sorted(order) == list(range(rows))
    whole = order[: rows - rows % batch_size] or order
    assert max(lengths[row] for row in order[:batch_size]) == max(lengths[row] for row in whole)


def test_grouping_by_length_pads_little() -> None:
    lengths = torch.randint(1, 500, (1000,), generator=generator()).tolist()

    def padding(order: list[int]) -> int:
        batches = [[lengths[row] for row in order[at : at + 8]] for at in range(0, 1000, 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(length_grouped(lengths, 8, generator())) < padding(list(range(1000))) / 10


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochOrder(50, 4, seed, None)
        sampler.set_epoch(epoch)
        torch.rand(7)  # other random numbers in between change nothing
        return list(sampler)

    assert order(1, 1) == order(1, 1)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@pytest.fixture
def run(make_run: MakeRun) -> RunFolder:
    return make_run(data__validation_fraction=0, data__max_length=24)


@pytest.mark.parametrize("packing", [False, True])
def test_the_model_gets_the_labels_that_the_preview_shows(
    packing: bool, run: RunFolder, base: Path, tmp_path: Path
) -> None:
    from lora_studio.engine.models.load import load_model

    values = read_yaml(run.config)
    values["training"]["packing"] = packing
    config = parse(values)
    tokenizer = load_tokenizer(str(base))
    prepared = prepare(tokenizer=tokenizer, **config.data.model_dump())
    trainer = StudioTrainer(
        model=load_model(str(base)),
        args=trainer_settings(config, run, torch.float32, measured=False, checkpointing=False),
        train_dataset=as_dataset(prepared.train, tmp_path),
        processing_class=tokenizer,
        card={},
    )
    seen = []
    for batch in trainer.get_train_dataloader():
        if packing:
            starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].shape[1]]
            pairs = pairwise(starts)
            rows = [(batch["input_ids"][0, a:b], batch["labels"][0, a:b]) for a, b in pairs]
        else:
            mask = batch["attention_mask"].bool()
            rows = [
                (ids[m], labels[m]) for ids, labels, m in zip(batch["input_ids"], batch["labels"], mask, strict=True)
            ]
            assert (batch["labels"][~mask] == IGNORED).all()
        seen += [(ids.tolist(), labels.tolist()) for ids, labels in rows]
    assert sorted(seen) == sorted((example.input_ids, example.labels) for example in prepared.train)
    assert any(example.full_length > 24 for example in prepared.train)


def test_the_mean_loss_weighs_points_by_the_steps_they_stand_for() -> None:
    points = [StepLogged(0.0, step, 30, 0.0, loss, 0.0) for step, loss in ((1, 9.0), (11, 2.0), (21, 1.0))]
    assert mean_loss(points) == pytest.approx((9.0 + 20.0 + 10.0) / 21)


def test_a_stop_in_training_waits_for_the_step_and_elsewhere_ends_at_once() -> None:
    stop = StopSignal()
    stop.finish_step_first()
    stop._on_signal(15, None)
    assert stop.asked
    with pytest.raises(Stopped):
        stop.check()
    at_once = StopSignal()
    with pytest.raises(Stopped):
        at_once._on_signal(15, None)
    at_once._on_signal(15, None)  # a second one does not disturb the tidying up


def test_a_torn_line_does_not_swallow_what_follows(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.events.write_text('{"event": "Warned", "time": 1, "mess', encoding="utf-8")
    log = EventLog(run.events)
    log.emit(Warned(2.0, "after"))
    log.phase("train", 3, "steps")
    log.progress(1, 3)
    log.progress(2, 3)
    log.progress(3, 3)
    assert log.state().phase == "train"  # which writes what waits
    found = events(run)
    assert found[0] == Warned(2.0, "after")
    assert [event.done for event in found[2:]] == [1, 3]


def test_the_trainers_table_is_a_file_in_no_folder_and_holds_what_the_examples_hold(
    run: RunFolder, base: Path, tmp_path: Path
) -> None:
    config = parse(read_yaml(run.config))
    prepared = prepare(tokenizer=load_tokenizer(str(base)), **config.data.model_dump())
    table = as_dataset(prepared.train, tmp_path)
    assert not list(tmp_path.iterdir())
    assert not table.cache_files
    assert table.to_list() == [{"input_ids": one.input_ids, "labels": one.labels} for one in prepared.train]
