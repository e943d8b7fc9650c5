"""The settings of a run as a YAML file that another LoRA Studio starts as it is, and what it has to find there."""

from pathlib import Path

from lora_studio.config import Config
from lora_studio.engine.export_work import Outcome, Work, is_local
from lora_studio.errors import StudioError
from lora_studio.lengthened import settings_of
from lora_studio.parsing import merge, nest, parse, read_yaml, to_yaml

PLACES = {
    "model.name": "the base: give it the name that others know (base_name), or copy the folder",
    "data.train_file": "the training data: copy the file",
    "data.validation_file": "the validation data: copy the file",
    "model.adapter_name_or_path": "the adapter that the run goes on from: copy its folder",
}


def export(work: Work, *, base_name: str) -> Outcome:
    """One YAML file with every setting, those at their default too."""
    run = work.of_run()
    config = settings_of(run, work.state())
    if base_name.strip():
        config = parse(merge(config.model_dump(), nest({"model.name": base_name.strip()})))
    target = work.out / f"{work.name}.yaml"
    target.write_text(to_yaml(config), encoding="utf-8")
    if parse(read_yaml(target)) != config:
        raise StudioError("The file does not read back as it was written.", "This is a defect: please report it.")
    words = "Another LoRA Studio trains it, from a terminal or, saved as a preset, from its page."
    command = f"python -m lora_studio train {target.name}"
    return Outcome(words, command, tried="Read back: every setting is the same.", same=True, notes=local_places(config))


def local_places(config: Config) -> list[str]:
    """Which settings name files of this machine, and what to do about each."""
    values = config.model_dump()
    found = []
    for path, what in PLACES.items():
        section, _, name = path.partition(".")
        value = values[section][name]
        if value and is_local(str(value)):
            found.append(f"{path} is {Path(value)}, a place on this machine. It is {what}, and name the new place.")
    return found
