"""Base and adapter as one GGUF file, made by an installed llama.cpp from the merged model; without one, the commands.

llama.cpp's programs get files of the export's folder only, and none of this process' secrets.

Runs llama.cpp's programs: no shell, their output into the log, their own words on progress as events, and a stop.

They stay in the export's process group, so that whoever ends the export ends them.
"""

import os
import re
import select
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from lora_studio.engine.export import merged as export_merged
from lora_studio.engine.export.context import Outcome, Work
from lora_studio.engine.runtime import EventLog
from lora_studio.errors import StudioError
from lora_studio.export.llama_cpp import (
    FOLDER_VARIABLE,
    MAGIC,
    QUANTIZATIONS,
    LlamaCpp,
    commands,
    find_llama_cpp,
    progress_of,
    server,
    typed_commands,
)

PATIENCE = 5.0  # seconds between asking a program to end and ending it


LOOK_SECONDS = 0.5


_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY$")


_LAST_LINES = 8


def run_program(command: Sequence[str], log: EventLog, *, phase: str, noun: str) -> None:
    """Runs one program to its end. Raises `StudioError` with its last words where it fails.

    What of this process' environment looks like a secret is not handed on. A stop, which arrives as an exception, ends
    the program first.
    """
    log.phase(phase)
    environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name.upper())}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # all they need lies before them
    words: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        child = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
    except OSError as error:
        raise StudioError(f"{Path(command[0]).name} can't be started: {error}", "Look at LLAMA_CPP_DIR.") from error
    began = False
    try:
        assert child.stdout is not None
        for line in _lines(child.stdout):
            progress = progress_of(line)
            if progress is None:
                print(line, flush=True)
                words.append(line)
                continue
            if not began:
                began = True
                log.phase(phase, progress[1], "percent" if progress[1] == 100 else "tensors")
            log.progress(*progress)
        code = child.wait()
    finally:
        _end(child)
    if code:
        message = next((line for line in reversed(words) if line.strip()), "it said nothing")
        raise StudioError(f"{noun} failed (exit code {code}): {message.strip()[:300]}", _hint(message))


def _hint(message: str) -> str:
    """What helps against the failures of the converter that are known."""
    if "No module named" in message:
        return (
            "llama.cpp's converter lacks what it needs: install the requirements.txt of its folder into a .venv there "
            "(it is used where it is there), or into the Python that runs LoRA Studio."
        )
    if "pre-tokenizer was not recognized" in message:
        return (
            "llama.cpp does not know this model's tokenizer: a newer llama.cpp may, else the model can't become a GGUF."
        )
    return "The export's log has the details."


def _lines(output: IO[bytes]) -> Iterator[str]:
    """The lines of a program's output, those that it writes over (carriage return) one by one as well.

    Waits in short pieces, as a signal that another thread got is heard only in between.
    """
    buffer = b""
    while True:
        if not select.select([output], [], [], LOOK_SECONDS)[0]:
            continue
        block = os.read(output.fileno(), 1 << 16)
        if not block:
            break
        *whole, buffer = re.split(rb"[\r\n]+", buffer + block)
        yield from (line.decode("utf-8", "replace") for line in whole if line)
    if buffer:
        yield buffer.decode("utf-8", "replace")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a program that still runs; one that does not hear is ended at once."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()


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
    gguf = make_gguf(work, quantization)
    place = work.final / gguf.file
    serve = f"{shlex.quote(server())} -m {shlex.quote(str(place))} --jinja"
    if gguf.there:
        return Outcome(
            "One file for llama.cpp and what is built on it (LM Studio, Jan, Ollama). The chat template of the "
            "training is in it: --jinja makes llama.cpp use it.",
            serve,
            tried=gguf.tried,
            same=gguf.same,
            notes=gguf.notes,
        )
    return Outcome(
        f"The merged model is in {MODEL}/. {gguf.file} was not made: llama.cpp, which makes it, was not found here. "
        f"{HOW} Or set {FOLDER_VARIABLE} before LoRA Studio is started, and export again.",
        gguf.commands,
        tried=gguf.tried,
        same=gguf.same,
        notes=gguf.notes,
        missing=gguf.file,
    )


def make_gguf(work: Work, quantization: str) -> Made:
    """Merges, and makes the file in `work.out` where llama.cpp is; else leaves the merged model and the commands."""
    tools = usable_tools(quantization)
    file = f"{work.name}-{quantization.upper()}.gguf"
    model = work.out / MODEL
    merged = export_merged.export(replace(work, out=model), dtype=PRECISION, max_shard_size="50GB")
    if tools is None:
        final = work.final
        text = typed_commands(quantization, str(final / MODEL), str(final / file), str(final / "between.gguf"))
        anywhere = text.replace(f"{final}/", "").replace(sys.executable, "python")
        (work.out / COMMANDS).write_text(anywhere + "\n", encoding="utf-8")
        return Made(file, False, text, merged.tried, merged.same, merged.notes)
    between = work.out / "between.gguf"
    for number, command in enumerate(commands(quantization, str(model), str(work.out / file), str(between), tools)):
        run_program(command, work.log, phase="convert", noun="The quantization" if number else "The conversion")
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
