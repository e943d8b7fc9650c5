"""Turns this machine's device into calls of torch: which it is, its memory, its random numbers, what it computes in.

Nothing else in the package names `torch.cuda`, `torch.xpu` or `torch.mps`; `models.hardware` describes the same devices
without torch.
"""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from lora_studio.errors import StudioError
from lora_studio.models.accelerators import CPU, CUDA, MPS, ROCM, XPU, Capability
from lora_studio.models.hardware import by_number as by_number
from lora_studio.models.hardware import cpu_only, devices
from lora_studio.models.vendor_tools import apple_chip
from lora_studio.units import count

STATUS = Path("/proc/self/status")
_peaks: dict[str, int] = {}  # the most that was read so far, where torch does not count it


def device_kind() -> str:
    """The kind of this machine's device, one of `accelerators.DEVICE_KINDS`. ROCm's build of torch answers as CUDA.

    Raises `StudioError` for a GPU that PyTorch can't use: nobody wants to train on the CPU without having chosen it.
    """
    if cpu_only(os.environ):
        return CPU
    if torch.cuda.is_available():
        return ROCM if torch.version.hip else CUDA
    if torch.xpu.is_available():
        return XPU
    if torch.backends.mps.is_available():
        return MPS
    if why := _why_unusable():
        raise StudioError(why, "Update the GPU's driver, or set compute.device to cpu.")
    return CPU


@functools.cache
def _why_unusable() -> str:
    """Why PyTorch, which finds no GPU, can't use the one that the driver's programs show; "" where they show none."""
    shown = devices()[0]
    if not shown.is_gpu:
        return ""
    reason = "it finds none"
    try:
        if shown.kind != MPS:
            (torch.xpu if shown.kind == XPU else torch.cuda).init()
    except (RuntimeError, AssertionError) as error:  # an old driver, or one that does not work
        text = str(error).strip()
        numbered = re.search(r"Error \d+: [^\n]{1,200}", text)  # behind sentences that are not about the cause
        reason = numbered[0] if numbered else text.partition("\n")[0].partition(". ")[0]
    return f"PyTorch {torch.__version__} cannot use {shown.title}: {reason.rstrip('.')}."


def on_cpu() -> bool:
    return device_kind() == CPU


def device() -> torch.device:
    """The first GPU that torch can use, else the CPU: where training, chat, evaluation and export compute. Of several
    processes of a training each has a GPU of its own. Raises `StudioError` for one that torch has no kernels for."""
    kind = device_kind()
    if kind in (CPU, MPS):
        return torch.device(kind)
    own, built = capability(), torch.cuda.get_arch_list() if kind == CUDA else []
    if own and built and not any(runs_on(target, own) for target in built):
        raise StudioError(
            f"PyTorch {torch.__version__} has no kernels for {device_name()}, whose compute capability is "
            f"{own[0]}.{own[1]}: it is built for {', '.join(built)}.",
            "Install a build of PyTorch for this GPU (an older version of CUDA for an older GPU), or set "
            "compute.device to cpu.",
        )
    return torch.device(XPU if kind == XPU else "cuda", _index())


def _index() -> int:
    """The number of this process' GPU. A process that may see a single one has that."""
    local = os.environ.get("LOCAL_RANK", "")
    return int(local) % max(1, _module().device_count()) if local.isdecimal() else 0


def device_name() -> str:
    kind = device_kind()
    if kind == CPU:
        return f"CPU, {count(torch.get_num_threads(), 'thread')}"
    return apple_chip() if kind == MPS else str(_module().get_device_name(_index()))


def device_uuid() -> str:
    """The driver's name of an NVIDIA GPU (GPU-…); "" for all others."""
    return f"GPU-{torch.cuda.get_device_properties(_index()).uuid}" if device_kind() == CUDA else ""


def supports_bf16() -> bool:
    """Whether the device computes in bfloat16 itself."""
    kind = device_kind()
    if kind in (CUDA, ROCM):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == XPU:
        return torch.xpu.is_bf16_supported(including_emulation=False)
    return kind == CPU or torch.backends.mps.is_macos_or_newer(14, 0)


def capability() -> Capability | None:
    """The compute capability of an NVIDIA GPU; None for other devices."""
    return torch.cuda.get_device_capability(_index()) if device_kind() == CUDA else None


