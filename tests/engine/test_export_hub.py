"""An export to the Hub: what arrives there, what the page is told, and where the token is not."""

import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml

from lora_studio.engine.runtime import Stopped
from lora_studio.export import job as exporting
from lora_studio.export.job import folders, make_request
from lora_studio.jobs.launchers.local import LocalLauncher
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import RunFolder

from ..fake_hub import TOKEN, FakeHub, fake_hub
from .exporting import last_event, take_away, workspace_of


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as found:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", found.url)
        yield found


def everything_written(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def command_lines() -> list[bytes]:
    """The arguments of every process of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_an_adapter_arrives_with_its_card_and_the_token_is_nowhere_else(trained: RunFolder) -> None:
    workspace, seen = workspace_of(trained), list[bytes]()
    with fake_hub() as hub:
        outside = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
        jobs = Supervisor(workspace, LocalLauncher(env=outside))
        settings = {"base_name": "tiny/base"}
        request = make_request(workspace, trained.id, "hub", settings=settings, trial=False)
        folder = folders(workspace).find(exporting.start(jobs, request, {"HF_TOKEN": TOKEN}))
        until = time.monotonic() + 400
        while not (state := jobs.state(folder.id)).final and time.monotonic() < until:
            seen += command_lines()
            time.sleep(0.3)
        assert (state.state, state.message) == ("done", "")
        link = folder.read_result()["link"]
    assert link == f"{hub.url}/me/test"
    assert hub.repos == {"me/test": True}
    names = {path for _, path in hub.files}
    assert {
        "README.md",
        "adapter_model.safetensors",
        "adapter_config.json",
        "chat_template.jinja",
        "studio.json",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt"))]
    front = yaml.safe_load(hub.files["me/test", "README.md"].decode().split("---\n")[1])
    assert front["base_model"] == "tiny/base"
    assert all(str(workspace.root).encode() not in content for content in hub.files.values())
    assert {asked.token for asked in hub.requests if not asked.path.startswith("/store/")} == {TOKEN}
    assert [path for path, content in everything_written(workspace.root) if TOKEN.encode() in content] == []
    assert seen
    assert not [line for line in seen if TOKEN.encode() in line]


def test_without_a_token_nothing_is_made(trained: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("lora_studio.engine.export.hub.get_token", lambda: None)
    folder = take_away(trained, "hub", base_name="tiny/base")
    assert "No Hub token" in last_event(folder).message
    assert (hub.requests, hub.repos) == ([], {})


def test_a_token_that_the_hub_does_not_know_ends_it_before_anything_slow(
    trained: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong1234")
    folder = take_away(trained, "hub", base_name="tiny/base")
    assert "rejects this token" in last_event(folder).message
    assert '"phase": "model"' not in folder.events.read_text()
    assert "hf_wrong" not in folder.events.read_text()


def test_a_local_base_has_to_get_the_name_that_others_know(trained: RunFolder, hub: FakeHub) -> None:
    assert "only exists on this machine" in last_event(take_away(trained, "hub")).message
    assert not hub.requests


@pytest.mark.slow
def test_a_merged_model_can_be_published(trained: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    settings = {
        "base_name": "tiny/base",
        "repo": "crew/whole",
        "content": "merged",
        "private": False,
        "dtype": "float32",
    }
    folder = take_away(trained, "hub", **settings)
    assert (last_event(folder).state, folder.read_result()["same"]) == ("done", True)
    assert hub.repos == {"crew/whole": False}
    assert ("crew/whole", "model.safetensors") in hub.files
    assert "public" in folder.read_result()["words"]


def test_a_stop_while_uploading_names_the_repository_that_is_left(
    trained: RunFolder, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: object, **named: object) -> None:
        raise Stopped

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("lora_studio.engine.export.hub.publish", stopped)
    folder = take_away(trained, "hub", base_name="tiny/base")
    assert last_event(folder).state == "stopped"
    assert "me/test may already exist on the Hub" in folder.events.read_text()
    assert not folder.result.exists()
