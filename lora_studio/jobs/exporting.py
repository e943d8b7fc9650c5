"""Exports are begun here, whoever asks: what must be true before, and which of them need the device."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lora_studio.adapter_card import read_card
from lora_studio.errors import StudioError
from lora_studio.exports import Request, create
from lora_studio.hub_token import VARIABLE
from lora_studio.jobs.device import Verdict, verdict
from lora_studio.jobs.kinds import EXPORT
from lora_studio.jobs.supervisor import Supervisor


def start(
    supervisor: Supervisor, request: Request, secrets: Mapping[str, str] | None = None, *, beside: bool = False
) -> str:
    """Makes the export's folder and starts its worker; its id. One that loads the whole model waits for the device.

    `secrets` go into the worker's environment and nowhere else. A visitor never publishes with the owner's token.
    """
    workspace = supervisor.workspace
    workspace.check_may("take adapters away")
    if request.target == "hub" and not workspace.owned and not (secrets or {}).get(VARIABLE):
        raise StudioError(
            "Publishing needs a token of your own: that of this machine is its owner's.",
            "Put one that may write into the field Token; it is used once and kept nowhere.",
        )
    return supervisor.submit(EXPORT, partial(create, workspace, request), beside=beside, secrets=secrets)


def memory_for(request: Request) -> Verdict:
    """Whether an export that loads the whole model fits beside what is in memory now."""
    card = read_card(Path(request.folder))
    return verdict(card.base, card.revision, "none", [Path(request.folder)], 0)
