"""Uploads to a small Hub on loopback: what is sent where, with which headers, and what its refusals mean."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from lora_studio.engine.export.hub import Published, check_name, full_name, publish
from lora_studio.engine.runtime import Stopped
from lora_studio.errors import StudioError
from tests.fake_hub import READER, STRANGER, TOKEN, FakeHub, fake_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with fake_hub() as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "README.md").write_text("---\nlicense: unknown\n---\n\n# A\n", encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "inner" / "notes.txt").write_text("small", encoding="utf-8")
    return tmp_path


def send(hub: FakeHub, folder: Path, repo: str = "me/pirate", token: str = TOKEN, **options: object) -> Published:
    given = {"private": True, "update": False, "message": "An adapter", **options}
    return publish(folder, repo, token, endpoint=hub.url, **given)


def test_every_file_arrives_in_a_private_repository_and_the_token_goes_to_the_hub_alone(
    hub: FakeHub, folder: Path
) -> None:
    steps: list[tuple[int, int]] = []
    made = send(hub, folder, on_progress=lambda done, total: steps.append((done, total)))
    assert made == Published("me/pirate", f"{hub.url}/me/pirate", True)
    assert hub.repos == {"me/pirate": True}
    sent = {path: content for (repo, path), content in hub.files.items() if repo == "me/pirate"}
    assert sent == {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.messages == ["An adapter"]
    assert steps[-1][0] == steps[-1][1] > 256_000
    assert len(steps) > 3
    for asked in hub.requests:
        assert TOKEN not in asked.path
        assert TOKEN.encode() not in asked.body
        assert [name for name, value in asked.headers.items() if TOKEN in value] in ([], ["authorization"])
        assert bool(asked.token) != asked.path.startswith("/store/")


def test_a_repository_that_is_there_is_left_alone_unless_an_update_is_allowed(hub: FakeHub, folder: Path) -> None:
    hub.repos["me/pirate"] = True
    with pytest.raises(StudioError, match="already exists on the Hub"):
        send(hub, folder)
    assert not hub.files
    send(hub, folder, update=True)
    assert len(hub.files) == 3


def test_a_public_repository_gets_nothing_that_is_meant_to_be_private(hub: FakeHub, folder: Path) -> None:
    hub.repos["me/pirate"] = False
    with pytest.raises(StudioError, match="public"):
        send(hub, folder, update=True)
    send(hub, folder, update=True, private=False)
    send(hub, folder, "me/open", private=False)
    assert hub.repos == {"me/pirate": False, "me/open": False}


def test_the_owner_is_the_tokens_own_where_none_is_named(hub: FakeHub) -> None:
    assert full_name("pirate", TOKEN, endpoint=hub.url) == "me/pirate"
    assert full_name(" crew/pirate ", TOKEN, endpoint=hub.url) == "crew/pirate"


def test_a_token_that_is_wrong_or_may_only_read_is_named_before_anything_is_made(hub: FakeHub) -> None:
    with pytest.raises(StudioError, match="rejects this token") as caught:
        full_name("pirate", "hf_wrongwrongwrong1234", endpoint=hub.url)
    assert "hf_wrong" not in caught.value.message + caught.value.hint
    with pytest.raises(StudioError, match="read-only"):
        full_name("pirate", READER, endpoint=hub.url)


def test_a_token_without_the_right_is_told_what_it_may_not(hub: FakeHub, folder: Path) -> None:
    with pytest.raises(StudioError, match=r"has no write access to crew/pirate.*namespace crew"):
        send(hub, folder, "crew/pirate", STRANGER)


@pytest.mark.parametrize(
    "name", ["", " ", "a/b/c", "me/../x", "-x", "me/a--b", "me/" + "x" * 97, "me/a b", "x.git", "me/ö"]
)
def test_a_name_that_the_hub_refuses_is_refused_here(name: str) -> None:
    with pytest.raises(StudioError):
        check_name(name)


def test_no_network_is_told_as_that(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudioError, match="cannot be reached"):
        full_name("pirate", TOKEN, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StudioError, match="HF_HUB_OFFLINE"):
        full_name("pirate", TOKEN, endpoint=hub.url)


def test_a_stop_ends_an_upload_in_the_middle_of_a_file(hub: FakeHub, folder: Path) -> None:
    seen: list[int] = []

    def check() -> None:
        if seen and seen[-1] > 60_000:
            raise Stopped

    with pytest.raises(Stopped):
        send(hub, folder, on_progress=lambda done, total: seen.append(done), check=check)
    assert not hub.files
