"""Each kind of device by stand-ins of torch's modules: which is chosen, its memory, precision, random numbers."""

import importlib.util
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers.utils.import_utils import enable_tf32

from lora_studio.config.parsing import nest, parse
from lora_studio.engine import accelerator, train_script
from lora_studio.engine.models import load
from lora_studio.engine.runtime import is_out_of_memory
from lora_studio.engine.train import memory
from lora_studio.engine.train.settings import trainer_values
from lora_studio.errors import StudioError
from lora_studio.models import accelerators
from lora_studio.models.hardware import CPU_ONLY, Device
from lora_studio.units import GIB

TORCH_TYPES = {"cuda": "cuda", "rocm": "cuda", "xpu": "xpu", "mps": "mps"}
Use = Callable[..., "StandIn"]


class StandIn:
    """A module of torch for GPUs, as `torch.cuda` and `torch.xpu` are; it records what is set."""

    def __init__(self, *, bf16: bool = True, capability: tuple[int, int] = (9, 0), built: Sequence[str] = ()) -> None:
        self.bf16 = bf16
        self.capability, self.built = capability, list(built)
        self.emptied = 0
        self.states = [torch.tensor([1], dtype=torch.uint8)]
        self.memory = (50 * GIB, 80 * GIB)

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        assert not including_emulation
        return self.bf16

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return self.capability

    def get_arch_list(self) -> list[str]:
        return self.built

    def get_device_name(self, index: int) -> str:
        return f"GPU {index}"

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(uuid="1234-abcd", total_memory=self.memory[1])

    def memory_reserved(self, index: int) -> int:
        return 9 * GIB

    def memory_allocated(self, index: int) -> int:
        return 7 * GIB

    def max_memory_reserved(self, index: int) -> int:
        return 11 * GIB

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return self.memory

    def empty_cache(self) -> None:
        self.emptied += 1

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return self.states

    def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
        self.states = states


class Metal(StandIn):
    """As `torch.mps` is: no peak, no list of GPUs, the system's memory."""

    held = 4 * GIB

    def driver_allocated_memory(self) -> int:
        return self.held

    def current_allocated_memory(self) -> int:
        return self.held - GIB

    def recommended_max_memory(self) -> int:
        return 16 * GIB

    def get_rng_state(self) -> torch.Tensor:
        return self.states[0]

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.states = [state]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Pretends that this machine has a GPU of a kind; the stand-in of torch's module for it."""

    def pretend(kind: str, **what: Any) -> StandIn:
        module = (Metal if kind == "mps" else StandIn)(**what)
        for name in ("cuda", "xpu"):
            monkeypatch.setattr(getattr(torch, name), "is_available", lambda: False)
        monkeypatch.setattr(torch, TORCH_TYPES[kind], module)
        monkeypatch.setattr(torch.version, "hip", "6.4" if kind == "rocm" else None)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: module.bf16)
        monkeypatch.setattr(accelerator, "apple_chip", lambda: "Apple M2 Pro")
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=24 * GIB, available=10 * GIB))
        monkeypatch.setattr(accelerator, "_peaks", {})
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available: torch.device(TORCH_TYPES[kind])
        )
        return module

    return pretend


@pytest.mark.parametrize(
    ("kind", "device", "name", "uuid"),
    [
        ("cuda", "cuda:0", "GPU 0", "GPU-1234-abcd"),
        ("rocm", "cuda:0", "GPU 0", ""),
        ("xpu", "xpu:0", "GPU 0", ""),
        ("mps", "mps", "Apple M2 Pro", ""),
    ],
)
def test_each_kind_of_gpu_is_chosen_before_the_cpu(use: Use, kind: str, device: str, name: str, uuid: str) -> None:
    use(kind)
    assert accelerator.device_kind() == kind
    assert accelerator.device() == torch.device(device)
    assert (accelerator.device_name(), accelerator.device_uuid()) == (name, uuid)
    assert train_script.device(False).type == accelerator.device().type
    assert train_script.device(True) == torch.device("cpu")


