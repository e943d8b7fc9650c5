"""How tests of exports run the child: in this process, with its signal handlers and environment taken back."""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_studio.engine.export import worker
from lora_studio.export.job import create, make_request
from lora_studio.jobs.events import Finished, from_line
from lora_studio.jobs.kinds import ExportFolder
from lora_studio.workspace import RunFolder, Workspace


def workspace_of(run: RunFolder) -> Workspace:
    return Workspace(run.path.parent.parent)


def take_away(run: RunFolder, target: str, **settings: Any) -> ExportFolder:
    """An export of a run after its child ended."""
    return build_export(workspace_of(run), run.id, target, **settings)


def build_export(
    workspace: Workspace, adapter: str, target: str, *, out: str | None = None, trial: bool = True, **settings: Any
) -> ExportFolder:
    """The same of any adapter."""
    folder = create(workspace, make_request(workspace, adapter, target, settings=settings, out=out, trial=trial))
    run_exporter(folder)
    return folder


def run_exporter(folder: ExportFolder) -> int:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    environment = dict(os.environ)
    try:
        return worker.main([str(folder.path)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)


def last_event(folder: ExportFolder) -> Finished:
    event = from_line(folder.events.read_text(encoding="utf-8").splitlines()[-1])
    assert isinstance(event, Finished)
    return event


def texts_in(folder: Path) -> dict[str, str]:
    """All text files below a folder by their path in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".safetensors", ".zip", ".parquet"):
            found[str(path.relative_to(folder))] = path.read_text(encoding="utf-8")
    return found


def run_script(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> dict[int, float]:
    """The program of that folder, run to its end in this process; the losses by step."""
    spec = importlib.util.spec_from_file_location("train_again", folder / "train.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    program.main()
    history = json.loads((folder / "out" / "history.json").read_text(encoding="utf-8"))
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
