"""Packed rows share a sequence and nothing else: what the model says of each, and what it learns, is as if apart."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lora_studio.config.parsing import parse, read_yaml
from lora_studio.data.dataset import prepare
from lora_studio.engine.models.load import load_model
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.train.settings import trainer_settings
from lora_studio.engine.train.trainers import StudioTrainer, as_dataset
from lora_studio.jobs.events import fold
from tests.engine.conftest import MakeRun, events

Train = Callable[..., int]


def test_the_logits_of_a_packed_row_are_those_of_the_row_alone(make_run: MakeRun, base: Path, tmp_path: Path) -> None:
    run = make_run(training__packing=True, data__validation_fraction=0)
    config = parse(read_yaml(run.config))
    tokenizer, model = load_tokenizer(str(base)), load_model(str(base))
    prepared = prepare(tokenizer=tokenizer, **config.data.model_dump())
    trainer = StudioTrainer(
        model=model,
        args=trainer_settings(config, run, torch.float32, measured=False, checkpointing=False),
        train_dataset=as_dataset(prepared.train, tmp_path),
        processing_class=tokenizer,
        card={},
    )
    batch = next(iter(trainer.get_train_dataloader()))
    ids, positions = batch["input_ids"], batch["position_ids"]
    starts = [*(positions[0] == 0).nonzero().flatten().tolist(), ids.shape[1]]
    assert len(starts) > 3
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions).logits
        for first, end in pairwise(starts):
            alone = model(input_ids=ids[:, first:end]).logits
            assert torch.allclose(packed[:, first:end], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_packed_or_not_the_same_rows_in_a_step_give_the_same_loss(make_run: MakeRun, train: Train) -> None:
    """A step holds every row, so that both see the same; the loss is a mean over tokens, so that both must agree.

    What remains is the order of float32 sums, which three updates enlarge a little.
    """
    settings = {
        "lora__lora_dropout": 0,
        "training__gradient_accumulation_steps": 64,
        "training__num_train_epochs": 3,
        "training__learning_rate": 1e-3,
        "training__warmup_ratio": 0,
    }
    apart = make_run(**settings)
    packed = make_run(training__packing=True, training__per_device_train_batch_size=1, **settings)
    assert train(apart) == train(packed) == 0
    one, other = (fold(events(run)) for run in (apart, packed))
    assert [point.step for point in one.steps] == [1, 2, 3]
    assert one.steps[-1].loss < one.steps[0].loss
    assert [point.loss for point in other.steps] == pytest.approx([point.loss for point in one.steps], rel=1e-4)
    assert other.evaluations[-1].loss == pytest.approx(one.evaluations[-1].loss, rel=1e-4)
