"""The kinds of devices that PyTorch computes on: what each holds in memory, what does not work there and why, and the
attention that a model computes with on one.

CUDA is measured by others and documented; the figures of the other kinds are assumptions until a run on one replaces
them (docs/where-it-runs.md says which). Without torch, so that form, checks and estimate say what the run will do;
`engine.models.load` asks the same questions with what only torch knows (the precision, the GPU's generation, what the
model's class supports).
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024**2
CUDA, ROCM, XPU, MPS, CPU = "cuda", "rocm", "xpu", "mps", "cpu"
AUTO, LOCAL = "auto", "local"
"""The choice of a device that leaves it to the studio, and the target that is this machine."""

FOUR_BIT, EIGHT_BIT, FLOAT16 = "4bit", "8bit", "float16"
OPTIMIZER_8BIT, PAGED = "8-bit optimizer", "paged optimizer"
FLASH_ATTENTION, FLASH_ATTENTION_3, FLEX_ATTENTION = "flash_attention_2", "flash_attention_3", "flex_attention"
HUB_KERNELS = ("kernels-community/flash-attn2", "kernels-community/vllm-flash-attn3")
"""Attention that is downloaded from the Hub, and only if a person chose it."""
TORCH_COMPILE, TRITON_KERNELS, TF32 = "torch.compile", "Triton kernels", "TF32"
PINNED, HOST_MEMORY = "pinned memory", "offloading"
SWITCHES = (PINNED, HOST_MEMORY, FLASH_ATTENTION_3, FLEX_ATTENTION, HUB_KERNELS[0], TORCH_COMPILE, TRITON_KERNELS, TF32)
"""What only changes the speed: told where it is chosen, and not in a device's description."""
FEATURES = (FOUR_BIT, EIGHT_BIT, FLOAT16, OPTIMIZER_8BIT, PAGED, FLASH_ATTENTION, *SWITCHES)
"""What a kind of device may lack. Those that are values of settings have the value's name; the Hub's kernels have that
of the first."""

CPU_LIBRARIES = 600 * MIB  # resident memory of a worker that has imported its libraries (torch 2.13 for the CPU)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of device. Memory in bytes.

    `context` is what driver, kernels and libraries hold of the device's memory outside PyTorch's allocator, `workspace`
    what the matrix library takes inside it; `reserve` is the share of what changes in size from batch to batch that the
    allocator can't use again. `fused` says that PyTorch has its fused kernels there: dropout keeps a byte for each
    number, trl scores in one buffer. `whole_attention` says that attention keeps its matrix of weights while it learns.
    `unified` says that the device computes in the system's memory.
    """

    name: str
    title: str
    context: int
    workspace: int = 0
    reserve: float = 0.06
    fused: bool = True
    whole_attention: bool = False
    unified: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Each missing feature with the reason, a clause that follows "cannot run here:"."""

    @property
    def is_gpu(self) -> bool:
        return self.name != CPU

    @property
    def library_bytes(self) -> int:
        """The part of the device's memory that PyTorch's own counter does not see. On the CPU nothing is hidden."""
        return self.context if self.is_gpu else 0


NOT_NVIDIA = "it is built for NVIDIA GPUs only"
UNTESTED = "it is untested on this kind of GPU"
NO_METAL_KERNELS = "bitsandbytes ships no kernels for Apple GPUs and would download them as code from the Hub"

