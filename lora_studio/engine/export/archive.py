"""Exports an adapter as files: a zip, its settings as YAML, or a folder with what serves it with vLLM or as a Space.

Pickles and local paths are left out. Adapters that vLLM cannot serve are refused, with an alternative.
"""

import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from lora_studio.config.fields import read_yaml
from lora_studio.config.parsing import load_config, merge, nest, parse, to_yaml
from lora_studio.config.sections import Config
from lora_studio.engine.export.context import (
    QUESTION,
    TOKENS,
    ExportContext,
    ExportResult,
    ask,
    base_to_name,
    blocks,
    check_places,
    copy_files,
    is_local,
    last_line,
    load_adapters,
    plain_name,
    try_adapter,
    why_not,
)
from lora_studio.engine.models.source import auto_class, read_config, without_weights
from lora_studio.engine.models.weights import put_on, read_weights
from lora_studio.engine.runtime import guarded
from lora_studio.errors import StudioError
from lora_studio.export.card import CARD_NAME, Subject, model_card
from lora_studio.files import JsonObject
from lora_studio.models.adapter_files import (
    CARD_FILE,
    SETTINGS_FILE,
    TEMPLATE_FILE,
    WEIGHTS_FILE,
    carried,
    max_rank,
    read_lora,
    read_template,
    scale,
    scales_differ,
)
from lora_studio.models.hub import may_run_code_of
from lora_studio.models.shape import shape_of
from lora_studio.runs.summary import settings_of
from lora_studio.workspace import DEMO_MODEL, model_source


def export_zip(work: ExportContext, *, base_name: str, keep_local_base: bool) -> ExportResult:
    """Exports a zip with a single folder that peft, vLLM and LoRA Studio load directly."""
    base = base_to_name(work, base_name, keep_local=keep_local_base)
    texts = rewritten(work, base)
    target = work.out / f"{work.name}.zip"
    pack(work, texts, target)
    with tempfile.TemporaryDirectory(dir=work.out) as place, zipfile.ZipFile(target) as archive:
        archive.extractall(place)
        tried, same = try_adapter(work, Path(place) / work.name)
    if base == DEMO_MODEL:
        words = "Unpack it anywhere. LoRA Studio can chat with the folder; the base is built into LoRA Studio only."
        return ExportResult(words, f"python -m lora_studio chat {work.name}", tried=tried, same=same)
    notes = []
    if is_local(base):
        notes.append(
            f"The base is recorded as {base}, a folder on this machine. On other machines, change it in "
            f"{SETTINGS_FILE}."
        )
    words = f"Unpack it anywhere. The folder loads on {base} with peft, vLLM or LoRA Studio's Chat tab."
    return ExportResult(words, tried=tried, same=same, notes=notes)


