"""The train tab's form as it was left: kept in the workspace as typed, right or wrong, and brought back from there."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from lora_studio.parsing import parse
from lora_studio.presets import presets
from lora_studio.ui import form as forms
from lora_studio.workspace import Workspace

DRAFT = "form"
FIRST_PRESET = "demo"


def save_draft(workspace: Workspace, preset: str | None, raws: Sequence[Any]) -> None:
    workspace.write_draft(DRAFT, {"preset": preset, "values": forms.to_draft(raws)})


def read_draft(workspace: Workspace) -> tuple[str | None, list[Any]]:
    """The kept form with the preset it began from; the first preset's where nothing is kept."""
    draft = workspace.read_draft(DRAFT)
    if not isinstance(draft, dict):
        return FIRST_PRESET, list(_first_form())
    preset = draft.get("preset")
    return preset if preset in presets(workspace) else None, forms.from_draft(draft.get("values"), _first_form())


@cache  # a preset that comes with the studio: no other may bear its name
def _first_form() -> tuple[Any, ...]:
    return tuple(forms.shown(parse(presets()[FIRST_PRESET].values())))
