"""How the page is served: this machine alone unless told, never for others without a login unless told twice."""

import argparse
from pathlib import Path

import pytest

from lora_studio import serving
from lora_studio.accounts import PASSWORD
from lora_studio.errors import StudioError
from lora_studio.serving import Serving


def flags(*given: str, **environment: str) -> Serving:
    parser = argparse.ArgumentParser()
    serving.add_flags(parser)
    return serving.from_flags(parser.parse_args(given), environment)


def test_without_a_word_it_is_this_machine_alone() -> None:
    assert flags() == Serving("127.0.0.1", 7860, None, insecure=False, folders=(), max_upload_gb=2.0)
    assert flags().trusts_visitors


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]"])
def test_this_machine_needs_no_login(host: str) -> None:
    assert flags("--host", host).local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.evil.org"])
def test_other_machines_need_one(host: str) -> None:
    for given, environment in ((["--host", host], {}), ([], {serving.HOST: host})):
        with pytest.raises(StudioError, match="no login"):
            flags(*given, **environment)
    assert not flags("--host", host, **{PASSWORD: "secret"}).trusts_visitors
    assert not flags("--host", host, "--insecure").trusts_visitors


def test_a_flag_wins_over_the_environment(tmp_path: Path) -> None:
    environment = {
        serving.PORT: "81",
        serving.MAX_UPLOAD: "0.5",
        serving.FOLDERS: f"{tmp_path}:{tmp_path.parent}",
        serving.HOST: "::1",
    }
    assert flags(**environment) == Serving("::1", 81, folders=(tmp_path, tmp_path.parent), max_upload_gb=0.5)
    given = flags(
        "--port", "82", "--max-upload-gb", "3", "--folder", str(tmp_path), "--host", "localhost", **environment
    )
    assert given == Serving("localhost", 82, folders=(tmp_path,), max_upload_gb=3.0)


def test_what_can_not_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="no folder"):
        flags("--folder", str(tmp_path / "none"))
    for wrong in ("many", "-1", "0", "nan"):
        with pytest.raises(StudioError, match=serving.MAX_UPLOAD):
            flags(**{serving.MAX_UPLOAD: wrong})
