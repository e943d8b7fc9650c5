"""The checks before a start, with what a session child says of the data: the same for the page and the terminal."""

import os
from pathlib import Path
from typing import Any

from lora_studio.adapter_source import continued
from lora_studio.architecture import read_config
from lora_studio.config import Config, files_of
from lora_studio.errors import StudioError
from lora_studio.hardware import devices
from lora_studio.jobs.client import READING, Session
from lora_studio.preflight import Report, preflight, this_machine
from lora_studio.workspace import DEMO_MODEL, Workspace

LOG = "preflight.log"


def check_before_start(config: Config, workspace: Workspace, session: Session | None = None, *, busy: bool) -> Report:
    """All checks of a config. A `session` that is at work, or none, leaves the look at the data to a child of its own.

    `busy` says that a run of ours holds the device until this one begins.
    """
    workspace.check_request(files_of(config))
    config = continued(workspace.admit(config), workspace)
    machine = this_machine(devices()[0], workspace, busy=busy)
    if session is not None and not session.busy:
        return preflight(config, machine, _look(config, session), look_at_model(config, session))
    with Session(workspace.logs_folder / LOG, patience=lambda: READING) as own:
        return preflight(config, machine, _look(config, own), look_at_model(config, own))


def _look(config: Config, session: Session) -> dict[str, Any] | StudioError:
    """What the first rows come to with the model's tokenizer, or what is wrong with them."""
    try:
        return session.call("look_at_first", **request_of(config))
    except StudioError as error:
        return error


def look_at_model(config: Config, session: Session) -> dict[str, Any] | StudioError | None:
    """What the model itself says of the run (`engine.layout.look_at_model`), or what is wrong with it; None for a model
    that is not on this machine yet."""
    if read_config(config.model.name, config.model.revision) is None:
        return None
    path = Path(config.model.name).expanduser()
    try:
        return session.call(
            "look_at_model",
            model=str(path.resolve()) if os.path.isdir(path) and config.model.name != DEMO_MODEL else config.model.name,
            revision=config.model.revision,
            lora=config.lora.model_dump(),
            seed=config.training.seed,
            adapter=config.model.adapter_name_or_path,
        )
    except StudioError as error:
        return error


def request_of(config: Config) -> dict[str, Any]:
    """The child's parameters: the data section, what it is read for, and whose tokenizer is meant."""
    data = config.data.model_dump()
    for name in ("train_file", "validation_file"):
        path = Path(str(data[name] or "")).expanduser()
        data[name] = str(path.resolve()) if data[name] and os.path.exists(path) else data[name]
    return {**data, "goal": config.training.goal, "model": config.model.name, "revision": config.model.revision}


def fetch_numbers(config: Config, session: Session) -> None:
    """Lets the child fetch the model's config.json into this machine's cache. Raises `StudioError` where it can't."""
    session.call("fetch_config", model=config.model.name, revision=config.model.revision)
