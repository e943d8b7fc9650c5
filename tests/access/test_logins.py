"""Sessions end, and wrong passwords make one wait."""

import pytest

from lora_studio.access import accounts
from lora_studio.access.accounts import Attempts, Sessions
from lora_studio.errors import StudioError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_ends_when_it_is_idle_or_old_or_logged_out() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    token = sessions.begin("anna")
    while clock.now < accounts.MAX_SECONDS - accounts.IDLE_SECONDS:
        clock.now += accounts.IDLE_SECONDS - 1
        assert sessions.user(token) == "anna"
    clock.now = accounts.MAX_SECONDS
    assert sessions.user(token) is None
    idle = sessions.begin("anna")
    clock.now += accounts.IDLE_SECONDS
    assert sessions.user(idle) is None
    out, other = sessions.begin("anna"), sessions.begin("anna")
    sessions.end(out)
    assert (sessions.user(out), sessions.user(other), sessions.user("")) == (None, "anna", None)


def test_sessions_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_SESSIONS_OF_USER", 3)
    clock = Clock()
    sessions = Sessions(clock)
    tokens = []
    for clock.now in range(5):
        tokens.append(sessions.begin("anna"))
    assert [sessions.user(token) for token in tokens] == [None, None, "anna", "anna", "anna"]


def test_guests_push_out_guests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_GUEST_SESSIONS", 3)
    clock = Clock()
    sessions = Sessions(clock)
    owner, named = sessions.begin("owner"), sessions.begin("hub-bert")
    guests = []
    for clock.now in range(1, 6):
        guests.append(sessions.begin(f"guest-{clock.now}", guest_from=f"place {clock.now}"))
    assert [sessions.user(token) is not None for token in guests] == [False, False, True, True, True]
    assert (sessions.user(owner), sessions.user(named)) == ("owner", "hub-bert")


def test_who_throws_cookies_away_pushes_out_nobody_but_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_SESSIONS_OF_ADDRESS", 3)
    sessions = Sessions(Clock())
    other = sessions.begin("guest-a-1", guest_from="a")
    for number in range(10):
        last = sessions.begin(f"guest-b-{number}", guest_from="b")
    assert (sessions.user(other), sessions.user(last)) == ("guest-a-1", "guest-b-9")


def test_who_guesses_waits_ever_longer_and_is_told_how_long() -> None:
    clock = Clock()
    attempts = Attempts(clock)

    def guess() -> None:
        attempts.check("1.2.3.4", "anna")
        attempts.failed("1.2.3.4", "anna")

    for _ in range(accounts.FREE_FAILURES):
        guess()
    for wait, words in ((30, "30 seconds"), (60, "60 seconds"), (120, "2 minutes"), (240, "4 minutes")):
        with pytest.raises(StudioError, match=f"Try again in {words}"):
            guess()
        clock.now += wait
        guess()
    for _ in range(20):
        clock.now += accounts.MAX_WAIT_SECONDS
        guess()
    with pytest.raises(StudioError, match="Try again in 60 minutes"):
        guess()
    clock.now += accounts.FORGOTTEN_SECONDS
    for _ in range(accounts.FREE_FAILURES):
        guess()


def test_nobody_waits_for_what_others_guess() -> None:
    attempts = Attempts(Clock())
    for number in range(200):
        attempts.failed("1.2.3.4", "anna")
        attempts.failed(f"10.0.0.{number}", "bert")
    attempts.check("5.6.7.8", "anna")
    attempts.check("1.2.3.4", "bert")
    with pytest.raises(StudioError, match="Try again"):
        attempts.check("1.2.3.4", "anna")


def test_the_right_password_ends_the_count() -> None:
    attempts = Attempts(Clock())
    for _ in range(3):
        for _ in range(accounts.FREE_FAILURES - 1):
            attempts.failed("1.2.3.4", "anna")
        attempts.succeeded("1.2.3.4", "anna")
    attempts.check("1.2.3.4", "anna")


def test_invented_names_push_out_no_name_that_is_being_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_REMEMBERED", 10)
    attempts = Attempts(Clock())
    for _ in range(accounts.FREE_FAILURES):
        attempts.failed("1.2.3.4", "anna")
    for number in range(50):
        attempts.failed("1.2.3.4", f"invented {number}")
    with pytest.raises(StudioError, match="Try again"):
        attempts.check("1.2.3.4", "anna")
