"""The forms of an export: purpose, settings and size of each.

Form, flags and documentation are made from this table; `engine/export` holds the programs.

An installed llama.cpp: where its programs are, how to call them, and how to read their progress.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from lora_studio.config.fields import Section, setting
from lora_studio.files import bytes_in
from lora_studio.jobs.events import DataPrepared, from_line, read_lines
from lora_studio.models.adapter_files import carried
from lora_studio.models.adapters import read_card
from lora_studio.models.shape import architecture, read_config
from lora_studio.workspace import DEMO_MODEL, RunFolder, model_source

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
        Quantization("f16", 16.0, "16 bits per weight, almost lossless.", True),
        Quantization("bf16", 16.0, "16 bits as in training, slow on older CPUs.", True),
        Quantization("q8_0", 8.5, "half the size of f16, almost lossless.", True),
        Quantization("q6_k", 6.6, "6 bits, very close to f16."),
        Quantization("q5_k_m", 5.7, "5 bits, small loss."),
        Quantization("q4_k_m", 4.9, "4 bits, a third of the size of f16."),
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


BYTES_A_WEIGHT = {"bfloat16": 2, "float16": 2, "float32": 4}
_FILE_SIZE = re.compile(r"[1-9][0-9]{0,5} ?(GB|MB|KB)", re.IGNORECASE)
TEXT_BYTES = 100_000
"""What scripts, templates and the like come to at most."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the size of an export follows from.

    `adapter` is what goes with an adapter, in bytes; `parameters` counts the base's, None where its config is not here;
    `rows` is what the run's prepared rows take, in bytes, and `built_in` the base where it comes with the studio.
    `family` is the base's architecture; `llama_cpp` says whether llama.cpp is here.
    """

    adapter: int
    parameters: int | None
    rows: int = 0
    built_in: int = 0
    family: str = ""
    llama_cpp: bool = False


def sizes_of(folder: Path, run: RunFolder | None = None) -> Sizes:
    """What the sizes of an adapter's exports follow from; `run` is the one that trained it."""
    adapter = sum(path.stat().st_size for path in carried(folder))
    card = read_card(folder)
    numbers = read_config(card.base, card.revision) if card.base else None
    model = architecture(numbers) if numbers else None
    built_in = bytes_in(Path(model_source(card.base))) if card.base == DEMO_MODEL else 0
    return Sizes(
        adapter,
        model.parameters if model else None,
        _bytes_of_rows(run) if run else 0,
        built_in,
        str((numbers or {}).get("architectures", [""])[0]),
        find_llama_cpp() is not None,
    )


def _bytes_of_rows(run: RunFolder) -> int:
    """What ids and labels of a run's training rows take, 32 bits each; 0 where the run did not get so far."""
    events = (event for event in map(from_line, read_lines(run.events)) if isinstance(event, DataPrepared))
    prepared = next(events, None)
    return 8 * prepared.tokens if prepared else 0


@dataclass(frozen=True, slots=True)
class Target:
    """One form. `description` says what it is for; `size` gives the bytes of the result, None if they can't be
    known, and `room` what lies on the disk while it is made, where that is more.

    `suffix` is that of the one file that it consists of; "" for a folder. `needs_run` says that an adapter without its
    run is not enough, `whole_model` that the whole model is loaded to make it.
    """

    name: str
    title: str
    description: str
    settings: type[Section]
    size: Callable[[Sizes, Any], int | None]
    room: Callable[[Sizes, Any], int | None] | None = None
    suffix: str = ""
    needs_run: bool = False
    whole_model: bool = False

    def room_for(self, sizes: Sizes, settings: Any) -> int | None:
        """What has to be free on the disk."""
        return (self.room or self.size)(sizes, settings)


def _base_name() -> Any:
    return setting(
        "",
        "Base model name",
        "Public name, such as Qwen/Qwen3-0.6B. Required for a local folder.",
        max_length=300,
    )


def _keep_local() -> Any:
    return setting(False, "Keep the local path", "Keeps the base's path on this machine, which others lack.")


