"""Uploads are weighed before they come."""

import os
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from lora_studio.access import requests
from lora_studio.errors import StudioError
from tests.access.test_page_requests import files


def test_an_upload_is_weighed_before_it_comes_with_those_of_the_last_hour(tmp_path: Path) -> None:
    now = [0.0]
    found = files(tmp_path, lambda: now[0])

    def sent(user: str, size: int) -> str:
        return found.check_upload(user, Headers({"content-length": str(size)}))

    assert sent("bert", 60) == ""
    with pytest.raises(StudioError, match=r"no room. Uploads of the last hour count twice.\nDelete"):
        sent("bert", 60)
    assert [sent("bert", 40), sent("carl", 100), sent("anna", 999)] == ["", "", ""]
    now[0] = requests.CLEARED_SECONDS + 1
    assert sent("bert", 60) == ""


def test_what_is_left_of_a_broken_upload_is_removed(tmp_path: Path) -> None:
    whole, going_on, left = tmp_path / "a1b2" / "data.csv", tmp_path / "tmp1", tmp_path / "tmp2"
    whole.parent.mkdir()
    for path in (whole, going_on, left):
        path.write_text("x")
    for path in (whole, left):
        os.utime(path, (0, 0))
    requests.remove_abandoned(tmp_path)
    requests.remove_abandoned(tmp_path / "none")
    assert [path.exists() for path in (whole, going_on, left)] == [True, True, False]


@pytest.mark.parametrize("headers", [{}, {"content-length": "-1"}, {"content-length": "5", "transfer-encoding": "x"}])
def test_an_upload_whose_size_is_not_said_beforehand_is_refused(headers: dict[str, str], tmp_path: Path) -> None:
    assert "its size" in files(tmp_path).check_upload("carl", Headers(headers))


def test_what_was_uploaded_long_ago_is_nobodys(tmp_path: Path) -> None:
    now = [0.0]
    found = files(tmp_path, lambda: now[0])
    found.record_upload("bert", b'["/temp/a"]')
    assert found.is_uploader("bert", "/temp/a")
    now[0] = requests.CLEARED_SECONDS + 1
    found.record_upload("carl", b'["/temp/b"]')
    assert not found.is_uploader("bert", "/temp/a")
