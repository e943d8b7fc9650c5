"""What the page and the API work with: the workspace, its jobs, and the session children."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_studio.chat.arbiter import Engine
from lora_studio.jobs.session import READING, READING_OF_VISITORS, Patience, Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Workspace


@dataclass(frozen=True)
class Audience:
    """Whom the page is for, as far as it shows: `guests` of a public demonstration, people who log in.

    `owner` is the owner's name where users are told apart, else "".
    """

    guests: bool = False
    logins: bool = False
    hub_login: bool = False
    owner: str = ""


@dataclass(frozen=True)
class Services:
    """What serves requests. `inspector` reads data with a tokenizer, `chat` holds a model; both start on first use.

    `max_questions` of a person wait for an answer; `person_of` gives what users have in common who may be one person.
    """

    workspace: Workspace
    supervisor: Supervisor
    inspector: Session
    chat: Session
    audience: Audience = Audience()
    max_questions: int | None = None
    person_of: Callable[[str], str] = str

    @cached_property
    def engine(self) -> Engine:
        """The arbiter that answers in turn, for the chat tab and for programs."""
        return Engine(self.chat, self.supervisor, self.max_questions, self.person_of)


def session(workspace: Workspace, log: str, *, patience: bool = False) -> Session:
    """A session child for all users; each request may read what its user may read, here and on the Hub. With
    `patience`, a request that takes too long is ended."""

    def check(params: Mapping[str, Any]) -> None:
        workspace.policy.check_request(params)

    def tokenless() -> bool:
        return not workspace.policy.is_admin

    def limits() -> Patience:
        return READING if workspace.policy.is_admin else READING_OF_VISITORS

    return Session(workspace.logs_folder / log, check=check, tokenless=tokenless, patience=limits if patience else None)
