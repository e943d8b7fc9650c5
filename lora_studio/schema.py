"""What a schema is made of: `setting`, which makes a field with its words, and `Section`, which holds fields.

The settings themselves stand in config.py and config_training.py.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

LONGEST_TEXT = 4000
"""Characters of a setting that says nothing else: room for any path, and for a list of names."""
MAX_SEED = 2**32 - 1
"""The largest that numpy takes."""
GROUPS = {
    "Strength and place": "How much the adapter may change, and which of the model's modules bear it.",
    "Variants": "Other ways to begin and to scale an adapter, for those who compare them.",
    "Length and memory": "How far the run goes, and how it uses the device's memory.",
    "Schedule": "How the learning rate moves over the run.",
    "Optimizer": "How gradients become changes of the adapter.",
    "Against overfitting": "Makes learning by heart harder, for small data sets.",
    "Checkpoints": "What is kept on the disk on the way.",
}
"""Groups of folded settings within a section, with one sentence each."""


def setting(
    default: Any,
    title: str,
    description: str,
    *,
    basic: bool = False,
    group: str = "",
    names: Mapping[str, str] | None = None,
    **bounds: Any,
) -> Any:
    """A field of the schema; `basic` ones stand in sight on the form, the others are folded, in one of `GROUPS`.

    `names` says what the page calls choices whose own names are no words.
    """
    extra: dict[str, Any] = {"basic": basic, "group": group, "names": dict(names or {})}
    return Field(default=default, title=title, description=description, json_schema_extra=extra, **bounds)


class Section(BaseModel):
    """What all sections share: unknown names are errors, numbers are finite, values never change after the check."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), str_max_length=LONGEST_TEXT
    )
