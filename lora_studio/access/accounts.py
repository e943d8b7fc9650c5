"""Accounts, sessions and addresses: who may log in, who is logged in, and where a request comes from.

Passwords are compared in constant time, and no child process inherits them. Sessions and counts of attempts live in
memory, so a restart of the server ends every session.
"""

import hashlib
import hmac
import ipaddress
import math
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.models.hub import API_KEY, PASSWORD, USERS

USERS_FILE = "LORA_STUDIO_USERS_FILE"
OWNER = "owner"
MIN_KEY = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")  # a name is also the name of the visitor's folder


@dataclass(frozen=True)
class Accounts:
    """Passwords by user name. The first user is the owner and sees everybody's jobs. With `one`, any name with that
    password logs in as the owner.

    `token` is the password if it is also accepted in the address, "" if it has to be typed.
    """

    passwords: Mapping[str, str] = field(repr=False)
    owner: str
    one: bool = False
    token: str = field(default="", repr=False)

    @property
    def several(self) -> bool:
        """Whether visitors are told apart."""
        return len(self.passwords) > 1

    def name(self, name: str) -> str:
        """The account name for a name as it was typed."""
        return self.owner if self.one else name.strip()

    def user(self, name: str, password: str) -> str | None:
        """The user with this name and password; None if they do not match. Unknown names take as long to check as known
        ones."""
        name = self.name(name)
        account = self.passwords.get(name)
        same = hmac.compare_digest(_digest(password), _digest(account if account is not None else ""))
        return name if same and account is not None else None


def _digest(password: str) -> bytes:
    """A digest of fixed length, so that a comparison reveals nothing about the password's length."""
    return hashlib.sha256(password.encode()).digest()


def read_accounts(users_file: str | None = None, environment: Mapping[str, str] = os.environ) -> Accounts | None:
    """The accounts named by the environment or a file; None if neither names any."""
    path = users_file or environment.get(USERS_FILE)
    given = {PASSWORD: environment.get(PASSWORD), USERS: environment.get(USERS), "a users file": path}
    names = [name for name, value in given.items() if value]
    if len(names) > 1:
        raise StudioError(f"Logins are configured more than once: {' and by '.join(names)}.", "Use only one of them.")
    if path:
        return _parsed(_read(Path(path).expanduser()).splitlines(), path)
    if users := given[USERS]:
        return _parsed(re.split(r"[\n,]", users), USERS)
    if password := given[PASSWORD]:
        return Accounts({OWNER: password}, OWNER, one=True)
    return None


def read_api_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The key that programs send instead of logging in, which gives the owner's rights; None if there is none."""
    key = environment.get(API_KEY) or None
    if key is not None and len(key) < MIN_KEY:
        raise StudioError(
            f"{API_KEY} has only {len(key)} characters and could be guessed.",
            f"Use at least {MIN_KEY} characters, for example the output of `openssl rand -hex 24`.",
        )
    return key


def same_secret(candidate: str, secret: str) -> bool:
    """Compares two secrets in constant time."""
    return hmac.compare_digest(_digest(candidate), _digest(secret))


def _read(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudioError(
            f"The users file {path} cannot be read: {error}", "Give a text file with name:password lines."
        ) from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StudioError(
            f"The users file {path} contains passwords, and other users of this machine can read or change it.",
            f"Restrict its permissions: chmod 600 {path}",
        )
    return text


def _parsed(lines: list[str], place: str) -> Accounts:
    """Parses lines of `name:password`; the first user is the owner. Error messages never repeat the text of a line."""
    passwords: dict[str, str] = {}
    for number, line in enumerate((line.strip() for line in lines), 1):
        if not line or line.startswith("#"):
            continue
        name, colon, password = line.partition(":")
        name = name.strip()
        if not colon or not password.strip() or not _NAME.fullmatch(name):
            raise StudioError(
                f"Entry {number} of {place} is not of the form name:password.",
                "A name has up to 40 letters, digits, dots, dashes and underscores. A password must not be empty.",
            )
        if name.lower() in (known.lower() for known in passwords):
            raise StudioError(f"{place} contains the name {name} twice.", "Give every user a unique name.")
        passwords[name] = password.strip()
    if not passwords:
        raise StudioError(f"{place} contains no users.", "Write name:password lines, the owner first.")
    return Accounts(passwords, next(iter(passwords)))


EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # wildcard addresses, and the address to open instead
# Behind these stands the proxy of a Space, which nothing but that proxy reaches.
PRIVATE_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "fc00::/7", "::1")
_NETWORK_OF_ONE = 64  # prefix length of an IPv6 network that a provider assigns to one customer