class Zip(Section):
    """The adapter to pass on."""

    base_name: str = _base_name()
    keep_local_base: bool = _keep_local()


class Merged(Section):
    """Base and adapter as one model."""

    dtype: Literal["bfloat16", "float16", "float32"] = setting(
        "bfloat16",
        "Precision",
        "The base is reloaded unquantized. float32 is exact and twice as large.",
    )
    max_shard_size: str = setting(
        "5GB", "Max shard size", "Size limit per weight file, such as 5GB or 500MB.", max_length=20
    )

    @field_validator("max_shard_size")
    @classmethod
    def _check_size(cls, value: str) -> str:
        if not _FILE_SIZE.fullmatch(value.strip()):
            raise PydanticCustomError("file_size", "must be a whole number of GB, MB or KB, such as 5GB or 500MB")
        return value.strip()


def _quantization() -> Any:
    kinds = " ".join(f"{kind.name}: {kind.description}" for kind in QUANTIZATIONS.values())
    return setting(
        "q8_0", "Quantization", "q8_0 is almost lossless, q4_k_m the usual choice for laptops.", details=kinds
    )


class Gguf(Section):
    """One file for llama.cpp."""

    quantization: Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"] = _quantization()


class Ollama(Section):
    """A Modelfile with its weights."""

    weights: Literal["auto", "safetensors", "gguf"] = setting(
        "auto",
        "Weights",
        "auto: merged model if Ollama supports the family, else GGUF.",
    )
    quantization: Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"] = _quantization()
    base_in_ollama: str = setting(
        "",
        "Base in Ollama",
        "Name of the same base in Ollama. Only the adapter is exported.",
        details="For Llama, Mistral and Gemma. Empty: one model of base and adapter.",
        max_length=200,
    )


class Hub(Section):
    """A repository of the Hugging Face Hub."""

    repo: str = setting(
        "",
        "Repository",
        "OWNER/NAME, or NAME for your account. Empty: the run's name.",
        max_length=200,
    )
    content: Literal["adapter", "merged"] = setting(
        "adapter",
        "Content",
        "Only the adapter, or base and adapter merged.",
        details="A merged model is as large as its base.",
    )
    private: bool = setting(True, "Private", "Only you and people you add can see it.")
    update: bool = setting(
        False, "Update existing repository", "Replaces files of the same name in an existing repository."
    )
    base_name: str = _base_name()
    license: str = setting(
        "unknown",
        "License",
        "Hub license id, such as apache-2.0. The base's license also applies.",
        max_length=60,
    )
    dtype: Literal["bfloat16", "float16", "float32"] = setting(
        "bfloat16", "Precision of the merged model", "Used if the content is a merged model."
    )


def _gguf_size(sizes: Sizes, settings: Any) -> int | None:
    """The file; without llama.cpp the merged model that it is made from."""
    bits = QUANTIZATIONS[settings.quantization].bits if sizes.llama_cpp else 8 * BYTES_A_WEIGHT["bfloat16"]
    return _whole(sizes, bits / 8)


def _gguf_room(sizes: Sizes, settings: Any) -> int | None:
    """The merged model, a file of 16 bits where llama.cpp needs one on the way, and the file."""
    kind = QUANTIZATIONS[settings.quantization]
    whole = BYTES_A_WEIGHT["bfloat16"]
    return _whole(sizes, whole * (1 if kind.direct else 2) + kind.bits / 8) if sizes.llama_cpp else _whole(sizes, whole)


READ_BY_OLLAMA = frozenset(
    (
        "LlamaForCausalLM",
        "MixtralForCausalLM",
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Phi3ForCausalLM",
        "Qwen2ForCausalLM",
        "Olmo3ForCausalLM",
        "CohereForCausalLM",
        "GptOssForCausalLM",
        "DeepseekV3ForCausalLM",
        "Lfm2ForCausalLM",
    )
)
"""Architectures whose safetensors Ollama turns into its own form by itself; all others come to it as GGUF."""


def _ollama_size(sizes: Sizes, settings: Any) -> int | None:
    return _of_ollama(sizes, settings, _gguf_size)


