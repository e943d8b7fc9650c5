"""The memory estimate: its parts, its verdicts, and a published table of the same kind beside it."""

import dataclasses
from typing import Any

import pytest

from lora_studio.config.parsing import nest, parse
from lora_studio.config.sections import Config
from lora_studio.models.accelerators import DEVICE_KINDS
from lora_studio.models.advice import _changes, best_changes, changes_that_fit, corrected
from lora_studio.models.memory import (
    arithmetic,
    choose_checkpointing,
    estimate,
    loss_bytes,
    settled,
    verdict,
    with_settings,
)
from lora_studio.models.shape import Architecture, architecture
from lora_studio.units import GIB

QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
QLORA = {
    "model.quantization": "4bit",
    "lora.r": 16,
    "lora.target_modules": "q_v",
    "training.per_device_train_batch_size": 2,
    "data.max_length": 1024,
    "training.gradient_checkpointing": True,
}


def model() -> Architecture:
    found = architecture(QWEN3_8B)
    assert found is not None
    return found


def config(**settings: Any) -> Config:
    return parse(nest({**QLORA, **{path.replace("__", "."): value for path, value in settings.items()}}))


def gib(octets: float) -> float:
    return octets / GIB


def test_a_published_table_of_qwen3_8b_is_met_where_it_is_right_and_left_where_it_is_not() -> None:
    """It tells for QLoRA of Qwen3-8B, 2 rows of 1,024 tokens, queries and values, with checkpointing: 9.2 GiB."""
    found = estimate(config(), model(), "cuda")
    parts = {name: gib(octets) for name, octets in found.parts.items()}
    # Told: 4.5 GiB, all 8 B parameters at 4 bits and 0.5 GiB of scales. bitsandbytes leaves embeddings and output layer
    # at 16 bits, 2.3 GiB of the 1.2 B parameters there, and the doubly quantized scales take 0.1 GiB.
    quantized = 6.945e9 * (0.5 + 1 / 64 + 4 / (64 * 256))
    assert parts["weights"] == pytest.approx(gib(quantized + 2 * 2 * 151936 * 4096), rel=0.01)
    assert parts["weights"] == pytest.approx(4.5 + 1.2, abs=0.2)
    # Told: 0.017 GiB in 16 bits, for 32 layers and square matrices. It has 36 layers, values have 1,024 outputs, and we
    # train in 32 bits: 7.7 M parameters of 4 bytes. Checkpointing makes 16-bit copies of one layer's at a time.
    assert found.trainable == 36 * 16 * ((4096 + 4096) + (4096 + 1024)) == 7_667_712
    assert parts["adapter"] == pytest.approx(0.029, abs=0.001)
    # Told: 0.10 GiB for gradients and both moments, of 8.4 M parameters in 32 bits. Ours: the same three of 7.7 M.
    assert parts["gradients"] + parts["optimizer"] == pytest.approx(0.10 * 7.67 / 8.39, rel=0.1)
    # Told: 0.6 GiB. Its own sum counts every sixth layer's input; transformers keeps each layer's, 36 x 16.8 MB = 0.56
    # GiB, and the layer that is computed anew with its gradients beside it.
    assert 0.6 < parts["activations"] < 1.6
    # Told: 2.5 GiB for the scores of the whole vocabulary, twice in 32 bits. The fused loss never has them.
    assert parts["logits"] < 0.2
    # Told: 1.5 GiB of context, workspaces and fragmentation, and 10 % on top of everything. Ours: context and workspace
    # 0.53 GiB, and a share of what moves.
    assert 0.5 < parts["overhead"] < 0.8
    assert gib(found.total) < 9.2


@pytest.mark.parametrize(
    ("vocabulary", "tokens", "on_a_gpu", "on_the_cpu"),
    [
        (750, 4096, 4096 * 32_768 * 2, 4096 * 750 * 3 * 4),
        (750, 2**17, 4096 * 32_768 * 2, 2**25 * 3 * 4),  # a row of tiles is smaller than the scores that may be held
        (150_000, 1024, 1024 * 32_768 * 2, 1024 * 32_768 * 6 * 4),
    ],
)
def test_the_loss_has_one_buffer_on_a_gpu_and_the_scores_or_its_touched_pages_on_the_cpu(
    vocabulary: int, tokens: int, on_a_gpu: int, on_the_cpu: int
) -> None:
    shape = dataclasses.replace(model(), vocabulary=vocabulary)
    scores = {
        device: loss_bytes(config(), shape, arithmetic(config(), device), tokens) - tokens * hidden * shape.hidden
        for device, hidden in (("cuda", 4 + 2 * 2), ("cpu", 4 + 2 * 4))
    }
    assert scores == {"cuda": on_a_gpu, "cpu": on_the_cpu}


def test_label_smoothing_takes_the_scores_that_the_fused_loss_saves() -> None:
    plain = estimate(config(), model(), "cuda")
    smoothed = estimate(config(training__label_smoothing_factor=0.1), model(), "cuda")
    assert gib(smoothed.total - plain.total) > 2


