"""Addresses: which are one person's, and which can be named as a proxy."""

import pytest

from lora_studio.access.accounts import checked_proxies, client_prefix, is_among
from lora_studio.errors import StudioError


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_whoever_has_one_address_is_one_person(address: str, place: str) -> None:
    assert client_prefix(address) == place


def test_an_address_is_among_others_or_in_their_networks() -> None:
    named = ("10.0.0.5", "10.1.0.0/16", "fd00::/8")
    assert [is_among(one, named) for one in ("10.0.0.5", "10.1.2.3", "fd00::1")] == [True] * 3
    assert [is_among(one, named) for one in ("10.0.0.6", "::1", "", "x")] == [False] * 4


def test_a_proxy_is_an_address_or_a_network_but_not_everybody() -> None:
    assert checked_proxies(["10.0.0.5", " 10.1.0.0/16", "::1/128"]) == ("10.0.0.5", "10.1.0.0/16", "::1")
    for wrong in ("0.0.0.0/0", "::/0", "10.0.0.1/8", "nginx", ""):
        with pytest.raises(StudioError):
            checked_proxies([wrong])
