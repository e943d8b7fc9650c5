"""The checkpoint to resume a run from, and the one to leave behind where a run is stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

from lora_studio.engine.report import Report
from lora_studio.engine.trainer import Ways
from lora_studio.workspace import RunFolder


def last_whole_checkpoint(run: RunFolder) -> Path | None:
    """The newest checkpoint that can be resumed from. Torn ones, as a crash leaves them, are removed."""
    whole = run.checkpoint_folders()
    for folder in run.checkpoints.glob("checkpoint-*"):
        if folder not in whole or not state_is_readable(folder):
            shutil.rmtree(folder)
    return next((folder for folder in reversed(whole) if folder.is_dir()), None)


def state_is_readable(checkpoint: Path) -> bool:
    """The trainer writes its state last: where it is whole, everything before it is."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return False
    return True


def save_where_stopped(trainer: Ways, report: Report) -> None:
    """A checkpoint of the last finished step, unless there is one."""
    step = trainer.state.global_step
    if step > 0 and report.saved_step != step:
        if report.after_step is not None:
            report.after_step.restore()  # as a save between two steps would have found them
        model: Any = trainer.model
        trainer._save_checkpoint(model, trial=None)
        report.on_save(trainer.args, trainer.state, trainer.control)
