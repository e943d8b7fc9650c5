"""A token for the Hub: asked for only where none is known, handed on in the environment alone, and not for visitors."""

import argparse
import getpass
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import build_hf_headers

from lora_studio.access.policy import Users
from lora_studio.chat.choices import from_hub
from lora_studio.cli import export as export_command
from lora_studio.cli import main
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as evaluating
from lora_studio.evaluate.job import make_request as make_evaluation
from lora_studio.export import job as exporting
from lora_studio.export.job import ExportRequest, make_request
from lora_studio.jobs.launchers.local import LocalLauncher
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hub import hub_secrets, knows_token, without_implicit_token
from lora_studio.workspace import JobFolder, Workspace
from tests import adapters

OWNERS = "hf_of_the_owner"


class StartedError(Exception):
    """What the child would get."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Prompts that were shown; whoever is asked types a token. No child is started."""
    shown: list[str] = []

    def typed(prompt: str) -> str:
        shown.append(prompt)
        return " hf_typedtyped12 "

    def start(supervisor: Supervisor, request: ExportRequest, secrets: dict[str, str], **_: bool) -> str:
        raise StartedError(secrets)

    monkeypatch.setattr(getpass, "getpass", typed)
    monkeypatch.setattr(exporting, "start", start)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return shown


def export_to(target: str, workspace: Workspace, tmp_path: Path) -> dict[str, str]:
    folder = adapters.write(tmp_path / "adapter", adapters.files())
    given = argparse.Namespace(
        adapter=str(folder),
        to=target,
        out=None,
        no_trial=True,
        at_once=False,
        compute_target="local",
        json=False,
        unknown=[],
    )
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


def test_a_child_that_works_for_a_visitor_finds_no_token_and_the_owners_does(tmp_path: Path) -> None:
    visited = Users(Workspace(tmp_path / "workspace"), "anna").workspace_for(lambda: "bert")
    login = tmp_path / "hub" / "token"
    login.parent.mkdir()
    login.write_text(OWNERS)
    ask = "import huggingface_hub; print(huggingface_hub.get_token())"
    typed, logged_in = {"HF_TOKEN": OWNERS}, {"HF_TOKEN": "", "HF_TOKEN_PATH": str(login)}
    for variables, maker, found in ((typed, "bert", "None"), (logged_in, "bert", "None"), (logged_in, "anna", OWNERS)):
        env = os.environ | variables | visited.policy.tokens(maker)
        said = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True)
        assert said.stdout.strip() == found
    assert visited.policy.tokens("") == {}


def test_runs_and_other_jobs_of_visitors_are_started_without_the_owners_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = ["bert"]
    visited = Users(Workspace(tmp_path / "workspace"), "anna").workspace_for(lambda: now[0])
    started: list[tuple[str, str | None]] = []

    def start(self: LocalLauncher, job: JobFolder, module: str, **given: Any) -> None:
        started.append((job.owner_id, (given["env"] or {}).get("HF_TOKEN")))

    monkeypatch.setattr(LocalLauncher, "start", start)
    supervisor = Supervisor(visited)
    for now[0] in ("bert", "anna"):
        run = visited.run(supervisor.launch(Config()))
        adapters.write(run.adapter, adapters.files())
        supervisor.tick()
        evaluating.start(supervisor, make_evaluation(visited, [run.id], "pirate"))
    assert started == [("bert", ""), ("bert", ""), ("anna", None), ("anna", None)]


def test_a_child_that_all_share_sends_the_owners_token_for_the_owner_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", OWNERS)
    for withhold, sent in ((True, False), (False, True)):
        with without_implicit_token(withhold):
            assert ("authorization" in build_hf_headers()) is sent
    assert "authorization" in build_hf_headers()


def test_an_adapter_is_fetched_for_a_visitor_without_the_owners_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, tokens = ["bert"], []
    visited = Users(Workspace(tmp_path / "workspace"), "anna").workspace_for(lambda: now[0])

    def fetched(name: str, *, allow_patterns: list[str], local_dir: Path, token: bool | None) -> None:
        tokens.append(token)
        adapters.write(local_dir, adapters.files())

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for now[0] in ("bert", "anna"):
        from_hub("hub:owner/adapter", visited)
    assert tokens == [False, None]
