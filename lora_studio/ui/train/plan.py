"""The plan of a run before it starts: rows, tokens, steps, memory, and its time.

The time is that of earlier runs with the model. Before the first one it is rough: from the floating-point operations of
the tokens and what the device can do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lora_studio.config.parsing import ConfigError
from lora_studio.config.sections import Config, Data
from lora_studio.errors import StudioError
from lora_studio.jobs.session import FileSummary, count_rows
from lora_studio.jobs.targets import Targets
from lora_studio.models.accelerators import CUDA, MPS, ROCM, XPU
from lora_studio.models.adapter_files import PatternError
from lora_studio.models.adapters import continued
from lora_studio.models.advice import Advice, Change, advise, best_changes, notes, optimizer_steps, situation
from lora_studio.models.hardware import Device, device_for, recent_devices
from lora_studio.models.memory import UNLIMITED, Estimate, estimate, quantization_of, settled, verdict, with_settings
from lora_studio.models.shape import Architecture, architecture, read_config
from lora_studio.runs.summary import Speed, speed, start_seconds
from lora_studio.ui.components import DataLook
from lora_studio.workspace import Workspace, shipped_data

GUESSED = "a guess"
"""The verdict on a model whose parameters could not be counted: nothing is promised of it."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The estimate against the device: "fits", "tight", "does not fit" or "a guess", and the changes that save most. On
    a target beside this machine `available` is not known, and 0.

    `assumed_tokens` is the length that every row is taken to have while nobody has looked at the data; `notes` are on
    the base model.
    """

    estimate: Estimate
    device: Device
    available: int
    verdict: str
    changes: tuple[Change, ...]
    assumed_tokens: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """`rows` are training rows; `seconds` is the time until the last step, `start_seconds` what of it passes before the
    first: libraries, data, model. None is what is not known beforehand.

    `speed_from` says what the time is computed from: the speed of an earlier run (`MEASURED`) or floating-point
    operations (`ESTIMATED`); that of a target beside this machine is not known (`ELSEWHERE`). `lengths` are the tokens
    of a row. `reading` says how the data is read, what is assumed and what the first row trains or answers. `unit` is
    what a batch counts: rows, or pairs for DPO. `advice` is what would likely train a better adapter. `offer` is what a
    rented machine costs.
    """

    effective_batch: int
    rows: int | None = None
    steps: int | None = None
    seconds: float | None = None
    start_seconds: float = 0.0
    memory: MemoryPlan | None = None
    reading: str = ""
    speed_from: str = ""
    unit: str = "rows"
    lengths: "RowLengths | None" = None
    advice: tuple[Advice, ...] = ()
    offer: tuple[str, str] | None = None


MEASURED, ESTIMATED, ELSEWHERE = "measured", "estimated", "elsewhere"
BYTES_A_TOKEN = 4.0
"""Of a text file, with its field names and quotes: English text has a little over 4 characters a token."""


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Mean tokens of a row and its longest; `counted` by the model's tokenizer, else guessed from the file's size."""

    mean: float
    longest: int | None = None
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """What the data tab found of the same data with the same tokenizer: tokens of the longest and of the mean row."""

    longest: int
    mean: float
    packs: int


def plan(config: Config, workspace: Workspace, look: DataLook | None = None, *, busy: bool = False) -> Plan:
    """The run that a config describes. `look` is what the data tab found last; `busy` says that a run of ours holds the
    device until this one begins."""
    elsewhere, config = _elsewhere(config, workspace)
    training = config.training
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * config.compute.world_size
    measured, rows = seen_data(config, look), training_rows(config, look)
    steps = total_steps(config, rows, measured)
    device = elsewhere or device_for(config.compute.device, recent_devices())
    earlier = speed(
        workspace,
        model=config.model.name,
        quantization=config.model.quantization,
        device=device.kind,
        data=config.data.train_file,
        processes=config.compute.world_size,
    )
    memory = needed_memory(_as_trained(config, workspace), device, measured.longest if measured else None, busy=busy)
    planned = Plan(
        batch,
        rows,
        steps,
        memory=memory,
        reading=reading(config, look),
        unit="pairs" if training.method == "dpo" else "rows",
        lengths=row_lengths(config, measured, earlier),
        advice=_advice(config, look, rows, steps, memory),
    )
    if elsewhere is not None:
        target = Targets(workspace).find(config.compute.target)
        offer = target.offer if target else None
        return replace(planned, speed_from=ELSEWHERE, offer=offer.brief if offer else None)
    start = start_seconds(workspace, model=config.model.name, device=device.kind)
    return _timed(planned, config, earlier, device, START_SECONDS if start is None else start)


