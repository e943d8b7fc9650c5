"""An installed llama.cpp: where its programs are, how to call them, and how to read their progress."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER_VARIABLE = "LLAMA_CPP_DIR"
CONVERTER, QUANTIZER, SERVER = "convert_hf_to_gguf.py", "llama-quantize", "llama-server"
_PROGRAM_FOLDERS = (".", "bin", "build/bin", "build/bin/Release")
_PERCENT = re.compile(r"(\d{1,3})%\|")
_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")

MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class Quantization:
    """A form of the weights: its name, bits a weight with what goes with it, and a sentence; `direct` ones come
    straight out of the converter."""

    name: str
    bits: float
    description: str
    direct: bool = False


QUANTIZATIONS = {
    kind.name: kind
    for kind in (
        Quantization("f16", 16.0, "16 bits a weight, nothing to speak of is lost.", True),
        Quantization("bf16", 16.0, "16 bits as in training, slow on older processors.", True),
        Quantization("q8_0", 8.5, "half of f16, hardly a difference.", True),
        Quantization("q6_k", 6.6, "6 bits, very close to f16."),
        Quantization("q5_k_m", 5.7, "5 bits, a little loss."),
        Quantization("q4_k_m", 4.9, "4 bits, a third of f16: what most use on a laptop."),
    )
}


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """The programs: the converter is run by `python`; the quantizer is None where it was not built."""

    python: str
    converter: Path
    quantizer: Path | None


def find_llama_cpp(environment: Mapping[str, str] = os.environ) -> LlamaCpp | None:
    """The llama.cpp that LLAMA_CPP_DIR names, else that on the PATH; None where there is none."""
    setting = environment.get(FOLDER_VARIABLE, "").strip()
    folder = Path(setting).expanduser() if setting else None
    on_path = environment.get("PATH", "")
    converter = _first([folder / CONVERTER] if folder else []) or _which(CONVERTER, on_path, os.F_OK)
    if converter is None:
        return None
    places = _places(folder, QUANTIZER)
    own = _first([converter.parent / ".venv" / "bin" / "python"])
    return LlamaCpp(str(own or sys.executable), converter, _first(places) or _which(QUANTIZER, on_path, os.X_OK))


def server(environment: Mapping[str, str] = os.environ) -> str:
    """What is typed for the program that serves a GGUF file: with its folder where LLAMA_CPP_DIR has it."""
    setting = environment.get(FOLDER_VARIABLE, "").strip()
    return str(_first(_places(Path(setting).expanduser() if setting else None, SERVER)) or SERVER)


def _places(folder: Path | None, program: str) -> list[Path]:
    return [folder / place / program for place in _PROGRAM_FOLDERS] if folder else []


def _first(paths: Sequence[Path]) -> Path | None:
    return next((path.absolute() for path in paths if path.is_file()), None)


def _which(name: str, path: str, mode: int) -> Path | None:
    executable = shutil.which(name, mode, path)
    return Path(executable).absolute() if executable else None


def commands(quantization: str, model: str, out: str, between: str, tools: LlamaCpp) -> list[list[str]]:
    """The one or two commands that make `out` of the merged model's folder; `between` is a 16-bit file on the way."""
    kind = QUANTIZATIONS[quantization]
    convert = [tools.python, str(tools.converter)]
    if kind.direct:
        return [[*convert, model, "--outfile", out, "--outtype", kind.name]]
    return [
        [*convert, model, "--outfile", between, "--outtype", "bf16"],
        [str(tools.quantizer or QUANTIZER), between, out, kind.name.upper()],
    ]


def typed_commands(quantization: str, model: str, out: str, between: str) -> str:
    """The same for a person to paste into a shell, in whatever folder that is, once llama.cpp is there.

    Its folder is LLAMA_CPP_DIR, else `llama.cpp` in the home folder. The studio's Python has what the converter needs.
    """
    place = Path(f"${FOLDER_VARIABLE}")
    tools = LlamaCpp(sys.executable, place / CONVERTER, place / "build" / "bin" / QUANTIZER)
    lines = [" ".join(map(_quoted, command)) for command in commands(quantization, model, out, between, tools)]
    lines += [shlex.join(["rm", between])] if len(lines) > 1 else []
    return f'{FOLDER_VARIABLE}="${{{FOLDER_VARIABLE}:-$HOME/llama.cpp}}"\n' + " &&\n".join(lines)


def _quoted(part: str) -> str:
    """A word of a command as a shell takes it; llama.cpp's folder stays a variable."""
    place = f"${FOLDER_VARIABLE}/"
    return f'"${FOLDER_VARIABLE}"/{part.removeprefix(place)}' if part.startswith(place) else shlex.quote(part)


def progress_of(line: str) -> tuple[int, int] | None:
    """How far a line of the programs' output says that they are: done and total; None for any other line."""
    if (tensor := _TENSOR.search(line)) is not None:
        return int(tensor[1]), int(tensor[2])
    percent = _PERCENT.search(line)
    return (min(100, int(percent[1])), 100) if percent else None
