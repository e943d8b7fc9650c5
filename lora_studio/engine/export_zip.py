"""The adapter as one zip: weights, settings, tokenizer, template, studio.json, model card and report; no pickles.

Nothing of this machine goes with it: the base and the data are called by names that others know, or by no path at all.
"""

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from lora_studio.adapter_files import CARD_FILE, SETTINGS_FILE, TEMPLATE_FILE, WEIGHTS_FILE, read_template
from lora_studio.engine.export_trial import try_adapter
from lora_studio.engine.export_work import Outcome, Work, base_to_name, blocks, is_local
from lora_studio.exports import carried
from lora_studio.model_card import CARD_NAME, Subject, model_card
from lora_studio.parsing import read_yaml
from lora_studio.workspace import DEMO_MODEL


def export(work: Work, *, base_name: str, keep_local_base: bool) -> Outcome:
    """One zip with a folder in it, which peft, vLLM and LoRA Studio load as it is."""
    base = base_to_name(work, base_name, keep_local=keep_local_base)
    texts = rewritten(work, base)
    target = work.out / f"{work.name}.zip"
    pack(work, texts, target)
    with tempfile.TemporaryDirectory(dir=work.out) as place, zipfile.ZipFile(target) as archive:
        archive.extractall(place)
        tried, same = try_adapter(work, Path(place) / work.name)
    if base == DEMO_MODEL:
        words = (
            "Unpack it anywhere: LoRA Studio chats with the folder. Its base comes with the studio and nothing else."
        )
        return Outcome(words, f"python -m lora_studio chat {work.name}", tried=tried, same=same)
    notes = []
    if is_local(base):
        notes.append(f"It calls its base {base}, a folder of this machine: change it in {SETTINGS_FILE} elsewhere.")
    words = f"Unpack it anywhere: the folder loads on {base} with peft, vLLM, or LoRA Studio's chat tab."
    return Outcome(words, tried=tried, same=same, notes=notes)


def rewritten(work: Work, base: str) -> dict[str, str]:
    """The texts that go with the adapter, by file name, without names of this machine."""
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


def without_paths(work: Work, text: str, base: str) -> str:
    """A text in which the base bears its new name, and files only their last."""
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


def pack(work: Work, texts: dict[str, str], target: Path) -> None:
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


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
