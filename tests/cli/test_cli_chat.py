"""`chat` in the terminal: which adapters may answer beside each other, told before anything is loaded."""

import pytest

from lora_studio.errors import EngineError
from lora_studio.jobs.session import Session
from lora_studio.workspace import Workspace
from tests.adapters import files, write
from tests.conftest import Say


def test_adapters_of_another_base_and_too_many_are_refused(say: Say, workspace: Workspace) -> None:
    ours, other = (
        str(write(workspace.root / name, files(base_model_name_or_path=base)))
        for name, base in (("ours", "demo"), ("other", "owner/else"))
    )
    code, _, told = say("chat", ours, "--beside", other)
    assert code == 2
    assert "This adapter was trained on owner/else; the columns here use demo." in told
    many = [word for name in "abc" for word in ("--beside", str(write(workspace.root / name, files())))]
    code, _, told = say("chat", ours, *many)
    assert code == 2
    assert "4 adapters were given." in told


def test_an_adapter_of_an_unknown_kind_is_refused_in_a_sentence(say: Say, workspace: Workspace) -> None:
    folder = str(write(workspace.root / "prompt", files(peft_type="XLORA")))
    code, _, told = say("chat", folder)
    assert code == 2
    assert "has the unsupported type XLORA." in told


def test_a_crash_of_the_engine_is_no_wrong_input(
    say: Say, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: object, **__: object) -> None:
        raise EngineError("The process that answers ended unexpectedly.")

    monkeypatch.setattr(Session, "call", ends)
    ours = str(write(workspace.root / "ours", files()))
    code, _, told = say("chat", ours, "--prompt", "hi")
    assert code == 1
    assert "ended unexpectedly" in told
    assert say("chat", "nowhere", "--prompt", "hi")[0] == 2
