"""Who may log in: from the environment or a file, told apart by nothing but the right password."""

from pathlib import Path

import pytest

from lora_studio.access.accounts import (
    API_KEY,
    MIN_KEY,
    PASSWORD,
    USERS,
    USERS_FILE,
    read_accounts,
    read_api_key,
    same_secret,
)
from lora_studio.errors import StudioError
from lora_studio.jobs.launchers.local import child_environment
from lora_studio.models.hub import CLIENT_SECRET, SECRETS


def test_nobody_logs_in_where_nobody_is_named() -> None:
    assert read_accounts(environment={}) is None
    assert read_accounts(environment={PASSWORD: "", USERS: ""}) is None


def test_one_password_opens_the_page_under_any_name_and_makes_an_owner() -> None:
    accounts = read_accounts(environment={PASSWORD: "geheim ü"})
    assert accounts is not None
    assert accounts.user("anyone", "geheim ü") == accounts.owner
    assert accounts.user("anyone", "geheim") is None
    assert accounts.user("anyone", "") is None
    assert not accounts.several


@pytest.mark.parametrize("text", ["anna:one,bert:t:w o", "anna:one\n\n# the other\n bert:t:w o \n"])
def test_users_have_names_and_the_first_is_the_owner(text: str) -> None:
    accounts = read_accounts(environment={USERS: text.replace("\n# the other", "")})
    assert accounts is not None
    assert accounts.owner == "anna"
    assert accounts.several
    assert accounts.user("bert", "t:w o") == "bert"
    for name, password in (("bert", "one"), ("anna", "t:w o"), ("carl", ""), ("", ""), ("Anna", "one")):
        assert accounts.user(name, password) is None


def test_a_file_of_users_must_be_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("# owner first\nanna:one\nbert:two\n")
    path.chmod(0o640)
    with pytest.raises(StudioError, match="other users of this machine"):
        read_accounts(str(path))
    path.chmod(0o600)
    accounts = read_accounts(environment={USERS_FILE: str(path)})
    assert accounts is not None
    assert accounts.user("bert", "two") == "bert"
    with pytest.raises(StudioError, match="cannot be read"):
        read_accounts(str(tmp_path / "none"))


@pytest.mark.parametrize("text", ["anna", "anna:", ":secret", "../x:secret", "a/b:secret", "anna:1,Anna:2", "#"])
def test_what_names_nobody_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(StudioError) as error:
        read_accounts(environment={USERS: text})
    assert "secret" not in str(error.value)


def test_logins_in_two_places_are_refused() -> None:
    with pytest.raises(StudioError, match="more than once"):
        read_accounts(environment={USERS: "a:b", PASSWORD: "c"})


def test_passwords_show_in_no_print_and_no_child_inherits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "t0p" not in repr(read_accounts(environment={USERS: "anna:t0p"}))
    monkeypatch.setenv(PASSWORD, "t0p")
    monkeypatch.setenv(USERS, "anna:t0p")
    assert "t0p" not in str(child_environment())


def test_a_key_that_could_be_guessed_is_refused_and_others_are_compared_whole() -> None:
    assert read_api_key({}) is None
    assert read_api_key({API_KEY: ""}) is None
    key = "k" * MIN_KEY
    assert read_api_key({API_KEY: key}) == key
    with pytest.raises(StudioError, match="could be guessed") as refused:
        read_api_key({API_KEY: key[1:]})
    assert key[1:] not in str(refused.value)
    assert same_secret(key, key)
    assert not same_secret(key[1:], key)
    assert not same_secret("ü", key)
    assert {API_KEY, CLIENT_SECRET} <= set(SECRETS)


def test_secrets_are_compared_in_constant_time_and_an_unknown_name_takes_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("lora_studio.access.accounts.hmac.compare_digest", watched)
    accounts = read_accounts(environment={USERS: "anna:one"})
    assert accounts is not None
    asked = [("anna", "one"), ("anna", "o"), ("nobody", "one"), ("anna", "one" * 1000), ("", "")]
    said = [accounts.user(*each) for each in asked]
    said.append("key" if same_secret("k", "key") else None)
    assert said == ["anna", None, None, None, None, None]
    assert len(compared) == len(said)
    assert {len(value) for pair in compared for value in pair} == {32}  # digests: no length is told either
