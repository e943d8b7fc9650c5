"""Numbers as JSON can hold them."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """A value whose numbers are all finite: what is none (NaN, infinity) is left empty, however deep it lies."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