def runs_on(target: str, own: Capability) -> bool:
    """Whether what was compiled for a target of NVIDIA's compiler runs on a GPU of that compute capability: `sm_80` on
    those of the same major one that are not older, `sm_90a` on that one alone, `compute_90` (which the driver compiles
    itself) on all later ones (CUDA Programming Guide, "Compute Capabilities")."""
    match = re.fullmatch(r"(sm|compute)_(\d{2,4})([af]?)", target)
    if not match:
        return False
    built = divmod(int(match[2]), 10)
    if match[3] == "a":
        return own == built
    return own >= built if match[1] == "compute" and not match[3] else own[0] == built[0] and own >= built


def auto_dtype() -> torch.dtype:
    """The precision that is chosen where none is asked for: fp32 on the CPU, bf16 on a GPU that has it.

    Other GPUs take fp16, except Apple's, which learn in it unreliably.
    """
    kind = device_kind()
    if kind == CPU:
        return torch.float32
    if supports_bf16():
        return torch.bfloat16
    return torch.float32 if kind == MPS else torch.float16


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. On a GPU: reserved by PyTorch, allocated to tensors, peak reserved; on the CPU: resident memory.

    `total` is the device's memory and `free` what nobody holds of it; `available` is what this process could hold: its
    own memory plus what is free.
    """

    now: int
    allocated: int
    peak: int
    free: int
    total: int

    @property
    def available(self) -> int:
        return self.free + self.now


def read_memory() -> Memory:
    """The current memory; takes well under a millisecond."""
    kind = device_kind()
    if kind == CPU:
        return _memory_of_process()
    if kind == MPS:
        return _memory_of_mps()
    module, index = _module(), _index()  # by its number: another thread has another current device
    now = module.memory_reserved(index)
    free, total = _free_and_total(module, now, index)
    return Memory(now, module.memory_allocated(index), module.max_memory_reserved(index), free, total)


def _free_and_total(module: Any, reserved: int, index: int) -> tuple[int, int]:
    """As the driver says; some of Intel's do not tell what is free, and then only this process is counted."""
    try:
        free, total = module.mem_get_info(index)
    except RuntimeError:
        if device_kind() != XPU:
            raise
        total = module.get_device_properties(index).total_memory
        free = total - reserved
    return free, total


def _memory_of_mps() -> Memory:
    """The GPU shares the system's memory, of which it may take `recommended_max_memory`. torch counts no peak there:
    it is the most that was read."""
    now, total = torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    free = max(0, min(total - now, psutil.virtual_memory().available))
    _peaks[MPS] = max(now, _peaks.get(MPS, 0))
    return Memory(now, torch.mps.current_allocated_memory(), _peaks[MPS], free, total)


def _memory_of_process() -> Memory:
    now, memory = psutil.Process().memory_info().rss, psutil.virtual_memory()
    return Memory(now, 0, max(now, _high_water()), memory.available, memory.total)


def _high_water() -> int:
    """The peak resident memory of this process on Linux; 0 elsewhere."""
    if not STATUS.is_file():
        return 0
    for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def set_tf32(on: bool) -> None:
    """Whether products of float32 matrices may be computed in TF32, by both of PyTorch's switches.

    transformers sets the newer one alone, and PyTorch raises where its compiler reads the older (pytorch#166387).
    """
    backends: Any = torch.backends  # its stubs do not know the newer switch
    backends.fp32_precision = "tf32" if on else "ieee"
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def available_bytes() -> int:
    """The memory that this process could hold: what is free on the device plus its own."""
    return read_memory().available


def empty_cache() -> None:
    """Gives memory that no tensor uses back to the driver."""
    if device_kind() != CPU:
        _module().empty_cache()


class RandomNumbers:
    """A snapshot of torch's random state on the CPU and the GPUs. `kind` is the device's: whoever makes one at each
    step knows it, and asking takes most of the time."""

    def __init__(self, kind: str | None = None) -> None:
        self._cpu = torch.get_rng_state()
        self._gpus = _gpu_states(kind or device_kind())

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if not self._gpus:
            return
        if device_kind() == MPS:
            torch.mps.set_rng_state(self._gpus[0])
        else:
            _module().set_rng_state_all(self._gpus)


def _gpu_states(kind: str) -> list[torch.Tensor]:
    if kind == CPU:
        return []
    return [torch.mps.get_rng_state()] if kind == MPS else list(_module().get_rng_state_all())


def _module() -> Any:
    """torch's module for the device: `torch.cuda`, `torch.xpu` or `torch.mps`."""
    kind = device_kind()
    return torch.cuda if kind in (CUDA, ROCM) else torch.xpu if kind == XPU else torch.mps