DEVICE_KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            CUDA,
            "NVIDIA GPU (CUDA)",
            context=512 * MIB,  # context and kernels of PyTorch and cuBLAS; 300 to 600 MiB, by driver and GPU
            workspace=32 * MIB,  # PyTorch's default from Hopper on; 8 MiB before
        ),
        Kind(
            ROCM,
            "AMD GPU (ROCm)",
            context=768 * MIB,  # assumed: code objects of HIP and hipBLASLt are larger than CUDA's
            workspace=128 * MIB,  # PyTorch's hipBLASLt workspace on gfx94x; 32 MiB elsewhere
            lacks={
                PAGED: "it relies on CUDA's managed memory, which is untested on AMD GPUs",
                FLASH_ATTENTION_3: NOT_NVIDIA,
                HUB_KERNELS[0]: NOT_NVIDIA,
                TF32: NOT_NVIDIA,
            },
        ),
        Kind(
            XPU,
            "Intel GPU (XPU)",
            context=512 * MIB,  # assumed
            lacks={
                PAGED: "it relies on CUDA's managed memory",
                FLASH_ATTENTION: "it is not built for Intel GPUs",
                FLASH_ATTENTION_3: NOT_NVIDIA,
                HUB_KERNELS[0]: UNTESTED,
                FLEX_ATTENTION: UNTESTED,
                TORCH_COMPILE: UNTESTED,
                TRITON_KERNELS: UNTESTED,
                TF32: NOT_NVIDIA,
            },
        ),
        Kind(
            MPS,
            "Apple GPU (MPS)",
            context=CPU_LIBRARIES + 256 * MIB,  # the worker's libraries lie in the same memory; Metal's part is assumed
            reserve=0.15,
            fused=False,
            whole_attention=True,  # PyTorch's fused attention on MPS has no backward pass
            unified=True,
            lacks={
                FOUR_BIT: NO_METAL_KERNELS,
                EIGHT_BIT: NO_METAL_KERNELS,
                FLOAT16: "its gradients need scaling, which is little tested on Apple GPUs",
                OPTIMIZER_8BIT: "bitsandbytes has no 8-bit optimizer for Apple GPUs",
                PAGED: "it relies on CUDA's managed memory",
                FLASH_ATTENTION: "it is not built for Apple GPUs",
                PINNED: "CPU and GPU share one memory",
                HOST_MEMORY: "CPU and GPU share one memory",
                FLASH_ATTENTION_3: NOT_NVIDIA,
                HUB_KERNELS[0]: NOT_NVIDIA,
                FLEX_ATTENTION: UNTESTED,
                TORCH_COMPILE: UNTESTED,
                TRITON_KERNELS: "Triton has no compiler for Apple GPUs",
                TF32: NOT_NVIDIA,
            },
        ),
        Kind(
            CPU,
            "CPU",
            context=CPU_LIBRARIES,
            reserve=0.15,
            fused=False,
            lacks={
                FLOAT16: "it needs a GPU, and this machine has none",
                PAGED: "it moves optimizer state out of a CUDA GPU, and this machine has none",
                FLASH_ATTENTION: "it needs a CUDA GPU",
                PINNED: "the batches are where they are needed",
                HOST_MEMORY: "activations are in the machine's memory already",
                FLASH_ATTENTION_3: "it needs a CUDA GPU",
                HUB_KERNELS[0]: "it needs a CUDA GPU",
                FLEX_ATTENTION: "PyTorch has no backward pass of it for the CPU",
                TRITON_KERNELS: "Triton kernels need a GPU",
                TF32: "it needs an NVIDIA GPU",
            },
        ),
    )
}
"""Every kind by its name, as events, results and `estimate --device` have it. ROCm is `cuda` to PyTorch alone."""


def missing(kind: str, feature: str) -> str:
    """Why a feature is not available on a kind of device; "" where it is."""
    return DEVICE_KINDS[kind].lacks.get(feature, "")


def optimizer_without(optim: str, kind: str) -> tuple[str, str]:
    """Why an optimizer cannot run on a kind of device, and the nearest that can; two empty strings where it can."""
    wanted = {PAGED: optim.startswith("paged"), OPTIMIZER_8BIT: optim.endswith("8bit")}
    reasons = [why for feature, asked in wanted.items() if asked and (why := missing(kind, feature))]
    if not reasons:
        return "", ""
    instead = optim.removeprefix("paged_")
    if missing(kind, OPTIMIZER_8BIT):
        instead = {"adamw_8bit": "adamw_32bit", "lion_8bit": "lion_32bit"}.get(instead, instead.removesuffix("_8bit"))
    return reasons[0], instead.replace("adamw_32bit", "adamw_torch")


SDPA, EAGER = "sdpa", "eager"
PACKAGES: Mapping[str, tuple[str, str]] = {
    FLASH_ATTENTION: ("flash_attn", "flash-attn"),
    FLASH_ATTENTION_3: ("flash_attn_interface", "flash-attn-3"),
    **dict.fromkeys(HUB_KERNELS, ("kernels", "kernels")),
}
"""Module and distribution that an implementation needs (transformers 5.23, `modeling_flash_attention_utils`)."""
FLASH_TITLES = {FLASH_ATTENTION: "FlashAttention 2", FLASH_ATTENTION_3: "FlashAttention 3"}
BEST_FIRST = (FLASH_ATTENTION_3, FLASH_ATTENTION)
"""What `auto` looks for: what is installed and needs no download. PyTorch's own attention (SDPA) is always there."""
FLASH = (*BEST_FIRST, *HUB_KERNELS)
"""FlashAttention of any origin: it attends to rows of different lengths in one sequence without a mask."""
Capability = tuple[int, int]
"""The compute capability of an NVIDIA GPU, major and minor."""
TURING, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0)
"""FlashAttention 2 needs Ampere, and so does the only kernel of PyTorch's own attention that reads keys which several
heads share (`check_batch_size_and_num_heads_dense` in aten/src/ATen/native/transformers/cuda/sdp_utils.cpp);
FlashAttention 3 is written for Hopper alone; products in 8 bits need Turing (bitsandbytes 0.50, installation guide)."""
LONGEST_HEAD = 256
"""The largest head size that FlashAttention has kernels for."""


