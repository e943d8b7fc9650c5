"""The worker that exports an adapter: `python -m lora_studio.engine.export.worker FOLDER`.

The result is written beside its destination and moved there once it is complete and verified; result.json is written
last. After a stop, a full disk or an error, partial files are removed, and the events end with a `Finished`. Exports
run on the CPU, so they never take the GPU from a run. Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lora_studio.engine import runtime
from lora_studio.engine.runtime import (
    DONE,
    WRONG_INPUT,
    EventLog,
    Explained,
    StopSignal,
    begin,
    emit_finished,
    ending_of,
    leave,
    unexpected,
)
from lora_studio.errors import StudioError
from lora_studio.export.job import ExportRequest, check_space, request_of, target_of
from lora_studio.files import bytes_in
from lora_studio.jobs.events import Reason, RunStarted
from lora_studio.jobs.kinds import ExportFolder
from lora_studio.models.adapter_files import SETTINGS_FILE, read_lora
from lora_studio.models.adapters import changed, read_card
from lora_studio.workspace import RunFolder, Workspace, write_atomically

if TYPE_CHECKING:
    from lora_studio.engine.export.context import ExportResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports and returns the exit code."""
    module = "lora_studio.engine.export.worker"
    child = begin(arguments, module, ExportFolder, "export", lambda folder: folder.facts, resumes=False)
    if child is None:
        return WRONG_INPUT
    folder, log, stop = child.folder, child.log, child.stop
    runtime.see_no_gpu()

    def work() -> None:
        log.phase("start")
        export(folder, log, stop)

    ending = ending_of(work, stop, explain=partial(_explain, folder))
    if ending.code != DONE:
        shutil.rmtree(folder.unfinished, ignore_errors=True)
    return emit_finished(log, ending)


def export(folder: ExportFolder, log: EventLog, stop: StopSignal) -> None:
    """The program: check the disk, make the result, verify it, move it to its destination."""
    request = request_of(folder)
    log.emit(RunStarted(time.time(), os.getpid(), "cpu", "", device_kind="cpu"))
    if not (Path(request.folder) / SETTINGS_FILE).is_file():
        raise StudioError(f"The adapter in {request.folder} no longer exists.", "Choose another one.")
    check_space(Workspace(folder.path.parent.parent), request, folder.unfinished.parent)
    shutil.rmtree(folder.unfinished, ignore_errors=True)
    folder.unfinished.mkdir()
    began = time.time()
    outcome = _make(folder, request, log, stop)
    stop.check()
    result, files = folder.result, _files(folder.unfinished)
    size = bytes_in(folder.unfinished)
    put_in_place(folder)
    write_atomically(
        folder.complete,
        json.dumps(
            {
                "export": folder.id,
                "state": "done",
                **asdict(request),
                "place": str(result),
                "bytes": size,
                "files": files,
                "seconds": time.time() - began,
                **asdict(outcome),
            },
            indent=2,
            ensure_ascii=False,
        )
        + "\n",
    )


def _make(folder: ExportFolder, request: ExportRequest, log: EventLog, stop: StopSignal) -> "ExportResult":
    from lora_studio.engine.export.context import ExportContext  # seconds: the libraries

    read_lora(Path(request.folder))
    run = RunFolder(Workspace(folder.path.parent.parent).runs_folder / request.run) if request.run else None
    title, place = request.adapter_title, folder.result
    work = ExportContext(Path(request.folder), run, folder.unfinished, place, title, request.trial, log=log, stop=stop)
    card = read_card(work.adapter)
    if words := changed(card, card.base, card.revision):
        work.warn(words)
    return program(request.target)(work, **request.settings)


def program(target: str) -> "Callable[..., ExportResult]":
    """The function that makes a target's result."""
    from lora_studio.engine.export import archive, gguf, hub, merged, script

    programs: dict[str, Callable[..., ExportResult]] = {
        "zip": archive.export_zip,
        "merged": merged.export,
        "ollama": gguf.export_ollama,
        "gguf": gguf.export_gguf,
        "hub": hub.export,
        "vllm": archive.export_vllm,
        "space": archive.export_space,
        "script": script.export,
        "config": archive.export_config,
    }
    return programs[target_of(target).name]


def _files(folder: Path) -> list[dict[str, object]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [{"name": str(path.relative_to(folder)), "bytes": path.stat().st_size} for path in paths]


def put_in_place(folder: ExportFolder) -> None:
    """Moves the finished result to its destination; a single file takes its name if the destination is a file name."""
    result, unfinished = folder.result, folder.unfinished
    suffix = target_of(request_of(folder).target).suffix
    if result.exists() and not (result.is_dir() and not any(result.iterdir())):
        raise StudioError(f"{result} already exists.", "Choose a new path: an export never overwrites files.")
    if suffix and result.suffix == suffix:
        (only,) = unfinished.iterdir()
        only.rename(result)
        unfinished.rmdir()
        return
    if result.is_dir():
        result.rmdir()
    unfinished.rename(result)


def _explain(folder: ExportFolder, error: Exception) -> Explained:
    if runtime.is_full(error, folder.unfinished.parent):
        message = f"The disk of {folder.unfinished.parent} is full."
        return Explained(Reason.DISK_FULL, message, "Free some space, then start it again.")
    if not (Path(request_of(folder).folder) / SETTINGS_FILE).is_file():
        message = "The adapter was deleted during the export."
        return Explained(Reason.ADAPTER_GONE, message, "Choose another one.")
    if runtime.is_out_of_memory(error):
        message = "Out of memory for this model."
        return Explained(Reason.OUT_OF_MEMORY, message, "Close other programs, or use a lower precision.")
    return unexpected("The export", error, "See its log for details.")


if __name__ == "__main__":
    leave(main())
