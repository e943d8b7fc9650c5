"""A rough time of training grows with what there is to compute, and shrinks with the device."""

from typing import Any

import pytest

from lora_studio.config.parsing import nest, parse
from lora_studio.models.hardware import Device
from lora_studio.models.shape import architecture
from lora_studio.ui.train.plan import Work, _forward_flops, flops_per_second, training_seconds
from lora_studio.units import GIB

QWEN = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
WORK = Work(tokens=1e6, batches=250, length=400)


def gpu(name: str) -> Device:
    return Device(name, "cuda", 80 * GIB, 80 * GIB)


def seconds(device: Device, **changes: Any) -> float:
    model = architecture(QWEN)
    assert model is not None
    return training_seconds(
        parse(nest({path.replace("__", "."): v for path, v in changes.items()})), model, device, WORK
    )


def test_a_token_costs_two_operations_for_each_weight_it_meets() -> None:
    model = architecture(QWEN)
    assert model is not None
    assert _forward_flops(model, 0) == pytest.approx(2 * model.parameters, rel=0.01)  # tied: embeddings are the output
    assert _forward_flops(model, 1000) > _forward_flops(model, 0)


def test_more_work_takes_longer_and_a_faster_device_less() -> None:
    plain = seconds(gpu("NVIDIA A100-SXM4-80GB"))
    assert seconds(gpu("NVIDIA A100-SXM4-80GB"), training__gradient_checkpointing=True) > plain
    assert seconds(gpu("NVIDIA A100-SXM4-80GB"), model__quantization="4bit") > plain
    assert seconds(gpu("NVIDIA A100-SXM4-80GB"), training__method="dpo") > 2 * plain
    assert seconds(gpu("NVIDIA H100 80GB HBM3")) < plain < seconds(gpu("Tesla T4"))
    assert seconds(Device("CPU, 2 cores", "cpu", 8 * GIB, 8 * GIB)) > 10 * plain


def test_every_kind_of_gpu_is_faster_than_a_cpu_and_known_by_its_name() -> None:
    def of(kind: str, name: str) -> float:
        return flops_per_second(Device(name, kind, GIB, GIB))

    assert of("rocm", "AMD Instinct MI300X") > of("cuda", "NVIDIA H100 80GB HBM3") > of("rocm", "Radeon RX 7900 XT")
    assert of("mps", "Apple M2 Max") > of("mps", "Apple M2 Pro") > of("mps", "Apple M2")
    assert min(of(kind, "?") for kind in ("cuda", "rocm", "xpu", "mps")) > flops_per_second(
        Device("CPU, 16 cores", "cpu", GIB, GIB)
    )


def test_devices_are_known_by_the_longest_name_that_fits() -> None:
    assert flops_per_second(gpu("NVIDIA A10G")) < flops_per_second(gpu("NVIDIA A10"))
    assert (
        flops_per_second(gpu("NVIDIA L40S")) > flops_per_second(gpu("NVIDIA L40")) > flops_per_second(gpu("NVIDIA L4"))
    )
    assert flops_per_second(gpu("NVIDIA GeForce RTX 4090")) > flops_per_second(gpu("NVIDIA GeForce RTX 4060"))
    cores = [flops_per_second(Device(f"CPU, {count} cores", "cpu", 1, 1)) for count in (2, 16)]
    assert cores[1] == 8 * cores[0]