def _ollama_room(sizes: Sizes, settings: Any) -> int | None:
    return _of_ollama(sizes, settings, _gguf_room)


def _of_ollama(sizes: Sizes, settings: Any, of_gguf: Callable[[Sizes, Any], int | None]) -> int | None:
    if settings.base_in_ollama:
        return sizes.adapter + TEXT_BYTES
    merged = settings.weights == "safetensors" or (settings.weights == "auto" and sizes.family in READ_BY_OLLAMA)
    return _whole(sizes, BYTES_A_WEIGHT["bfloat16"]) if merged else of_gguf(sizes, settings)


def _hub_size(sizes: Sizes, settings: Any) -> int | None:
    return (
        sizes.adapter + TEXT_BYTES if settings.content == "adapter" else _whole(sizes, BYTES_A_WEIGHT[settings.dtype])
    )


class Vllm(Section):
    """The adapter served by vLLM, beside others of the same base."""

    base_name: str = _base_name()
    keep_local_base: bool = _keep_local()
    served_name: str = setting(
        "", "Served model name", "Name that clients request. Empty: the run's name.", max_length=80
    )
    max_model_len: int | None = setting(
        None, "Max model length (tokens)", "Prompt and answer together. Empty: the base's limit.", ge=8
    )


class Space(Section):
    """A page that chats with base and adapter."""

    base_name: str = _base_name()
    title: str = setting("", "Title", "Heading of the page. Empty: the run's name.", max_length=60)


class Script(Section):
    """A program that trains the run again."""

    base_name: str = _base_name()
    keep_local_base: bool = _keep_local()


class Settings(Section):
    """The run's settings."""

    base_name: str = _base_name()


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "zip",
            "Adapter zip",
            "Adapter, tokenizer, chat template and report, for anyone with the same base model.",
            Zip,
            lambda sizes, _: sizes.adapter + TEXT_BYTES,
            suffix=".zip",
        ),
        Target(
            "merged",
            "Merged model",
            "One model that loads like the base, in programs without LoRA support too.",
            Merged,
            lambda sizes, settings: _whole(sizes, BYTES_A_WEIGHT[settings.dtype]),
            whole_model=True,
        ),
        Target(
            "ollama",
            "Ollama",
            "A folder that `ollama create` turns into a local model with the trained chat template.",
            Ollama,
            _ollama_size,
            _ollama_room,
            whole_model=True,
        ),
        Target(
            "gguf",
            "GGUF file",
            "One file for llama.cpp, LM Studio and Jan. Requires llama.cpp.",
            Gguf,
            _gguf_size,
            _gguf_room,
            whole_model=True,
        ),
        Target(
            "hub",
            "Hugging Face Hub",
            "A Hub repository with a model card, private by default. Requires a token with write access.",
            Hub,
            _hub_size,
        ),
        Target(
            "vllm",
            "vLLM server",
            "The adapter with the command that serves it on a GPU with its base.",
            Vllm,
            lambda sizes, _: sizes.adapter + TEXT_BYTES,
        ),
        Target(
            "space",
            "Chat app (Space)",
            "A page on which base and adapter answer side by side, for a Hugging Face Space or any machine.",
            Space,
            lambda sizes, _: sizes.adapter + sizes.built_in + TEXT_BYTES,
        ),
        Target(
            "script",
            "Training script",
            "A script of 200 lines and its data. Reproduces the run without LoRA Studio.",
            Script,
            lambda sizes, _: sizes.rows + sizes.adapter + sizes.built_in + TEXT_BYTES,
            needs_run=True,
        ),
        Target(
            "config",
            "Config (YAML)",
            "Every setting of the run in one file that another LoRA Studio can start.",
            Settings,
            lambda sizes, _: TEXT_BYTES,
            suffix=".yaml",
            needs_run=True,
        ),
    )
}


def _whole(sizes: Sizes, bytes_a_weight: float) -> int | None:
    """A whole model with its tokenizer, which is what the adapter's folder holds beside the weights."""
    return None if sizes.parameters is None else int(sizes.parameters * bytes_a_weight) + sizes.adapter
