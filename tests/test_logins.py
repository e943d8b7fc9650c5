"""Sessions end, and wrong passwords make one wait."""

import pytest

from lora_studio import logins
from lora_studio.errors import StudioError
from lora_studio.logins import Attempts, Sessions


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_session_ends_when_it_is_idle_or_old_or_logged_out() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    token = sessions.begin("anna")
    while clock.now < logins.LONGEST_SECONDS - logins.IDLE_SECONDS:
        clock.now += logins.IDLE_SECONDS - 1
        assert sessions.user(token) == "anna"
    clock.now = logins.LONGEST_SECONDS
    assert sessions.user(token) is None
    idle = sessions.begin("anna")
    clock.now += logins.IDLE_SECONDS
    assert sessions.user(idle) is None
    out, other = sessions.begin("anna"), sessions.begin("anna")
    sessions.end(out)
    assert (sessions.user(out), sessions.user(other), sessions.user("")) == (None, "anna", None)


def test_sessions_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "MOST_OF_USER", 3)
    clock = Clock()
    sessions = Sessions(clock)
    tokens = []
    for clock.now in range(5):
        tokens.append(sessions.begin("anna"))
    assert [sessions.user(token) for token in tokens] == [None, None, "anna", "anna", "anna"]


def test_guests_push_out_guests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "MOST_GUESTS", 3)
    clock = Clock()
    sessions = Sessions(clock)
    owner, named = sessions.begin("owner"), sessions.begin("hub-bert")
    guests = []
    for clock.now in range(1, 6):
        guests.append(sessions.begin(f"guest-{clock.now}", guest=True))
    assert [sessions.user(token) is not None for token in guests] == [False, False, True, True, True]
    assert (sessions.user(owner), sessions.user(named)) == ("owner", "hub-bert")


def test_an_address_that_guesses_waits_and_is_told_how_long() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for clock.now in range(logins.MOST_OF_ONE):
        attempts.check("1.2.3.4")
        attempts.failed("1.2.3.4")
    with pytest.raises(StudioError, match="Try again in 5 minutes"):
        attempts.check("1.2.3.4")
    attempts.check("5.6.7.8")
    clock.now = logins.WINDOW_SECONDS
    attempts.check("1.2.3.4")


def test_many_addresses_together_wait_as_well() -> None:
    attempts = Attempts(Clock())
    for number in range(logins.MOST_OF_ALL):
        attempts.failed(f"10.0.0.{number}")
    with pytest.raises(StudioError, match="Try again"):
        attempts.check("1.2.3.4")
