"""GPUs of AMD, Intel and Apple as their programs report them: recorded shapes, odd outputs, and who may be seen."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lora_studio.models import hardware, vendor_tools
from lora_studio.models.accelerators import DEVICE_KINDS, FEATURES, optimizer_without
from lora_studio.models.hardware import Device, device_reading, devices, kinds_of_build, one_gpu
from lora_studio.models.vendor_tools import TOOLS, amd_cards, apple_card, first_json, intel_cards
from lora_studio.units import GIB

MIB = 1024**2
Answers = dict[str, dict[str, str]]

AMD_STATIC = [
    {
        "gpu": at,
        "asic": {"market_name": "AMD Instinct MI300X", "asic_serial": serial},
        "vram": {"type": "HBM", "size": {"value": 196592, "unit": "MB"}},
    }
    for at, serial in enumerate(("0xAB12CD34EF560001", "0xAB12CD34EF560002"))
]
AMD_METRIC = [
    {
        "gpu": 0,
        "usage": {"gfx_activity": {"value": 83, "unit": "%"}, "vcn_activity": ["N/A"]},
        "temperature": {"edge": "N/A", "hotspot": {"value": 61, "unit": "C"}, "mem": {"value": 50, "unit": "C"}},
        "mem_usage": {
            "total_vram": {"value": 196592, "unit": "MB"},
            "used_vram": {"value": 65536, "unit": "MB"},
            "free_vram": {"value": 131056, "unit": "MB"},
        },
    },
    {
        "gpu": 1,
        "usage": {"gfx_activity": "N/A"},
        "temperature": {"edge": {"value": 40, "unit": "C"}, "hotspot": "N/A"},
        "mem_usage": {"total_vram": {"value": 196592, "unit": "MB"}, "used_vram": {"value": 284, "unit": "MB"}},
    },
]
AMD_LIST = [
    {"gpu": 0, "bdf": "0000:05:00.0", "uuid": "d1ff74a1-0000-1000-80aa-ab12cd34ef56"},
    {"gpu": 1, "bdf": "0000:26:00.0", "uuid": "d2ff74a1-0000-1000-80bb-ab12cd34ef56"},
]
ROCM = {
    "card1": {"Card Series": "Radeon RX 7900 XTX", "VRAM Total Memory (B)": "25753026560", "Unique ID": "0xc0ffee02"},
    "card0": {
        "Card Series": "Radeon RX 7900 XT",
        "Unique ID": "0xc0ffee01",
        "VRAM Total Memory (B)": "21458059264",
        "VRAM Total Used Memory (B)": "1458059264",
        "GPU use (%)": "7",
        "Temperature (Sensor edge) (C)": "45.0",
        "Temperature (Sensor junction) (C)": "52.0",
    },
    "system": {"Driver version": "6.10.5"},
}
INTEL_LIST = {
    "device_list": [
        {"device_id": 0, "device_name": "Intel(R) Data Center GPU Max 1550", "device_type": "GPU", "uuid": "0000-004d"},
        {"device_id": 1, "device_name": "Intel(R) Arc(TM) Pro B60 Graphics", "device_type": "GPU", "uuid": "0000-0091"},
    ]
}
INTEL_STATS = {
    "device_id": 0,
    "device_level": [
        {"metrics_type": "XPUM_STATS_GPU_UTILIZATION", "value": 12.5},
        {"metrics_type": "XPUM_STATS_MEMORY_USED", "value": 1024.0},
        {"metrics_type": "XPUM_STATS_GPU_CORE_TEMPERATURE", "value": 47},
    ],
}
INTEL_TILES = {
    "device_id": 1,
    "tile_level": [
        {"tile_id": at, "data_list": [{"metrics_type": "XPUM_STATS_MEMORY_USED", "value": 512.0}]} for at in (0, 1)
    ],
}
IOREG = '  | "PerformanceStatistics" = {"Device Utilization %"=34,"Tiler Utilization %"=12}\n'


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answers], list[str]]]:
    """Programs that print what a test says for their arguments, and nothing for others; what was asked."""
    for tool in TOOLS:
        tool.forget()
    for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(vendor_tools, "DRM", Path("/nowhere"))

    def set_answers(answers: Answers) -> list[str]:
        asked: list[str] = []

        def run(tool: Any, arguments: tuple[str, ...]) -> str:
            asked.append(f"{tool.program} {' '.join(arguments)}")
            programs = answers.get(tool.program, {})
            return next((text for begin, text in programs.items() if " ".join(arguments).startswith(begin)), "")

        monkeypatch.setattr(vendor_tools.Tool, "_run", run)
        return asked

    yield set_answers
    for tool in TOOLS:
        tool.forget()


def amd_smi(*, wrapped: bool = False, before: str = "") -> Answers:
    parts = {"static": AMD_STATIC, "metric": AMD_METRIC, "list": AMD_LIST}
    return {
        "amd-smi": {
            name: before + json.dumps({"gpu_data": part} if wrapped else part, indent=4) for name, part in parts.items()
        }
    }


def use(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(hardware, "torch_kinds", lambda: {kind})


@pytest.mark.parametrize("wrapped", [False, True])
def test_amd_gpus_are_those_of_amd_smi(
    answer: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    asked = answer(amd_smi(wrapped=wrapped, before="WARNING: User is missing the group: render\n"))
    use(monkeypatch, "rocm")
    total = 196592 * MIB
    name = "AMD Instinct MI300X"
    assert devices() == [
        Device(name, "rocm", total, 131056 * MIB, uuid=AMD_LIST[0]["uuid"], load=83.0, celsius=61.0),
        Device(name, "rocm", total, total - 284 * MIB, index=1, uuid=AMD_LIST[1]["uuid"], celsius=40.0),
    ]
    before = len(asked)
    assert device_reading("rocm").celsius == 61.0
    assert len(asked) == before, "an answer of the last seconds is used again"
    assert "paged optimizer" in devices()[0].describe()


@pytest.mark.parametrize(
    ("variables", "indices"),
    [
        ({"HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, [1, 0]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-ab12cd34ef560002"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-d1ff74a1"}, [0]),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "0"}, []),
    ],
)
def test_variables_choose_among_amd_gpus(
    answer: Callable[[Answers], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    indices: list[int],
) -> None:
    answer(amd_smi())
    use(monkeypatch, "rocm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = [device for device in devices() if device.kind == "rocm"]
    assert [device.uuid for device in found] == [AMD_LIST[at]["uuid"] for at in indices]
    assert [device.index for device in found] == list(range(len(indices)))


def test_rocm_smi_answers_where_amd_smi_does_not(answer: Callable[[Answers], list[str]]) -> None:
    answer({"rocm-smi": {"--showproductname": json.dumps(ROCM)}})
    first, second = amd_cards()
    assert (first.name, first.memory_total, first.memory_free) == ("Radeon RX 7900 XT", 21458059264, 20_000_000_000)
    assert (first.load, first.celsius, first.serial) == (7.0, 52.0, "0xc0ffee01")
    assert (second.name, second.memory_free, second.load) == ("Radeon RX 7900 XTX", 25753026560, None)


def test_the_amd_drivers_files_answer_where_no_program_does(
    answer: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer({})
    files = {
        "mem_info_vram_total": "17163091968",
        "mem_info_vram_used": "17163091",
        "gpu_busy_percent": "3",
        "unique_id": "c0ffee",
        "hwmon/hwmon4/temp1_input": "41000",
    }
    for card, pci in (("card1", "0000:c9:00.0"), ("card0", "0000:05:00.0")):
        for name, value in files.items() if card == "card1" else [("mem_info_vram_total", "1 GiB?\n")]:
            path = tmp_path / "devices" / pci / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n", encoding="utf-8")
        (tmp_path / "drm" / card).mkdir(parents=True)
        (tmp_path / "drm" / card / "device").symlink_to(tmp_path / "devices" / pci)
    monkeypatch.setattr(vendor_tools, "DRM", tmp_path / "drm")
    first, second = amd_cards()
    assert (first.name, first.memory_total, first.load, first.celsius) == ("AMD GPU", GIB, None, None)
    assert (second.memory_total, second.memory_free) == (17163091968, 17163091968 - 17163091)
    assert (second.load, second.celsius, second.serial) == (3.0, 41.0, "c0ffee")
    monkeypatch.setattr(vendor_tools, "DRM", tmp_path / "gone")
    assert amd_cards() == []


def test_intel_gpus_are_those_of_xpu_smi(
    answer: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def size(octets: Any) -> str:
        return json.dumps({"device_id": 0, "memory_physical_size_byte": octets})

    answer(
        {
            "xpu-smi": {
                "discovery -j": json.dumps(INTEL_LIST),
                "discovery -d 0": size("137438953472"),
                "discovery -d 1": size(24 * GIB),
                "stats -d 0": json.dumps(INTEL_STATS),
                "stats -d 1": json.dumps(INTEL_TILES),
            }
        }
    )
    use(monkeypatch, "xpu")
    first, second = devices()
    assert (first.kind, first.memory_total, first.memory_free) == ("xpu", 128 * GIB, 127 * GIB)
    assert (first.load, first.celsius) == (12.5, 47.0)
    assert (second.memory_free, second.load, second.celsius) == (23 * GIB, None, None)
    for mask, names in (("1", ["0000-0091"]), ("1.0,1.1", ["0000-0091"]), ("0,1", ["0000-004d", "0000-0091"])):
        monkeypatch.setenv("ZE_AFFINITY_MASK", mask)
        assert [device.uuid for device in devices()] == names


def test_the_gpu_of_a_mac_shares_the_systems_memory(
    answer: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sysctl = {"-n machdep": "Apple M2 Pro\n", "-n iogpu": "0\n"}
    answer({"sysctl": sysctl, "ioreg": {"-r": IOREG}})
    use(monkeypatch, "mps")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=24 * GIB, available=9 * GIB))
    (device,) = devices()
    assert (device.name, device.kind, device.memory_total, device.memory_free) == (
        "Apple M2 Pro",
        "mps",
        16 * GIB,
        9 * GIB,
    )
    assert device.load == 34.0
    assert str(device) == "Apple M2 Pro, 9.0 of 16.0 GiB free, shared with the system"
    assert "No 4bit: bitsandbytes ships no kernels for Apple GPUs" in device.describe()
    assert apple_card(96 * GIB, 80 * GIB).memory_total == 72 * GIB
    for tool in TOOLS:
        tool.forget()
    answer({"sysctl": {**sysctl, "-n iogpu": "20480\n"}})
    assert (apple_card(24 * GIB, 22 * GIB).memory_free, apple_card(24 * GIB, 22 * GIB).load) == (20 * GIB, None)


ODD = [
    "",
    "null",
    "[]",
    "{}",
    '{"gpu_data": "none", "device_list": {"a": 1}}',
    "[1, 2, null]",
    "[" * 100_000,
    "[WARN] no GPU\nnot json at all",
    '[{"gpu": "N/A"}, {"gpu": 0, "asic": "N/A", "vram": []}]',
    '{"card0": "N/A", "card1": {"VRAM Total Memory (B)": "N/A"}, "cardx": {}}',
    '{"device_list": [{"device_id": "x"}, {"device_id": 0, "memory_physical_size_byte": 1e400}, 7]}',
    '[{"gpu": 0, "vram": {"size": {"value": ' + "9" * 5000 + "}}}]",
    '[{"gpu": 0, "vram": {"size": {"value": "' + "9" * 400 + '", "unit": "MB"}}}]',
]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_what_a_program_prints_never_breaks_the_page(
    answer: Callable[[Answers], list[str]], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    anything = {"": text}
    answer({tool.program: anything for tool in TOOLS})
    for kind in ("rocm", "xpu"):
        use(monkeypatch, kind)
        assert [device.kind for device in devices()] == ["cpu"]
        assert device_reading(kind).load is None
    assert apple_card(16 * GIB, 8 * GIB).memory_free == 8 * GIB


def test_json_after_warnings_is_found_and_a_list_in_a_sentence_is_not_taken_for_it() -> None:
    assert first_json('[1] a note\nWARNING {x}\n  {"gpu": [1]}\nbye') == {"gpu": [1]}
    assert first_json("no json") is None


def program(folder: Path, text: str) -> None:
    path = folder / "xpu-smi"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_a_program_that_hangs_or_fails_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = vendor_tools.Tool("xpu-smi")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(vendor_tools, "TIME_LIMIT", 0.2)
    assert tool.json("discovery") is None  # it is not there
    tool.forget()
    program(tmp_path, 'echo x >> "$0.log"; exec sleep 600')
    began = time.monotonic()
    assert [tool.text("discovery") for _ in range(3)] == ["", "", ""]
    assert time.monotonic() - began < 300
    assert (tmp_path / "xpu-smi.log").read_text() == "x\n"
    tool.forget()
    program(tmp_path, "echo '{}'; exit 3")
    assert tool.text("discovery") == ""
    tool.forget()
    program(tmp_path, "echo warning >&2; echo '{\"device_list\": []}'")
    assert tool.json("discovery") == {"device_list": []}
    assert intel_cards() == []


def test_the_build_of_torch_says_which_gpus_it_can_use() -> None:
    lines = "__version__ = '2.13.0'\ncuda: Optional[str] = {}\nhip: Optional[str] = {}\nxpu: Optional[str] = {}\n"
    assert kinds_of_build(lines.format("'12.8'", None, None)) == {"cuda"}
    assert kinds_of_build(lines.format(None, "'6.4.43482'", None)) == {"rocm"}
    assert kinds_of_build(lines.format(None, None, "'20250302'")) == {"xpu"}
    assert kinds_of_build(lines.format(None, None, None)) == frozenset()


def test_a_worker_sees_the_first_of_its_gpus() -> None:
    assert one_gpu({}) == {"CUDA_VISIBLE_DEVICES": "0"}
    assert one_gpu({"CUDA_VISIBLE_DEVICES": "2,3"}) == {"CUDA_VISIBLE_DEVICES": "2"}
    assert one_gpu({"CUDA_VISIBLE_DEVICES": ""}) == {"CUDA_VISIBLE_DEVICES": ""}
    assert one_gpu({"HIP_VISIBLE_DEVICES": "1,0"}) == {"HIP_VISIBLE_DEVICES": "1"}
    assert one_gpu({"ROCR_VISIBLE_DEVICES": "2,3"}) == {"CUDA_VISIBLE_DEVICES": "0"}


def test_every_kind_says_what_it_lacks_with_a_reason() -> None:
    for kind in DEVICE_KINDS.values():
        assert set(kind.lacks) <= set(FEATURES)
        assert all(len(why) > 10 and not why.endswith(".") for why in kind.lacks.values())
    assert not DEVICE_KINDS["cuda"].lacks


@pytest.mark.parametrize(
    ("optim", "kind", "instead"),
    [
        ("paged_adamw_8bit", "cuda", ""),
        ("adamw_8bit", "rocm", ""),
        ("paged_adamw_8bit", "rocm", "adamw_8bit"),
        ("paged_adamw_32bit", "xpu", "adamw_torch"),
        ("paged_lion_8bit", "cpu", "lion_8bit"),
        ("paged_adamw_8bit", "mps", "adamw_torch"),
        ("adamw_8bit", "mps", "adamw_torch"),
        ("lion_8bit", "mps", "lion_32bit"),
        ("paged_lion_32bit", "mps", "lion_32bit"),
        ("paged_ademamix_8bit", "mps", "ademamix"),
        ("ademamix_8bit", "mps", "ademamix"),
        ("adafactor", "mps", ""),
    ],
)
def test_an_optimizer_that_a_device_lacks_has_a_neighbour(optim: str, kind: str, instead: str) -> None:
    why, name = optimizer_without(optim, kind)
    assert (bool(why), name) == (bool(instead), instead)
