"""The page, the terminal and every message use the terms of transformers, peft and trl, and no words of our own.

The left column holds what the page once said, the right one what it says now. A phrase is forbidden wherever a person
reads it; a single everyday word only where it would be a whole label or column head.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_studio.cli import make_parser
from lora_studio.config.parsing import presets
from lora_studio.config.settings import described, settings
from lora_studio.evaluate import job as evaluating
from lora_studio.export.targets import TARGETS
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui.app import TABS, page
from lora_studio.ui.studio import Studio
from lora_studio.workspace import Workspace
from tests import readme
from tests.source import nodes_of

PACKAGE = Path(evaluating.__file__).parents[1]
TEMPLATES = PACKAGE / "ui" / "templates"

TABS_TO_DO: tuple[str, ...] = ()
"""Tabs that still have words of their own; whoever rewrites one takes it out."""

PHRASES = {
    # settings
    "longest row": "max length (tokens)",
    "rows that are too long": "truncation",
    "rows at once": "batch size",
    "most steps": "max steps",
    "most validation rows": "max validation rows",
    "validation share": "validation split",
    "trained part": "train on (loss mask)",
    "first weights": "LoRA initialization",
    "modules trained whole": "modules to save (trained in full)",
    "trained whole": "trained in full",
    "rank-stabilized": "rsLoRA",
    "4-bit numbers": "4-bit quant type",
    "4-bit computing": "4-bit compute dtype",
    "order of rows": "batch sampling",
    "warm-up": "warmup",
    "decay share": "decay ratio",
    "lowest rate": "min LR ratio",
    "beta 1": "Adam beta1",
    "beta 2": "Adam beta2",
    "gradient clipping": "max grad norm",
    "save checkpoints": "save strategy",
    "checkpoints kept": "checkpoints to keep",
    "best by": "metric for best model",
    "keep the best": "load best model at end",
    "least gain": "early-stopping threshold",
    "answers to read": "sample generations",
    "steps between points": "logging steps",
    "longest answer": "max new tokens",
    "longest length": "max length",
    "stop texts": "stop strings",
    "continue from adapter": "start from adapter",
    "learning by comparison": "preference training",
    "better answer": "chosen",
    "worse answer": "rejected",
    "swapped pairs": "label smoothing (noisy pairs)",
    # elsewhere
    "look at this data": "analyze dataset",
    "looked at yet": "no dataset analyzed yet",
    "train on this": "use for training",
    "correct the reading": "fix column mapping",
    "use this reading": "apply mapping",
    "kept back": "validation rows",
    "to measure on": "validation rows",
    "usable row": "valid row",
    "usable rows": "valid rows",
    "bad row": "invalid row",
    "bad rows": "invalid rows",
    "right tokens": "token accuracy",
    "nats a token": "nats/token",
    "tokens a second": "tokens/s",
    "going on": "active, running",
    "changes what the model says": "top-1 tokens differ",
    "likeliest": "top-1, most likely",
    "will stand here": "appear here",
    "bring with them": "adapter details",
    "from elsewhere": "external",
    "mark words that differ": "highlight differences",
    "compare token by token": "token probabilities",
    "ask all again": "regenerate all",
    "undo the last turn": "undo",
    "train it further": "continue training",
    "make it:": "export",
    "say almost what": "near-duplicates",
    "memory ran out": "out of memory",
    "as in the file": "raw",
    "as it stands": "raw",
    "as they stand": "raw",
    "data set": "dataset",
    "data sets": "datasets",
    "by heart": "overfitting",
}
"""Phrases that a person must not read any more, and what stands in their place."""
LABELS = {
    "Most rows": "Max training rows",
    "Steps between checkpoints": "Save steps",
    "Steps between evaluations": "Eval steps",
    "Accumulation": "Gradient accumulation steps",
    "Reading": "Column mapping",
    "Cycles": "LR cycles",
    "Epsilon": "Adam epsilon",
    "Patience": "Early-stopping patience",
    "Mark": "Label",
    "Made": "Created",
    "On disk": "Size",
    "Left": "ETA",
    "Load": "GPU utilization",
}
"""What must not be a whole label, button or column head."""
_FORBIDDEN = re.compile(
    "|".join(rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase in sorted(PHRASES, key=len)[::-1]), re.I
)
_ATTRIBUTES = re.compile(r"(?:aria-label|title|placeholder|alt)\s*=\s*\"([^\"]*)\"")
_SHOWN = ("label", "info", "placeholder", "value", "headers", "choices", "submit_btn", "stop_btn", "empty_label")


def faults(text: str) -> list[str]:
    """What is wrong with a text that a person reads."""
    found = [f"{match.lower()!r} -> {PHRASES[match.lower()]!r}" for match in _FORBIDDEN.findall(text)]
    return [*found, f"{text!r} -> {LABELS[text]!r}"] if text in LABELS else found


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a property of a component; of markup, its words and the attributes that are read out."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_of(item)
    elif isinstance(value, str) and "<" in value:
        yield from map(unescape, _ATTRIBUTES.findall(value))
        yield from filter(None, (unescape(part).strip() for part in re.split(r"<[^>]*>", value)))
    elif isinstance(value, str):
        yield value


def texts_of_page(demo: gr.Blocks) -> Iterator[tuple[str, str]]:
    """The tab ("" for what stands outside of all) and each text of the page as it is when it is opened."""
    for block in demo.blocks.values():
        place, tab = block, ""
        while place is not None:
            if isinstance(place, gr.Tab) and place.id in {name for name, *_ in TABS}:
                tab = str(place.id)
            place = place.parent
        config = block.get_config()
        for name in _SHOWN:
            for text in texts_of(config.get(name)):
                yield tab, text


def texts_of_templates() -> Iterator[tuple[str, str]]:
    """The words of the macros, without what they fill in."""
    for path in sorted(TEMPLATES.glob("*.jinja")):
        source = re.sub(r"\{#.*?#\}", "", path.read_text(encoding="utf-8"), flags=re.S)
        for literal in re.findall(r"\"([^\"{}<>]+)\"", source):
            yield path.stem, literal
        for text in texts_of(re.sub(r"\{[{%].*?[%}]\}", " ", source, flags=re.S)):
            yield path.stem, " ".join(text.split())


def texts_of_terminal() -> Iterator[str]:
    """Every line of every command's help."""
    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    yield parser.description or ""
    for command in commands.choices.values():
        yield command.description or ""
        for action in command._actions:
            yield str(action.help or "")