def test_a_variable_leaves_the_cpu_where_no_other_hides_the_gpu(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use("mps")
    for name, value in CPU_ONLY.items():
        monkeypatch.setenv(name, value)
    assert (accelerator.device_kind(), accelerator.device()) == ("cpu", torch.device("cpu"))
    assert accelerator.auto_dtype() is torch.float32


@pytest.mark.parametrize(
    ("kind", "with_bf16", "without"),
    [
        ("cuda", torch.bfloat16, torch.float16),
        ("rocm", torch.bfloat16, torch.float16),
        ("xpu", torch.bfloat16, torch.float16),
        ("mps", torch.bfloat16, torch.float32),
    ],
)
def test_auto_precision_is_what_a_device_learns_in(
    use: Use, kind: str, with_bf16: torch.dtype, without: torch.dtype
) -> None:
    use(kind)
    assert load.choose_dtype("auto") is with_bf16
    use(kind, bf16=False)
    assert load.choose_dtype("auto") is without
    assert load.choose_dtype("float16") is torch.float16  # to answer in; training in it is another matter


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuda", "rocm", "xpu"])
def test_memory_of_a_gpu_is_what_torch_and_its_driver_count(use: Use, kind: str) -> None:
    module = use(kind)
    now = accelerator.read_memory()
    assert (now.now, now.allocated, now.peak) == (9 * GIB, 7 * GIB, 11 * GIB)
    assert (now.free, now.total, now.available) == (50 * GIB, 80 * GIB, 59 * GIB)
    assert load.memory_bytes() == 11 * GIB
    load.give_back_memory()
    assert module.emptied == 1


def test_an_intel_driver_that_does_not_tell_what_is_free(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> tuple[int, int]:
        raise RuntimeError("The device doesn't support querying the available free memory.")

    monkeypatch.setattr(use("xpu"), "mem_get_info", refused)
    now = accelerator.read_memory()
    assert (now.free, now.total) == (71 * GIB, 80 * GIB)
    monkeypatch.setattr(use("cuda"), "mem_get_info", refused)
    with pytest.raises(RuntimeError):
        accelerator.read_memory()


def test_memory_of_a_mac_is_shared_and_its_peak_is_the_most_that_was_read(use: Use) -> None:
    module = use("mps")
    assert isinstance(module, Metal)
    first = accelerator.read_memory()
    assert (first.now, first.allocated, first.free, first.total) == (4 * GIB, 3 * GIB, 10 * GIB, 16 * GIB)
    module.held = 9 * GIB
    assert accelerator.read_memory().free == 7 * GIB
    module.held = 2 * GIB
    assert (accelerator.read_memory().now, accelerator.read_memory().peak) == (2 * GIB, 9 * GIB)
    assert load.memory_bytes() == 9 * GIB


@pytest.mark.parametrize("kind", ["cuda", "rocm", "xpu", "mps"])
def test_random_numbers_of_a_gpu_come_again(use: Use, kind: str) -> None:
    module = use(kind)
    before = accelerator.RandomNumbers()
    own, on_cpu = module.states, torch.rand(3)
    module.states = [torch.tensor([9], dtype=torch.uint8)]
    before.restore()
    assert torch.equal(module.states[0], own[0])
    assert torch.equal(torch.rand(3), on_cpu)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 23.64 GiB", 1.5 * GIB),
        ("HIP out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 191.98 GiB", 0.5 * GIB),
        ("XPU out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.91 GiB.", 2 * GIB),
        ("MPS backend out of memory (MPS allocated: 15.9 GiB). Tried to allocate 256.00 MiB on private pool.", GIB / 4),
        ("MPS backend out of memory (MPS allocated: 18.13 GB). Tried to allocate 1.00 GB on private pool.", GIB),
        ("Invalid buffer size: 20.00 GiB", 20 * GIB),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.", 4096),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", 0),
        ("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`", 0),
        ("HIP error: hipErrorOutOfMemory", 0),
        ("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", 0),
        ("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)", 0),
    ],
)
def test_the_end_of_the_memory_is_known_on_every_kind(text: str, asked: float) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert memory.asked_bytes(text) == round(asked)
    assert not is_out_of_memory(RuntimeError("HIP error: invalid device function"))


def test_quantized_bases_and_flash_attention_are_refused_where_they_cannot_run(use: Use) -> None:
    use("mps")
    with pytest.raises(StudioError, match="demo cannot run in 4bit here: bitsandbytes ships no kernels") as caught:
        load.load_model("demo", quantization="4bit")
    assert "without quantization" in caught.value.hint
    model = load.read_config("demo")
    with pytest.raises(StudioError, match="flash_attention_2 cannot run here: it is not built for Apple GPUs"):
        load.choose_attention("flash_attention_2", model, torch.bfloat16)
    use("xpu")
    with pytest.raises(StudioError, match="flash_attention_2 cannot run here: it is not built for Intel GPUs"):
        load.choose_attention("flash_attention_2", model, torch.bfloat16)
    assert load.choose_attention("auto", model, torch.bfloat16) is None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cpu", {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False, "accelerator_config": None}),
        ("cuda", {"use_cpu": False, "bf16": True, "accelerator_config": {"non_blocking": True}}),
        ("rocm", {"use_cpu": False, "bf16": True, "dataloader_pin_memory": True}),
        ("xpu", {"use_cpu": False, "bf16": True, "dataloader_pin_memory": True}),
        ("mps", {"use_cpu": False, "bf16": True, "dataloader_pin_memory": False}),
    ],
)
def test_the_trainer_is_told_what_the_device_is(kind: str, expected: dict[str, Any]) -> None:
    values = trainer_values(parse(nest({})), "bfloat16", kind=kind, measured=False, checkpointing=False)
    assert {name: values.get(name) for name in expected} == expected


BUILT = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
"""What PyTorch's build for CUDA 13 has kernels for."""


