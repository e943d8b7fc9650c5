"""The checkpoints of a run: their measurements and sizes, manifests, zips without pickles, and what a deletion removes.

A manifest holds size and checksum of every file and is written last, so damage is noticed before a resume.
"""

import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.files import bytes_in, numbered
from lora_studio.jobs.events import RunState
from lora_studio.models.adapter_files import PICKLES, WEIGHTS_FILE
from lora_studio.models.adapters import changed, read_card, read_header
from lora_studio.workspace import RunFolder, Workspace, step_of, write_atomically

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
TORCH_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
_BLOCK = 1 << 20


def write_manifest(checkpoint: Path) -> None:
    """Notes what the checkpoint holds now."""
    files = {
        str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "blake2b": _checksum(path)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_atomically(checkpoint / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, in words; "" where it is whole."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        noted = {str(name): (int(entry["bytes"]), str(entry["blake2b"])) for name, entry in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _damage_seen(checkpoint)
    for name, (size, checksum) in noted.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes of {size:,}"
        if _checksum(path) != checksum:
            return f"{name} differs from what was saved"
    return ""


def base_changed(config: Config, checkpoint: Path | None) -> str:
    """A note if the base of the checkpoint, or of the adapter that a run continues from, changed since; else ""."""
    adapter = config.model.adapter_name_or_path
    start = checkpoint or (Path(adapter) if adapter else None)
    return changed(read_card(start), config.model.name, config.model.revision) if start else ""


def last_whole_checkpoint(run: RunFolder) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and notes on the others.

    Unfinished checkpoints of a crash are removed; damaged ones are moved aside.
    """
    whole: list[Path] = []
    notes: list[str] = []
    for folder in sorted(run.checkpoints.glob("checkpoint-*"), key=lambda path: path.name):
        if not (folder / MANIFEST).is_file() and not (folder / STATE).is_file():
            shutil.rmtree(folder)
        elif words := damage(folder):
            aside = next(path for path in numbered(folder.with_name(f"damaged-{folder.name}")) if not path.exists())
            folder.rename(aside)
            notes.append(f"{folder.name} is damaged: {words}. It was renamed to {aside.name}.")
        else:
            whole.append(folder)
    last = max(whole, key=lambda folder: step_of(folder.name), default=None)
    if last is None:
        notes.append("No complete checkpoint was found: the run starts from the beginning.")
    return last, notes


def _checksum(path: Path) -> str:
    sum_ = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sum_.update(block)
    return sum_.hexdigest()


def _damage_seen(checkpoint: Path) -> str:
    """What shows without a manifest: a state that is none, weights that are cut, archives whose sums are wrong."""
    try:
        if not isinstance(json.loads((checkpoint / STATE).read_text(encoding="utf-8")), dict):
            return f"{STATE} contains no state"
    except FileNotFoundError:
        return f"{STATE} is missing"
    except (OSError, ValueError, RecursionError):
        return f"{STATE} cannot be read"
    if not (checkpoint / WEIGHTS_FILE).is_file():
        return f"{WEIGHTS_FILE} is missing"
    try:
        read_header(checkpoint / WEIGHTS_FILE)
    except StudioError:
        return f"{WEIGHTS_FILE} is incomplete"
    for name in TORCH_FILES:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    return f"{name} differs from what was saved"
        except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError):
            return f"{name} is incomplete"
    return ""


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
    finite_losses = {name: loss for name, loss in losses.items() if loss is not None and math.isfinite(loss)}
    best = run.read_result().get("best_checkpoint") or (
        min(finite_losses, key=finite_losses.__getitem__) if len(finite_losses) > 1 else None
    )
    entries = []
    for folder in folders:
        step = step_of(folder.name)
        metrics = measured[step].metrics if step in measured else {}
        name, size = folder.name, bytes_in(folder)
        entries.append(Checkpoint(name, step, size, epochs.get(step), losses[name], metrics, name == best))
    return entries


def folder_of(run: RunFolder, name: str) -> Path:
    """The folder of a checkpoint that is there; `StudioError` for any other name."""
    for folder in run.checkpoint_folders():
        if folder.name == name:
            return folder
    raise StudioError(f"Run {run.id} has no checkpoint {name}.", "It may have been deleted. Refresh the list.")


def delete(run: RunFolder, state: RunState, name: str) -> None:
    """Removes a checkpoint, first out of sight. Raises `StudioError` while the run goes on: it may need it."""
    folder = folder_of(run, name)
    if not state.final:
        raise StudioError("The run is still active and may resume from this checkpoint.", "Stop it first.")
    hidden = folder.with_name(f".deleted-{folder.name}")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def write_zip(folder: Path, target: Path) -> None:
    """Packs a checkpoint or adapter; files that hold pickles and the state of the training stay out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for path in sorted(folder.rglob("*")):
            included = path.suffix not in PICKLES and path.name != MANIFEST
            if path.is_file() and not path.is_symlink() and included:
                archive.write(path, f"{folder.name}/{path.relative_to(folder)}")


@dataclass(frozen=True, slots=True)
class Deletion:
    """A run that is to go; `against` says why it can't, `continued_by` names the runs that began with its adapter."""

    run: str
    title: str
    bytes: int
    continued_by: tuple[str, ...]
    against: str = ""


def deletions(workspace: Workspace, run_ids: Sequence[str], runs: Sequence[RunState]) -> list[Deletion]:
    """What deleting the wanted runs, by id, comes to; ids of runs that are gone are left out."""
    by_id = {run.id: run for run in runs}
    beginnings = _beginnings(workspace)
    entries = []
    for state in (by_id[run_id] for run_id in run_ids if run_id in by_id):
        after = tuple(by_id[other].title or other for other, line in beginnings if state.id in line and other in by_id)
        against = "" if state.final or state.state == "queued" else f"It is {state.state}: stop it first."
        size = bytes_in(workspace.run(state.id).path)
        entries.append(Deletion(state.id, state.title or state.id, size, after, against))
    return entries


def _beginnings(workspace: Workspace) -> list[tuple[str, str]]:
    """Of each run that began with another's adapter: its id, and the line of its config that names the other."""
    beginnings = []
    for run in workspace.runs():
        lines = run.config.read_text(encoding="utf-8").splitlines()
        beginnings += [(run.id, line) for line in lines if line.lstrip().startswith("adapter_name_or_path:")]
    return beginnings
