"""The section that says where a run computes, and how its choice of devices is written."""

import re
from typing import Any

from pydantic import field_validator

from lora_studio.config.fields import Section, setting
from lora_studio.models.accelerators import AUTO, CPU

MAX_GPUS = 64


class Compute(Section):
    """Where a run computes."""

    device: str = setting(
        AUTO,
        "Device",
        "auto, GPU numbers such as 0 or 0,1, or cpu.",
        details="auto takes the free GPU with the most memory, or the CPU of a machine without one. A run that names a"
        " device waits until it is free.",
        max_length=200,
    )

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
