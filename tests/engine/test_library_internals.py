"""What we use inside libraries stands in CONTRIBUTING with the version that it is true for, and is still there."""

import ast
import importlib
import inspect
import re
from importlib.metadata import version
from typing import Any

import pytest

from lora_studio.engine import train_script
from lora_studio.engine.train.trainers import PreferenceTrainer, StudioTrainer, UnpairedTrainer
from lora_studio.ui import gradio_patches
from tests.source import ROOT, modules_with, nodes_of

TABLE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("<!-- internals -->")[2]
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in TABLE.partition("<!-- /internals -->")[0].strip().splitlines()[2:]
]


def _names(cell: str) -> list[str]:
    """The dotted names of a cell; one that begins with a dot is of the class before it."""
    names: list[str] = []
    for name in re.findall(r"`([\w.]+)`", cell):
        names.append(names[-1].rpartition(".")[0] + name if name.startswith(".") else name)
    return names


NAMES = [name for library, _, cell, _ in ROWS if library != "gradio" for name in _names(cell)]


def _owner(name: str) -> tuple[Any, str]:
    """The module or class that holds what a dotted name stands for, and the last part of the name."""
    *path, last = name.split(".")
    owner: Any = importlib.import_module(path[0])
    for at, part in enumerate(path[1:], 2):
        if not hasattr(owner, part):
            importlib.import_module(".".join(path[:at]))
        owner = getattr(owner, part)
    return owner, last


@pytest.mark.parametrize(("library", "noted"), sorted({(row[0], row[1]) for row in ROWS}))
def test_the_list_is_true_for_the_version_that_is_pinned_and_installed(library: str, noted: str) -> None:
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert re.search(rf"^{library}=={re.escape(noted)}\s", pins, re.MULTILINE), "read the list again, then note the pin"
    assert version(library).partition("+")[0] == noted
    assert library != "gradio" or noted == gradio_patches.VERSION


@pytest.mark.parametrize("name", NAMES)
def test_what_we_use_inside_a_library_is_still_there(name: str) -> None:
    owner, last = _owner(name)
    holders = [kind for kind in owner.__mro__ if kind is not object] if inspect.isclass(owner) else [owner]
    set_on_an_object = rf"\.{last}\b"
    assert hasattr(owner, last) or any(re.search(set_on_an_object, inspect.getsource(holder)) for holder in holders)


OF_SCRIPT = [trainer for _, trainer in train_script.METHODS.values()]


@pytest.mark.parametrize("trainer", [StudioTrainer, PreferenceTrainer, UnpairedTrainer, *OF_SCRIPT])
def test_every_method_that_a_trainer_of_ours_overrides_is_listed(trainer: type) -> None:
    ours = [kind for kind in trainer.__mro__ if kind.__module__.startswith("lora_studio")]
    theirs = [kind for kind in trainer.__mro__ if kind not in ours and kind is not object]
    overridden = {
        name
        for kind in ours
        for name in vars(kind)
        if not name.startswith("__") and any(name in vars(base) for base in theirs)
    }
    assert len(overridden) > 4
    assert overridden <= {name.rpartition(".")[2] for name in NAMES}


def test_every_name_out_of_a_module_inside_peft_is_listed() -> None:
    used = {
        f"{node.module}.{alias.name}"
        for path in modules_with("peft.")
        for node in nodes_of(path)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("peft.")
        for alias in node.names
    }
    assert used
    assert used <= set(NAMES)
