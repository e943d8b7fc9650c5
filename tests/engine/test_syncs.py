"""Between two logged steps a training never waits for its device: no number is read off a tensor, and no operation
needs one to know the size of its answer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, TrainerCallback

from benchmarks.tiny_models import RECIPES
from lora_studio.engine.train import fused, program, trainers
from lora_studio.engine.train.trainers import Later, TrainerMixin, read_measured
from lora_studio.engine.train_script import without_padding_mask
from lora_studio.jobs.events import fold
from tests.engine.conftest import MakeRun, events

Train = Callable[..., int]
WAITS = (
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "argwhere",
    "masked_select",
    "masked_scatter_backward",
    "repeat_interleave",
    "bincount",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "lift_fresh",
)
"""Operators of aten that read a number, or need one to know the size of their answer: on a GPU each waits for all work
before it. On the CPU they are the same operators. The last is that of `torch.tensor`, which copies a number."""
BY_MASK = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
"""Operators that look for the places of a mask, where they are given one: PyTorch's kernel for the CPU does it within,
its kernel for a GPU by `nonzero` (expandTensors in aten/src/ATen/native/IndexingUtils.h)."""


def waits_for(func: Any, args: Any) -> bool:
    name = func._schema.name.removeprefix("aten::")
    masks = args[1] if name in BY_MASK else ()
    return name in WAITS or any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in masks)


class Waits(TorchDispatchMode):
    """Counts the operations that wait for the device, by the step in which they are. While `batches` are made, nothing
    is on the device yet."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.on_device = True
        self.counted: dict[int, list[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.on_device and waits_for(func, args):
            self.counted.setdefault(self.step, []).append(str(func))
        return func(*args, **(kwargs or {}))

    def batches(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def made(rows: Any) -> Any:
            self.on_device = False
            try:
                return collate(rows)
            finally:
                self.on_device = True

        return made


class Follow(TrainerCallback):
    """Tells a count which step is trained; from the end of a step on it is the log's, until the next begins."""

    def __init__(self, waits: Waits) -> None:
        self.waits = waits

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.waits.step = state.global_step + 1

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (state.global_step + 1) % args.logging_steps == 0 or state.global_step == 0:
            self.waits.step = 0


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Counts what waits in the trainings of a test, which go as on a GPU but for trl's kernels."""
    counted, fit = Waits(), program.fit

    def fit_counted(context: program.Context, training: program.Training) -> None:
        trainer: Any = training.trainer
        trainer.data_collator = counted.batches(trainer.data_collator)
        trainer.add_callback(Follow(counted))
        with counted:
            fit(context, training)

    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(program, "fit", fit_counted)
    monkeypatch.setattr(program, "logging_interval", lambda *_: 2)
    return counted


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "on_cpu", lambda: False)
    monkeypatch.setattr("trl.trainer.utils._use_triton", lambda device: True)
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", fused.LogProbs)


SETTINGS = {
    "training__max_steps": 40,
    "training__num_train_epochs": 20,
    "training__gradient_accumulation_steps": 2,
    "tracking__logging_steps": 2,
    "evaluation__eval_strategy": "no",
    "training__save_strategy": "no",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [{}, {"training__padding_free": True}, {"training__packing": True}],
    ids=["padded", "padding-free", "packed"],
)
def test_a_step_that_is_not_logged_reads_nothing_off_the_device(
    waits: Waits, make_run: MakeRun, train: Train, how: dict[str, Any]
) -> None:
    run = make_run(**{**SETTINGS, **how, "training__max_steps": 6})
    assert train(run) == 0
    steps = fold(events(run)).steps
    assert len(steps) == 4  # the first and each second
    read_in = {step for step in waits.counted if step}
    assert not read_in, {step: sorted(set(waits.counted[step])) for step in sorted(read_in)}
    assert waits.counted[0]  # the logs do


@pytest.mark.slow
def test_an_evaluation_between_two_logged_steps_logs_numbers(make_run: MakeRun, train: Train) -> None:
    run = make_run(**{**SETTINGS, "evaluation__eval_strategy": "steps", "evaluation__eval_steps": 3})
    assert train(run) == 0
    state = fold(events(run))
    assert [measured.step for measured in state.evaluations][:2] == [3, 6]
    assert all(isinstance(point.tokens, int) for point in state.steps)


@pytest.mark.slow
def test_what_is_read_later_is_what_trl_reads_at_once(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {**SETTINGS, "training__max_steps": 6}
    late, at_once = make_run(**few), make_run(**few)
    assert train(late) == 0
    monkeypatch.setattr(
        TrainerMixin,
        "compute_loss",
        lambda self, *args, **kwargs: super(TrainerMixin, self).compute_loss(*args, **kwargs),
    )
    assert train(at_once) == 0
    one, other = (fold(events(run)).steps for run in (late, at_once))
    for name in ("loss", "entropy", "token_accuracy", "tokens", "grad_norm"):
        assert [getattr(point, name) for point in one] == [getattr(point, name) for point in other], name


def test_a_mean_over_no_token_is_zero_as_trls_is() -> None:
    total, none = (torch.tensor(value).as_subclass(Later) for value in (3.0, 0))
    assert none > 0
    metrics = {"entropy": [(total / none).item(), (total / torch.tensor(4).as_subclass(Later)).item()], "count": [7]}
    read_measured(metrics)
    assert metrics == {"entropy": [0.0, 0.75], "count": [7]}
    assert all(type(value) is float for value in metrics["entropy"])


@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "Qwen3-MoE", "OPT", "BLOOM", "Qwen3.5"])
def test_a_row_says_the_same_without_the_mask_of_the_padding_behind_it(name: str) -> None:
    kind, values = RECIPES[name]
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**values, vocab_size=300)).eval()
    forward, seen = model.forward, []

    def as_trl_calls_it(fused_lm_head: bool = False, **inputs: Any) -> Any:
        seen.append(inputs.get("attention_mask"))
        return forward(**inputs)

    model.forward = as_trl_calls_it
    ids, mask = torch.randint(3, 200, (2, 40)), torch.ones(2, 40, dtype=torch.long)
    mask[1, 15:] = 0
    with torch.no_grad():
        masked = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        without_padding_mask(model)
        bare = model(input_ids=ids, attention_mask=mask, use_cache=False, fused_lm_head=True).logits
        again = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert seen[1] is None
    assert seen[2] is mask
    assert torch.equal(bare[mask.bool()], masked[mask.bool()])
    assert torch.equal(again, masked)