def _elsewhere(config: Config, workspace: Workspace) -> tuple[Device | None, Config]:
    """The device of a run on a target beside this machine, and the config as the target trains it; what is wrong with
    both is told by the checks."""
    targets = Targets(workspace)
    try:
        return targets.device(config.compute.target), targets.placed(config)
    except StudioError:
        return None, config


def _advice(
    config: Config, look: DataLook | None, rows: int | None, steps: int | None, memory: MemoryPlan | None
) -> tuple[Advice, ...]:
    """Advice on the run; tokens and labels are known where the data tab looked at this very data."""
    run = situation(config, rows=rows, steps=steps)
    if look is not None and seen_data(config, look) and (counts := counted(config, look)) and counts.exact:
        run = replace(run, trained_tokens=look.trained_tokens, labels=look.labels)
        if config.training.method == "kto":
            run = replace(run, desirable=look.desirable, undesirable=look.undesirable)
    if memory is not None:
        run = replace(run, fits=memory.verdict == "fits", trainable=memory.estimate.trainable)
    return advise(run)


def form_plan(config: Config | ConfigError, workspace: Workspace, look: DataLook | None, *, busy: bool) -> Plan | None:
    """The plan of a form; None while some settings are not valid."""
    if isinstance(config, ConfigError):
        return None
    try:
        return plan(config, workspace, look, busy=busy)
    except PatternError:  # an expression too slow for this very model: its checks tell so at the start
        return None


def _timed(planned: Plan, config: Config, earlier: Speed | None, device: Device, start: float) -> Plan:
    """The plan with its time: from an earlier run with this model where there is one, else from the operations;
    `start` is the time before the first step."""
    mean = planned.lengths.mean if planned.lengths else None
    if config.training.packing:
        mean = float(config.data.max_length)
    if planned.steps is None or mean is None:
        return planned
    tokens = planned.steps * planned.effective_batch * mean
    if earlier is not None:
        seconds = start + tokens / earlier.tokens_per_second
        return replace(planned, seconds=seconds, start_seconds=start, speed_from=MEASURED)
    numbers = read_config(config.model.name, config.model.revision)
    model = architecture(numbers) if numbers else None
    if model is None or planned.memory is None:
        return planned
    checkpointing = planned.memory.estimate.gradient_checkpointing
    resolved = with_settings(config, {"training.gradient_checkpointing": checkpointing})
    work = Work(tokens, planned.steps * config.training.gradient_accumulation_steps, mean)
    seconds = start + training_seconds(resolved, model, device, work)
    return replace(planned, seconds=seconds, start_seconds=start, speed_from=ESTIMATED)


def row_lengths(config: Config, measured: "Seen | None", earlier: Speed | None) -> RowLengths | None:
    """Tokens of a row: as the data tab or an earlier run on this data counted them, else by the file's size."""
    if measured:
        return RowLengths(measured.mean, measured.longest)
    if earlier and earlier.data == config.data.train_file:
        return RowLengths(earlier.tokens_per_row)
    seen = _quick_look(config)
    if not seen.rows:
        return None
    return RowLengths(min(float(config.data.max_length), seen.octets / seen.rows / BYTES_A_TOKEN), counted=False)


def _as_trained(config: Config, workspace: Workspace) -> Config:
    """The config with the settings of an adapter to continue from; one that can't be is told by the checks."""
    try:
        return continued(config, workspace)
    except StudioError:
        return config


def needed_memory(config: Config, device: Device, longest: int | None, *, busy: bool) -> MemoryPlan | None:
    """The estimate for the config; None for a model whose numbers are not here."""
    numbers = read_config(config.model.name, config.model.revision)
    model = architecture(numbers) if numbers else None
    if model is None:
        return None
    available = device.memory_total if busy else device.memory_free
    elsewhere = not device.memory_total
    resolved = settled(config, model, device.kind, UNLIMITED if elsewhere else available, longest)
    estimated = estimate(resolved, model, device.kind, longest)
    about = tuple(note.words for note in notes(config, device.kind))
    if elsewhere:
        return MemoryPlan(estimated, device, 0, GUESSED, (), notes=about)
    changes = best_changes(resolved, model, device.kind, longest)
    assumed = config.data.max_length if longest is None else None
    outcome = verdict(estimated.total, available) if model.counted else GUESSED
    return MemoryPlan(estimated, device, available, outcome, tuple(changes), assumed, about)