def test_comparing_costs_two_sequences_a_row_and_a_copy_of_the_adapter_it_began_with() -> None:
    plain = {"lora.r": 16, "data.max_length": 512}
    compared = {**plain, "training.method": "dpo", "data.train_file": "preference"}
    rows = (4, 2)
    one, pairs, begun = (
        estimate(parse(nest({**settings, "training.per_device_train_batch_size": each})), model(), "cuda")
        for settings, each in (
            (plain, rows[0]),
            (compared, rows[1]),
            ({**compared, "model.adapter_name_or_path": "earlier"}, rows[1]),
        )
    )
    assert pairs.parts == one.parts
    assert begun.parts["adapter"] - pairs.parts["adapter"] == 4 * pairs.trainable
    assert {key: begun.parts[key] for key in begun.parts if key != "adapter"} == {
        key: pairs.parts[key] for key in pairs.parts if key != "adapter"
    }


def test_modules_trained_whole_and_single_quantization_are_counted() -> None:
    plain = estimate(config(), model(), "cuda")
    whole = estimate(config(lora__modules_to_save="lm_head"), model(), "cuda")
    assert whole.trainable - plain.trainable == 151936 * 4096
    single = estimate(config(model__bnb_4bit_use_double_quant=False), model(), "cuda")
    saved = (single.parts["weights"] - plain.parts["weights"]) * 8 / model().linear_weights
    assert round(saved, 1) == 0.4  # bits a weight, as the QLoRA paper says


def test_the_parts_add_up_and_the_shares_are_peft_s() -> None:
    found = estimate(config(), model(), "cuda")
    assert found.total == sum(found.parts.values())
    assert found.share == found.trainable / found.parameters
    assert found.to_dict()["total"] == found.total


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model__quantization": "none"}, "weights"),
        ({"model__quantization": "8bit"}, "weights"),
        ({"lora__r": 64}, "adapter"),
        ({"lora__target_modules": "all-linear"}, "optimizer"),
        ({"training__gradient_checkpointing": False}, "activations"),
        ({"training__per_device_train_batch_size": 4}, "activations"),
        ({"data__max_length": 2048}, "activations"),
        ({"model__attn_implementation": "eager"}, "activations"),
        ({"lora__use_dora": True}, "activations"),
    ],
)
def test_a_larger_setting_needs_more_of_its_part(change: dict[str, Any], part: str) -> None:
    before, after = estimate(config(), model(), "cuda"), estimate(config(**change), model(), "cuda")
    assert after.parts[part] > before.parts[part]
    assert after.total > before.total


def test_packing_counts_one_long_sequence_with_its_mask() -> None:
    rows = estimate(config(training__per_device_train_batch_size=8), model(), "cuda")
    packed = estimate(config(training__per_device_train_batch_size=8, training__packing=True), model(), "cuda")
    assert packed.tokens_at_once == rows.tokens_at_once
    assert packed.parts["activations"] > rows.parts["activations"]


def test_rows_that_are_known_to_be_short_need_less() -> None:
    assert estimate(config(), model(), "cuda", longest=200).total < estimate(config(), model(), "cuda").total


