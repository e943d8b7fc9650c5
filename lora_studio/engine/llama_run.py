"""Runs llama.cpp's programs: no shell, their output into the log, their own words on progress as events, and a stop.

They stay in the export's process group, so that whoever ends the export ends them.
"""

import os
import re
import select
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from lora_studio.engine.event_log import EventLog
from lora_studio.errors import StudioError
from lora_studio.llama_cpp import progress_of

PATIENCE = 5.0  # seconds between asking a program to end and ending it
LOOK_SECONDS = 0.5
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY$")
_LAST_LINES = 8


def run_program(command: Sequence[str], log: EventLog, *, phase: str, what: str) -> None:
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
            told = progress_of(line)
            if told is None:
                print(line, flush=True)
                words.append(line)
                continue
            if not began:
                began = True
                log.phase(phase, told[1], "percent" if told[1] == 100 else "tensors")
            log.progress(*told)
        code = child.wait()
    finally:
        _end(child)
    if code:
        said = next((line for line in reversed(words) if line.strip()), "it said nothing")
        raise StudioError(f"{what} failed (exit code {code}): {said.strip()[:300]}", _hint(said))


def _hint(said: str) -> str:
    """What helps against the failures of the converter that are known."""
    if "No module named" in said:
        return (
            "llama.cpp's converter lacks what it needs: install the requirements.txt of its folder into a .venv there "
            "(it is used where it is there), or into the Python that runs LoRA Studio."
        )
    if "pre-tokenizer was not recognized" in said:
        return (
            "llama.cpp does not know this model's tokenizer: a newer llama.cpp may, else the model can't become a GGUF."
        )
    return "The export's log has the details."


def _lines(output: IO[bytes]) -> Iterator[str]:
    """The lines of a program's output, those that it writes over (carriage return) one by one as well.

    Waits in short pieces, as a signal that another thread got is heard only in between.
    """
    rest = b""
    while True:
        if not select.select([output], [], [], LOOK_SECONDS)[0]:
            continue
        block = os.read(output.fileno(), 1 << 16)
        if not block:
            break
        *whole, rest = re.split(rb"[\r\n]+", rest + block)
        yield from (line.decode("utf-8", "replace") for line in whole if line)
    if rest:
        yield rest.decode("utf-8", "replace")


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