def reachable(host: str) -> str:
    """The address at which programs on this machine reach a server that listens on `host`."""
    name = EVERYWHERE.get(host.strip("[]"), host)
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address of this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def client_prefix(address: str) -> str:
    """The part of an address that a single person cannot vary: a whole IPv4 address, the first 64 bits of an IPv6
    address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _NETWORK_OF_ONE), strict=False))


def is_among(address: str, networks: Sequence[str]) -> bool:
    """Whether an address equals one of these, or lies in one of these networks."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in ipaddress.ip_network(network) for network in networks)


def checked_proxies(names: Sequence[str]) -> tuple[str, ...]:
    """Addresses and networks of proxies in canonical form. Raises `StudioError` for anything else."""
    found = []
    for name in names:
        try:
            network = ipaddress.ip_network(name.strip())
        except ValueError as error:
            raise StudioError(
                f"{name!r} is not the address or network of a proxy: {error}.",
                "Use an address such as 10.0.0.5 or a network such as 10.0.0.0/8.",
            ) from None
        if network.prefixlen == 0:
            raise StudioError(
                f"{name} matches every address, so anyone could forge theirs.",
                "Give the address of the proxy, such as 10.0.0.5.",
            )
        single = network.prefixlen == network.max_prefixlen
        found.append(str(network.network_address) if single else str(network))
    return tuple(found)


IDLE_SECONDS = 8 * 3600.0
MAX_SECONDS = 7 * 24 * 3600.0
MAX_GUEST_SESSIONS = 1000  # in total: anybody can start a session
MAX_SESSIONS_OF_ADDRESS = 50  # per address of guests
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
    """Maps session tokens to users. A session ends when it is idle too long, too old, or logged out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._logins: dict[str, _Login] = {}

    def begin(self, user: str, *, guest_from: str = "") -> str:
        """Starts a session and returns its token. `guest_from` is the place that an anonymous guest comes from.

        When there are too many sessions, the one idle longest is dropped: for a guest, one from the same place, else
        any guest's; for other users, one of the same name. Nobody can push out another user's sessions.
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
        """The user of a token; None if the session has ended. The call counts as activity."""
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
        return now - login.seen < IDLE_SECONDS and now - login.begun < MAX_SECONDS


class JobsTokens:
    """The Hub tokens of visitors who let the studio run jobs on their own accounts: in memory, and nowhere else."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, float]] = {}

    def remember(self, user: str, token: str, expires: float) -> None:
        """Keeps a user's token until it expires."""
        with self._lock:
            if user not in self._tokens and len(self._tokens) >= MAX_REMEMBERED:
                del self._tokens[min(self._tokens, key=lambda name: self._tokens[name][1])]
            self._tokens[user] = token, expires

    def token(self, user: str) -> str:
        """The user's token; "" where there is none, or where it has expired."""
        with self._lock:
            token, expires = self._tokens.get(user, ("", 0.0))
            if token and expires <= self._clock():
                del self._tokens[user]
                return ""
            return token

    def forget(self, user: str) -> None:
        with self._lock:
            self._tokens.pop(user, None)


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
    """Counts failed logins per name and address. Each failure lengthens the wait for that pair only, so that an
    attacker does not lock out other names or the same user at another address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: dict[tuple[str, str], _Failures] = {}

    def check(self, address: str, name: str) -> None:
        """Raises `StudioError` with the remaining wait if this name failed too often from this address."""
        with self._lock:
            failures = self._failures.get((address, name[:MAX_NAME]), _Failures(0, 0.0))
        left = failures.last + failures.wait - self._clock()
        if failures.wait and left > 0:
            minutes = math.ceil(left / 60)
            wait = f"{minutes} minute{'s' * (minutes > 1)}" if left > 60 else f"{math.ceil(left)} seconds"
            raise StudioError("Too many wrong passwords.", f"Try again in {wait}.")

    def failed(self, address: str, name: str) -> None:
        now, key = self._clock(), (address, name[:MAX_NAME])
        with self._lock:
            before = self._failures.pop(key, _Failures(0, now))
            count = before.count if now - before.last < FORGOTTEN_SECONDS else 0
            if len(self._failures) >= MAX_REMEMBERED:
                self._forget_one(now)
            self._failures[key] = _Failures(count + 1, now)

    def succeeded(self, address: str, name: str) -> None:
        """Clears the failures after a correct password."""
        with self._lock:
            self._failures.pop((address, name[:MAX_NAME]), None)

    def _forget_one(self, now: float) -> None:
        """Drops the entry with the shortest wait, so that made-up names cannot displace an entry under attack."""
        del self._failures[min(self._failures, key=lambda key: self._failures[key].last + self._failures[key].wait)]