def rewritten(work: ExportContext, base: str) -> dict[str, str]:
    """The text files of the export by name, without local paths."""
    settings = json.loads((work.adapter / SETTINGS_FILE).read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    card = {name: value for name, value in work.card.items() if name != "continued_from"} | {"base_model": base}
    texts = {SETTINGS_FILE: _json(settings), CARD_FILE: _json(card)}
    if template := read_template(work.adapter):  # also one that stood in the tokenizer's settings: vLLM takes a file
        texts[TEMPLATE_FILE] = template
    if work.run is not None and work.run.report.is_file():
        texts["report.md"] = without_paths(work, work.run.report.read_text(encoding="utf-8"), base)
    texts[CARD_NAME] = model_card(work.adapter, work.run, Subject(work.title, base))
    return texts


def without_paths(work: ExportContext, text: str, base: str) -> str:
    """A text with the base's new name, and files without their folders."""
    own = str(work.card.get("base_model") or "")
    if is_local(own):
        text = text.replace(own, base)
    if work.run is None or not work.run.config.is_file():
        return text
    config = read_yaml(work.run.config)
    for section, name in (("data", "train_file"), ("data", "validation_file"), ("model", "adapter_name_or_path")):
        path = config.get(section, {}).get(name)
        if path and is_local(path):
            text = text.replace(path, Path(path).name)
    return text


def pack(work: ExportContext, texts: dict[str, str], target: Path) -> None:
    """Writes the zip, with progress in bytes."""
    files = [path for path in carried(work.adapter) if path.name not in texts]
    total, done = sum(path.stat().st_size for path in files), 0
    work.log.phase("pack", total, "bytes")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(f"{work.name}/{name}", text)
        for path in files:
            entry = zipfile.ZipInfo.from_file(path, f"{work.name}/{path.name}")
            entry.compress_type = zipfile.ZIP_STORED if path.name == WEIGHTS_FILE else zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as place:
                for block in blocks(path):
                    place.write(block)
                    done += len(block)
                    work.log.progress(done, total)
                    work.stop.check()


def _json(values: JsonObject) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


PLACES = {
    "model.name": "the base: give its public name (base_name), or copy the folder",
    "data.train_file": "the training data: copy the file",
    "data.validation_file": "the validation data: copy the file",
    "model.adapter_name_or_path": "the adapter that training started from: copy its folder",
}


def export_config(work: ExportContext, *, base_name: str) -> ExportResult:
    """Exports a YAML file with every setting, including defaults."""
    run = work.of_run()
    config = settings_of(run, work.state())
    if base_name.strip():
        config = parse(merge(config.model_dump(), nest({"model.name": base_name.strip()})))
    target = work.out / f"{work.name}.yaml"
    target.write_text(to_yaml(config), encoding="utf-8")
    if load_config(target) != config:
        raise StudioError("The exported file differs when read back.", "This is a bug. Please report it.")
    words = "Another LoRA Studio can train with it from the terminal or, saved as a preset, on its page."
    command = f"python -m lora_studio train {target.name}"
    return ExportResult(
        words, command, tried="Read back: all settings are identical.", same=True, notes=local_places(config)
    )


def local_places(config: Config) -> list[str]:
    """A note on each setting that names a local file."""
    values = config.model_dump()
    notes = []
    for path, advice in PLACES.items():
        section, _, name = path.partition(".")
        value = values[section][name]
        if value and is_local(str(value)):
            notes.append(f"{path} is {Path(value)}, a path on this machine. It is {advice}, and give the new path.")
    return notes


def export_vllm(
    work: ExportContext, *, base_name: str, keep_local_base: bool, served_name: str, max_model_len: int | None
) -> ExportResult:
    """Exports a folder with the adapter, its chat template and `serve.sh`."""
    settings = read_lora(work.adapter)
    rank = max_rank(settings)
    base = base_to_name(work, base_name, keep_local=keep_local_base)
    name = plain_name(served_name) if served_name.strip() else work.name
    copy_adapter(work, base)
    source = model_source(base) if base == DEMO_MODEL else base
    length = max_model_len or longest_text(base, work.card.get("revision"))
    template = (work.out / "adapter" / "chat_template.jinja").is_file()
    arguments = serve_arguments(
        source, name, rank=rank, revision=work.card.get("revision"), max_model_len=length, template=template
    )
    folded = scales_differ(settings)
    if folded:
        with_one_scale(work, work.out / "adapter")
    script = work.out / "serve.sh"
    script.write_text(serve_script(source, arguments), encoding="utf-8")
    script.chmod(0o755)
    tried, same = try_adapter(work, work.out / "adapter")
    notes = ["The command itself was not tested: it needs vLLM and a GPU. The adapter folder was tested with peft."]
    if is_local(source):
        notes.append(
            f"The base is a folder on this machine, {source}. On other machines: BASE=FOLDER_OR_HUB_NAME ./serve.sh"
        )
    if folded:
        notes.append(
            "vLLM scales all modules alike. The scales of single modules (rank_pattern, alpha_pattern) were multiplied "
            "into their weights, which changes no answer."
        )
    if settings.get("target_parameters"):
        notes.append(
            "The adapter targets stacked experts, which some versions of vLLM do not serve for some families. If "
            "yours does not, export the merged model."
        )
    words = (
        "Run this command where vLLM is installed, or serve.sh in a copy of the folder. Clients request the model "
        f"{name}, or the base by its name."
    )
    return ExportResult(words, f"cd {shlex.quote(str(work.final))} && {arguments}", tried=tried, same=same, notes=notes)


def copy_adapter(work: ExportContext, base: str) -> None:
    """Writes the adapter's files without local paths into the folder `adapter`."""
    texts = rewritten(work, base)
    texts.pop("report.md", None)
    copy_files(work, [path for path in carried(work.adapter) if path.name not in texts], work.out / "adapter")
    for file, text in texts.items():
        (work.out / "adapter" / file).write_text(text, encoding="utf-8")


def with_one_scale(work: ExportContext, folder: Path) -> None:
    """Multiplies the scale of each module, relative to alpha / r, into its B matrix, and gives all the same scale.

    vLLM reads one scale and the ranks of the matrices (vllm/lora/peft_helper.py), peft the patterns of both.
    """
    base = str(work.card["base_model"])
    bare = without_weights(base, work.card.get("revision"))
    model = put_on(bare, read_weights(folder, bare, base), "default", base)
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    tensors, whole = load_file(folder / WEIGHTS_FILE), scale(settings)
    layers: Mapping[str, Any] = {
        f"{name}.lora_B.weight": module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    for key in tensors.keys() & layers.keys():
        factor = layers[key].scaling["default"] / whole
        tensors[key] = (tensors[key].float() * factor).to(tensors[key].dtype)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    root = bool(settings.get("use_rslora"))
    settings["alpha_pattern"] = {
        pattern: whole * (math.sqrt(rank) if root else rank)
        for pattern, rank in (settings.get("rank_pattern") or {}).items()
    }
    (folder / SETTINGS_FILE).write_text(_json(settings), encoding="utf-8")


def longest_text(base: str, revision: str | None) -> int | None:
    """The base's context length in tokens, if its config is on this machine."""
    model = shape_of(base, revision)
    return model.longest if model else None


def serve_script(base: str, arguments: str) -> str:
    """`serve.sh`: the same command with the base as a variable, so that it also runs on other machines."""
    options = arguments.removeprefix(f"vllm serve {shlex.quote(base)}")
    return f"""#!/bin/sh
# Serves the adapter beside its base: needs `pip install vllm` and a GPU.
# The base is a name on the Hub, or a folder of the machine that this runs on. Another one than the following:
# BASE=FOLDER_OR_HUB_NAME ./serve.sh
[ -n "$BASE" ] || BASE={shlex.quote(base)}
cd "$(dirname "$0")" || exit 1
exec vllm serve "$BASE"{options}
"""


def serve_arguments(
    base: str, name: str, *, rank: int, revision: str | None, max_model_len: int | None, template: bool
) -> str:
    """The shell command; every value from a user or a file is quoted."""
    parts = ["vllm", "serve", base, *(["--revision", revision] if revision else [])]
    parts += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{name}=./adapter"]
    parts += ["--max-model-len", str(max_model_len)] if max_model_len else []
    parts += ["--chat-template", "./adapter/chat_template.jinja"] if template else []
    return shlex.join(parts)


APP = "lora_studio.engine.space_app"
APP_SECONDS = 600
APP_PINS = ("transformers", "peft", "accelerate")
"""Other versions may read an adapter in another way. torch is left open: Spaces with a lent GPU support a few only."""
SPACE_TITLE_LENGTH = 60
APP_DESCRIPTION = "A LoRA adapter and its base, {base}, get the same questions and answer side by side."
SPACE_PYTHON = "3.12"
"""Of the Space; the oldest that LoRA Studio supports is 3.11."""


def export_space(work: ExportContext, *, base_name: str, title: str) -> ExportResult:
    """Exports a folder that is a Space, and that any machine with its requirements can serve."""
    base = base_to_name(work, base_name)
    own, revision = str(work.card["base_model"]), work.card.get("revision")
    if may_run_code_of(own):
        raise StudioError(
            f"The chat app runs no code of a model's repository, and {own} comes with its own.",
            "Export for vLLM or the adapter zip instead.",
        )
    copy_adapter(work, base)
    if base == DEMO_MODEL:
        shutil.copytree(model_source(base), work.out / "base")
    name = title.strip() or work.title
    settings = {
        "title": name,
        "description": APP_DESCRIPTION.format(base=base_title(base)),
        "base": "base" if base == DEMO_MODEL else base,
        "revision": None if base == DEMO_MODEL else revision,
        "auto_class": auto_class(own, read_config(own, revision)).__name__,
        "system_prompt": work.card.get("system_prompt") or "",
        "enable_thinking": work.card.get("enable_thinking"),
    }
    (work.out / "settings.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (work.out / "requirements.txt").write_text(app_requirements(), encoding="utf-8")
    (work.out / "README.md").write_text(space_readme(name, base), encoding="utf-8")
    shutil.copyfile(app_file(), work.out / "app.py")
    tried, same = try_app(work)
    place = shlex.quote(str(work.final))
    words = (
        "Upload the folder as a Space with this command, after hf auth login; --private keeps it to you. "
        "Or serve it anywhere: pip install -r requirements.txt gradio, then python app.py."
    )
    command = f"hf upload {shlex.quote(work.name)} {place} . --repo-type space"
    return ExportResult(words, command, tried=tried, same=same, notes=space_notes(work))


def app_file() -> Path:
    """The file of the chat app. It is not imported: it needs Gradio, which has no place in this process."""
    spec = find_spec(APP)
    if spec is None or spec.origin is None:
        raise StudioError("The program of the Space is missing from this installation.", "Install LoRA Studio again.")
    return Path(spec.origin)


def app_requirements() -> str:
    """The libraries but Gradio, which README.md names to Spaces."""
    return "".join(f"{line}\n" for line in ["torch", *(f"{name}=={version(name)}" for name in APP_PINS)])


def space_readme(title: str, base: str) -> str:
    """README.md with the settings that Spaces read from its head."""
    head = {
        "title": title[:SPACE_TITLE_LENGTH],
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": SPACE_PYTHON,
        "app_file": "app.py",
        **({} if base == DEMO_MODEL else {"models": [base]}),
    }
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n",
        f"# {title}\n",
        f"{APP_DESCRIPTION.format(base=base_title(base))}\n",
        "`python app.py` serves the same page on any machine. Trained with LoRA Studio.\n",
    ]
    return "\n".join(lines)


def base_title(base: str) -> str:
    """The base as a visitor of the page knows it."""
    return "the model built into LoRA Studio" if base == DEMO_MODEL else base


def space_notes(work: ExportContext) -> list[str]:
    """What differs from the chat here, and what a Space needs."""
    lines = ["The base column gets the adapter's chat template and system prompt."]
    if work.card.get("quantization", "none") != "none":
        lines.append("The adapter was trained on a quantized base. The app loads the base as it is stored.")
    lines.append("Choose hardware with memory for the base: a Space without a GPU has 16 GB and answers slowly.")
    return lines


def try_app(work: ExportContext) -> tuple[str, bool | None]:
    """Asks the program and compares. Raises `StudioError` if it fails, or reads or answers otherwise."""
    own, revision = str(work.card["base_model"]), work.card.get("revision")
    if reason := why_not(work, 4):  # float32, in the app first and then here
        check_places(work, without_weights(own, revision))
        return reason, None
    work.log.phase("try")
    command = [sys.executable, "app.py", "--ask", QUESTION, "--max-new-tokens", str(TOKENS), "--dtype", "float32"]
    if own != DEMO_MODEL:  # what others call the base may not be on this machine
        command += ["--base", model_source(own)]
    try:
        with guarded(
            command, cwd=work.out, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as child:
            output, errors = child.communicate(timeout=APP_SECONDS)
    except subprocess.TimeoutExpired:
        return f"Not tested to the end: an answer takes more than {APP_SECONDS // 60} minutes here.", None
    shutil.rmtree(work.out / "__pycache__", ignore_errors=True)
    if child.returncode:
        raise StudioError(f"The app fails: {last_line(errors)}", "This is a bug. Please report it.")
    answer = json.loads(output.strip().splitlines()[-1])
    loaded = load_adapters(work, {"own": work.adapter}, torch.float32)
    spoken = ask(loaded, "own", work.card)
    if tuple(answer["prompt"]) != spoken.prompt:
        raise StudioError(
            "The app does not reproduce the prompt of the training: its tokens differ.",
            "Export the adapter zip instead.",
        )
    if answer["adapter"].strip() != spoken.text:
        raise StudioError(
            f"The app answers {answer['adapter'][:80]!r}, base and adapter {spoken.text[:80]!r}.",
            "Export the adapter zip instead, and report this bug.",
        )
    return "Tested: app.py was started, and its answer equals that of base and adapter.", True
