"""What every tab gets: the services with what the page keeps of them, and the sections of the runs tab.

A section is three functions:

- `build(studio, shared)` draws its components, wires their events (the selected run's id is `shared.run`), and returns
  by name the components that are updated while the page is open;
- `stamp(view)` is a cheap value on which the section depends: `view.mark` for everything that follows from events;
- `view(view)` returns what each of these components shows: a value, True or False for its visibility, None to hide it,
  or a `gr.update(...)`. It is called when the stamp changes, draws nothing and is tested without a page.

To add one, write the functions in a module of `ui/runs` and name them in `ui.runs.tab.SECTIONS` at their place.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gradio as gr

from lora_studio.access.services import Services
from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import load_config
from lora_studio.config.sections import Config
from lora_studio.data.cache import code_version
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.kinds import EVALUATE, EXPORT, TRAIN
from lora_studio.models.advice import desirable_counts, label_counts, trained_tokens
from lora_studio.runs.health import Diagnosis, Verdict, diagnose, verdict
from lora_studio.ui import words
from lora_studio.ui.components import Components, DataLook, Shared, Update
from lora_studio.ui.curves import Curves, Drawing
from lora_studio.workspace import RunFolder, Workspace

FOUND = "data-found"  # the draft of what the inspector said of the choice
MAX_VISITORS = 1000  # whose last look is in memory; that of others is read from its draft again


def look_from(draft: Any) -> DataLook | None:
    """The look that a draft holds; None where it holds none, or one of another version."""
    try:
        settings, result = draft["settings"], draft["result"]
        return DataLook(
            settings=dict(settings),
            usable_rows=int(result["usable_rows"]),
            train_rows=int(result["train_rows"]),
            longest=int(result["tokens"]["max"]),
            mean=float(result["tokens"]["mean"]),
            packs=int(result["packing"]["packs"]),
            shape=str(result.get("format", "")),
            reading=str(result.get("reading", "")),  # looks of earlier versions have none
            trained_tokens=trained_tokens(result),
            labels=label_counts(result),
            desirable=desirable_counts(result, "kto")[0],
            undesirable=desirable_counts(result, "kto")[1],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


class DataLooks:
    """The last look of each visitor, in memory. Its draft, which holds all that was found, is for a reload of the page
    and is read where a new server has no look in memory yet."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, DataLook | None] = OrderedDict()
        self._lock = threading.Lock()

    def last(self, workspace: Workspace) -> DataLook | None:
        """What the visitor who is answered looked at last."""
        maker = workspace.policy.owner_id
        with self._lock:
            if maker in self._of:
                self._of.move_to_end(maker)
                return self._of[maker]
        return self._remember(maker, look_from(workspace.read_draft(FOUND)))

    def keep(self, workspace: Workspace, settings: SettingValues, result: Mapping[str, Any]) -> None:
        """Another version of the code might draw the draft otherwise, so that it does not count there. Raises
        `StudioError` where the draft can't be kept; what was found is known all the same."""
        draft = {"settings": settings, "result": result, "code": code_version()}
        self._remember(workspace.policy.owner_id, look_from(draft))
        workspace.write_draft(FOUND, draft)

    def _remember(self, maker: str, look: DataLook | None) -> DataLook | None:
        with self._lock:
            self._of[maker] = look
            self._of.move_to_end(maker)
            if len(self._of) > MAX_VISITORS:
                self._of.popitem(last=False)
        return look


def analysis_of(workspace: Workspace, values: SettingValues) -> Any:
    """The draft's result of the last look, where it was at these settings and by this version of the code."""
    draft = workspace.read_draft(FOUND)
    same = isinstance(draft, dict) and (draft["settings"], draft.get("code")) == (values, code_version())
    return draft["result"] if same else None


@dataclass(frozen=True)
class Studio(Services):
    """The services with what the page keeps of them: `curves` for the charts, `looks` for each user's data."""

    curves: Curves = field(default_factory=Curves)
    looks: DataLooks = field(default_factory=DataLooks)

    def status_line(self) -> str:
        """What this machine is doing, for the top of every tab, as the current caller may see it."""
        runs, working = self.supervisor.runs(), self.supervisor.working()
        own = {run.id for run in runs}
        others_train = any(job.kind == TRAIN.name and job.id not in own for job in working)
        evaluating, exporting = (any(job.kind == kind.name for job in working) for kind in (EVALUATE, EXPORT))
        waiting = sum(entry.kind != TRAIN.name for entry in self.supervisor.waiting())
        return words.status_line(runs, self.engine.loaded is not None, evaluating, others_train, exporting, waiting)


ViewValues = dict[str, str | bool | Update | Drawing | None]
"""What each component of a section shows, by its name."""
ViewState = dict[str, tuple[Hashable, ViewValues]]
"""The stamp and the values of each section, by its name."""


@dataclass(frozen=True)
class RunView:
    """The selected run at one moment."""

    studio: Studio
    run: RunState
    folder: RunFolder
    now: float

    @property
    def mark(self) -> Hashable:
        """Changes with every event of the run, with its state, and with what it waits for."""
        return (self.run.id, self.run.events, self.run.state, self.run.waiting, self.run.restarts)

    @cached_property
    def config(self) -> Config | None:
        """The run's settings; None if an earlier version wrote them otherwise."""
        try:
            return load_config(self.folder.config)
        except StudioError:
            return None

    @cached_property
    def diagnoses(self) -> list[Diagnosis]:
        """What is wrong with the run, the worst first."""
        return diagnose(self.run, self.config, self.now, self.comparison) if self.config else []

    @cached_property
    def verdict(self) -> Verdict:
        """What became of the run, in one line."""
        return verdict(self.run, self.diagnoses, self.comparison)

    @cached_property
    def comparison(self) -> Mapping[str, Any] | None:
        """The comparison of a finished run's adapter with its base; None if it was not measured."""
        return self.folder.read_result().get("difference") if self.run.final else None


@dataclass(frozen=True)
class PageSection:
    """The three functions of a section; see the module's docstring."""

    build: Callable[[Studio, Shared], Components]
    stamp: Callable[[RunView], Hashable]
    view: Callable[[RunView], ViewValues]


def refresh_view(sections: Mapping[str, PageSection], view: RunView, before: ViewState) -> ViewState:
    """What every section shows now, by its name; a section with an unchanged stamp keeps its values."""
    now: ViewState = {}
    for name, section in sections.items():
        stamp = section.stamp(view)
        previous = before.get(name)
        now[name] = previous if previous is not None and previous[0] == stamp else (stamp, section.view(view))
    return now


def updates(parts: Sequence[tuple[str, str]], now: ViewState, before: ViewState) -> list[Any]:
    """An update for each part (section, component); `gr.skip()` for those that show the same as before."""
    changes = []
    for section, name in parts:
        previous = before[section][1].get(name, ...) if section in before else ...
        value = now[section][1].get(name, ...) if section in now else ...
        changes.append(gr.skip() if value is ... or value == previous else as_update(value))
    return changes


def as_update(value: Any) -> Any:
    """A view's word for one component as Gradio takes it."""
    if isinstance(value, dict) and value.get("__type__") == "update":
        return value
    if value is None or isinstance(value, bool):
        return gr.update(visible=bool(value))
    return gr.update(value=value, visible=True)
