"""How the page is served: this machine alone unless told, never for others without a login unless told twice."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.access import serving
from lora_studio.access.serving import Serving
from lora_studio.errors import StudioError
from lora_studio.models.hub import PASSWORD, TOKEN


def flags(*given: str, **environment: str) -> Serving:
    parser = argparse.ArgumentParser()
    serving.add_flags(parser)
    return serving.from_flags(parser.parse_args(given), environment)


def test_the_address_that_is_told_can_be_opened_and_says_who_reaches_it() -> None:
    def told(host: str, port: int) -> str:
        return serving.address_words(Serving(host, port))

    assert told("127.0.0.1", 7860) == "LoRA Studio is on http://127.0.0.1:7860"
    first, second = told("0.0.0.0", 80).splitlines()
    assert first == "LoRA Studio is on http://127.0.0.1:80"
    assert "listens on every address" in second
    assert told("::", 80).startswith("LoRA Studio is on http://[::1]:80\n")
    assert "listens on 10.0.0.7" in told("10.0.0.7", 80)
    assert told("::1", 80) == "LoRA Studio is on http://[::1]:80"


@pytest.mark.parametrize("port", ["0", "-1", "65536", "99999"])
def test_a_port_that_no_machine_has_is_refused_in_a_sentence(port: str) -> None:
    with pytest.raises(StudioError, match=rf"There is no port {port}\.\n.*1 to 65535"):
        flags("--port", port)
    if port > "0":
        with pytest.raises(StudioError, match=rf"There is no port {port}"):
            flags(**{serving.PORT: port})


def test_the_terminal_is_told_where_things_are_kept_and_how_to_stop(tmp_path: Path) -> None:
    where, stop = serving.where_words(tmp_path).splitlines()
    assert where.endswith(str(tmp_path))
    assert stop.startswith("Stop with Ctrl-C: ")
    assert "goes on" in stop
    assert "saves a checkpoint" in serving.where_words(tmp_path, container=True)


def test_a_token_is_made_or_given_and_stands_in_the_address_alone() -> None:
    made = flags("--token")
    assert made.accounts is not None
    assert len(made.accounts.token) == 48
    assert serving.page_address(made) == f"http://127.0.0.1:7860/?token={made.accounts.token}"
    assert made.accounts.token not in repr(made)
    assert made.trusts_visitors
    assert not flags("--token", "--host", "0.0.0.0").trusts_visitors
    given = flags(**{TOKEN: "x" * 16}).accounts
    assert given is not None
    assert given.token == "x" * 16
    for wrong in ("x" * 15, "&" * 16):
        with pytest.raises(StudioError, match=TOKEN):
            flags(**{TOKEN: wrong})
    for environment, more in (({PASSWORD: "secret"}, []), ({}, ["--guests"])):
        with pytest.raises(StudioError, match="Use only one"):
            flags("--token", *more, **environment)


def test_proxies_are_named_and_a_space_has_its_own() -> None:
    assert flags().proxies == ()
    assert flags("--trusted-proxy", "10.0.0.5", "--trusted-proxy", "fd00::/8").proxies == ("10.0.0.5", "fd00::/8")
    assert flags(**{serving.PROXIES: "10.0.0.5, 10.1.0.0/16"}).proxies == ("10.0.0.5", "10.1.0.0/16")
    assert "10.0.0.0/8" in flags(**SPACE).proxies
    assert flags("--trusted-proxy", "10.0.0.5", **SPACE).proxies == ("10.0.0.5",)
    for wrong in ("proxy.example", "10.0.0.1/8", "0.0.0.0/0", "*"):
        with pytest.raises(StudioError, match=r"prox|anyone"):
            flags("--trusted-proxy", wrong)


def test_the_page_answers_to_the_names_that_are_allowed() -> None:
    assert flags().page_names == ()
    assert flags("--insecure").page_names == ()
    assert flags("--insecure", "--host", "0.0.0.0").page_names is None
    assert flags(**{PASSWORD: "secret"}).page_names is None
    assert flags("--guests").page_names is None
    assert flags("--allowed-host", "Studio.example.org").page_names == ("studio.example.org",)
    assert flags(**{serving.NAMES: "a.org,b.org:81"}).page_names == ("a.org", "b.org:81")
    for wrong in ("http://a.org", "a.org/x", ""):
        with pytest.raises(StudioError, match="host name"):
            flags("--allowed-host", wrong)


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
    with pytest.raises(StudioError, match="does not exist"):
        flags("--folder", str(tmp_path / "none"))
    for wrong in ("-1", "0", "nan"):
        with pytest.raises(StudioError, match="--quota-gb"):
            flags("--quota-gb", wrong)
    for wrong in ("many", "-1", "0", "nan"):
        with pytest.raises(StudioError, match=serving.MAX_UPLOAD):
            flags(**{serving.MAX_UPLOAD: wrong})
    for wrong in ("0", "-1"):
        with pytest.raises(StudioError, match=r"--devices-per-visitor is .* not a number of devices"):
            flags("--devices-per-visitor", wrong)
    with pytest.raises(StudioError, match=f"{serving.SHARE} is 'all'"):
        flags(**{serving.SHARE: "all"})


def test_visitors_use_one_device_at_a_time_unless_the_owner_says_more() -> None:
    assert (flags().device_share, flags(**{serving.SHARE: "2"}).device_share) == (1, 2)
    assert flags("--devices-per-visitor", "3", **{serving.SHARE: "2"}).device_share == 3


SPACE = {"SPACE_ID": "anna/studio", "SPACE_HOST": "anna-studio.hf.space", "SPACE_AUTHOR_NAME": "anna"}
HUB = {
    "OAUTH_CLIENT_ID": "app",
    "OAUTH_CLIENT_SECRET": "s" * 32,
    "OPENID_PROVIDER_URL": "https://hub.example/",
}


def test_a_space_without_a_login_lets_guests_in_on_all_addresses() -> None:
    found = flags(**SPACE)
    assert (found.host, found.guests, found.hub_app) == ("0.0.0.0", True, None)
    assert not found.trusts_visitors
    assert found.several
    assert (found.max_upload_gb, found.quota_gb) == (serving.GUEST_GB, serving.GUEST_QUOTA_GB)
    assert flags(**SPACE, GRADIO_SERVER_NAME="127.0.0.1", GRADIO_SERVER_PORT="99") == replace(
        found, host="127.0.0.1", port=99
    )


def test_a_space_with_a_password_lets_nobody_else_in() -> None:
    found = flags(**SPACE, **HUB, **{PASSWORD: "secret"})
    assert (found.guests, found.hub_app) == (False, None)
    with pytest.raises(StudioError, match="Use only one"):
        flags("--guests", **{PASSWORD: "secret"})


def test_the_owner_of_a_space_logs_in_at_the_hub_where_it_offers_that() -> None:
    app = flags(**SPACE, **HUB).hub_app
    assert app is not None
    assert (app.owner, app.callback) == ("anna", "https://anna-studio.hf.space/login/callback")
    assert app.provider == "https://hub.example"
    assert flags(**SPACE).names == ("anna-studio.hf.space",)
    assert "s" * 32 not in repr(app)
    other = flags(**SPACE, **HUB, LORA_STUDIO_OWNER="bert").hub_app
    assert other is not None
    assert other.owner == "bert"
    assert flags(**HUB).hub_app is None


def test_guests_are_let_in_elsewhere_only_when_told_so() -> None:
    assert flags("--guests", "--host", "0.0.0.0").guests
    assert not flags().guests