@dataclass(frozen=True, slots=True)
class Attention:
    """An implementation by transformers' name, and why it is the one."""

    name: str
    reason: str

    @property
    def words(self) -> str:
        return f"{self.name}: {self.reason}"


def attention_lacks(
    implementation: str, kind: str, *, half: bool | None = None, capability: Capability | None = None
) -> str:
    """Why an implementation can't run on a device of that kind; "" where it can.

    `half` says whether the model computes in 16 bits, `capability` is an NVIDIA GPU's; None for unknown.
    """
    if implementation in (SDPA, EAGER):
        return ""
    if reason := missing(kind, HUB_KERNELS[0] if implementation in HUB_KERNELS else implementation):
        return reason
    if implementation == FLEX_ATTENTION:
        return ""
    if half is False:
        return "it needs 16-bit precision"
    if capability is not None and "3" in implementation and capability[0] != HOPPER[0]:
        return f"it is written for GPUs of compute capability {_dotted(HOPPER)}, and this one has {_dotted(capability)}"
    if capability is not None and capability < AMPERE:
        return _too_old(AMPERE, capability)
    module, distribution = PACKAGES[implementation]
    if importlib.util.find_spec(module) is None or not _has(distribution):
        return f"the package {distribution} is not installed"
    if implementation in HUB_KERNELS and _offline() and not _is_cached(implementation):
        return f"{implementation} would be downloaded, and HF_HUB_OFFLINE disables downloads"
    return ""


def generation_lacks(feature: str, capability: Capability | None) -> str:
    """Why an NVIDIA GPU of that compute capability can't do what others can; "" where it can, or is none."""
    too_old = feature == EIGHT_BIT and capability is not None and capability < TURING
    return _too_old(TURING, capability) if too_old and capability else ""


def _too_old(least: Capability, capability: Capability) -> str:
    return f"it needs a GPU of compute capability {_dotted(least)} or higher, and this one has {_dotted(capability)}"


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))


def repeats_keys(kind: str, *, half: bool, capability: Capability | None = None) -> bool:
    """Whether keys and values that several heads share have to be repeated for each of them on a device of that kind.

    Without a mask transformers leaves that to PyTorch's attention (`use_gqa_in_sdpa`). On GPUs before Ampere, and in
    float32, PyTorch then has nothing but its plain kernel, which builds the whole matrix of weights
    (huggingface/transformers#48633); for repeated keys it has the memory-efficient one.
    """
    return kind in (CUDA, ROCM) and (not half or (capability is not None and capability < AMPERE))


def automatic_attention(
    kind: str, *, half: bool | None = None, capability: Capability | None = None, unsupported: Sequence[str] = ()
) -> Attention:
    """What `auto` takes on a device of that kind: the best that is installed. `unsupported` are those that the model's
    class does not have."""
    reasons: list[str] = []
    for name in BEST_FIRST:
        reason = "the model does not support it" if name in unsupported else ""
        reason = reason or attention_lacks(name, kind, half=half, capability=capability)
        if not reason:
            return Attention(name, "the fastest that is installed")
        reasons.append(f"{FLASH_TITLES[name]} is not used, {reason}")
    return Attention(SDPA, reasons[-1])


def expected_attention(
    implementation: str, kind: str, dtype: str = "auto", capability: Capability | None = None
) -> Attention:
    """The attention of a run on a device of that kind, as far as it is known without loading the model. `dtype` is the
    setting `model.dtype`."""
    if implementation != "auto":
        return Attention(implementation, "as configured")
    return automatic_attention(kind, half=False if dtype == "float32" else None, capability=capability)


def is_flash(implementation: str) -> bool:
    """Whether an implementation is FlashAttention."""
    return implementation in FLASH


def joins_rows(padding_free: object, implementation: str, *, possible: bool) -> bool:
    """Whether batches are made without padding: as `training.padding_free` says; left to "auto", where the attention
    reads such a batch without a mask. `possible` says that method, packing and model allow it."""
    if padding_free == "auto":
        return possible and is_flash(implementation)
    return bool(padding_free)


def lacks_state_kernels() -> bool:
    """Whether the package is missing whose convolutions begin anew with each row of a sequence: transformers 5.23
    refuses such batches without it."""
    return importlib.util.find_spec("causal_conv1d") is None


def _has(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _is_cached(kernel: str) -> bool:
    """Whether the Hub's cache on this machine has a kernel."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return any(Path(HF_HUB_CACHE).glob(f"*--{kernel.replace('/', '--')}"))
