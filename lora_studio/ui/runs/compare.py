"""Two or more runs beside each other on the runs tab: their settings where they differ, and what came out of each."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState
from lora_studio.runs.summary import Difference, Result, differences, overview, results, settings_of
from lora_studio.ui import charts, html, words
from lora_studio.ui.curves import Style
from lora_studio.ui.form import in_words
from lora_studio.ui.studio import Studio

MOST = 8


def build(studio: Studio) -> dict[str, Any]:
    """Words, curves over each other, two tables."""
    return {
        "words": gr.HTML(elem_id="compare-words"),
        "chart": charts.curves_chart("compare-chart", "Curves of the compared runs over each other"),
        "results": gr.HTML(elem_id="compare-results"),
        "settings": gr.HTML(elem_id="compare-settings"),
    }


def chosen(runs: Sequence[RunState], ticked: Sequence[str]) -> list[RunState]:
    """The ticked runs that are still there, in the order of ticking; not more than fit beside each other."""
    by_id = {run.id: run for run in runs}
    return [by_id[run_id] for run_id in ticked if run_id in by_id][:MOST]


def view(studio: Studio, runs: Sequence[RunState], ticked: int, style: Style) -> dict[str, Any]:
    """What the comparison shows; curves in the style that a single run's are drawn in."""
    folders = [studio.workspace.run(run.id) for run in runs]
    names = named(runs)
    left_out = f" The first {MOST} of {ticked} are shown." if ticked > MOST else ""
    outcomes = results([(overview(folder, run), run) for folder, run in zip(folders, runs, strict=True)])
    try:
        trained = [settings_of(folder, run) for folder, run in zip(folders, runs, strict=True)]
        settings = settings_table(differences(trained), names)
    except StudioError as error:
        settings = html.problem(error)
    return {
        "words": f'<div class="run-head"><h2>{html.count(len(runs), "run")} compared</h2>{left_out}</div>',
        "chart": studio.curves.draw(dict(zip(names, runs, strict=True)), style),
        "results": results_table(outcomes, names),
        "settings": settings,
    }


def named(runs: Sequence[RunState]) -> list[str]:
    """The runs' names; those that share one are told apart by the end of their id."""
    titles = [words.name_of(run) for run in runs]
    return [
        f"{title} ({run.id[-4:]})" if titles.count(title) > 1 else title
        for title, run in zip(titles, runs, strict=True)
    ]


def settings_table(differing: Sequence[Difference], names: Sequence[str]) -> str:
    """Only the settings that differ, each by its title and its name in a config."""
    if not differing:
        return html.notice(
            "These runs have the same settings.", "Only their names, data files' contents or machines can differ."
        )
    rows = [(item.title, item.path, [in_words(item.path, value) for value in item.values]) for item in differing]
    return html.render("runs.beside", "Settings that differ", names, rows)


def results_table(outcomes: Sequence[Result], names: Sequence[str]) -> str:
    rows = [
        (words.sentence_case(item.name)[:-1], "", [shown(value, item.unit) for value in item.values])
        for item in outcomes
    ]
    return html.render("runs.beside", "Results", names, rows)


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
            return words.SHORT_STATES.get(value, value)
        case _:
            return words.figure(value)
