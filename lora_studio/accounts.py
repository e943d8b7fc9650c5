"""Who may log in to the page: names and passwords out of the environment or a file, and whose name owns the studio.

Passwords are compared in constant time and held by this process alone: no child inherits them.
"""

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_studio.errors import StudioError
from lora_studio.hub_token import API_KEY, PASSWORD, USERS

USERS_FILE = "LORA_STUDIO_USERS_FILE"
OWNER = "owner"
SHORTEST_KEY = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")  # a name is also the name of the visitor's folder


@dataclass(frozen=True)
class Accounts:
    """Passwords by name. The owner sees what all made; with `one`, any name with the one password is the owner's.

    `token` is that password where it is let in from an address as well; "" where it has to be typed.
    """

    passwords: Mapping[str, str] = field(repr=False)
    owner: str
    one: bool = False
    token: str = field(default="", repr=False)

    @property
    def several(self) -> bool:
        """Whether visitors are told apart."""
        return len(self.passwords) > 1

    def name(self, given: str) -> str:
        """The name that counts for what was typed as one."""
        return self.owner if self.one else given.strip()

    def user(self, name: str, password: str) -> str | None:
        """Who that is; None where name and password do not belong together. An unknown name takes as long."""
        name = self.name(name)
        known = self.passwords.get(name)
        same = hmac.compare_digest(_digest(password), _digest(known if known is not None else ""))
        return name if same and known is not None else None


def _digest(password: str) -> bytes:
    """Of one length whatever the password's, so that a comparison tells nothing of it."""
    return hashlib.sha256(password.encode()).digest()


def read_accounts(users_file: str | None = None, environment: Mapping[str, str] = os.environ) -> Accounts | None:
    """The accounts that the environment or a file names; None where neither does."""
    path = users_file or environment.get(USERS_FILE)
    given = {PASSWORD: environment.get(PASSWORD), USERS: environment.get(USERS), "a users file": path}
    named = [name for name, value in given.items() if value]
    if len(named) > 1:
        raise StudioError(f"Logins are given twice: by {' and by '.join(named)}.", "Give them in one place.")
    if path:
        return _parsed(_read(Path(path).expanduser()).splitlines(), path)
    if users := given[USERS]:
        return _parsed(re.split(r"[\n,]", users), USERS)
    if password := given[PASSWORD]:
        return Accounts({OWNER: password}, OWNER, one=True)
    return None


def read_api_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """The key that programs give instead of a login, and that opens what is the owner's; None where there is none."""
    key = environment.get(API_KEY) or None
    if key is not None and len(key) < SHORTEST_KEY:
        raise StudioError(
            f"{API_KEY} has {len(key)} characters and could be guessed.",
            f"Give it {SHORTEST_KEY} or more, for instance what `openssl rand -hex 24` prints.",
        )
    return key


def same_secret(given: str, secret: str) -> bool:
    """Whether both are equal, in a time that tells nothing of the secret."""
    return hmac.compare_digest(_digest(given), _digest(secret))


def _read(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudioError(
            f"The users file {path} can't be read: {error}", "Give a text file with name:password lines."
        ) from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StudioError(
            f"The users file {path} holds passwords, and others on this machine may read or change it.",
            f"Make it yours alone: chmod 600 {path}",
        )
    return text


def _parsed(lines: list[str], place: str) -> Accounts:
    """`name:password` each; the first is the owner. An error never repeats what stands in a line."""
    passwords: dict[str, str] = {}
    for number, line in enumerate((line.strip() for line in lines), 1):
        if not line or line.startswith("#"):
            continue
        name, colon, password = line.partition(":")
        name = name.strip()
        if not colon or not password.strip() or not _NAME.fullmatch(name):
            raise StudioError(
                f"Entry {number} of {place} is no name:password.",
                "A name has up to 40 letters, digits, dots, dashes and underscores; a password is not empty.",
            )
        if name.lower() in (known.lower() for known in passwords):
            raise StudioError(f"{place} names {name} twice.", "Give every visitor a name of their own.")
        passwords[name] = password.strip()
    if not passwords:
        raise StudioError(f"{place} names nobody.", "Write name:password, the owner's first.")
    return Accounts(passwords, next(iter(passwords)))
