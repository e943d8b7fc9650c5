"""A Modelfile with what it names: the merged model, a GGUF file, or the adapter, as Ollama reads the model's family.

The template is proved before anything slow: Ollama asks as the adapter was trained, or there is no export.
"""

import re
import shlex
from dataclasses import replace
from typing import Any

from lora_studio.adapter_source import CARD_FILE, WEIGHTS_FILE
from lora_studio.architecture import read_config
from lora_studio.config import Generation
from lora_studio.data.ollama_template import GoTemplate, to_go
from lora_studio.data.prompt_styles import adds_bos, choose_template
from lora_studio.engine import export_merged
from lora_studio.engine.export_gguf import HOW, MODEL, PRECISION, make_gguf, usable_tools
from lora_studio.engine.export_work import Outcome, Work, copy_files
from lora_studio.engine.export_zip import rewritten
from lora_studio.engine.tokenizer import load_tokenizer
from lora_studio.errors import StudioError
from lora_studio.exports import carried
from lora_studio.modelfile import ADAPTED_BY_OLLAMA, READ_BY_OLLAMA, carried_by_quotes, modelfile, stop_texts
from lora_studio.parsing import parse, read_yaml

MODELFILE, ADAPTER = "Modelfile", "adapter"
_BASE_NAME = re.compile(r"[\w.-]+(/[\w.-]+){0,3}(:[\w.-]+)?")
_NO_NAME = re.compile(r"[^a-z0-9._-]+")


def export(work: Work, *, weights: str, quantization: str, base_in_ollama: str) -> Outcome:
    """A folder in which `ollama create` makes the model."""
    tokenizer = load_tokenizer(str(work.card["base_model"]), work.card.get("revision"))
    template = go_template(work, tokenizer)
    kind = _architecture(work)
    if base_in_ollama.strip():
        source, adapter, tried, same, commands = _adapter(work, kind, base_in_ollama.strip())
    else:
        source, adapter, tried, same, commands = _whole(work, kind, weights, quantization)
    text = _modelfile(work, tokenizer, template, source, adapter)
    (work.out / MODELFILE).write_text(text, encoding="utf-8")
    name = _NO_NAME.sub("-", work.name.lower()).strip("-._") or "adapter"
    place = shlex.quote(str(work.final))
    words = f"Type the command where Ollama is: it makes the model {name} and starts a conversation."
    if commands:
        words = (
            f"llama.cpp was not found. {HOW} The last one belongs where Ollama is: it makes the model {name} and "
            "starts a conversation."
        )
    made = f"cd {place} && ollama create {name} && ollama run {name}"
    proof = f"The template gives the prompts of the training in {template.compared} of {template.compared} dialogues."
    notes = (*template.notes, *_missing(work))
    return Outcome(words, f"{commands}\n{made}".strip(), tried=f"{proof} {tried}".strip(), same=same, notes=notes)


def go_template(work: Work, tokenizer: Any) -> GoTemplate:
    """The adapter's chat template in Go's language. Raises `StudioError` where it has no counterpart there."""
    file, thinking = work.adapter / "chat_template.jinja", work.card.get("enable_thinking")
    source = file.read_text(encoding="utf-8") if file.is_file() else choose_template(tokenizer, "auto").source
    switch = {} if thinking is None else {"enable_thinking": thinking}
    bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
    return to_go(source, {**tokenizer.special_tokens_map, **switch}, bos=bos)


def _architecture(work: Work) -> str:
    config = read_config(str(work.card["base_model"]), work.card.get("revision")) or {}
    return str((config.get("architectures") or [""])[0])


def _whole(work: Work, kind: str, weights: str, quantization: str) -> tuple[str, str, str, bool | None, str]:
    """The whole model, as safetensors or GGUF: what FROM names, no adapter, the trial, and commands still to type."""
    if weights == "gguf" or (weights == "auto" and kind not in READ_BY_OLLAMA):
        usable_tools(quantization)
        made = make_gguf(work, quantization)
        return f"./{made.file}", "", made.tried, made.same, made.commands
    merged = export_merged.export(replace(work, out=work.out / MODEL), dtype=PRECISION, max_shard_size="5GB")
    return f"./{MODEL}", "", merged.tried, merged.same, ""


def _adapter(work: Work, kind: str, base: str) -> tuple[str, str, str, bool | None, str]:
    """The adapter alone, which Ollama puts on a base that it has."""
    if kind not in ADAPTED_BY_OLLAMA:
        known = ", ".join(sorted(name.removesuffix("ForCausalLM") for name in ADAPTED_BY_OLLAMA))
        raise StudioError(
            f"Ollama puts adapters on {known} only, and this base is a {kind.removesuffix('ForCausalLM') or 'model'}.",
            "Leave the base's name in Ollama empty: then base and adapter go as one model.",
        )
    if not _BASE_NAME.fullmatch(base):
        raise StudioError(f"Ollama has no model of the name {base[:120]!r}.", "Write it as in `ollama list`.")
    texts = rewritten(work, str(work.card["base_model"]))
    texts = {name: text for name, text in texts.items() if name not in (CARD_FILE, "report.md")}
    files = [path for path in carried(work.adapter) if path.name == WEIGHTS_FILE]
    copy_files(work, files, work.out / ADAPTER)
    for name, text in texts.items():
        if name.endswith(".json"):
            (work.out / ADAPTER / name).write_text(text, encoding="utf-8")
    tried = f"Adapter and base were not tried together: {base} is Ollama's, and must be the very base of the training."
    return base, f"./{ADAPTER}", tried, None, ""


def _modelfile(work: Work, tokenizer: Any, template: GoTemplate, source: str, adapter: str) -> str:
    generation = Generation()
    if work.run is not None and work.run.config.is_file():
        generation = parse(read_yaml(work.run.config)).generation
    system = str(work.card.get("system_prompt") or "") if template.system else ""
    stops = stop_texts(
        template.after_answer, tokenizer.eos_token or "", tokenizer.get_added_vocab(), generation.stop_texts
    )
    notes = [f"{work.name}, made by LoRA Studio. Tool calls are no part of the template.", *template.notes]
    return modelfile(
        source, template.source, stops, generation, system=system, adapter=adapter, notes=[*notes, *_missing(work)]
    )


def _missing(work: Work) -> list[str]:
    """What a Modelfile can't carry of the adapter's system prompt."""
    system = str(work.card.get("system_prompt") or "")
    if carried_by_quotes(system):
        return []
    return ["The system prompt of the training holds signs that a Modelfile loses: send it with each conversation."]