@pytest.mark.parametrize(
    ("capability", "dtype", "with_both", "keys_repeated", "eight_bit", "runs"),
    [
        ((7, 0), torch.float16, "sdpa", True, False, False),  # V100
        ((7, 5), torch.float16, "sdpa", True, True, True),  # T4, RTX 20
        ((8, 0), torch.bfloat16, "flash_attention_2", False, True, True),  # A100
        ((8, 6), torch.bfloat16, "flash_attention_2", False, True, True),  # RTX 30, A10
        ((8, 9), torch.bfloat16, "flash_attention_2", False, True, True),  # RTX 40, L4, L40
        ((9, 0), torch.bfloat16, "flash_attention_3", False, True, True),  # H100, H200
        ((10, 0), torch.bfloat16, "flash_attention_2", False, True, True),  # B200
        ((12, 0), torch.bfloat16, "flash_attention_2", False, True, True),  # RTX 50
    ],
)
def test_what_auto_comes_to_on_each_generation_of_nvidias_gpus(
    use: Use,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    with_both: str,
    keys_repeated: bool,
    eight_bit: bool,
    runs: bool,
) -> None:
    use("cuda", bf16=capability >= (8, 0), capability=capability, built=BUILT)
    model, shared = load.read_config("demo"), load.sdpa_attention.use_gqa_in_sdpa
    assert load.choose_dtype("auto") is dtype
    assert load.choose_attention("auto", model, dtype) is None  # PyTorch's own: nothing else is installed
    monkeypatch.setattr(accelerators, "_has", lambda distribution: True)
    spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec("json" if "flash_attn" in name else name))
    assert (load.choose_attention("auto", model, dtype) or "sdpa") == with_both
    for name in ("flash_attention_2", "flash_attention_3"):
        if name == with_both or (name == "flash_attention_2" and with_both != "sdpa"):
            assert load.choose_attention(name, model, dtype) == name
        else:
            with pytest.raises(StudioError, match=f"{name} cannot run here: it (needs|is written for)"):
                load.choose_attention(name, model, dtype)
    keys = torch.zeros(1, 2, 4, 64, dtype=dtype)
    try:
        for kind, repeated in ((dtype, keys_repeated), (torch.float32, True)):
            load.repeat_keys(kind)
            assert load.sdpa_attention.use_gqa_in_sdpa(None, keys, keys) is not repeated
    finally:
        load.sdpa_attention.use_gqa_in_sdpa = shared
    if not eight_bit:
        with pytest.raises(StudioError, match=r"demo cannot run in 8bit here: it needs a GPU of .* 7\.5 or higher"):
            load.load_model("demo", quantization="8bit")
    if runs:
        assert accelerator.device() == torch.device("cuda:0")
    else:
        with pytest.raises(
            StudioError, match=r"has no kernels for GPU 0, whose compute capability is 7\.0: it is built"
        ):
            accelerator.device()


@pytest.mark.parametrize(
    ("target", "on"),
    [
        ("sm_80", [(8, 0), (8, 6), (8, 9)]),
        ("sm_86", [(8, 6), (8, 9)]),
        ("sm_90a", [(9, 0)]),
        ("sm_100f", [(10, 0), (10, 3)]),
        ("compute_90", [(9, 0), (10, 0), (10, 3), (12, 0)]),
        ("gfx942", []),
    ],
)
def test_compiled_kernels_run_on_the_gpus_that_nvidia_says(target: str, on: list[tuple[int, int]]) -> None:
    every = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    assert [own for own in every if accelerator.runs_on(target, own)] == on


def test_a_gpu_that_pytorch_cannot_use_is_told_and_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020). Please update it.")

    monkeypatch.setattr(accelerator, "devices", lambda: [Device("RTX 4090", "cuda", 24 * GIB, 23 * GIB)])
    monkeypatch.setattr(torch.cuda, "init", refuses)
    accelerator._why_unusable.cache_clear()
    try:
        with pytest.raises(
            StudioError, match=r"cannot use GPU 0 \(RTX 4090\): The NVIDIA driver .* \(found version 12020"
        ) as told:
            accelerator.device_kind()
        assert "compute.device to cpu" in told.value.hint
        for name, value in CPU_ONLY.items():
            monkeypatch.setenv(name, value)
        assert accelerator.device_kind() == "cpu"
    finally:
        accelerator._why_unusable.cache_clear()


def test_tf32_is_switched_by_both_names_so_that_the_compiler_can_read_either() -> None:
    matmul = torch.backends.cuda.matmul
    before = torch.backends.fp32_precision, matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        enable_tf32(True)
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):  # by transformers alone
            torch.get_float32_matmul_precision()
        for on in (True, False):
            accelerator.set_tf32(on)
            assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (on, on)
            assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
            assert matmul.fp32_precision == ("tf32" if on else "ieee")
    finally:
        torch.backends.fp32_precision, matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
