"""What is wrong with the settings of the form: checked whole, told at the fields and in one summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_studio.config.parsing import ConfigError, Problem, machine_conflicts, parse
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.models.hardware import recent_devices
from lora_studio.ui import form as forms
from lora_studio.ui import html
from lora_studio.ui.data.choice import is_there
from lora_studio.workspace import Workspace


@dataclass
class ReportedProblems:
    """Problems that the person was told of: `paths` of fields, and `general` ones that belong to no field.

    A field is not called wrong while it is being typed, only once a start or a file brought the mistake to light.
    Events that run at once share the object: a start may be refused while an edit before it is still looked at.
    """

    paths: tuple[str, ...] = ()
    general: tuple[str, ...] = ()


def read(raws: Sequence[Any], workspace: Workspace) -> Config | ConfigError:
    """The config of the form, or what is wrong with it: read once for all that an event shows of it."""
    try:
        return checked(raws, workspace)
    except ConfigError as error:
        return error


def checked(raws: Sequence[Any], workspace: Workspace) -> Config:
    """The config of the form, with files that are there and may be read. Raises `ConfigError` with every problem."""
    config = forms.read(raws)
    problems = []
    try:
        workspace.policy.check_request({"model": config.model.name, "revision": config.model.revision})
    except StudioError as error:
        problems.append(Problem("model.name", error.message, config.model.name))
    for path, name in (
        ("data.train_file", config.data.train_file),
        ("data.validation_file", config.data.validation_file),
    ):
        if name and not is_there(name, workspace):
            problems.append(Problem(path, "there is no such file; choose one, or upload it on the Data tab", name))
    if problems:
        raise ConfigError(problems)
    return config


def on_this_machine(config: Config) -> list[Problem]:
    """What this machine's device can't do of a valid config."""
    return list(machine_conflicts(config, recent_devices()[0].kind))


def problems_of(settings: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with the settings of a config file."""
    try:
        parse(settings)
    except ConfigError as error:
        return error.problems
    return []


def summary(fields: Mapping[str, str], general: Sequence[str]) -> str:
    """All that is wrong in one place, by the titles of the fields."""
    lines = [f"{forms.title_of(path)}: {message}" for path, message in fields.items()]
    parts = []
    if lines:
        head = "One setting is not valid:" if len(lines) == 1 else f"{len(lines)} settings are not valid:"
        parts.append(html.notice(head, "\n".join(lines), "error"))
    if general:
        parts.append(html.notice("Not taken from the file:", "\n".join(general), "warning"))
    return "".join(parts)
