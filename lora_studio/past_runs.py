"""How fast earlier runs of this workspace went, so that the time of the next one can be told beforehand.

Reads what finished runs left in complete.json. A model that never ran here has no speed: then nothing is guessed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lora_studio.workspace import RunFolder, Workspace

LOOKED_AT = 100  # of the newest runs: older ones were made with other versions


@dataclass(frozen=True, slots=True)
class Speed:
    """Real tokens a second while training, the mean tokens of a training row, and the run that they come from."""

    tokens_per_second: float
    tokens_per_row: float
    data: str
    run: str


def speed(workspace: Workspace, *, model: str, quantization: str, device: str, data: str) -> Speed | None:
    """What the newest finished run with this model on this kind of device did; one on the same data goes before."""
    found = [
        known
        for known in _speeds(workspace, model=model, quantization=quantization, device=device)
        if known is not None
    ]
    return next((known for known in found if known.data == data), found[0] if found else None)


def _speeds(workspace: Workspace, *, model: str, quantization: str, device: str) -> Iterator[Speed | None]:
    for run in workspace.runs()[:LOOKED_AT]:
        facts, numbers = run.read_facts(), run.read_result()
        if numbers.get("state") != "done" or facts.get("model") != model:
            continue
        if (numbers.get("device_kind"), numbers.get("quantization")) == (device, quantization):
            yield _speed(run, facts, numbers)


def _speed(run: RunFolder, facts: dict[str, Any], numbers: dict[str, Any]) -> Speed | None:
    seen = (numbers.get("train_rows") or 0) * (numbers.get("epochs") or 0)
    if not numbers.get("tokens_per_second") or not numbers.get("tokens") or not seen:
        return None
    return Speed(numbers["tokens_per_second"], numbers["tokens"] / seen, str(facts.get("data")), run.id)
