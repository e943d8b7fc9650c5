"""The curves of a run, and of several beside each other with the settings that differ, their results and the winner.

The browser keeps one chart and gets new numbers, so zoom and hidden curves stay. How curves are drawn is kept in the
workspace and holds for every run.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.runs.health import Winner, winner
from lora_studio.runs.summary import RunResult, SettingDifference, differences, overview, results, settings_of
from lora_studio.ui import html, theme, words
from lora_studio.ui.components import QUIET, Components, Shared, Wish
from lora_studio.ui.curves import AXES, SCALES, Style
from lora_studio.ui.form import each_in_words
from lora_studio.ui.runs.table import TableChoice
from lora_studio.ui.studio import RunView, Studio, ViewValues
from lora_studio.workspace import Workspace

MAX_COMPARED, MAX_NAME = 8, 32
STYLE = "chart-style"


@dataclass(frozen=True)
class Controls:
    """The widgets beside a chart, from which `style` is made."""

    axis: gr.Radio
    smoothing: gr.Slider
    scale: gr.Radio
    everything: gr.Checkbox

    @property
    def widgets(self) -> list[Any]:
        """In the order that `style` takes their values."""
        return [self.axis, self.smoothing, self.scale, self.everything]


def style(axis: str, smoothing: float, scale: str | bool, everything: bool) -> Style:
    """How a person wants the curves drawn, from the values of the controls; a box for the scale was ticked earlier."""
    named = "log" if scale is True else scale if scale in SCALES else "auto"
    return Style(axis, min(max(float(smoothing), 0.0), 0.99), str(named), everything)


def draw_controls(start: Style | None = None) -> Controls:
    """Draws the controls in one row."""
    start = start or Style()
    with gr.Row(elem_classes="chart-controls"):
        across = [(name.capitalize(), name) for name in AXES]
        axis = gr.Radio(across, value=start.axis, label="X axis", min_width=220)
        smoothing = gr.Slider(0, 0.99, value=start.smoothing, step=0.01, label="Smoothing", min_width=200)
        scale = gr.Radio(
            [(name.capitalize(), name) for name in SCALES], value=start.scale, label="Scale", min_width=200
        )
        everything = gr.Checkbox(value=start.everything, label="Show more curves", min_width=160)
    return Controls(axis, smoothing, scale, everything)


def curves_chart(
    elem_id: str = "chart", label: str = "Charts of the run: loss, learning rate, gradient norm"
) -> gr.HTML:
    """The chart's place on the page; its value is a `curves.drawing`."""
    return gr.HTML(
        value={},
        html_template=f'<div class="chart" role="img" aria-label="{label}"></div>',
        js_on_load=theme.on_load("charts.curves"),
        head=theme.plotly_script(),
        elem_id=elem_id,
    )


def build_chart(studio: Studio, shared: Shared) -> Components:
    """Chart, and its controls in a fold. A change of the controls is drawn at once."""
    chart = curves_chart()
    with gr.Accordion("Chart options", open=False, visible=False, elem_id="chart-options") as fold:
        controls = draw_controls(kept_style(studio.workspace))

    def draw(run_id: str, *wishes: Any) -> Any:
        studio.workspace.write_draft(STYLE, list(wishes))
        try:
            run = studio.supervisor.state(run_id)
        except StudioError:  # deleted meanwhile: the tab takes it away
            return gr.skip()
        return studio.curves.draw({words.name_of(run): run}, style(*wishes))

    changes = [widget.input for widget in controls.widgets]
    gr.on(changes, draw, [shared.run, *controls.widgets], chart, trigger_mode="always_last", **QUIET)
    return {"controls": fold, "chart": chart}


def kept_style(workspace: Workspace) -> Style:
    """How curves were drawn last."""
    draft = workspace.read_draft(STYLE)
    try:
        return style(*draft) if isinstance(draft, list) else Style()
    except (TypeError, ValueError):
        return Style()


def stamp_chart(view: RunView) -> Hashable:
    return view.mark, kept_style(view.studio.workspace)


def view_chart(view: RunView) -> ViewValues:
    run = view.run
    style = kept_style(view.studio.workspace)
    return {"controls": bool(run.steps), "chart": view.studio.curves.draw({words.name_of(run): run}, style)}


def build_compare(studio: Studio, shared: Shared, choice: gr.State) -> Components:
    """Head with two buttons, settings that differ, curves in one chart, results."""
    with gr.Row(elem_classes="run-top"):
        head = gr.HTML(elem_id="compare-words", min_width=200)
        with gr.Row(elem_classes="actions", scale=0):
            evaluate = gr.Button("Evaluate these", size="md", scale=0, min_width=0, elem_id="compare-evaluate")
            chat = gr.Button(
                "Chat with these", variant="primary", size="md", scale=0, min_width=0, elem_id="compare-chat"
            )
    line = gr.HTML(elem_id="compare-winner")
    settings = gr.HTML(elem_id="compare-settings")
    chart = curves_chart("compare-chart", "Curves of the compared runs in one chart")
    outcomes = gr.HTML(elem_id="compare-results")
    for tab, button in (("chat", chat), ("evaluate", evaluate)):
        button.click(partial(open_ticked, tab), choice, [shared.wish, shared.tabs], **QUIET)
    parts: Components = {"words": head, "winner": line, "settings": settings, "chart": chart, "results": outcomes}
    return parts


