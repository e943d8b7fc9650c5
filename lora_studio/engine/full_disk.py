"""A disk that ran full while a run was written: how that is recognised, and how the run can still say so.

The libraries tell it in many ways (an OSError, a RuntimeError of torch, an error of safetensors), so that a look at the
disk itself decides where their words do not. No torch here.
"""

import errno
import shutil
from pathlib import Path

from lora_studio.workspace import RunFolder

NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORDS = (
    "No space left on device",
    "StorageFull",
    "Disk quota exceeded",
    "File too large",
    "FileTooLarge",
    "iostream error",
)
FULL_BYTES = 1 << 20


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error came from a full disk (or quota) under `folder`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NUMBERS:
            return True
        if any(words in str(cause) for words in WORDS):
            return True
        cause = cause.__cause__ or cause.__context__
    return shutil.disk_usage(folder).free < FULL_BYTES


def make_room(run: RunFolder) -> None:
    """Removes what was being written and can't be used, so that the run's last words find room."""
    whole = run.checkpoint_folders()
    for folder in [*run.checkpoints.glob("checkpoint-*"), run.unfinished_adapter]:
        if folder not in whole:
            shutil.rmtree(folder, ignore_errors=True)


def words(run: RunFolder) -> tuple[str, str]:
    """What to tell the person, and what helps."""
    whole = run.checkpoint_folders()
    kept = f"{whole[-1].name} is whole: Resume goes on from it." if whole else "No checkpoint was saved yet."
    return (
        f"The disk that holds {run.path.parent} is full: the run could not write on.",
        f"Delete runs or other files, or lower training.save_total_limit in a new run. {kept}",
    )
