"""Exports for llama.cpp and Ollama: a GGUF file made by an installed llama.cpp, and a Modelfile.

llama.cpp's programs run without a shell, in the export's process group and without this process's secrets. The
Modelfile's template is verified before anything slow.
"""

import json
import math
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
from typing import IO, Any

from safetensors.torch import load_file, save_file

from lora_studio.config.parsing import load_config
from lora_studio.config.sections import Generation
from lora_studio.data.chat_templates import adds_bos, choose_template
from lora_studio.engine.export import merged as export_merged
from lora_studio.engine.export.archive import rewritten
from lora_studio.engine.export.context import ExportContext, ExportResult, copy_files, try_adapter
from lora_studio.engine.models.source import adapter_tokenizer, load_tokenizer
from lora_studio.engine.models.weights import known_tokens
from lora_studio.engine.runtime import EventLog, guarded
from lora_studio.errors import StudioError
from lora_studio.export.ollama import ADAPTED_BY_OLLAMA, GoTemplate, carried_by_quotes, modelfile, stop_texts, to_go
from lora_studio.export.targets import (
    FOLDER_VARIABLE,
    MAGIC,
    QUANTIZATIONS,
    READ_BY_OLLAMA,
    LlamaCpp,
    commands,
    find_llama_cpp,
    progress_of,
    server,
    typed_commands,
)
from lora_studio.models.adapter_files import (
    CARD_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    carried,
    extras,
    other_modules,
    read_lora,
    scale,
)
from lora_studio.models.adapters import read_header, read_template
from lora_studio.models.shape import read_config

PATIENCE = 5.0  # seconds between asking a program to end and ending it
LOOK_SECONDS = 0.5
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY$")
_LAST_LINES = 8


def run_program(command: Sequence[str], log: EventLog, noun: str) -> None:
    """Runs a program that converts, called `noun`, to its end. Raises `StudioError` with its last output if it fails.

    Environment variables that look like secrets are not passed on. A stop, raised as an exception, ends the program
    first.
    """
    log.phase("convert")
    environment = {name: value for name, value in os.environ.items() if not _SECRET.search(name.upper())}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # all they need lies before them
    words: deque[str] = deque(maxlen=_LAST_LINES)
    began = False
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        with guarded(command, patience=PATIENCE, env=environment, **pipes) as child:
            assert child.stdout is not None
            for line in _lines(child.stdout):
                progress = progress_of(line)
                if progress is None:
                    print(line, flush=True)
                    words.append(line)
                    continue
                if not began:
                    began = True
                    log.phase("convert", progress[1], "percent" if progress[1] == 100 else "tensors")
                log.progress(*progress)
            code = child.wait()
    except FileNotFoundError as error:
        raise StudioError(f"{Path(command[0]).name} cannot be started: {error}", "Check LLAMA_CPP_DIR.") from error
    if code:
        message = next((line for line in reversed(words) if line.strip()), "no message")
        raise StudioError(f"{noun} failed (exit code {code}): {message.strip()[:300]}", _hint(message))


def _hint(message: str) -> str:
    """A hint for the known failures of the converter."""
    if "No module named" in message:
        return (
            "llama.cpp's converter lacks its requirements. Install the requirements.txt of its folder into a .venv "
            "there (which is used if it exists), or into the Python that runs LoRA Studio."
        )
    if "pre-tokenizer was not recognized" in message:
        return (
            "llama.cpp does not support this model's tokenizer. A newer version may; otherwise the model cannot be "
            "converted to GGUF."
        )
    return "See the export's log for details."


def _lines(output: IO[bytes]) -> Iterator[str]:
    """The lines of a program's output, including those that a carriage return overwrites.

    Waits in short intervals, because a signal that another thread received is only handled in between.
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


MODEL, COMMANDS = "model", "commands.txt"
PRECISION = "bfloat16"
HOW = (
    f"The commands can be pasted in any folder of this machine; {COMMANDS} has them for a copy of the export. They "
    f"look for llama.cpp in {FOLDER_VARIABLE}, else in ~/llama.cpp."
)


@dataclass(frozen=True)
class Made:
    """The file's name, whether it exists, the commands that make it otherwise, the verification, and notes."""

    file: str
    exists: bool
    commands: str
    tried: str
    same: bool | None
    notes: Sequence[str]


def export_gguf(work: ExportContext, *, quantization: str) -> ExportResult:
    """Exports a folder with the GGUF file or, without llama.cpp, the merged model and the commands."""
    gguf = make_gguf(work, quantization)
    place = work.final / gguf.file
    serve = f"{shlex.quote(server())} -m {shlex.quote(str(place))} --jinja"
    if gguf.exists:
        return ExportResult(
            "One file for llama.cpp and programs based on it (LM Studio, Jan, Ollama). It contains the chat "
            "template; --jinja makes llama.cpp use it.",
            serve,
            tried=gguf.tried,
            same=gguf.same,
            notes=gguf.notes,
        )
    return ExportResult(
        f"The merged model is in {MODEL}/. {gguf.file} was not created because llama.cpp was not found. {HOW} Or "
        f"set {FOLDER_VARIABLE} before starting LoRA Studio, and export again.",
        gguf.commands,
        tried=gguf.tried,
        same=gguf.same,
        notes=gguf.notes,
        missing=gguf.file,
    )


