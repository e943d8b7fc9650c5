"""Lets the time of a job of the fake Hub pass at once: a file beside its home says how many seconds have.

Python imports this by itself where PYTHONPATH names its folder.
"""

import os
import time
from pathlib import Path

_now, _passed = time.time, Path(os.environ.get("HOME", "/")).parent / "passed"


def _then() -> float:
    return _now() + (float(_passed.read_text()) if _passed.exists() else 0.0)


time.time = _then
