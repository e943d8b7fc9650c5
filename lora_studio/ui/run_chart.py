"""The curves of a run on the runs tab."""

from collections.abc import Hashable
from typing import Any

from lora_studio.ui import plots
from lora_studio.ui.run_section import Look
from lora_studio.ui.studio import Shared, Studio


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    return {"chart": plots.chart()}


def stamp(look: Look) -> Hashable:
    return look.mark


def view(look: Look) -> dict[str, Any]:
    return {"chart": plots.curves(look.run)}
