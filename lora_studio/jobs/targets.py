"""The targets of a workspace, which are places where jobs run, and the launcher that serves each job.

This machine is a target; the others stand in `targets.yaml` of the workspace, below their kind. The owner edits them;
visitors see those that are shared.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lora_studio.config.compute import AUTO, BALANCED, LOCAL, THIS_MACHINE
from lora_studio.config.fields import plain_words, read_yaml
from lora_studio.config.parsing import ConfigError, Problem, machine_conflicts
from lora_studio.config.sections import Config, files_of
from lora_studio.errors import StudioError
from lora_studio.jobs.devices import problems_here
from lora_studio.jobs.kinds import TRAIN
from lora_studio.jobs.launchers import Launcher, RemoteLauncher, SlurmTarget, Target
from lora_studio.jobs.launchers.hf_jobs import HfJobsLauncher, HubTarget
from lora_studio.jobs.launchers.local import LocalLauncher
from lora_studio.jobs.launchers.slurm import SlurmLauncher
from lora_studio.models.hardware import Device, devices
from lora_studio.models.hub import JOBS_TOKEN
from lora_studio.workspace import JobFolder, Workspace, write_atomically

TARGET_KINDS: Mapping[str, type[Target]] = {"slurm": SlurmTarget, "hf-jobs": HubTarget}
"""The kinds of targets beside this machine, by the name that stands before the colon in `slurm:two`."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets that the caller of `workspace` may use."""

    workspace: Workspace

    @property
    def file(self) -> Path:
        """Where the owner describes them."""
        return self.workspace.root / "targets.yaml"

    def all(self) -> dict[str, Target]:
        """Every target beside this machine by its whole name, in the order of the file: for visitors those that are
        shared. Raises `StudioError` with all that is wrong with the file."""
        described = _read(self.file) if self.file.exists() else {}
        admin = self.workspace.policy.is_admin
        return {name: target for name, target in described.items() if admin or target.shared}

    def find(self, name: str) -> Target | None:
        """The target of a name, None for this machine. Raises `StudioError` where there is none for the caller."""
        if name == LOCAL:
            return None
        targets = self.all()
        if name not in targets:
            names = ", ".join([LOCAL, *targets])
            raise StudioError(f"There is no target {name!r}.", f"Targets: {names}. {_where_described(self.workspace)}")
        return targets[name]

    def device(self, name: str) -> Device | None:
        """A device of a target beside this machine: its kind, and its memory, 0 where that is not known; None for this
        machine. Raises `StudioError` as `find`."""
        target = self.find(name)
        if target is None:
            return None
        memory = target.device_memory or 0
        return Device(name, target.device_kind, memory, memory)

    def placed(self, config: Config) -> Config:
        """The config of a run as its target trains it: in a process for each device of the target. Raises `StudioError`
        as `find`, and `ConfigError` for processes that the target does not have."""
        name, compute = config.compute.target, config.compute
        target = self.find(name)
        if target is None:
            return config
        problems = []
        if compute.processes not in (AUTO, str(target.ranks)):
            words = f"{name} trains in {target.ranks}, one for each of its devices; use auto"
            problems.append(Problem("compute.processes", words, compute.processes))
        if compute.strategy == BALANCED:
            problems.append(
                Problem("compute.strategy", f"balanced works on this machine alone, not on {name}; use ddp")
            )
        if problems:
            raise ConfigError(problems)
        placed = compute.model_copy(update={"device": AUTO, "processes": str(target.ranks)})
        return config.model_copy(update={"compute": placed})

    def problems(self, config: Config, offered: Sequence[Device]) -> list[Problem]:
        """What the target of a run can't do of its config; `offered` are the devices of this machine."""
        elsewhere = self.device(config.compute.target)
        return problems_on(config, [elsewhere] if elsewhere else offered)

    def save(self, name: str, values: Mapping[str, Any]) -> Target:
        """Adds a target, or replaces the one of that name. Raises `StudioError` for what is wrong with it."""
        self._check_owner()
        kind, _, short = name.partition(":")
        if kind not in TARGET_KINDS or not _NAME.fullmatch(short):
            kinds = " or ".join(f"{prefix}:NAME" for prefix in TARGET_KINDS)
            raise StudioError(
                f"{name!r} is not a name for a target.",
                f"Use {kinds}, with letters, digits, dots and dashes in NAME.",
            )
        target, problems = _parsed(name, TARGET_KINDS[kind], values)
        if target is None:
            raise StudioError(" ".join(problems), f"Settings: {', '.join(TARGET_KINDS[kind].model_fields)}.")
        self._write({**self.all(), name: target})
        return target

    def delete(self, name: str) -> None:
        """Removes a target; what works there goes on."""
        self._check_owner()
        self._write({other: target for other, target in self.all().items() if other != name})

    def _check_owner(self) -> None:
        if not self.workspace.policy.is_admin:
            raise StudioError("Only the owner can change targets.")

    def _write(self, targets: Mapping[str, Target]) -> None:
        nested: dict[str, dict[str, object]] = {}
        for name, target in targets.items():
            kind, _, short = name.partition(":")
            nested.setdefault(kind, {})[short] = target.model_dump(exclude_defaults=True)
        text = yaml.safe_dump(nested, sort_keys=False, allow_unicode=True, width=120) if nested else ""
        write_atomically(self.file, text)