def test_checkpointing_is_left_off_where_a_run_fits_without_it_and_on_the_cpu() -> None:
    left = config(training__gradient_checkpointing="auto")
    without = estimate(config(training__gradient_checkpointing=False), model(), "cuda").total
    assert choose_checkpointing(left, model(), "cuda", without) is True
    assert choose_checkpointing(left, model(), "cuda", 2 * without) is False
    assert choose_checkpointing(left, model(), "cpu", without // 2) is False
    assert choose_checkpointing(config(), model(), "cpu", 2 * without) is True
    assert settled(left, model(), "cuda", without).training.gradient_checkpointing is True


def test_the_verdict_leaves_a_margin() -> None:
    assert [verdict(size, 100) for size in (90, 95, 101)] == ["fits", "tight", "does not fit"]


def test_the_three_changes_save_what_they_promise_and_the_largest_comes_first() -> None:
    start = config(training__gradient_checkpointing=False, model__quantization="none")
    changes = best_changes(start, model(), "cuda")
    now = estimate(start, model(), "cuda").total
    assert len(changes) == 3
    assert [change.saves for change in changes] == sorted((change.saves for change in changes), reverse=True)
    for change in changes:
        assert now - estimate(with_settings(start, change.settings), model(), "cuda").total == change.saves > 0


def test_each_kind_of_device_has_its_own_system_memory() -> None:
    found = {kind: estimate(config(model__quantization="none"), model(), kind) for kind in DEVICE_KINDS}
    weights = {kind: each.parts["weights"] for kind, each in found.items()}
    assert weights["cpu"] == 2 * weights["cuda"]
    assert weights["cuda"] == weights["rocm"] == weights["xpu"] == weights["mps"]
    assert found["rocm"].parts["overhead"] > found["cuda"].parts["overhead"] > found["xpu"].parts["overhead"]
    hidden = {kind: each.total - each.measurable for kind, each in found.items()}
    assert hidden["cpu"] == 0
    assert hidden["mps"] > hidden["rocm"] > hidden["cuda"] == hidden["xpu"] > 0


def test_attention_on_an_apple_gpu_keeps_its_matrix() -> None:
    kept = [
        estimate(config(model__quantization="none", data__max_length=length), model(), kind).parts["activations"]
        for kind in ("cuda", "mps")
        for length in (1024, 4096)
    ]
    assert kept[1] / kept[0] < 4.5 < kept[3] / kept[2]


def test_float32_on_a_gpu_repeats_the_keys_that_heads_share() -> None:
    kinds = {kind for kind in DEVICE_KINDS if arithmetic(config(model__dtype="float32"), kind).repeats}
    assert kinds == {"cuda", "rocm"}
    assert not any(arithmetic(config(), kind).repeats for kind in DEVICE_KINDS)


def test_changes_that_a_device_lacks_are_not_offered() -> None:
    plain = {"model__quantization": "none", "training__gradient_checkpointing": True}
    offered = {kind: {change.kind for change in _changes(config(**plain), kind, None)} for kind in DEVICE_KINDS}
    assert offered["cuda"] == offered["rocm"] >= {"optimizer", "quantization"}
    assert offered["cuda"] - offered["mps"] == {"optimizer", "quantization"}
    assert offered["cuda"] - offered["cpu"] == {"optimizer"}


def test_fewer_rows_at_once_keep_the_effective_batch() -> None:
    start = config(training__per_device_train_batch_size=8, training__gradient_accumulation_steps=2)
    rows = next(change for change in best_changes(start, model(), "cuda") if change.kind == "rows")
    assert rows.settings == {
        "training.per_device_train_batch_size": 4,
        "training.gradient_accumulation_steps": 4,
    }


def test_the_mildest_change_that_fits_is_found_alone_or_together() -> None:
    start = config(training__gradient_checkpointing=False, training__per_device_train_batch_size=4)
    whole = estimate(start, model(), "cuda").total
    alone = changes_that_fit(start, model(), "cuda", round(0.98 * whole))
    assert alone is not None
    assert alone.kind == "checkpointing"
    several = changes_that_fit(start, model(), "cuda", 7 * GIB)
    assert several is not None
    assert several.kind == "several"
    after = estimate(with_settings(start, several.settings), model(), "cuda")
    assert after.total <= 0.95 * 7 * GIB
    assert changes_that_fit(start, model(), "cuda", 2 * GIB) is None


def test_a_measurement_corrects_what_grows_with_the_batch() -> None:
    found = estimate(config(), model(), "cuda")
    moving = found.parts["activations"] + found.parts["logits"]
    assert corrected(found, 2.0) == found.total + moving


def test_no_change_is_offered_that_contradicts_the_rest_of_the_settings() -> None:
    first = config(lora__init_lora_weights="pissa", model__quantization="none")
    offered = best_changes(settled(first, model(), "cuda", 10**9), model(), "cuda")
    assert offered
    assert "quantization" not in {change.kind for change in offered}


def test_several_devices_share_what_their_strategy_shares() -> None:
    alone = estimate(config(model__quantization="none"), model(), "cuda").parts
    several = config(model__quantization="none", compute__device="0,1")
    ddp = estimate(several, model(), "cuda").parts
    assert ddp == {**alone, "gradients": 2 * alone["gradients"]}, "the buckets that are sent"
    fsdp = estimate(
        config(model__quantization="none", compute__device="0,1", compute__strategy="fsdp"), model(), "cuda"
    )
    assert 0.5 < fsdp.parts["weights"] / alone["weights"] < 0.6
    spread = config(compute__device="0,1,2,3", compute__strategy="balanced")
    balanced, single = estimate(spread, model(), "cuda").parts, estimate(config(), model(), "cuda").parts
    assert balanced["weights"] == single["weights"] // 4
    assert balanced["logits"] == single["logits"]


def test_processes_on_the_cpu_take_their_memory_together() -> None:
    alone = estimate(config(), model(), "cpu")
    three = estimate(config(compute__processes=3), model(), "cpu")
    assert three.parts["weights"] == 3 * alone.parts["weights"]
    assert three.measurable == three.total // 3, "each measures its own"


def test_checkpoints_elsewhere_or_on_fewer_layers_are_counted() -> None:
    """Between the passes a checkpointed layer keeps its input: 2,048 tokens of 4,096 numbers of 2 bytes."""

    def activations(**settings: Any) -> int:
        return estimate(config(**settings), model(), "cuda").parts["activations"]

    a_layer = 2048 * 4096 * 2
    assert activations() - activations(training__gradient_checkpointing_offload=True) == 34 * a_layer
    every, second = activations(), activations(training__gradient_checkpointing_every_n_layers=2)
    none = activations(training__gradient_checkpointing=False)
    assert every < second < none
    assert second < activations(training__gradient_checkpointing_every_n_layers=4) < none
    assert activations(training__gradient_checkpointing=False, training__activation_offloading=True) < none / 4
