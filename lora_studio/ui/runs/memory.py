"""The memory of a run: what was expected and measured, and the smaller run after the memory ran out."""

from lora_studio.config.parsing import load_config, merge, nest, parse
from lora_studio.jobs.events import RunState
from lora_studio.models.advice import Change, correction
from lora_studio.models.hardware import devices
from lora_studio.ui import html
from lora_studio.ui.studio import Studio
from lora_studio.workspace import RunFolder


def memory_words(run: RunState, peak_bytes: float | None) -> str:
    """Estimated x GiB, measured y GiB, and why checkpointing is on or off."""
    if run.memory is None:
        return ""
    parts = [f"estimated {html.gib(run.memory.measurable_bytes)}"]
    parts += [f"measured {html.gib(peak_bytes)}"] if peak_bytes else []
    sentence = f"Memory: {', '.join(parts)}. {run.memory.reason}".strip()
    return html.quiet(sentence)


def retry_of(folder: RunFolder, run: RunState) -> Change | None:
    """The change that fits, after the memory ran out: the worker's own word, or ours where it was killed."""
    if run.state != "failed":
        return None
    if run.reason is None or not run.reason.by_the_system:
        retry = folder.read_result().get("retry")
        return Change("retry", retry["title"], retry.get("cost", ""), retry["settings"]) if retry else None
    device = devices()[0]
    checkpointing = run.memory.gradient_checkpointing if run.memory else None
    room = run.memory.available_bytes if run.memory else device.memory_total
    return correction(load_config(folder.config), checkpointing, device.kind, needed=0, available=room)


def retry(studio: Studio, run_id: str) -> str:
    """Starts the run again with the change that fits in memory; the new run's id."""
    folder = studio.workspace.run(run_id)
    change = retry_of(folder, studio.supervisor.state(run_id))
    if change is None:
        return run_id
    smaller = parse(merge(load_config(folder.config).model_dump(), nest(change.settings)))  # out of a file: checked
    return studio.supervisor.launch(smaller)
