"""What the page and the API work with: the workspace, its jobs, and the session children."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lora_studio.access.guests import LIMITS, Guests, origin
from lora_studio.access.policy import Users
from lora_studio.access.serving import Serving
from lora_studio.chat.arbiter import Engine
from lora_studio.jobs.session import READING, READING_OF_VISITORS, Patience, Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Workspace


@dataclass(frozen=True)
class Services:
    """What serves requests. `inspector` reads data with a tokenizer, `chat` holds a model; both start on first use.

    `serving` says how the page is served, `users` what each user may do; None for the single local user, who may do
    everything.
    """

    workspace: Workspace
    supervisor: Supervisor
    inspector: Session
    chat: Session
    serving: Serving = field(default_factory=Serving)
    users: Users | None = None

    @cached_property
    def engine(self) -> Engine:
        """The arbiter that answers in turn, for the chat tab and for programs."""
        return Engine(self.chat, self.supervisor, LIMITS.questions if self.serving.guests else None, origin)


def users_of(workspace: Workspace, serving: Serving) -> Users | None:
    """The users of a served page; None if whoever opens it is at this machine and may do everything."""
    if serving.trusts_visitors:
        return None
    kind = Guests if serving.guests else Users
    users = kind(workspace, serving.owner, serving.folders, int(serving.quota_gb * 1e9))
    if isinstance(users, Guests):
        users.forget_guests()
    return users


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
