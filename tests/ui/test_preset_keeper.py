"""Keeping the form as a preset: what is said, and what is asked, without a page."""

from typing import Any

from lora_studio.config.parsing import presets
from lora_studio.config.sections import Config
from lora_studio.ui import form
from lora_studio.ui.train import presets as preset_keeper
from lora_studio.workspace import Workspace


def keep(workspace: Workspace, name: str, *, again: bool = False, **changes: Any) -> tuple[str | None, str, bool]:
    flat = {path.replace("__", "."): value for path, value in changes.items()}
    raws = form.overlay(form.shown(Config()), flat)
    return preset_keeper.keep(workspace, form.read, name, "For tests.", raws, again)


def test_the_form_is_kept_and_appears_in_the_list(workspace: Workspace) -> None:
    kept, words, ask = keep(workspace, "my bot", lora__r=4)
    assert (kept, ask) == ("my-bot", False)
    assert "my-bot" in words
    assert presets(workspace)["my-bot"].about == "For tests."


def test_a_taken_name_is_asked_about_and_replaced_only_then(workspace: Workspace) -> None:
    keep(workspace, "mine", lora__r=4)
    kept, words, ask = keep(workspace, "mine", lora__r=8)
    assert (kept, ask) == (None, True)
    assert "Replace it" in words
    assert keep(workspace, "mine", again=True, lora__r=8)[0] == "mine"
    assert presets(workspace)["mine"].values() == {"lora": {"r": 8}}


def test_a_form_that_is_not_right_is_not_kept(workspace: Workspace) -> None:
    kept, words, ask = keep(workspace, "mine", lora__r="many")
    assert (kept, ask) == (None, False)
    assert "lora.r" in words
    assert "mine" not in presets(workspace)
