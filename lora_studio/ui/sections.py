"""What the runs tab is put together from: sections, and the painting of those that have something new to show.

A section is three functions:

- `build(studio, shared)` draws its components where it stands, wires their events (the chosen run's id is
  `shared.run`), and returns by name those that are painted again while the page is open;
- `stamp(look)` is what its view depends on, and is cheap: `look.mark` for what follows from the run's events;
- `view(look)` says what each of these components shows: a value, True or False to show or hide it, None to hide it, or
  a `gr.update(...)`. It is called when the stamp changed, draws nothing and is tested without a page.

To add one, write them in a module of `ui/runs` and name it in `ui.runs.tab.SECTIONS` in the place where it stands.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.jobs.events import RunState
from lora_studio.ui.studio import Shared, Studio
from lora_studio.workspace import RunFolder

Seen = dict[str, tuple[Hashable, dict[str, Any]]]
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True)
class Look:
    """The run that is looked at, at one moment."""

    studio: Studio
    run: RunState
    folder: RunFolder
    now: float

    @property
    def mark(self) -> Hashable:
        """Changes with every event of the run, and with its state."""
        return (self.run.id, self.run.events, self.run.state)


@dataclass(frozen=True)
class Section:
    """The three functions of a section: see the module's own words."""

    build: Callable[[Studio, Shared], dict[str, Any]]
    stamp: Callable[[Look], Hashable]
    view: Callable[[Look], dict[str, Any]]


def look_again(sections: Mapping[str, Section], look: Look, before: Seen) -> Seen:
    """What every section shows now, by its name; the view of a section whose stamp is the same is kept."""
    now: Seen = {}
    for name, section in sections.items():
        stamp = section.stamp(look)
        previous = before.get(name)
        now[name] = previous if previous is not None and previous[0] == stamp else (stamp, section.view(look))
    return now


def updates(parts: Sequence[tuple[str, str]], now: Seen, before: Seen) -> list[Any]:
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


def stat_of(path: Any) -> tuple[int, int]:
    """Size and time of a file or folder, (0, 0) where there is none: equal pairs mean that it was not touched."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
