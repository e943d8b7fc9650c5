"""Who is logged in, and who may try to: sessions that end, and attempts that are limited.

Both live in memory alone, so that a restart of the server ends every session. Safe to use from many threads.
"""

import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from lora_studio.errors import StudioError

IDLE_SECONDS = 8 * 3600.0
LONGEST_SECONDS = 7 * 24 * 3600.0
MAX_GUEST_SESSIONS = 1000  # in all: anybody can begin one
MAX_SESSIONS_OF_ADDRESS = 50  # of guests who come from one address
MAX_SESSIONS_OF_USER = 50
FREE_FAILURES = 5  # wrong passwords before the first wait
FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS = 30.0, 3600.0  # each further wrong password doubles the wait
FORGOTTEN_SECONDS = 2 * MAX_WAIT_SECONDS
MAX_REMEMBERED = 10_000
MAX_NAME = 100  # characters of a name that tell it from others


@dataclass(frozen=True, slots=True)
class _Login:
    user: str
    begun: float
    seen: float
    guest_from: str = ""


class Sessions:
    """Who a secret token stands for, until it is idle for too long, or too old, or logged out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._logins: dict[str, _Login] = {}

    def begin(self, user: str, *, guest_from: str = "") -> str:
        """A new token for that user; `guest_from` is where a guest comes from, whom nobody knows.

        Of very many sessions the one unused for longest ends: of a guest one from the same place, then any guest's;
        of others one of the same name. So nobody pushes others out.
        """
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._logins = {token: login for token, login in self._logins.items() if self._lives(login, now)}
            if guest_from:
                self._make_room(lambda login: login.guest_from == guest_from, MAX_SESSIONS_OF_ADDRESS)
                self._make_room(lambda login: login.guest_from != "", MAX_GUEST_SESSIONS)
            else:
                self._make_room(lambda login: login.user == user, MAX_SESSIONS_OF_USER)
            self._logins[token] = _Login(user, now, now, guest_from)
        return token

    def _make_room(self, alike: Callable[[_Login], bool], most: int) -> None:
        tokens = [token for token, login in self._logins.items() if alike(login)]
        if len(tokens) >= most:
            del self._logins[min(tokens, key=lambda token: self._logins[token].seen)]

    def user(self, token: str) -> str | None:
        """Who the token stands for; None where it ended. Asking keeps the session awake."""
        now = self._clock()
        with self._lock:
            login = self._logins.get(token)
            if login is None:
                return None
            if not self._lives(login, now):
                del self._logins[token]
                return None
            self._logins[token] = replace(login, seen=now)
            return login.user

    def end(self, token: str) -> None:
        with self._lock:
            self._logins.pop(token, None)

    @staticmethod
    def _lives(login: _Login, now: float) -> bool:
        return now - login.seen < IDLE_SECONDS and now - login.begun < LONGEST_SECONDS


@dataclass(frozen=True, slots=True)
class _Failures:
    count: int
    last: float

    @property
    def wait(self) -> float:
        """Seconds after the last one until the next attempt."""
        beyond = self.count - FREE_FAILURES
        return 0.0 if beyond < 0 else min(FIRST_WAIT_SECONDS * 2.0 ** min(beyond, 30), MAX_WAIT_SECONDS)


class Attempts:
    """Wrong passwords, counted for each name and address together: who guesses waits ever longer, and neither those
    with another name nor the same name's owner at another address wait with them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[tuple[str, str], _Failures] = {}

    def check(self, address: str, name: str) -> None:
        """Raises `StudioError` with the time to wait where that address failed too often under that name."""
        with self._lock:
            failures = self._failures.get((address, name[:MAX_NAME]), _Failures(0, 0.0))
        left = failures.last + failures.wait - self._clock()
        if failures.wait and left > 0:
            minutes = math.ceil(left / 60)
            wait = f"{minutes} minute{'s' * (minutes > 1)}" if left > 60 else f"{math.ceil(left)} seconds"
            raise StudioError("There were too many wrong passwords.", f"Try again in {wait}.")

    def failed(self, address: str, name: str) -> None:
        now, key = self._clock(), (address, name[:MAX_NAME])
        with self._lock:
            before = self._failures.pop(key, _Failures(0, now))
            count = before.count if now - before.last < FORGOTTEN_SECONDS else 0
            if len(self._failures) >= MAX_REMEMBERED:
                self._forget_one(now)
            self._failures[key] = _Failures(count + 1, now)

    def succeeded(self, address: str, name: str) -> None:
        """The right password: what was wrong before counts no more."""
        with self._lock:
            self._failures.pop((address, name[:MAX_NAME]), None)

    def _forget_one(self, now: float) -> None:
        """The one that waits the least: who invents names pushes out none that is being guessed at."""
        del self._failures[min(self._failures, key=lambda key: self._failures[key].last + self._failures[key].wait)]