def texts_of_source(path: Path) -> Iterator[str]:
    """Every text in a module that could be a sentence: no docstring, and with a space."""
    documentation = {id(node.value) for node in nodes_of(path) if isinstance(node, ast.Expr)}
    constants = [node for node in nodes_of(path) if isinstance(node, ast.Constant) and id(node) not in documentation]
    return (node.value for node in constants if isinstance(node.value, str) and " " in node.value.strip())


@pytest.mark.slow
def test_every_label_button_and_column_head_of_the_page_is_a_term_of_the_field(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    log = tmp_path / "log"
    demo = page(Studio(workspace, Supervisor(workspace), Session(log), Session(log)))
    texts = list(texts_of_page(demo))
    assert len({tab for tab, _ in texts}) == len(TABS) + 1
    assert len(texts) > 300
    assert {"Start training", "Max length (tokens)"} <= {text for _, text in texts}
    wrong = [(tab, text, fault) for tab, text in texts if tab not in TABS_TO_DO for fault in faults(text)]
    assert not wrong


def test_the_words_of_all_templates_are_terms_of_the_field() -> None:
    texts = list(texts_of_templates())
    assert len(texts) > 100
    assert not [(name, text, faults(text)) for name, text in texts if name not in TABS_TO_DO and faults(text)]


def test_every_line_of_help_in_the_terminal_uses_terms_of_the_field() -> None:
    lines = list(texts_of_terminal())
    assert len(lines) > 300
    assert not [(line, faults(line)) for line in lines if faults(line)]


def test_every_message_of_the_package_uses_terms_of_the_field() -> None:
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if not _is_to_do(path)]
    assert len(paths) > 150
    wrong = [
        (path.relative_to(PACKAGE).as_posix(), text, faults(text))
        for path in paths
        for text in texts_of_source(path)
        if faults(text)
    ]
    assert not wrong


def test_readme_and_documentation_use_terms_of_the_field() -> None:
    pages = [readme.ROOT / "README.md", *sorted(readme.DOCS.rglob("*.md"))]
    wrong = {path.name: faults(path.read_text(encoding="utf-8")) for path in pages}
    assert len(pages) > 20
    assert not {name: found for name, found in wrong.items() if found}


def test_settings_and_presets_are_titled_and_explained_in_terms_of_the_field() -> None:
    sections = [*(target.settings for target in TARGETS.values()), evaluating.Measuring]
    listed = [*settings(), *(setting for section in sections for setting in described(section))]
    assert len(listed) > 80
    for setting in listed:
        texts = (setting.title, setting.description, setting.details, *setting.names.values())
        assert not [fault for text in texts for fault in faults(text)], setting.path
        assert not setting.title[:1].islower() or setting.title == "rsLoRA", f"{setting.title}: sentence case"
        assert len(setting.description.split()) <= 12, setting.path
    for preset in presets().values():
        assert not faults(preset.path.read_text(encoding="utf-8")), preset.name


@pytest.mark.parametrize("tab", TABS_TO_DO)
def test_a_tab_that_is_done_leaves_the_list(tab: str) -> None:
    texts = [text for path in (PACKAGE / "ui" / tab).glob("*.py") for text in texts_of_source(path)]
    texts += [text for name, text in texts_of_templates() if name == tab]
    assert any(map(faults, texts)), f"take {tab} out of TABS_TO_DO"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Longest row", True),
        ("the longest rows", False),
        ("3 usable rows, 1 bad row", True),
        ("No run is going on.", True),
        ("bad_rows", False),
        ("Made", True),
        ("Made by hand", False),
        ("KL 3.3 nats a token", True),
        ("KL 3.3 nats/token", False),
    ],
)
def test_words_are_found_in_sentences_and_only_whole(text: str, wrong: bool) -> None:
    assert bool(faults(text)) == wrong


def _is_to_do(path: Path) -> bool:
    folder = path.relative_to(PACKAGE).parts
    return folder[0] == "ui" and len(folder) > 2 and folder[1] in TABS_TO_DO
