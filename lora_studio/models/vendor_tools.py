"""GPUs as the vendors' own programs report them: amd-smi, rocm-smi, xpu-smi, and macOS.

Each call has a time limit and is remembered for a few seconds. A program that is missing, hangs, fails or prints
something else counts as silent, and is left alone for a while: a page must not wait for it again and again.
"""

import itertools
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_studio.files import JsonObject
from lora_studio.units import GIB

RECENT_SECONDS = 5.0
TIME_LIMIT, SILENT_SECONDS = 4.0, 60.0
MAX_BYTES, MAX_STARTS, MAX_NAME = 1 << 20, 50, 80
"""Bounds of what a program prints: its length, places where JSON may begin, characters of a name."""
MAX_NUMBER = 1e18
UNITS = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": GIB, "KIB": 1024, "MIB": 1024**2, "GIB": GIB}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
SMALL_MAC, LARGE_MAC = 2 / 3, 3 / 4
"""The share of a Mac's memory that macOS lets the GPU take: two thirds up to 36 GiB, three quarters above."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU in the order of its vendor's program. Memory in bytes, load in percent; None for what is not reported.

    `uuid` and `serial` are the names by which a variable such as CUDA_VISIBLE_DEVICES may call it. A card with no
    known memory keeps its place in the order, with 0 bytes.
    """

    name: str
    memory_total: int
    memory_free: int
    uuid: str = ""
    serial: str = ""
    bf16: bool = True
    load: float | None = None
    celsius: float | None = None
    capability: tuple[int, int] | None = None


class Tool:
    """A vendor's program, asked with a time limit and at most every few seconds with the same arguments."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._answers: dict[tuple[str, ...], tuple[float, str]] = {}
        self._lock = threading.Lock()

    def text(self, *arguments: str, seconds: float = RECENT_SECONDS) -> str:
        """What it prints; "" where it does not answer. An answer is used again for so many seconds."""
        with self._lock:
            until, answer = self._answers.get(arguments, (0.0, ""))
            if time.monotonic() < until:
                return answer
            answer = self._run(arguments)
            self._answers[arguments] = (time.monotonic() + (seconds if answer else SILENT_SECONDS), answer)
            return answer

    def json(self, *arguments: str, seconds: float = RECENT_SECONDS) -> Any:
        """The JSON value in what it prints, after any warnings; None where there is none."""
        return first_json(self.text(*arguments, seconds=seconds))

    def forget(self) -> None:
        """The next question goes to the program."""
        self._answers.clear()

    def _run(self, arguments: tuple[str, ...]) -> str:
        path = shutil.which(self.program)
        if path is None:
            return ""
        with tempfile.TemporaryFile() as printed:  # not a pipe, which a child of a killed program could keep open
            try:
                done = subprocess.run(
                    [path, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.DEVNULL,
                    timeout=TIME_LIMIT,
                )
            except (OSError, subprocess.TimeoutExpired):
                return ""
            printed.seek(0)
            return printed.read(MAX_BYTES).decode("utf-8", errors="replace") if done.returncode == 0 else ""


AMD_SMI, ROCM_SMI, XPU_SMI = Tool("amd-smi"), Tool("rocm-smi"), Tool("xpu-smi")
SYSCTL, IOREG = Tool("sysctl"), Tool("ioreg")
TOOLS = (AMD_SMI, ROCM_SMI, XPU_SMI, SYSCTL, IOREG)
DRM, VRAM_TOTAL = Path("/sys/class/drm"), "mem_info_vram_total"
FIXED_SECONDS = 3600.0  # names and sizes do not change


def first_json(text: str) -> Any:
    """The first JSON object or list that begins and ends with a line, after any warnings; None if there is none."""
    decoder = json.JSONDecoder()
    for match in itertools.islice(re.finditer(r"^\s*(?=[\[{])", text, re.MULTILINE), MAX_STARTS):
        try:
            value, end = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        if not text[end:].partition("\n")[0].strip():
            return value
    return None


def _entries(value: Any) -> Iterator[Mapping[str, Any]]:
    """The objects of a list; nothing for anything else."""
    yield from (entry for entry in value if isinstance(entry, Mapping)) if isinstance(value, list) else ()


def _inner(value: Any, *path: str) -> Any:
    """The value at a path of keys; None where one is missing."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> float | None:
    """A number as such, as text ("41 C") or with its unit ({"value": 41, "unit": "C"}); None for "N/A"."""
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, bool) or value is None:
        return None
    match = NUMBER.search(str(value)[:MAX_NAME])
    return float(match[0]) if match and abs(float(match[0])) < MAX_NUMBER else None


