"""The section that says where a run computes: on which devices, and in how many processes."""

import os
import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import field_validator

from lora_studio.config.fields import Section, setting
from lora_studio.models.accelerators import AUTO, CPU, LOCAL

THIS_MACHINE = "This machine"
"""What a person calls the target that is this machine."""
MAX_GPUS = 64
DDP, FSDP, BALANCED = "ddp", "fsdp", "balanced"


class Compute(Section):
    """Where a run computes."""

    target: str = setting(
        LOCAL,
        "Target",
        "Where the run computes: this machine, or a target that you added.",
        details="local, or a target by kind and name, such as slurm:two or hf-jobs:a10g (Hugging Face Jobs)."
        " Targets are in targets.yaml of the workspace.",
        min_length=1,
        max_length=100,
    )
    device: str = setting(
        AUTO,
        "Device",
        "auto, GPU numbers such as 0 or 0,1, or cpu.",
        details="auto takes the free GPU with the most memory, or the CPU of a machine without one. A run that names a"
        " device waits until it is free.",
        max_length=200,
    )

    processes: str = setting(
        AUTO,
        "Processes",
        "auto: one for each GPU of the device setting, else 1.",
        details="Processes share the batches of a step, so that the effective batch grows with them. Each takes a GPU;"
        " on a machine without one they share the cores of the CPU.",
        max_length=10,
    )
    strategy: Literal["ddp", "fsdp", "balanced"] = setting(
        DDP,
        "Strategy",
        "How a run uses several GPUs.",
        details="ddp: each process has the whole base. fsdp: each holds a share of a 16-bit base. balanced: one process"
        " spreads the layers over the GPUs, for a base that no single one can hold; 4-bit works there.",
    )

    @property
    def gpus(self) -> int:
        """How many GPUs the device setting names; 0 for auto and the CPU."""
        return 0 if self.device in (AUTO, CPU) else self.device.count(",") + 1

    @property
    def world_size(self) -> int:
        """The processes that train together, which share the batches of a step."""
        if self.strategy == BALANCED:
            return 1
        return max(1, self.gpus) if self.processes == AUTO else int(self.processes)

    @field_validator("processes", mode="before")
    @classmethod
    def _processes_text(cls, value: Any) -> Any:
        return value if isinstance(value, str) else str(value)

    @field_validator("processes")
    @classmethod
    def _processes_number(cls, value: str) -> str:
        """`auto` or a number."""
        text = value.strip().lower()
        if text == AUTO:
            return text
        if not text.isdecimal() or not 1 <= int(text) <= MAX_GPUS:
            raise ValueError(f"must be auto or a number from 1 to {MAX_GPUS}")
        return str(int(text))

    @field_validator("target", mode="before")
    @classmethod
    def _target_name(cls, value: Any) -> Any:
        """Without blanks; this machine also by its title."""
        name = value.strip() if isinstance(value, str) else value
        return LOCAL if name == THIS_MACHINE or name == THIS_MACHINE.lower() else name

    @field_validator("device", mode="before")
    @classmethod
    def _device_text(cls, value: Any) -> Any:
        """A number, or a list of numbers, as text."""
        items = value if isinstance(value, list) else [value]
        numbers = all(isinstance(item, int | str) and not isinstance(item, bool) for item in items)
        return ",".join(map(str, items)) if items and numbers else value

    @field_validator("device")
    @classmethod
    def _device_list(cls, value: str) -> str:
        """`auto`, `cpu`, or the numbers of GPUs separated by commas, each once."""
        text = re.sub(r"\s", "", value).lower()
        if text in (AUTO, CPU):
            return text
        if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
            raise ValueError("must be auto, cpu, or GPU numbers such as 0 or 0,1")
        numbers = [int(number) for number in text.split(",")]
        if len(set(numbers)) < len(numbers) or len(numbers) > MAX_GPUS:
            raise ValueError(f"must name each GPU once, and at most {MAX_GPUS}")
        return ",".join(map(str, numbers))


def accumulation(config_steps: int, before: int, now: int) -> tuple[int, str]:
    """The accumulation steps that keep the effective batch of a run that began with `before` processes and goes on with
    `now`, and a note, "" where nothing changes."""
    if before == now:
        return config_steps, ""
    steps, rest = divmod(config_steps * before, now)
    words = f"The run began with {processes(before)} and goes on with {now}"
    if not rest:
        return steps, f"{words}: {steps} gradient accumulation steps instead of {config_steps} keep its batches."
    steps = max(1, round(config_steps * before / now))
    return steps, (
        f"{words}. Its {config_steps * before} batches a step can't be shared among {now}, so a step now takes "
        f"{steps * now}: steps and epochs are counted anew from there."
    )


def processes(count: int) -> str:
    """The number in words."""
    return "1 process" if count == 1 else f"{count} processes"


def compute_contradictions(compute: Compute, quantization: str) -> Iterator[tuple[str, str]]:
    """Strategies, processes and devices that do not go together: the path of a setting and what is wrong with it."""
    wanted = None if compute.processes == AUTO else int(compute.processes)
    if compute.strategy == BALANCED:
        if wanted not in (None, 1):
            yield "compute.processes", "must be auto or 1 if compute.strategy is balanced: one process has all GPUs"
        if compute.gpus < 2:
            yield "compute.strategy", "balanced spreads the layers over GPUs: name them in compute.device, such as 0,1"
        return
    if wanted is not None and compute.gpus and wanted != compute.gpus:
        yield "compute.processes", f"must be auto or {compute.gpus}: one for each GPU of compute.device"
    if compute.strategy != FSDP:
        return
    if compute.world_size < 2:
        yield "compute.strategy", "fsdp shares the base out among processes: set compute.processes to 2 or more"
    if quantization != "none":
        yield (
            "compute.strategy",
            f"fsdp can't share out a base in {quantization}: its packed weights have no parts that compute alone; use "
            "ddp or balanced, or set model.quantization to none",
        )


def beyond_machine(compute: Compute, gpus: int) -> str:
    """Why this machine can't train in so many processes; "" where it can. `gpus` are those that a run may use."""
    size, on_gpu = compute.world_size, bool(gpus) and compute.device != CPU
    if size > 1 and on_gpu and size > gpus:
        return f"this machine has {gpus} GPU{'s' * (gpus > 1)} to use, and each process takes one"
    cores = os.cpu_count() or 1
    if size > 1 and not on_gpu and size > cores:
        return f"this machine has {cores} CPU core{'s' * (cores > 1)}, and each process takes one at least"
    return ""
