"""The section that says where a run computes, and how its choice of devices is written."""

import re
from typing import Any

from pydantic import field_validator

from lora_studio.config.fields import Section, setting
from lora_studio.models.accelerators import AUTO, CPU

LOCAL, THIS_MACHINE = "local", "This machine"
"""The target that is this machine, and what a person calls it."""
MAX_GPUS = 64


class Compute(Section):
    """Where a run computes."""

    target: str = setting(
        LOCAL,
        "Target",
        "Where the run computes: this machine, or a target that you added.",
        details="local, or a target by kind and name, such as slurm:two. Targets are in targets.yaml of the workspace.",
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
