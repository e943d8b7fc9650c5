"""The checkpoints of a run that are on disk: what each measured, how large it is, and a zip of one without pickles."""

import math
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.adapter_files import PICKLES
from lora_studio.errors import StudioError
from lora_studio.events import RunState
from lora_studio.files import bytes_in
from lora_studio.manifest import MANIFEST
from lora_studio.workspace import RunFolder, step_of


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder under the run's checkpoints, with what was measured at its step."""

    name: str
    step: int
    bytes: int
    epoch: float | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: bool = False


def checkpoints(run: RunFolder, state: RunState) -> list[Checkpoint]:
    """Every whole checkpoint, newest first. The best is the one that the run itself chose, else that of least loss."""
    measured = {item.step: item for item in state.evaluations}
    epochs = {item.step: item.epoch for item in state.steps} | {step: item.epoch for step, item in measured.items()}
    saved = {item.name: item.loss for item in state.checkpoints}
    folders = list(reversed(run.checkpoint_folders()))
    losses = {}
    for folder in folders:
        evaluation = measured.get(step_of(folder.name))
        losses[folder.name] = evaluation.loss if evaluation else saved.get(folder.name)
    known = {name: loss for name, loss in losses.items() if loss is not None and math.isfinite(loss)}
    best = run.read_result().get("best_checkpoint") or (min(known, key=known.__getitem__) if len(known) > 1 else None)
    found = []
    for folder in folders:
        step = step_of(folder.name)
        metrics = measured[step].metrics if step in measured else {}
        name, size = folder.name, bytes_in(folder)
        found.append(Checkpoint(name, step, size, epochs.get(step), losses[name], metrics, name == best))
    return found


def folder_of(run: RunFolder, name: str) -> Path:
    """The folder of a checkpoint that is there; `StudioError` for any other name."""
    for folder in run.checkpoint_folders():
        if folder.name == name:
            return folder
    raise StudioError(f"Run {run.id} has no checkpoint {name}.", "It may have been cleared away: look at the list.")


def delete(run: RunFolder, state: RunState, name: str) -> None:
    """Removes a checkpoint, first out of sight. Raises `StudioError` while the run goes on: it may need it."""
    folder = folder_of(run, name)
    if not state.final:
        raise StudioError("The run still goes on and may come back to this checkpoint.", "Stop it first.")
    hidden = folder.with_name(f".deleted-{folder.name}")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def write_zip(folder: Path, target: Path) -> None:
    """Packs a checkpoint or adapter; files that hold pickles and the state of the training stay out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for path in sorted(folder.rglob("*")):
            kept = path.suffix not in PICKLES and path.name != MANIFEST
            if path.is_file() and not path.is_symlink() and kept:
                archive.write(path, f"{folder.name}/{path.relative_to(folder)}")
