"""`chat` in the terminal: which adapters may answer beside each other, told before anything is loaded."""

import pytest

from lora_studio.cli import main
from lora_studio.workspace import Workspace
from tests.adapters import files, write


def test_adapters_of_another_base_and_too_many_are_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, other = (
        str(write(workspace.root / name, files(base_model_name_or_path=base)))
        for name, base in (("ours", "demo"), ("other", "owner/else"))
    )
    assert main(["chat", ours, "--beside", other, "--workspace", str(workspace.root)]) == 2
    assert "This adapter was trained on owner/else; the columns here are on demo." in capsys.readouterr().err
    many = [word for name in "abc" for word in ("--beside", str(write(workspace.root / name, files())))]
    assert main(["chat", ours, *many, "--workspace", str(workspace.root)]) == 2
    assert "4 adapters are named." in capsys.readouterr().err


def test_an_adapter_of_an_unknown_kind_is_refused_in_a_sentence(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write(workspace.root / "prompt", files(peft_type="XLORA")))
    assert main(["chat", folder, "--workspace", str(workspace.root)]) == 2
    assert "is of the kind XLORA, which is not known here." in capsys.readouterr().err
