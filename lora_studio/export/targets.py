"""The forms of an export: purpose, settings and size of each.

Form, flags and documentation are made from this table; `engine/export` holds the programs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator
from pydantic_core import PydanticCustomError

from lora_studio.config.fields import Section, setting
from lora_studio.export.llama_cpp import QUANTIZATIONS, find_llama_cpp
from lora_studio.export.ollama import READ_BY_OLLAMA
from lora_studio.files import bytes_in
from lora_studio.jobs.events import DataPrepared, from_line, read_lines
from lora_studio.models.adapter_files import carried
from lora_studio.models.adapters import read_card
from lora_studio.models.shape import architecture, read_config
from lora_studio.workspace import DEMO_MODEL, RunFolder, model_source

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
        "Name of the base",
        "What others call the base model, such as Qwen/Qwen3-0.6B; needed where it is a folder on this machine.",
        max_length=300,
    )


def _keep_local() -> Any:
    return setting(
        False, "Keep the folder's name", "Leave the base as a folder of this machine, which others do not have."
    )


class Zip(Section):
    """The adapter to pass on."""

    base_name: str = _base_name()
    keep_local_base: bool = _keep_local()


class Merged(Section):
    """Base and adapter as one model."""

    dtype: Literal["bfloat16", "float16", "float32"] = setting(
        "bfloat16",
        "Precision",
        "The base is read anew in it, never in 4 or 8 bits; float32 is exact and twice as large.",
    )
    max_shard_size: str = setting(
        "5GB", "Largest file", "Weights are cut into files of at most this size, such as 5GB or 500MB.", max_length=20
    )

    @field_validator("max_shard_size")
    @classmethod
    def _check_size(cls, value: str) -> str:
        if not _FILE_SIZE.fullmatch(value.strip()):
            raise PydanticCustomError("file_size", "must be a whole number of GB, MB or KB, such as 5GB or 500MB")
        return value.strip()


def _quantization() -> Any:
    kinds = " ".join(f"{kind.name}: {kind.description}" for kind in QUANTIZATIONS.values())
    return setting("q8_0", "Quantization", kinds)


class Gguf(Section):
    """One file for llama.cpp."""

    quantization: Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"] = _quantization()


class Ollama(Section):
    """A Modelfile with its weights."""

    weights: Literal["auto", "safetensors", "gguf"] = setting(
        "auto",
        "Weights",
        "auto is the merged model for families that Ollama reads by itself, and GGUF, made by llama.cpp, for others.",
    )
    quantization: Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"] = _quantization()
    base_in_ollama: str = setting(
        "",
        "Base in Ollama",
        "For Llama, Mistral and Gemma: the name of the very same base in Ollama; then only the adapter goes along. "
        "Empty makes one model of both.",
        max_length=200,
    )


class Hub(Section):
    """A repository of the Hugging Face Hub."""

    repo: str = setting(
        "",
        "Repository",
        "OWNER/NAME, or a name alone for your own account; empty takes the run's title.",
        max_length=200,
    )
    content: Literal["adapter", "merged"] = setting(
        "adapter",
        "What to publish",
        "The adapter alone, or base and adapter as one model, which is as large as the base.",
    )
    private: bool = setting(True, "Private", "Only you and those you let in see it. Off: everybody does.")
    update: bool = setting(
        False, "Update", "Allow a repository that is there already: its files of the same names are replaced."
    )
    base_name: str = _base_name()
    license: str = setting(
        "unknown",
        "Licence",
        "As the Hub names it, such as apache-2.0; the base's own licence applies as well.",
        max_length=60,
    )
    dtype: Literal["bfloat16", "float16", "float32"] = setting(
        "bfloat16", "Precision of a merged model", "Only where the merged model is published."
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
        "", "Name of the model", "What clients ask for; empty takes the run's title.", max_length=80
    )
    max_model_len: int | None = setting(
        None, "Longest text", "Tokens of prompt and answer together; empty takes what the base can read.", ge=8
    )


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
            "Adapter as a zip",
            "To keep or pass on: the adapter with tokenizer, chat template and report, for whoever has the same base.",
            Zip,
            lambda sizes, _: sizes.adapter + TEXT_BYTES,
            suffix=".zip",
        ),
        Target(
            "merged",
            "Merged model",
            "One whole model that any program reads as it reads the base; needs no knowledge of LoRA.",
            Merged,
            lambda sizes, settings: _whole(sizes, BYTES_A_WEIGHT[settings.dtype]),
            whole_model=True,
        ),
        Target(
            "ollama",
            "Ollama",
            "To chat on your own machine: a folder from which one command makes a model of Ollama, asked as trained.",
            Ollama,
            _ollama_size,
            _ollama_room,
            whole_model=True,
        ),
        Target(
            "gguf",
            "GGUF file",
            "One file for llama.cpp, LM Studio and Jan, small enough for a laptop; made by an installed llama.cpp.",
            Gguf,
            _gguf_size,
            _gguf_room,
            whole_model=True,
        ),
        Target(
            "hub",
            "Hugging Face Hub",
            "To share: a repository on the Hub, private at first, with a model card; needs a token that may write.",
            Hub,
            _hub_size,
        ),
        Target(
            "vllm",
            "vLLM server",
            "The adapter with the exact command that serves it to many at once on a GPU, beside its base.",
            Vllm,
            lambda sizes, _: sizes.adapter + TEXT_BYTES,
        ),
        Target(
            "script",
            "Training script",
            "A program of 200 lines with its rows: trains the run again without LoRA Studio, step by step the same.",
            Script,
            lambda sizes, _: sizes.rows + sizes.adapter + sizes.built_in + TEXT_BYTES,
            needs_run=True,
        ),
        Target(
            "config",
            "Settings (YAML)",
            "Every setting of the run in one file, which another LoRA Studio starts as it is.",
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
