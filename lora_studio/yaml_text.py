"""YAML from a person, a file or a visitor to plain values, of a size that its text warrants.

A few lines of YAML whose aliases name each other can stand for billions of values.
"""

from typing import Any

import yaml

MOST_VALUES = 100_000
MOST_CHARACTERS = 1_000_000


def load(text: str) -> Any:
    """The values. Raises `yaml.YAMLError` for text that is no YAML, or that stands for too much."""
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"it is longer than {MOST_CHARACTERS:,} characters, which no settings need")
    try:
        found = yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    _check_size(found)
    return found


def _check_size(found: Any) -> None:
    """Counts what is there when every alias is followed; one that holds itself never ends."""
    left, waiting = MOST_VALUES, [found]
    while waiting:
        value = waiting.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        left -= 1 + len(inner)
        if left < 0:
            raise yaml.YAMLError(f"it stands for more than {MOST_VALUES:,} values")
        waiting.extend(inner)
