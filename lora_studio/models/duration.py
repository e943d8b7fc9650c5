"""A rough time of training from the floating-point operations of its tokens and what the device can do.

It is for the first run with a model; from then on the measured speed of earlier runs is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_studio.config.sections import Config
from lora_studio.models.accelerators import CUDA, MPS, ROCM, XPU
from lora_studio.models.hardware import Device
from lora_studio.models.memory import quantization_of
from lora_studio.models.shape import Architecture

TERA, GIGA = 1e12, 1e9
GPU_TERAFLOPS = {
    "B200": 2250, "H200": 989, "H100": 989, "H800": 989, "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10G": 70,
    "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "V100": 125, "T4": 65, "P100": 19, "P40": 12,
    "6000 ADA": 364, "A6000": 155, "A5000": 111, "A4000": 77, "A2000": 32,
    "5090": 209, "5080": 113, "5070": 62, "5060": 38, "4090": 165, "4080": 98, "4070": 58, "4060": 30,
    "3090": 71, "3080": 60, "3070": 41, "3060": 26, "3050": 18, "2080": 54, "2070": 40, "2060": 26, "TITAN RTX": 65,
}  # fmt: skip
"""Dense 16-bit tensor operations a second, in 10¹², as the vendor's data sheets have them; the longer name first."""
AMD_TERAFLOPS = {
    "MI325X": 1307, "MI300X": 1307, "MI300A": 981, "MI250X": 383, "MI250": 362, "MI210": 181, "MI100": 185,
    "7900 XTX": 123, "7900 XT": 103, "W7900": 123,
}  # fmt: skip
APPLE_TERAFLOPS = {"ULTRA": 28, "MAX": 14, "PRO": 7}
"""By the size of the chip, of any generation: Apple publishes none, and these are right within a factor of two."""
TERAFLOPS: Mapping[str, tuple[Mapping[str, float], float]] = {
    CUDA: (GPU_TERAFLOPS, 40.0),
    ROCM: (AMD_TERAFLOPS, 60.0),
    XPU: ({"MAX 1550": 832}, 40.0),
    MPS: (APPLE_TERAFLOPS, 4.0),
}
"""For each kind of GPU the known ones, and what an unknown one is taken for."""
GPU_SHARE = 0.35
"""The share of its peak that a GPU reaches when it fine-tunes; 0.3 to 0.45 is usual."""
CPU_GIGAFLOPS_A_CORE = 25.0
"""32-bit operations a second, in 10⁹, that a core reaches in matrix products."""
START_SECONDS = 12.0
"""Until the first step: importing PyTorch and transformers, reading a small file, loading a small model."""
GPU_STEP_SECONDS, CPU_STEP_SECONDS = 0.004, 0.015
"""Time that each layer takes in each batch however small it is: starting kernels, Python."""
SLOWER = {"none": 1.0, "8bit": 2.0, "4bit": 1.4}
"""What unpacking quantized weights costs."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a run computes: `tokens` in all of its training sequences, in `batches` of which each is one forward and
    backward pass; `length` is the mean tokens of a sequence."""

    tokens: float
    batches: float
    length: float


def training_seconds(config: Config, model: Architecture, device: Device, work: Work) -> float:
    """Seconds of training: the time of the operations, and what every batch takes however small it is."""
    preference = config.training.method == "dpo"
    sequences = 2 if preference else 1
    # Forward, backward for the inputs alone (the base is frozen), forward again for checkpoints, and for the reference.
    passes = 2 + (config.training.gradient_checkpointing is True) + preference
    flops = work.tokens * sequences * passes * _forward_flops(model, work.length)
    least = (GPU_STEP_SECONDS if device.is_gpu else CPU_STEP_SECONDS) * model.layers * sequences
    slower = SLOWER[quantization_of(config, model)]
    return flops * slower / flops_per_second(device) + work.batches * least


def _forward_flops(model: Architecture, length: float) -> float:
    """Operations of a forward pass for a token: two for each weight that it meets, and its share of attention."""
    active = sum(item.weights // item.experts * len(item.layers) for item in model.stacks) * model.active_experts
    weights = model.linear_weights + active + model.vocabulary * model.hidden
    attention = 2 * model.layers * model.heads * model.head_size * length  # causal: half of the pairs
    return 2.0 * weights + attention


def flops_per_second(device: Device) -> float:
    """What fine-tuning reaches on a device."""
    if not device.is_gpu:
        cores = _cores(device.name)
        return cores * CPU_GIGAFLOPS_A_CORE * GIGA
    name = device.name.upper()
    known, otherwise = TERAFLOPS[device.kind]
    peak = next((value for part, value in known.items() if part in name), otherwise)
    return peak * TERA * GPU_SHARE


def _cores(name: str) -> int:
    """The cores that a CPU's name says (`hardware.cpu`)."""
    digits = "".join(part for part in name.split(",")[-1] if part.isdigit())
    return max(1, int(digits or 1))