def _octets(value: Any, unit: str = "B") -> int | None:
    """A size in bytes, in the unit that it names, else in the given one."""
    amount = _number(value)
    if isinstance(value, Mapping):
        unit = str(value.get("unit") or unit)
    elif isinstance(value, str):
        words = re.findall(r"[A-Za-z]+", value)
        unit = words[0] if words and words[0].upper() in UNITS else unit
    return None if amount is None else round(amount * UNITS.get(unit.upper(), 1))


def _name(*values: Any) -> str:
    """The first text that is not empty."""
    return next(text[:MAX_NAME] for value in values if isinstance(value, str) and (text := value.strip()))


def _free(total: int, used: int | None, free: int | None = None) -> int:
    """What is free of a memory, between nothing and all of it."""
    rest = free if free is not None else total - (used or 0)
    return max(0, min(total, rest))


def amd_cards() -> list[Card]:
    """By amd-smi, else by its predecessor rocm-smi, else by the driver's files: PyTorch's wheels bring no program."""
    return _of_amd_smi() or _of_rocm_smi() or _of_amd_driver()


def _of_amd_smi() -> list[Card]:
    static = _by_number(_amd("static", "--asic", "--vram", "--json"))
    listed = _by_number(_amd("list", "--json")) if static else {}
    readings = ("metric", "--mem-usage", "--usage", "--temperature", "--json")
    now = _by_number(_amd(*readings, seconds=RECENT_SECONDS)) if static else {}
    return [
        _amd_card(entry, now.get(number, {}), str(listed.get(number, {}).get("uuid") or ""))
        for number, entry in sorted(static.items())
    ]


def _amd_card(static: JsonObject, now: JsonObject, uuid: str) -> Card:
    total = _octets(_inner(now, "mem_usage", "total_vram"), "MB") or _octets(_inner(static, "vram", "size"), "MB") or 0
    used, free = (_octets(_inner(now, "mem_usage", f"{name}_vram"), "MB") for name in ("used", "free"))
    hot = _number(_inner(now, "temperature", "hotspot"))
    return Card(
        name=_name(_inner(static, "asic", "market_name"), "AMD GPU"),
        memory_total=total,
        memory_free=_free(total, used, free),
        uuid=uuid,
        serial=str(_inner(static, "asic", "asic_serial") or ""),
        load=_number(_inner(now, "usage", "gfx_activity")),
        celsius=hot if hot is not None else _number(_inner(now, "temperature", "edge")),
    )


def _amd(*arguments: str, seconds: float = FIXED_SECONDS) -> Any:
    """The entries of an answer, which newer versions wrap in an object."""
    answer = AMD_SMI.json(*arguments, seconds=seconds)
    return _inner(answer, "gpu_data") if isinstance(answer, Mapping) else answer


def _by_number(entries: Any, key: str = "gpu") -> dict[int, JsonObject]:
    """The entries of a list by their GPU's number."""
    numbered = ((_number(entry.get(key)), entry) for entry in _entries(entries))
    return {int(number): dict(entry) for number, entry in numbered if number is not None}


def _of_rocm_smi() -> list[Card]:
    answer = ROCM_SMI.json(
        "--showproductname", "--showuniqueid", "--showmeminfo", "vram", "--showuse", "--showtemp", "--json"
    )
    cards = {}
    for key, entry in answer.items() if isinstance(answer, Mapping) else ():
        match = re.fullmatch(r"card(\d+)", str(key))
        if match is None or not isinstance(entry, Mapping):
            continue
        values = {str(name).lower(): value for name, value in entry.items()}
        total = _octets(values.get("vram total memory (b)")) or 0
        hot = _number(values.get("temperature (sensor junction) (c)"))
        cards[int(match[1])] = Card(
            name=_name(values.get("card series"), values.get("card model"), "AMD GPU"),
            memory_total=total,
            memory_free=_free(total, _octets(values.get("vram total used memory (b)"))),
            serial=str(values.get("unique id") or ""),
            load=_number(values.get("gpu use (%)")),
            celsius=hot if hot is not None else _number(values.get("temperature (sensor edge) (c)")),
        )
    return [cards[number] for number in sorted(cards)]


