"""What every tab is given: the services behind it, and the few components that tabs share."""

from dataclasses import dataclass, field

import gradio as gr

from lora_studio.access.services import Services
from lora_studio.jobs.kinds import EVALUATE, EXPORT, TRAIN
from lora_studio.ui import words
from lora_studio.ui.curves import Curves
from lora_studio.ui.data.choice import DataLooks


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
        return words.status_line(runs, self.chat.running, evaluating, others_train, exporting, waiting)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a click asks another tab to show as it opens: an adapter (a run's id stands for its first), or a job."""

    adapter: str = ""
    job: str = ""


def opening(tab: str, *, adapter: str = "", job: str = "") -> tuple[Wish, gr.Tabs]:
    """What an event gives `Shared.wish` and `Shared.tabs` so that a tab opens and shows that."""
    return Wish(adapter, job), gr.Tabs(selected=tab)


@dataclass(frozen=True)
class Shared:
    """Components through which one tab hands something to another.

    `data` holds settings that another tab puts into the train tab's form, as (when, settings by path,
    where they come from in words), so that choosing the same again counts;
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