def open_ticked(tab: str, choice: TableChoice) -> tuple[Wish, gr.Tabs]:
    """Opens a tab with the adapters of the ticked runs."""
    first, *following = choice.ticked[:MAX_COMPARED] or ("",)
    return Wish(first, others=tuple(following)), gr.Tabs(selected=tab)


def chosen(runs: Sequence[RunState], ticked: Sequence[str]) -> list[RunState]:
    """The ticked runs that still exist, in the order of ticking; not more than fit beside each other."""
    by_id = {run.id: run for run in runs}
    return [by_id[run_id] for run_id in ticked if run_id in by_id][:MAX_COMPARED]


def view_compare(studio: Studio, runs: Sequence[RunState], ticked: int, style: Style) -> ViewValues:
    """What the comparison shows; curves in the style that a single run's are drawn in."""
    folders = [studio.workspace.run(run.id) for run in runs]
    names = named(runs)
    overviews = [(overview(folder, run), run) for folder, run in zip(folders, runs, strict=True)]
    try:
        configs = [settings_of(folder, run) for folder, run in zip(folders, runs, strict=True)]
        best = winner(overviews, configs)
        settings = settings_table(differences(configs), names, best.place)
    except StudioError as error:
        best, settings = Winner(None, ""), html.problem(error)
    omitted = f"The first {MAX_COMPARED} of {ticked} are shown." if ticked > MAX_COMPARED else ""
    return {
        "words": html.render("runs.compared", html.count(len(runs), "run"), omitted),
        "winner": _winner_line(best) if best.reason else None,
        "settings": settings,
        "chart": studio.curves.draw(dict(zip(names, runs, strict=True)), style),
        "results": results_table(results(overviews), names, best.place),
    }


def _winner_line(best: Winner) -> str:
    tone, icon, title = ("idle", "–", "No winner") if best.place is None else ("good", "★", "Winner")
    return html.render("runs.verdict", tone, icon, title, best.reason, None)


def named(runs: Sequence[RunState]) -> list[str]:
    """The runs' names, not longer than a legend has room for; equal ones are told apart by the end of their id."""
    titles = [html.shorten(words.name_of(run), MAX_NAME) for run in runs]
    return [
        f"{title} ({run.id[-4:]})" if titles.count(title) > 1 else title
        for title, run in zip(titles, runs, strict=True)
    ]


def settings_table(differing: Sequence[SettingDifference], names: Sequence[str], best: int | None = None) -> str:
    """Only the settings that differ, each by its title and its name in a config."""
    if not differing:
        return html.notice(
            "These runs have the same settings.", "Only the contents of files or the machine can differ."
        )
    rows = [
        (item.title, item.path, [(value, False) for value in each_in_words(item.path, item.values)])
        for item in differing
    ]
    return html.render("runs.beside", "Settings that differ", _heads(names, best), rows)


def results_table(outcomes: Sequence[RunResult], names: Sequence[str], best: int | None = None) -> str:
    """What came out of each run; the lowest of each loss is marked."""
    rows = [
        (
            words.sentence_case(item.name)[:-1],
            "",
            [(shown(value, item.unit), lowest) for value, lowest in _marked(item)],
        )
        for item in outcomes
    ]
    return html.render("runs.beside", "Results", _heads(names, best), rows)


def _heads(names: Sequence[str], best: int | None) -> list[tuple[str, bool]]:
    return [(name, place == best) for place, name in enumerate(names)]


def _marked(item: RunResult) -> list[tuple[Any, bool]]:
    """The values of a result, each with whether it is the lowest loss of several."""
    numbers = [value for value in item.values if value is not None and value == value]
    is_loss = item.unit == "loss" and "loss" in item.name and "base" not in item.name
    lowest = min(numbers) if is_loss and len(set(numbers)) > 1 else None
    return [(value, lowest is not None and value == lowest) for value in item.values]


def shown(value: Any, unit: str) -> str:
    """A result with its unit."""
    if value is None:
        return "–"
    match unit:
        case "share":
            return html.percent(value, 1)
        case "count":
            return f"{value:,.0f}"
        case "bytes":
            return html.size(value)
        case "seconds":
            return words.clock(value)
        case "words":
            return words.STATES.get(value, value)
        case _:
            return words.figure(value)
