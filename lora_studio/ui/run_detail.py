"""All about one run: the sections of the runs tab that are painted from its folder, in the order of the page."""

from typing import Any

from lora_studio.ui import (
    queue_view,
    run_answers,
    run_chart,
    run_checkpoints,
    run_evaluations,
    run_files,
    run_head,
    run_health,
    run_labels,
    run_life,
    run_memory,
    run_outcome,
    run_progress,
    run_report,
)
from lora_studio.ui.run_section import Look, Section, Seen, look_again
from lora_studio.ui.studio import Shared, Studio

SECTIONS: dict[str, Section] = {
    "queue": queue_view,
    "head": run_head,
    "outcome": run_outcome,
    "life": run_life,
    "progress": run_progress,
    "memory": run_memory,
    "health": run_health,
    "chart": run_chart,
    "answers": run_answers,
    "labels": run_labels,
    "checkpoints": run_checkpoints,
    "evaluations": run_evaluations,
    "report": run_report,
    "files": run_files,
}


def build(studio: Studio, shared: Shared) -> dict[tuple[str, str], Any]:
    """Draws every section; its components by (section, name)."""
    return {
        (name, part): component
        for name, section in SECTIONS.items()
        for part, component in section.build(studio, shared).items()
    }


def view(look: Look, seen: Seen) -> Seen:
    """What every section shows."""
    return look_again(SECTIONS, look, seen)