def make_gguf(work: ExportContext, quantization: str) -> Made:
    """Merges the model and converts it if llama.cpp is installed, else leaves the merged model and the commands."""
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
        run_program(command, work.log, "The quantization" if number else "The conversion")
    between.unlink(missing_ok=True)
    tensors = check_gguf(work.out / file)
    shutil.rmtree(model)
    tried = (
        f"{merged.tried} This tested the model before conversion; the file is a complete GGUF with {tensors} tensors."
    )
    return Made(file, True, "", tried.strip(), merged.same, merged.notes)


def usable_tools(quantization: str) -> LlamaCpp | None:
    """The installed llama.cpp, if it has what this format needs. Raises `StudioError` if it is incomplete."""
    tools = find_llama_cpp()
    if tools is not None and tools.quantizer is None and not QUANTIZATIONS[quantization].direct:
        direct = ", ".join(kind.name for kind in QUANTIZATIONS.values() if kind.direct)
        raise StudioError(
            f"llama.cpp is in {tools.converter.parent}, but llama-quantize, which {quantization} requires, is not "
            "built.",
            f"Build it (cmake -B build && cmake --build build --target llama-quantize), or choose {direct}.",
        )
    return tools


def check_gguf(path: Path) -> int:
    """The number of tensors in the file. Raises `StudioError` if it is not GGUF."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(16)
    tensors = int.from_bytes(head[8:16], "little")
    if not head.startswith(MAGIC) or len(head) < 16 or not tensors:
        raise StudioError(f"llama.cpp ended without a complete {path.name}.", "See the export's log for its output.")
    return tensors


MODELFILE, ADAPTER = "Modelfile", "adapter"
_BASE_NAME = re.compile(r"[\w.-]+(/[\w.-]+){0,3}(:[\w.-]+)?")
_NO_NAME = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True)
class Weights:
    """The values of FROM and ADAPTER ("" for no adapter), the verification, and what is missing, with its commands."""

    source: str
    adapter: str
    tried: str
    same: bool | None
    notes: Sequence[str] = ()
    commands: str = ""
    missing: str = ""


def export_ollama(work: ExportContext, *, weights: str, quantization: str, base_in_ollama: str) -> ExportResult:
    """Exports a folder from which `ollama create` makes the model."""
    if base_in_ollama.strip():
        check_adapter(work.adapter)
    name, revision = str(work.card["base_model"]), work.card.get("revision")
    base_tokens = known_tokens(work.adapter, name, revision)
    tokenizer, _ = adapter_tokenizer(work.adapter, load_tokenizer(name, revision), base_tokens)
    template = go_template(work, tokenizer)
    kind = _architecture(work)
    if base_in_ollama.strip():
        weighed = _adapter(work, kind, base_in_ollama.strip())
    else:
        weighed = _whole(work, kind, weights, quantization)
    text = _modelfile(work, tokenizer, template, weighed)
    (work.out / MODELFILE).write_text(text, encoding="utf-8")
    name = _NO_NAME.sub("-", work.name.lower()).strip("-._") or "adapter"
    place = shlex.quote(str(work.final))
    words = f"Run the command where Ollama is installed. It creates the model {name} and starts a conversation."
    if weighed.commands:
        words = (
            f"{weighed.missing} was not created because llama.cpp was not found. {HOW} Run the last command where "
            f"Ollama is installed. It creates the model {name} and starts a conversation."
        )
    commands = f"cd {place} && ollama create {name} && ollama run {name}"
    proof = (
        f"The template reproduces the prompts of the training in {template.compared} of {template.compared} dialogues."
    )
    return ExportResult(
        words,
        f"{weighed.commands}\n{commands}".strip(),
        tried=f"{proof} {weighed.tried}".strip(),
        same=weighed.same,
        notes=(*template.notes, *_missing(work), *weighed.notes),
        missing=weighed.missing,
    )


def go_template(work: ExportContext, tokenizer: Any) -> GoTemplate:
    """The adapter's chat template in Go's language. Raises `StudioError` if it cannot be expressed there."""
    thinking = work.card.get("enable_thinking")
    source = read_template(work.adapter) or choose_template(tokenizer, "auto").source
    switch = {} if thinking is None else {"enable_thinking": thinking}
    bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
    return to_go(source, {**tokenizer.special_tokens_map, **switch}, bos=bos)


def _architecture(work: ExportContext) -> str:
    config = read_config(str(work.card["base_model"]), work.card.get("revision")) or {}
    return str((config.get("architectures") or [""])[0])


def _whole(work: ExportContext, kind: str, weights: str, quantization: str) -> Weights:
    """The whole model, as safetensors or GGUF."""
    if weights == "gguf" or (weights == "auto" and kind not in READ_BY_OLLAMA):
        usable_tools(quantization)
        gguf = make_gguf(work, quantization)
        missing = "" if gguf.exists else gguf.file
        return Weights(f"./{gguf.file}", "", gguf.tried, gguf.same, gguf.notes, gguf.commands, missing)
    merged = export_merged.export(replace(work, out=work.out / MODEL), dtype=PRECISION, max_shard_size="5GB")
    return Weights(f"./{MODEL}", "", merged.tried, merged.same, merged.notes)


def _adapter(work: ExportContext, kind: str, base: str) -> Weights:
    """The adapter alone, which Ollama puts on a base that it has."""
    if kind not in ADAPTED_BY_OLLAMA:
        families = ", ".join(sorted(name.removesuffix("ForCausalLM") for name in ADAPTED_BY_OLLAMA))
        raise StudioError(
            f"Ollama supports adapters for {families} only; this base is a "
            f"{kind.removesuffix('ForCausalLM') or 'model'}.",
            "Leave the base in Ollama empty: base and adapter are then exported as one model.",
        )
    if not _BASE_NAME.fullmatch(base):
        raise StudioError(f"Ollama has no model named {base[:120]!r}.", "Write it as shown by `ollama list`.")
    note = write_adapter(work)
    tried, same = try_adapter(work, work.out / ADAPTER)
    for file in (work.out / ADAPTER).iterdir():
        if file.name not in (WEIGHTS_FILE, SETTINGS_FILE):  # the rest was for the trial: Ollama has a tokenizer
            file.unlink()
    tried = f"{tried} {note}This used the base of the training: {base} in Ollama must be the same model."
    return Weights(base, f"./{ADAPTER}", tried, same)


def check_adapter(folder: Path) -> None:
    """Raises `StudioError` for an adapter of which Ollama would silently ignore a part.

    Its import reads LoRA matrices of the attention and of a plain MLP, and one lora_alpha
    (ollama/convert/convert_llama_adapter.go and convert.go).
    """
    settings = read_lora(folder)
    lost = extras(settings)
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        lost.append("different ranks or alphas per module (rank_pattern, alpha_pattern)")
    if modules := other_modules(read_header(folder / WEIGHTS_FILE)):
        lost.append(f"weights for {', '.join(modules)}")
    if lost:
        raise StudioError(
            f"Ollama supports plain LoRA only; this adapter has {' and '.join(dict.fromkeys(lost))}, which would be "
            "lost on a base in Ollama.",
            "Leave the base in Ollama empty: base and adapter are then exported as one model without loss.",
        )


def write_adapter(work: ExportContext) -> str:
    """Writes the adapter with the scale as Ollama applies it to `work.out`; returns a note if it had to be rescaled.

    Ollama multiplies B A by lora_alpha / r with an integer lora_alpha: the remaining factor goes into B.
    """
    target, settings = work.out / ADAPTER, read_lora(work.adapter)
    texts = rewritten(work, str(work.card["base_model"]))
    copy_files(work, [path for path in carried(work.adapter) if path.name not in texts], target)
    factor = scale(settings)
    exact_alpha = factor * settings["r"]
    alpha = max(1, round(exact_alpha))
    written = {**json.loads(texts[SETTINGS_FILE]), "lora_alpha": alpha, "use_rslora": False}
    (target / SETTINGS_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (target / CARD_FILE).write_text(texts[CARD_FILE], encoding="utf-8")
    if not math.isclose(alpha, exact_alpha):
        weights = load_file(target / WEIGHTS_FILE)
        for name in weights:
            if ".lora_B." in name:
                weights[name] = (weights[name].float() * (exact_alpha / alpha)).contiguous()
        save_file(weights, target / WEIGHTS_FILE, metadata={"format": "pt"})
    if settings["lora_alpha"] == alpha:
        return ""
    return f"Ollama applies lora_alpha / r, so the adapter's scale of {factor:g} is stored that way. "


def _modelfile(work: ExportContext, tokenizer: Any, template: GoTemplate, weights: Weights) -> str:
    generation = Generation()
    if work.run is not None and work.run.config.is_file():
        generation = load_config(work.run.config).generation
    system = str(work.card.get("system_prompt") or "") if template.system else ""
    stops = stop_texts(
        template.after_answer, tokenizer.eos_token or "", tokenizer.get_added_vocab(), generation.stop_texts
    )
    notes = [f"{work.name}, exported by LoRA Studio. The template does not cover tool calls.", *template.notes]
    return modelfile(
        weights.source,
        template.source,
        stops,
        generation,
        system=system,
        adapter=weights.adapter,
        notes=[*notes, *_missing(work)],
    )


def _missing(work: ExportContext) -> list[str]:
    """Parts of the adapter's prompt that a Modelfile cannot express."""
    system = str(work.card.get("system_prompt") or "")
    if carried_by_quotes(system):
        return []
    return [
        "The system prompt of the training contains characters that a Modelfile cannot hold. Send it with each "
        "conversation."
    ]
