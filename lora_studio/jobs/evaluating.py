"""Evaluations are begun here, whoever asks: what must be true before, and whether one fits beside what works."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from lora_studio.adapter_card import read_card
from lora_studio.errors import StudioError
from lora_studio.evaluations import Request, create
from lora_studio.jobs.device import Verdict, verdict
from lora_studio.jobs.kinds import EVALUATE
from lora_studio.jobs.supervisor import Supervisor

PROMPT_TOKENS = 512
"""Tokens of a test file's row that are reckoned with before its answer."""


def start(supervisor: Supervisor, request: Request, *, beside: bool = False) -> str:
    """Makes the evaluation's folder and starts its worker, or queues it while another job holds the device; its id.

    With `beside` it begins at once: whoever asks for that has looked whether the memory will do (`memory_for`).
    """
    workspace = supervisor.workspace
    most = workspace.test_rows(request.measuring.max_samples)
    workspace.check_request({"settings": request.generation.model_dump()})
    request = replace(request, measuring=request.measuring.model_copy(update={"max_samples": most}))
    return supervisor.submit(EVALUATE, partial(create, workspace, request), beside=beside)


def memory_for(request: Request) -> Verdict:
    """Whether an evaluation fits beside what is in memory now."""
    card = read_card(Path(request.adapters[0].folder))
    each = PROMPT_TOKENS + request.generation.max_new_tokens
    tokens = request.measuring.batch_size * len(request.columns) * each
    folders = [Path(column.folder) for column in request.adapters]
    return verdict(card.base, card.revision, card.quantization, folders, tokens)


def check_beside(found: Verdict) -> None:
    """Raises `StudioError` where the memory will not do for a job beside what works."""
    if found.need is not None and not found.fits:
        raise StudioError(
            f"It needs about {found.need / 1e9:.1f} GB, and {found.free / 1e9:.1f} GB are free beside what works now.",
            "Let it wait in the queue: it begins when the device is free.",
        )
