"""Who is logged in, and who may try to: sessions that end, and attempts that are limited.

Both live in memory alone, so that a restart of the server ends every session. Safe to use from many threads.
"""

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from lora_studio.errors import StudioError

IDLE_SECONDS = 8 * 3600.0
LONGEST_SECONDS = 7 * 24 * 3600.0
MOST_GUESTS = 1000  # sessions of guests in all: anybody can begin one
MOST_OF_USER = 50  # sessions of one name
WINDOW_SECONDS = 300.0
MOST_OF_ONE, MOST_OF_ALL = 5, 50  # wrong passwords within the window


@dataclass(frozen=True, slots=True)
class _Login:
    user: str
    begun: float
    seen: float
    guest: bool = False


class Sessions:
    """Who a secret token stands for, until it is idle for too long, or too old, or logged out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._logins: dict[str, _Login] = {}

    def begin(self, user: str, *, guest: bool = False) -> str:
        """A new token for that user. Of very many sessions the one unused for longest ends: a guest's for a guest, and
        one of the same name for whoever has one, so that nobody pushes others out."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._logins = {token: login for token, login in self._logins.items() if self._lives(login, now)}
            alike = [other for other, login in self._logins.items() if (login.guest if guest else login.user == user)]
            if len(alike) >= (MOST_GUESTS if guest else MOST_OF_USER):
                del self._logins[min(alike, key=lambda other: self._logins[other].seen)]
            self._logins[token] = _Login(user, now, now, guest)
        return token

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


class Attempts:
    """Wrong passwords of the last minutes, of each address and in all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: deque[tuple[float, str]] = deque()

    def check(self, address: str) -> None:
        """Raises `StudioError` with the minutes to wait where that address, or all together, failed too often."""
        now = self._clock()
        with self._lock:
            while self._failures and now - self._failures[0][0] >= WINDOW_SECONDS:
                self._failures.popleft()
            own = [when for when, who in self._failures if who == address]
            everybody = [when for when, _ in self._failures]
        for times, most in ((own, MOST_OF_ONE), (everybody, MOST_OF_ALL)):
            if len(times) >= most:
                wait = math.ceil((times[-most] + WINDOW_SECONDS - now) / 60)
                raise StudioError(
                    "There were too many wrong passwords.", f"Try again in {wait} minute{'s' * (wait > 1)}."
                )

    def failed(self, address: str) -> None:
        with self._lock:
            self._failures.append((self._clock(), address))
