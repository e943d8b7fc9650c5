"""Base and adapter as one GGUF file, made by an installed llama.cpp from the merged model; without one, the commands.

llama.cpp's programs get files of the export's folder only, and none of this process' secrets.
"""

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_studio.engine import export_merged
from lora_studio.engine.export_work import Outcome, Work
from lora_studio.engine.llama_run import run_program
from lora_studio.errors import StudioError
from lora_studio.llama_cpp import (
    FOLDER_VARIABLE,
    MAGIC,
    QUANTIZATIONS,
    LlamaCpp,
    commands,
    find_llama_cpp,
    server,
    typed_commands,
)

MODEL, COMMANDS = "model", "commands.txt"
PRECISION = "bfloat16"
HOW = (
    f"The commands can be pasted in any folder of this machine; {COMMANDS} has them to be typed in a copy of what "
    f"was made. They look for llama.cpp where {FOLDER_VARIABLE} says, else in ~/llama.cpp."
)


@dataclass(frozen=True)
class Made:
    """The file's name, whether it is there, the commands that make it where it is not, the trial, and notes."""

    file: str
    there: bool
    commands: str
    tried: str
    same: bool | None
    notes: Sequence[str]


def export(work: Work, *, quantization: str) -> Outcome:
    """A folder with the file; or, without llama.cpp, with the merged model and the commands."""
    made = make_gguf(work, quantization)
    place = work.final / made.file
    serve = f"{shlex.quote(server())} -m {shlex.quote(str(place))} --jinja"
    if made.there:
        return Outcome(
            "One file for llama.cpp and what is built on it (LM Studio, Jan, Ollama). The chat template of the "
            "training is in it: --jinja makes llama.cpp use it.",
            serve,
            tried=made.tried,
            same=made.same,
            notes=made.notes,
        )
    return Outcome(
        f"The merged model is in {MODEL}/. {made.file} was not made: llama.cpp, which makes it, was not found here. "
        f"{HOW} Or set {FOLDER_VARIABLE} before LoRA Studio is started, and export again.",
        made.commands,
        tried=made.tried,
        same=made.same,
        notes=made.notes,
        missing=made.file,
    )


def make_gguf(work: Work, quantization: str) -> Made:
    """Merges, and makes the file in `work.out` where llama.cpp is; else leaves the merged model and the commands."""
    tools = usable_tools(quantization)
    file = f"{work.name}-{quantization.upper()}.gguf"
    model = work.out / MODEL
    merged = export_merged.export(replace(work, out=model), dtype=PRECISION, max_shard_size="50GB")
    if tools is None:
        there = work.final
        text = typed_commands(quantization, str(there / MODEL), str(there / file), str(there / "between.gguf"))
        anywhere = text.replace(f"{there}/", "").replace(sys.executable, "python")
        (work.out / COMMANDS).write_text(anywhere + "\n", encoding="utf-8")
        return Made(file, False, text, merged.tried, merged.same, merged.notes)
    between = work.out / "between.gguf"
    for number, command in enumerate(commands(quantization, str(model), str(work.out / file), str(between), tools)):
        run_program(command, work.log, phase="convert", what="The quantization" if number else "The conversion")
    between.unlink(missing_ok=True)
    tensors = check_gguf(work.out / file)
    shutil.rmtree(model)
    tried = f"{merged.tried} That was the model before the conversion; the file is a whole GGUF with {tensors} tensors."
    return Made(file, True, "", tried.strip(), merged.same, merged.notes)


def usable_tools(quantization: str) -> LlamaCpp | None:
    """The llama.cpp of this machine, where it has what this form needs. Raises `StudioError` where it is half there."""
    tools = find_llama_cpp()
    if tools is not None and tools.quantizer is None and not QUANTIZATIONS[quantization].direct:
        direct = ", ".join(kind.name for kind in QUANTIZATIONS.values() if kind.direct)
        raise StudioError(
            f"llama.cpp is in {tools.converter.parent}, but llama-quantize, which {quantization} needs, is not built.",
            f"Build it (cmake -B build && cmake --build build --target llama-quantize), or choose {direct}.",
        )
    return tools


def check_gguf(path: Path) -> int:
    """How many tensors the file says that it has. Raises `StudioError` for a file that is no GGUF."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(16)
    tensors = int.from_bytes(head[8:16], "little")
    if not head.startswith(MAGIC) or len(head) < 16 or not tensors:
        raise StudioError(f"llama.cpp ended without a whole {path.name}.", "The export's log has what it said.")
    return tensors