def _of_amd_driver() -> list[Card]:
    """The GPUs that Linux's amdgpu driver shows as files, in the order of their PCI addresses."""
    folders = sorted(path.resolve() for path in DRM.glob("card[0-9]*/device") if (path / VRAM_TOTAL).is_file())
    return [_card_of_files(folder) for folder in dict.fromkeys(folders)]


def _card_of_files(folder: Path) -> Card:
    total = _octets(_line(folder / VRAM_TOTAL)) or 0
    heat = [_number(_line(path)) for path in sorted(folder.glob("hwmon/hwmon*/temp1_input"))]
    return Card(
        name=_name(_line(folder / "product_name"), "AMD GPU"),
        memory_total=total,
        memory_free=_free(total, _octets(_line(folder / "mem_info_vram_used"))),
        serial=_line(folder / "unique_id"),
        load=_number(_line(folder / "gpu_busy_percent")),
        celsius=heat[0] / 1000 if heat and heat[0] is not None else None,
    )


def _line(path: Path) -> str:
    """The first line of a driver's file; "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""


def intel_cards() -> list[Card]:
    """By xpu-smi: the list, then each GPU's size and readings."""
    listed = _inner(XPU_SMI.json("discovery", "-j", seconds=FIXED_SECONDS), "device_list")
    gpus = [entry for entry in _entries(listed) if entry.get("device_type", "GPU") == "GPU"]
    return [_intel_card(number, entry) for number, entry in sorted(_by_number(gpus, "device_id").items())]


def _intel_card(number: int, listed: JsonObject) -> Card:
    about = XPU_SMI.json("discovery", "-d", str(number), "-j", seconds=FIXED_SECONDS)
    size = "memory_physical_size_byte"
    total = _octets(_inner(about, size) or listed.get(size)) or 0
    readings = _intel_readings(XPU_SMI.json("stats", "-d", str(number), "-j"))
    used = readings.get("XPUM_STATS_MEMORY_USED")
    return Card(
        name=_name(listed.get("device_name"), "Intel GPU"),
        memory_total=total,
        memory_free=_free(total, None if used is None else round(used * UNITS["MIB"])),
        uuid=str(listed.get("uuid") or ""),
        load=readings.get("XPUM_STATS_GPU_UTILIZATION"),
        celsius=readings.get("XPUM_STATS_GPU_CORE_TEMPERATURE"),
    )


def _intel_readings(answer: Any) -> dict[str, float]:
    """The readings of a GPU; of its tiles where it has none as a whole: memory is summed, the rest the highest."""
    whole = _metrics(_inner(answer, "device_level"))
    of_tiles: dict[str, float] = {}
    for tile in _entries(_inner(answer, "tile_level")):
        for name, value in _metrics(tile.get("data_list")).items():
            before = of_tiles.get(name, 0.0)
            of_tiles[name] = before + value if name == "XPUM_STATS_MEMORY_USED" else max(before, value)
    return {**of_tiles, **whole}


def _metrics(values: Any) -> dict[str, float]:
    pairs = ((str(entry.get("metrics_type")), _number(entry.get("value"))) for entry in _entries(values))
    return {name: value for name, value in pairs if value is not None}


def apple_chip() -> str:
    """The name of a Mac's chip, such as "Apple M2 Pro"."""
    return _name(SYSCTL.text("-n", "machdep.cpu.brand_string", seconds=FIXED_SECONDS), "Apple GPU")


def apple_card(memory_total: int, memory_available: int) -> Card:
    """A Mac's GPU, which shares the system's memory: `memory_total` and what of it is available now, in bytes.

    macOS lets the GPU take only a share of it, unless `iogpu.wired_limit_mb` says how much.
    """
    limit = SYSCTL.text("-n", "iogpu.wired_limit_mb", seconds=FIXED_SECONDS).strip()
    share = SMALL_MAC if memory_total <= 36 * GIB else LARGE_MAC
    chosen = int(limit) * UNITS["MIB"] if re.fullmatch(r"[1-9]\d{0,8}", limit) else round(share * memory_total)
    room = min(chosen, memory_total)
    load = re.search(r'"Device Utilization %"\s*=\s*(\d+)', IOREG.text("-r", "-d", "1", "-c", "IOAccelerator"))
    return Card(apple_chip(), room, min(room, memory_available), load=float(load[1]) if load else None)
