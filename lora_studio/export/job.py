"""An export as a job: its request, what it still needs before it starts, and how it is started."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from lora_studio.config.compute import LOCAL
from lora_studio.config.fields import Section, plain_words
from lora_studio.errors import StudioError
from lora_studio.export.targets import (
    FOLDER_VARIABLE,
    QUANTIZATIONS,
    READ_BY_OLLAMA,
    TARGETS,
    Sizes,
    Target,
    find_llama_cpp,
    sizes_of,
)
from lora_studio.files import JsonObject
from lora_studio.jobs.kinds import EXPORT, ExportFolder, JobFolders, JobStarter, damaged_request
from lora_studio.models.adapter_files import read_lora
from lora_studio.models.adapters import named_adapter, read_card
from lora_studio.models.hardware import Device, devices
from lora_studio.models.hub import VARIABLE
from lora_studio.models.memory import MemoryVerdict, memory_verdict
from lora_studio.units import size as in_units
from lora_studio.workspace import DEMO_MODEL, RunFolder, Workspace, model_source

SPARE_BYTES = 20_000_000
"""Room left on the disk beside what an export takes: for its log, and for whatever else is written meanwhile."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """`kind` is good where nothing is missing, warning where one more step follows, error where it cannot start."""

    kind: Literal["good", "warning", "error"]
    words: str


@dataclass(frozen=True, slots=True)
class Plan:
    """An export before its start: target, settings, what its size follows from, and the bytes of the free disk.

    `base` is the name of the adapter's base model, `has_run` says whether the run that trained it is here.
    """

    target: Target
    settings: Any
    sizes: Sizes
    base: str
    has_run: bool
    free: int


def readiness(plan: Plan) -> Readiness:
    """The first thing that is missing; else what will be made, and its size."""
    checks: tuple[Callable[[Plan], Readiness | None], ...] = (_run, _base_name, _disk, _llama_cpp, _program, _download)
    return next((missing for check in checks if (missing := check(plan))), _ready(plan))


def _ready(plan: Plan) -> Readiness:
    octets = plan.target.size(plan.sizes, plan.settings)
    return Readiness("good", f"Ready to export{f': about {in_units(octets)}' if octets else ''}.")


def _run(plan: Plan) -> Readiness | None:
    if plan.has_run or not plan.target.needs_run:
        return None
    return Readiness("error", "Needs the run that trained the adapter, which is not on this machine.")


def _base_name(plan: Plan) -> Readiness | None:
    base_name = getattr(plan.settings, "base_name", None)
    if plan.target.name == "config" or base_name is None or base_name.strip() or not is_local_folder(plan.base):
        return None
    if getattr(plan.settings, "keep_local_base", False):
        return None
    return Readiness("error", "Needs the public name of the base model: the base is a local folder.")


def is_local_folder(base: str) -> bool:
    """Whether a base is a folder that only this machine has."""
    return base != DEMO_MODEL and (
        base.startswith((".", "/", "~", "\\")) or ("/" in base and os.path.exists(model_source(base)))
    )


def _disk(plan: Plan) -> Readiness | None:
    room = plan.target.room_for(plan.sizes, plan.settings)
    if room is None or room + SPARE_BYTES <= plan.free:
        return None
    return Readiness("error", f"Needs {in_units(room)} of disk space, and {in_units(plan.free)} are free.")


def _llama_cpp(plan: Plan) -> Readiness | None:
    if not _uses_llama_cpp(plan):
        return None
    tools = find_llama_cpp()
    if tools is None:
        return Readiness(
            "warning",
            "Needs llama.cpp: one more step. You get the merged model and the command that converts it. Or set "
            f"{FOLDER_VARIABLE} and restart.",
        )
    kind = plan.settings.quantization
    if tools.quantizer is None and not QUANTIZATIONS[kind].direct:
        direct = ", ".join(item.name for item in QUANTIZATIONS.values() if item.direct)
        return Readiness("error", f"Needs llama-quantize for {kind}, which is not built. Build it, or choose {direct}.")
    return None


def _uses_llama_cpp(plan: Plan) -> bool:
    if plan.target.name == "gguf":
        return True
    if plan.target.name != "ollama" or plan.settings.base_in_ollama:
        return False
    weights = plan.settings.weights
    return bool(weights == "gguf" or (weights == "auto" and plan.sizes.family not in READ_BY_OLLAMA))


def _program(plan: Plan) -> Readiness | None:
    """What runs the result, where that is a program of its own; or the token that publishing takes."""
    if plan.target.name == "ollama" and shutil.which("ollama") is None:
        return Readiness("warning", "Ready to export. Ollama is not installed here: run the command where it is.")
    if plan.target.name == "vllm":
        return Readiness("good", "Ready to export. Serving needs vLLM and a GPU, here or elsewhere.")
    if plan.target.name == "space":
        return Readiness("good", "Ready to export. Uploading it needs the Hub's command line, hf, and a token.")
    if plan.target.name == "hub":
        origin = f"{VARIABLE} is set" if os.environ.get(VARIABLE, "").strip() else f"enter it below or set {VARIABLE}"
        return Readiness("good", f"Publishing needs a token with write access: {origin}.")
    return None


def _download(plan: Plan) -> Readiness | None:
    if not plan.target.whole_model or plan.sizes.parameters is not None:
        return None
    return Readiness("warning", "Ready to export. The base model is not on this machine and is downloaded first.")


MAX_NAME = 200
"""Bytes of a result's name: while it is made, the export's id stands in it as well."""
PHASES = {
    "start": "starting",
    "data": "preparing the rows",
    "model": "loading model",
    "download": "downloading base model",
    "copy": "copying",
    "merge": "adding the adapter to the base's weights",
    "write": "writing",
    "pack": "packing",
    "convert": "converting",
    "upload": "uploading",
    "try": "testing the result",
}
"""The phases of an export's life, by what a person calls them."""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What is to be taken away, and how.

    `adapter_title` is what the adapter is called, `folder` where it is, `run` the id of the run that trained it ("" for
    an adapter from elsewhere), `out` where the result goes ("" for the export's own folder); `trial` asks for a try.
    """

    title: str
    target: str
    adapter: str
    folder: str
    run: str
    settings: JsonObject
    out: str = ""
    trial: bool = True
    adapter_title: str = ""
    compute_target: str = LOCAL

    def __post_init__(self) -> None:
        if not self.adapter_title:  # written by an earlier version
            object.__setattr__(self, "adapter_title", str(self.title).rpartition(":")[0])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExportRequest":
        return cls(
            **{name: value for name, value in values.items() if name not in ("created", "maker", "needs_device")}
        )


def request_of(folder: ExportFolder) -> ExportRequest:
    """What was asked for. Raises `StudioError` where its file is damaged."""
    try:
        return ExportRequest.from_dict(folder.read_facts())
    except TypeError:
        raise damaged_request(folder) from None


def folders(workspace: Workspace) -> JobFolders[ExportFolder]:
    """Where exports are kept."""
    return JobFolders(workspace, workspace.exports_folder, ExportFolder, "export")


def target_of(name: str) -> Target:
    """The target of that name. Raises `StudioError` where there is none."""
    if name not in TARGETS:
        raise StudioError(f"There is no export format {name!r}.", f"Formats: {', '.join(TARGETS)}.")
    return TARGETS[name]


def checked(target: Target, values: Mapping[str, Any]) -> Section:
    """The settings of a target. Raises `StudioError` with all that is wrong with them."""
    try:
        return target.settings(**values)
    except ValidationError as error:
        fields = target.settings.model_fields
        problems = []
        for item in error.errors(include_url=False):
            name = str(item["loc"][0])
            if name not in fields:
                problems.append(f"{target.title} has no setting {name}.")
            else:
                problems.append(f"{fields[name].title or name} {plain_words(item)} (found {item['input']!r}).")
        names = ", ".join(fields) or "no settings"
        raise StudioError(" ".join(problems), f"Settings of {target.title}: {names}.") from None


def make_request(
    workspace: Workspace,
    adapter: str,
    target_name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    out: str | None = None,
    trial: bool = True,
    compute_target: str = LOCAL,
) -> ExportRequest:
    """What a person asked for, checked. The adapter is named by run, RUN/checkpoint-N or folder.

    Raises `StudioError` for what can't be taken away so.
    """
    target, adapter_source = target_of(target_name), named_adapter(workspace, adapter)
    if target.needs_run and not adapter_source.run:
        raise StudioError(
            f"{target.title} requires a run, but {adapter_source.folder} belongs to none here.",
            "Give a run, or choose another format.",
        )
    read_lora(adapter_source.folder)
    section = checked(target, settings or {})
    workspace.policy.check_path(out or "")
    place = str(free_place(Path(os.path.abspath(Path(out).expanduser())))) if out else ""
    title = f"{adapter_source.title}: {target.title}"
    return ExportRequest(
        title,
        target.name,
        adapter,
        str(adapter_source.folder),
        adapter_source.run,
        section.model_dump(),
        place,
        trial,
        adapter_source.title,
        compute_target,
    )


def free_place(out: Path) -> Path:
    """Where a result may go: a new place, or an empty folder. Raises `StudioError` where something would be lost."""
    if len(os.fsencode(out.name)) > MAX_NAME:
        raise StudioError(f"{out.name[:40]}… is too long for a file name.", "Choose a shorter name.")
    if os.path.exists(out) and (not out.is_dir() or any(out.iterdir())):
        raise StudioError(f"{out} already exists.", "Choose a new path: nothing is overwritten.")
    if not os.path.isdir(out.parent):
        raise StudioError(f"The folder {out.parent} does not exist.", "Choose a path in an existing folder.")
    return out


def needed_bytes(workspace: Workspace, request: ExportRequest) -> int | None:
    """What making the result takes on the disk; None where that can't be known before."""
    target = target_of(request.target)
    return target.room_for(_sizes(workspace, request), checked(target, request.settings))


def result_bytes(workspace: Workspace, request: ExportRequest) -> int | None:
    """How large the result will be; None where that can't be known before."""
    target = target_of(request.target)
    return target.size(_sizes(workspace, request), checked(target, request.settings))


def _sizes(workspace: Workspace, request: ExportRequest) -> Sizes:
    return sizes_of(Path(request.folder), RunFolder(workspace.runs_folder / request.run) if request.run else None)


def check_space(workspace: Workspace, request: ExportRequest, place: Path) -> None:
    """Raises `StudioError` where the disk of `place` has not enough room for the result."""
    workspace.policy.check_room(needed_bytes(workspace, request) or 0)
    needed, free = needed_bytes(workspace, request) or 0, shutil.disk_usage(place).free
    if needed + SPARE_BYTES > free:
        raise StudioError(
            f"The export needs about {needed / 1e6:,.0f} MB plus {SPARE_BYTES // 10**6} MB of free space, but "
            f"{place} has {free / 1e6:,.0f} MB free.",
            "Free some space, or use another disk (--out in the terminal).",
        )


def create(workspace: Workspace, request: ExportRequest) -> ExportFolder:
    """A new export's folder. Raises `StudioError` where the disk has no room for the result."""
    check_space(workspace, request, Path(request.out).parent if request.out else workspace.root)
    return folders(workspace).create({**asdict(request), "needs_device": needs_device(request)})


def needs_device(request: ExportRequest) -> bool:
    """Whether the export computes on the device. All of them work on the CPU, so that none waits for a GPU."""
    here = request.compute_target == LOCAL
    return here and target_of(request.target).whole_model and devices()[0].kind == "cpu"


def start(
    supervisor: JobStarter, request: ExportRequest, secrets: Mapping[str, str] | None = None, *, at_once: bool = False
) -> str:
    """Makes the export's folder and starts its worker; its id. One that loads the whole model waits for the device.

    `secrets` go into the worker's environment and nowhere else. A visitor never publishes with the owner's token.
    """
    workspace = supervisor.workspace
    workspace.policy.check_may("export adapters")
    if request.target == "hub" and not workspace.policy.is_admin and not (secrets or {}).get(VARIABLE):
        raise StudioError(
            "Publishing requires your own token: the token of this machine belongs to its owner.",
            "Enter a token with write access in the field Token. It is used once and not stored.",
        )
    files = [Path(request.folder), *([Path(request.out).parent] if request.out else [])]
    return supervisor.submit(
        EXPORT,
        partial(create, workspace, request),
        at_once=at_once,
        secrets=secrets,
        target=request.compute_target,
        files=files,
    )


def readiness_of(workspace: Workspace, request: ExportRequest) -> Readiness:
    """What an export still needs before it starts."""
    target, base = target_of(request.target), read_card(Path(request.folder)).base
    free = shutil.disk_usage(Path(request.out).parent if request.out else workspace.root).free
    settings = checked(target, request.settings)
    return readiness(Plan(target, settings, _sizes(workspace, request), base, bool(request.run), free))


def memory_for(request: ExportRequest, device: Device) -> MemoryVerdict:
    """Whether an export that loads the whole model fits beside what is in a device's memory now."""
    card = read_card(Path(request.folder))
    return memory_verdict(card.base, card.revision, "none", [Path(request.folder)], 0, device)