def fit_of(name: str, config: Config, device: Device) -> str:
    """The verdict on a run of this config with another base model; "" for a model whose numbers are not here."""
    numbers = read_config(name)
    model = architecture(numbers) if numbers else None
    if model is None or not model.counted:
        return ""
    other = with_settings(config, {"model.name": name, "model.adapter_name_or_path": None})
    resolved = settled(other, model, device.kind, device.memory_free)
    return verdict(estimate(resolved, model, device.kind).total, device.memory_free)


def seen_data(config: Config, look: DataLook | None) -> Seen | None:
    """What the data tab last found, where it looked at this data with this model's tokenizer."""
    if look is None or any(look.settings.get(path) != value for path, value in _looked_at(config).items()):
        return None
    limit = config.data.max_length
    return Seen(min(limit, look.longest), min(limit, look.mean), look.packs)


def _looked_at(config: Config) -> dict[str, str | int]:
    return {
        "model.name": config.model.name,
        "data.train_file": config.data.train_file,
        "data.max_length": config.data.max_length,
        "data.train_on": config.data.train_on,
    }


def training_rows(config: Config, look: DataLook | None) -> int | None:
    """Rows that are left to train on after the split, where the data was looked at or is quick to count."""
    data, counts = config.data, counted(config, look)
    if counts and counts.exact:
        return counts.train_rows
    usable = counts.usable_rows if counts else _quick_look(config).rows
    if usable is None:
        return None
    validation = 0 if data.validation_file else round(usable * data.validation_fraction)
    return min(usable - validation, data.max_samples or usable)


def reading(config: Config, look: DataLook | None) -> str:
    """How the data is read, in sentences: as the data tab did, or by a quick look; "" where neither could."""
    counts = counted(config, look)
    return counts.reading if counts and counts.exact and counts.reading else _quick_look(config).reading


def _quick_look(config: Config) -> FileSummary:
    data = config.data
    return count_rows(data_source(data.train_file), config.training.goal, data.mapping or None, data.encoding)


@dataclass(frozen=True, slots=True)
class Counted:
    """Rows as the data tab counted and read them; `exact` where it did so under the very settings of the form."""

    usable_rows: int
    train_rows: int
    exact: bool
    reading: str


def counted(config: Config, look: DataLook | None) -> Counted | None:
    """What the data tab counted, where it looked at this data, read as the run will read it."""
    if look is None:
        return None
    settings = look.settings
    data_settings = {path.removeprefix("data."): value for path, value in settings.items() if path.startswith("data.")}
    then, now = (
        {**data, "bad_rows": None} for data in ({**Data().model_dump(), **data_settings}, config.data.model_dump())
    )
    if any(then[name] != now[name] for name in ("train_file", "mapping")):
        return None
    exact = then == now and settings["model.name"] == config.model.name
    usable, train = look.usable_rows, look.train_rows
    if look.shape == "preference" and config.training.method == "kto":  # each pair is two rows
        usable, train = 2 * usable, 2 * train
    elif look.shape == "kto" and config.training.method == "sft":  # only the good ones are learned from
        usable, train = round(usable * look.desirable / max(train, 1)), look.desirable
    return Counted(usable, train, exact, look.reading)


def total_steps(config: Config, rows: int | None, measured: Seen | None) -> int | None:
    """Optimizer steps of the whole run; packed rows can only be counted after a look at the data."""
    training = config.training
    if training.max_steps > 0:
        return training.max_steps
    units = measured.packs if training.packing and measured else None if training.packing else rows
    if units is None:
        return None
    return optimizer_steps(config, units)


def data_source(name: str) -> str:
    """The file, with its sheet, that a config's training data names."""
    shipped = shipped_data()
    return str(shipped[name].train) if name in shipped else name


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
    sequences = 2 if config.training.method == "dpo" else 1
    # Forward, backward for the inputs alone (the base is frozen), forward again for checkpoints, and for the reference;
    # KTO has two more for its KL term.
    passes = 2 + (config.training.gradient_checkpointing is True) + {"dpo": 1, "kto": 3}.get(config.training.method, 0)
    flops = work.tokens * sequences * passes * _forward_flops(model, work.length)
    least = (GPU_STEP_SECONDS if device.is_gpu else CPU_STEP_SECONDS) * model.layers * sequences
    slower = SLOWER[quantization_of(config, model)]
    devices = config.compute.world_size if device.is_gpu else 1  # processes on the CPU share its cores
    return flops * slower / (flops_per_second(device) * devices) + work.batches * least


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