def _where_described(workspace: Workspace) -> str:
    if not workspace.policy.is_admin:
        return "The owner can share others."
    return f"Describe others on the Train tab under Compute, or in {Targets(workspace).file}."


def _read(path: Path) -> dict[str, Target]:
    """The targets of a file. Raises `StudioError` with everything that is wrong with it."""
    targets: dict[str, Target] = {}
    problems: list[str] = []
    for kind, listed in read_yaml(path).items():
        if kind not in TARGET_KINDS:
            problems.append(f"{kind!r} is not a kind of target ({', '.join(TARGET_KINDS)}).")
        elif not isinstance(listed, dict):
            problems.append(f"{kind} must hold targets by their names.")
        else:
            for short, values in listed.items():
                target, wrong = _parsed(f"{kind}:{short}", TARGET_KINDS[kind], values or {})
                problems += wrong
                if target is not None:
                    targets[f"{kind}:{short}"] = target
    if problems:
        raise StudioError(f"{path} is not valid: {' '.join(problems)}", "Correct the file.")
    return targets


def _parsed(name: str, kind: type[Target], values: Any) -> tuple[Target | None, list[str]]:
    """A target from its values, or what is wrong with them."""
    if not isinstance(values, Mapping):
        return None, [f"{name} must hold settings."]
    try:
        return kind.model_validate(dict(values)), []
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            field = ".".join(map(str, item["loc"]))
            words = "is not a setting of a target" if item["type"] == "extra_forbidden" else plain_words(item)
            problems.append(f"{name}: {field} {words}.")
        return None, problems


def problems_on(config: Config, offered: Sequence[Device]) -> list[Problem]:
    """What the devices of a run's target can't do of its config."""
    if config.compute.target == LOCAL:
        return problems_here(config, offered)
    return list(machine_conflicts(config, offered[0].kind))


def target_of(folder: JobFolder) -> str:
    """The name of the target that a job runs on; this machine for a job that was deleted meanwhile."""
    try:
        return str(folder.read_facts().get("compute_target", LOCAL))
    except FileNotFoundError:
        return LOCAL


class TargetLaunchers:
    """The launchers of a workspace: each job has that of its target."""

    def __init__(self, workspace: Workspace, local: Launcher | None = None) -> None:
        self._targets = Targets(workspace.unrestricted)
        self._remote: dict[str, RemoteLauncher] = {
            "slurm": SlurmLauncher(self._target),
            "hf-jobs": HfJobsLauncher(self._target, lambda job: tokens(workspace, job)),
        }
        self._local = local or LocalLauncher()
        self._names: dict[Path, str] = {}

    def _target(self, folder: JobFolder) -> tuple[str, Target]:
        name = self._name(folder)
        target = self._targets.find(name)
        assert target is not None
        return name, target

    def _name(self, folder: JobFolder) -> str:
        name = self._names.get(folder.path)
        if name is None:
            name = self._names[folder.path] = target_of(folder)
        return name

    def of(self, folder: JobFolder) -> Launcher:
        """The launcher of a job. One of a kind that this version does not know is looked for on this machine."""
        return self._remote.get(self._name(folder).partition(":")[0], self._local)

    def check(self, name: str, paths: Iterable[Path], noun: str = TRAIN.noun) -> str:
        """What is to be known before a job, called `noun`, starts on that target. Raises `StudioError` where it can't
        start there, or where the target can't see one of the files."""
        target = self._targets.find(name)
        if target is None:
            return ""
        if target.trains_only and noun != TRAIN.noun:
            raise StudioError(f"{name} only trains.", f"Start the {noun} on this machine.")
        return self._remote[name.partition(":")[0]].check(name, target, [self._targets.workspace.root, *paths])

    def try_out(self, name: str) -> str:
        """Runs a job of a moment on a target; what was seen there in a sentence. Raises `StudioError` as `check`."""
        target = self._targets.find(name)
        if target is None:
            return f"{THIS_MACHINE}: {devices()[0].name}."
        launcher = self._remote[name.partition(":")[0]]
        launcher.check(name, target, [self._targets.workspace.root])
        return launcher.try_out(name, target, self._targets.workspace.logs_folder)

    def collect(self) -> None:
        """Takes notice of workers that ended, wherever."""
        for launcher in (self._local, *self._remote.values()):
            launcher.collect()


def tokens(workspace: Workspace, job: JobFolder | None) -> Mapping[str, str]:
    """The environment, as to the Hub's tokens, of a child that works for the maker of a job; None is the caller."""
    policy = workspace.policy
    owner = policy.owner_id if job is None else job.owner_id
    token = policy.jobs_token(owner)
    return {**policy.tokens(owner), **({JOBS_TOKEN: token} if token else {})}


def local_files(config: Config) -> list[Path]:
    """The files and folders of this machine that a run reads, which its target must see as well."""
    names = [name for name in files_of(config).values() if name]
    paths = [Path(name).expanduser() for name in names]
    return [path.resolve() for path in paths if path.is_absolute() and path.exists()]
