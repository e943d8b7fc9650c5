"""A run foresees its memory, chooses checkpointing by it, and says what fits when the memory was not enough."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_studio.config.parsing import parse, read_yaml
from lora_studio.engine.accelerator import Memory
from lora_studio.engine.train import memory, trainers
from lora_studio.jobs.events import Finished, MemoryEstimated, RunState
from lora_studio.models.advice import correction
from lora_studio.models.shape import read_config
from lora_studio.units import GIB
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, events

CUDA_MESSAGE = (
    "CUDA out of memory. Tried to allocate 1.50 GiB. "
    "GPU 0 has a total capacity of 23.64 GiB of which 800.06 MiB is free."
)


def test_a_run_keeps_its_estimate_beside_the_measured_peak(trained: RunFolder) -> None:
    foreseen = events(trained, MemoryEstimated)[0]
    numbers = json.loads(trained.complete.read_text())
    assert foreseen.total_bytes == sum(foreseen.parts.values()) == numbers["estimated_memory_bytes"]
    assert numbers["peak_memory_bytes"] > 0
    assert "off: on the CPU" in foreseen.reason
    assert not foreseen.gradient_checkpointing
    assert (numbers["device_kind"], numbers["quantization"]) == ("cpu", "none")
    assert numbers["tokens_per_second"] > 0


def test_checkpointing_left_to_the_run_is_on_only_where_a_gpu_needs_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(read_yaml(make_run().config))
    numbers = {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    monkeypatch.setattr(memory, "device_kind", lambda: "cuda")
    monkeypatch.setattr(memory, "available_bytes", lambda: 17 * GIB)
    tight, event = memory.foresee(config, numbers, 64)
    assert tight
    assert event is not None
    assert "would need more than 90 %" in event.reason
    monkeypatch.setattr(memory, "available_bytes", lambda: 80 * GIB)
    roomy, event = memory.foresee(config, numbers, 64)
    assert not roomy
    assert event is not None
    assert "fits without it" in event.reason
    assert memory.foresee(config, {"model_type": "vit"}, 64) == (True, None)  # nobody knows what it needs
    monkeypatch.setattr(memory, "device_kind", lambda: "cpu")
    assert memory.foresee(config, {"model_type": "vit"}, 64) == (False, None)


@pytest.mark.slow
def test_a_run_out_of_memory_ends_with_the_numbers_and_the_change_that_fits(
    make_run: MakeRun, train: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError(CUDA_MESSAGE)

    held = 980 * 1024**2
    monkeypatch.setattr(memory, "read_memory", lambda: Memory(held, 0, held, free=0, total=held))
    monkeypatch.setattr(trainers.StudioTrainer, "training_step", step)
    run = make_run(training__per_device_train_batch_size=64, training__num_train_epochs=1)
    assert train(run) == 1
    numbers = json.loads(run.complete.read_text())
    last = events(run, Finished)[0]
    assert (last.state, last.message, last.hint) == ("failed", numbers["message"], numbers["hint"])
    assert "ran out of memory; 1.50 GiB more requested" in last.message
    assert "GiB estimated" in last.message
    assert numbers["memory"] == {"asked": round(1.5 * GIB), "free": 0, "total": held, "held": held}
    assert (numbers["retry"] is None) == ("smaller model" in last.hint)


def test_blocks_that_pytorch_handed_back_before_it_gave_up_are_not_counted_twice(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end, 10 GiB are held and 2 GiB are free; before, 12 GiB were held."""
    asked: list[dict[str, int]] = []
    monkeypatch.setattr(
        memory, "read_memory", lambda: Memory(10 * GIB, 9 * GIB, 12 * GIB, free=2 * GIB, total=12 * GIB)
    )
    monkeypatch.setattr(memory, "device_kind", lambda: "cuda")
    monkeypatch.setattr(memory, "correction", lambda *args, **numbers: asked.append(numbers))
    words = memory.explain(torch.OutOfMemoryError(CUDA_MESSAGE), parse(read_yaml(make_run().config)), RunState())
    assert asked == [{"needed": 12 * GIB + round(1.5 * GIB), "available": 12 * GIB}]
    assert "10.00 GiB held, 2.00 GiB free of 12.00 GiB" in words["message"]


def test_the_correction_takes_what_was_held_as_what_is_needed(make_run: MakeRun) -> None:
    run = make_run(training__per_device_train_batch_size=512, data__max_length=4096)
    config = parse(read_yaml(run.config))
    foreseen = memory.foresee(config, read_config(config.model.name) or {}, 4096)[1]
    assert foreseen is not None
    room = foreseen.total_bytes
    change = correction(config, False, "cpu", needed=round(1.3 * room), available=room)
    assert change is not None
    assert change.settings
