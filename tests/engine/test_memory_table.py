"""The memory estimate beside the storages of a training step, counted with tensors that have no data."""

from typing import Any

import pytest

from benchmarks.memory_table import GOAL, QWEN3, compared, settings_of
from lora_studio.models.memory import with_settings

SHAPE = {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2}
MIXTURE = {
    **SHAPE,
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "num_experts": 32,
    "num_experts_per_tok": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "settings", "changes"),
    [
        (SHAPE, ("none", False, False), {}),
        (SHAPE, ("4bit", True, True), {"lora.lora_dropout": 0.1}),
        (MIXTURE, ("none", True, False), {}),
    ],
    ids=["16-bit, padded", "4-bit, checkpointed, packed, with dropout", "experts, checkpointed"],
)
def test_the_estimate_is_within_a_tenth_of_the_counted_peak(
    numbers: dict[str, Any], settings: tuple[str, bool, bool], changes: dict[str, Any]
) -> None:
    config = with_settings(settings_of(2, 1024, *settings), changes)
    counted, estimated = compared(config, numbers)
    assert estimated == pytest.approx(counted, rel=GOAL)
