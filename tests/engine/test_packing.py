"""Packed rows share a sequence and nothing else: what the model says of each, and what it learns, is as if apart."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from benchmarks.tiny_models import RECIPES
from lora_studio.config.parsing import parse, read_yaml
from lora_studio.data.dataset import prepare
from lora_studio.engine.models.load import load_model, why_rows_meet
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.train import program
from lora_studio.engine.train.rows import as_dataset
from lora_studio.engine.train.settings import padding_free_batches, trainer_settings
from lora_studio.engine.train.trainers import StudioTrainer
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Warned, fold
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


@pytest.mark.slow
def test_batches_without_padding_train_as_padded_ones_do(make_run: MakeRun, train: Train) -> None:
    """Rows, steps and dropout-free losses are the same; what remains is the order of float32 sums."""
    settings = {"lora__lora_dropout": 0, "training__max_steps": 4, "evaluation__per_device_eval_batch_size": 4}
    padded, joined = make_run(**settings), make_run(training__padding_free=True, **settings)
    assert train(padded) == train(joined) == 0
    one, other = (fold(events(run)) for run in (padded, joined))
    assert [point.loss for point in other.steps] == pytest.approx([point.loss for point in one.steps], rel=1e-4)
    assert other.evaluations[-1].loss == pytest.approx(one.evaluations[-1].loss, rel=1e-4)
    assert [run.model.padding_free for run in (one, other) if run.model] == [False, True]
    assert any("without FlashAttention" in warned.message for warned in events(joined, Warned))
    assert [point.tokens for point in other.steps] == [point.tokens for point in one.steps]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Llama", ""),
        ("Gemma 3", ""),
        ("Qwen3-MoE", ""),
        ("OPT", "does not keep the rows of a sequence apart"),
        ("BLOOM", "does not keep the rows of a sequence apart"),
        ("gpt-oss", "does not keep the rows of a sequence apart"),
        ("Qwen3.5", "causal_conv1d"),
    ],
)
def test_a_model_whose_rows_would_meet_in_a_sequence_is_known_by_its_logits(name: str, reason: str) -> None:
    kind, values = RECIPES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**values, vocab_size=300)).eval()
    why = why_rows_meet(model)
    assert reason in why if reason else why == ""


def test_packing_and_padding_free_batches_are_refused_for_such_a_model_and_auto_pads(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, values = RECIPES["OPT"]
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**values, vocab_size=300)).eval()
    for setting in ("packing", "padding_free"):
        config = parse(read_yaml(make_run(**{f"training__{setting}": True}).config))
        with pytest.raises(StudioError, match="several rows in a sequence") as refused:
            padding_free_batches(config, model)
        assert refused.value.hint == f"Turn training.{setting} off."
    config = parse(read_yaml(make_run().config))
    assert padding_free_batches(config, model) == (False, "")
    for module in ("engine.train.settings", "models.accelerators"):
        monkeypatch.setattr(f"lora_studio.{module}.is_flash", lambda name: True)
    joined, note = padding_free_batches(config, model)
    assert (joined, note.startswith("Batches are padded: ")) == (False, True)
    monkeypatch.setattr("lora_studio.engine.train.settings.why_rows_meet", lambda base: "")
    assert padding_free_batches(config, model) == (True, "")


@pytest.mark.slow
def test_every_second_layer_is_checkpointed_and_no_loss_changes(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of the two layers is, and the second keeps its activations."""
    checkpointed: list[list[bool]] = []
    fit = program.fit

    def look(context: program.Context, training: program.Training) -> None:
        fit(context, training)
        layers = [
            module for module in training.trainer.model.modules() if isinstance(module, GradientCheckpointingLayer)
        ]
        checkpointed.append([layer.gradient_checkpointing for layer in layers])

    monkeypatch.setattr(program, "fit", look)
    run = make_run(
        training__gradient_checkpointing=True,
        training__gradient_checkpointing_every_n_layers=2,
        training__dataloader_num_workers=1,
        training__max_steps=4,
        training__lr_scheduler_type="constant",
    )
    plain = make_run(training__max_steps=4, training__lr_scheduler_type="constant")
    assert train(run) == train(plain) == 0
    assert checkpointed[0] == [True, False]
    losses = [[point.loss for point in fold(events(one)).steps] for one in (run, plain)]
    assert losses[0] == losses[1]
