"""What an export still needs, in one sentence before it starts."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lora_studio.export.targets import (
    FOLDER_VARIABLE,
    QUANTIZATIONS,
    READ_BY_OLLAMA,
    Sizes,
    Target,
    find_llama_cpp,
)
from lora_studio.models.hub import VARIABLE
from lora_studio.units import size as in_units
from lora_studio.workspace import DEMO_MODEL, model_source

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
    if plan.target.name == "hub":
        origin = f"{VARIABLE} is set" if os.environ.get(VARIABLE, "").strip() else f"enter it below or set {VARIABLE}"
        return Readiness("good", f"Publishing needs a token with write access: {origin}.")
    return None


def _download(plan: Plan) -> Readiness | None:
    if not plan.target.whole_model or plan.sizes.parameters is not None:
        return None
    return Readiness("warning", "Ready to export. The base model is not on this machine and is downloaded first.")
