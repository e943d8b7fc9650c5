"""What the tabs share: components through which one hands something to another, and the types of the page's values."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.blocks import Block

from lora_studio.config.fields import SettingValues

Components = dict[str, Block]
"""Components by name."""
Update = dict[str, Any]
"""A change of a component's properties, as `gr.update` returns it."""
Updates = dict[Any, Any]
"""New values by component, as a handler with many outputs returns them."""
EventOptions = dict[str, Any]
"""Keyword arguments of a Gradio event."""
QUIET: EventOptions = {"show_progress": "hidden", "api_visibility": "private"}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a click asks another tab to show as it opens: adapters (a run's id stands for its first), a job, or data.

    `others` are adapters beside the first, `group` is a group of runs; `time` makes the same wish count again.
    """

    adapter: str = ""
    job: str = ""
    others: tuple[str, ...] = ()
    data: str = ""
    time: float = 0.0
    group: str = ""


def opening(tab: str, *, adapter: str = "", job: str = "") -> tuple[Wish, gr.Tabs]:
    """What an event gives `Shared.wish` and `Shared.tabs` so that a tab opens and shows that."""
    return Wish(adapter, job), gr.Tabs(selected=tab)


class Starter:
    """Starts a job for a click. The second click of a double click gets the first one's job."""

    def __init__(self, seconds: float = 3.0) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self._last: tuple[Any, str, float] | None = None

    def start(self, request: Any, begin: Callable[[], str]) -> str:
        """The id of the job that `begin` starts, or of the one that it started for an equal `request` just now."""
        with self._lock:
            if self._last and self._last[0] == request and time.monotonic() - self._last[2] < self._seconds:
                return self._last[1]
            job_id = begin()
            self._last = (request, job_id, time.monotonic())
            return job_id


@dataclass(frozen=True)
class Shared:
    """Components through which one tab hands something to another.

    `data` holds settings that another tab puts into the train tab's form, as a `Handover`;
    `form` holds a whole config's settings, which take the place of all that the form held, in the same way;
    `run` holds the id of the run looked at; `start` is the train tab's button, which waits for what is handed over.
    `wish` holds a `Wish` until the tab that opens takes it up; what is shown then is kept for a reload.
    `status` is the line at the top of every tab: the runs tab writes it with what it shows, so that both agree.
    A tab sets one of them and `tabs` in the same event; the other tab listens to its `change`.
    """

    tabs: gr.Tabs
    data: gr.State
    form: gr.State
    run: gr.State
    wish: gr.State
    start: gr.Button
    status: gr.HTML


class Handover(NamedTuple):
    """Settings for the train tab's form, with the time, so that the same settings count again.

    `origin` tells the person where the settings come from, `preset` names the preset that they are.
    """

    time: float
    settings: SettingValues
    origin: str
    preset: str | None = None


@dataclass(frozen=True, slots=True)
class DataLook:
    """What the inspector found of data under these `settings` by path, as far as other tabs need it.

    `longest` and `mean` are tokens of a row, `packs` the rows after packing, `shape` is the rows' format.
    `trained_tokens` are those of the training rows that count in the loss, `labels` the answers of a classification,
    `desirable` and `undesirable` the training rows that KTO takes as good and as bad.
    """

    settings: Mapping[str, Any]
    usable_rows: int
    train_rows: int
    longest: int
    mean: float
    packs: int
    shape: str
    reading: str
    trained_tokens: float = 0.0
    labels: Mapping[str, int] = field(default_factory=dict)
    desirable: int = 0
    undesirable: int = 0


def stat_of(path: Path) -> tuple[int, int]:
    """Size and time of a file or folder, (0, 0) where there is none: equal pairs mean that it was not touched."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns
