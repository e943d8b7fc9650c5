"""A token for the Hub: asked for only where none is known, and handed on in the environment alone."""

import argparse
import getpass
import sys
from pathlib import Path

import pytest

from lora_studio.cli import export_command, main
from lora_studio.errors import StudioError
from lora_studio.exports import Request, make_request
from lora_studio.hub_token import hub_secrets, knows_token
from lora_studio.jobs.exporting import Exports
from lora_studio.workspace import Workspace
from tests import adapters


class StartedError(Exception):
    """What the child would get."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Prompts that were shown; whoever is asked types a token. No child is started."""
    shown: list[str] = []

    def typed(prompt: str) -> str:
        shown.append(prompt)
        return " hf_typedtyped12 "

    def start(self: Exports, request: Request, secrets: dict[str, str]) -> str:
        raise StartedError(secrets)

    monkeypatch.setattr(getpass, "getpass", typed)
    monkeypatch.setattr(Exports, "start", start)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return shown


def export_to(target: str, workspace: Workspace, tmp_path: Path) -> dict[str, str]:
    folder = adapters.write(tmp_path / "adapter", adapters.files())
    given = argparse.Namespace(adapter=str(folder), to=target, out=None, no_trial=True, json=False)
    with pytest.raises(StartedError) as caught:
        export_command.export(workspace, given)
    found: dict[str, str] = caught.value.args[0]
    return found


def test_a_token_is_typed_unseen_where_none_is_known(asked: list[str], workspace: Workspace, tmp_path: Path) -> None:
    assert export_to("hub", workspace, tmp_path) == {"HF_TOKEN": "hf_typedtyped12"}
    assert len(asked) == 1


def test_nobody_is_asked_where_one_is_known_or_none_is_needed(
    asked: list[str], workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export_to("merged", workspace, tmp_path) == {}
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    assert export_to("hub", workspace, tmp_path) == {}
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert export_to("hub", workspace, tmp_path) == {}
    assert asked == []


def test_a_token_is_no_flag_and_no_setting(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["export", "last", "--to", "hub", "--token", "hf_x"])
    folder = str(adapters.write(tmp_path / "adapter", adapters.files()))
    with pytest.raises(StudioError, match="no setting token"):
        make_request(workspace, folder, "hub", settings={"token": "hf_x"})


def test_blanks_are_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setenv("HF_TOKEN", "  ")
    assert not knows_token()
    assert hub_secrets("  ") == {}
