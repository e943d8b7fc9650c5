"""The page of a group on the Runs tab: one table, one plot, all curves in one chart, and what is done with all runs."""

import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from lora_studio.config.settings import flatten
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Reason
from lora_studio.jobs.groups import as_text, rename, value_words
from lora_studio.jobs.kinds import ending_words
from lora_studio.runs.groups import GroupResult, GroupRow, groups_of, is_share, metric_title, result_of, title_of
from lora_studio.runs.summary import overview, settings_of
from lora_studio.ui import html, plots, theme, words
from lora_studio.ui.components import QUIET, Components, Handover, Shared, Wish
from lora_studio.ui.plots import Axis, Dot, Series
from lora_studio.ui.runs.charts import curves_chart, kept_style
from lora_studio.ui.runs.table import ICONS, Row, TableChoice, delete_runs, deletion_question
from lora_studio.ui.studio import Studio, ViewState, ViewValues

METRIC = "group-metric"


def members(rows: Sequence[Row], group_id: str) -> list[Row]:
    """The runs of a group, of all that are listed."""
    return [row for row in rows if row.run.group is not None and row.run.group.id == group_id]


def build_group(studio: Studio, shared: Shared, choice: gr.State) -> Components:
    """Head with buttons and a menu, what these ask before they act, the table, the plot and the curves."""
    with gr.Row(elem_classes="run-top"):
        head = gr.HTML(elem_id="group-head", min_width=160)
        with gr.Row(elem_classes="actions", scale=0):
            stop = _button("Stop all", "group-stop")
            use = _button("Use these settings", "group-use")
            chat = _button("Chat with the best two", "group-chat", "primary")
            gr.Button("More", size="md", scale=0, min_width=0, elem_id="group-more", elem_classes="opens-menu")
            with gr.Column(elem_classes="menu", elem_id="group-menu", min_width=0):
                naming = gr.Button("Rename…", size="md", elem_id="group-rename")
                deleting = gr.Button("Delete…", size="md", visible=False, elem_id="group-delete")
    with gr.Row(visible=False, elem_classes="confirm") as naming_row:
        name = gr.Textbox(label="Name of the group", max_lines=1, elem_id="group-name")
        save = _button("Rename group", "group-name-save")
    with gr.Row(visible=False, elem_classes="confirm") as confirm:
        question = gr.HTML(min_width=200)
        yes = gr.Button("Delete for good", variant="stop", elem_id="group-delete-yes", size="md", scale=0, min_width=0)
        no = gr.Button("Keep runs", elem_id="group-delete-no", size="md", scale=0, min_width=0)
    error_box = gr.HTML(visible=False, elem_id="group-problem")
    with gr.Row():
        metric = gr.Dropdown([], label="Metric", filterable=False, elem_id="group-metric", scale=0, min_width=260)
    table = gr.HTML(js_on_load=theme.on_load("clicks"), elem_id="group-table")
    plot = gr.HTML(elem_id="group-plot")
    chart = curves_chart("group-chart", "Curves of all runs of the group in one chart")
    view = GroupView(studio, shared, choice)
    view.wire_actions(stop, use, chat, table, error_box)
    view.wire_naming(naming, naming_row, name, save, error_box)
    view.wire_deletion(deleting, confirm, question, yes, no, error_box)
    metric.input(view.choose_metric, [metric, choice], choice, **QUIET)
    parts: Components = {"head": head, "stop": stop, "use": use, "chat": chat, "delete": deleting, "metric": metric}
    return {**parts, "table": table, "plot": plot, "chart": chart}


def wished(wish: Wish, choice: TableChoice) -> Any:
    """Opens the page of the group that another tab wants to show."""
    return choice.act("group", wish.group, []) if wish.group else gr.skip()


def _button(label: str, name: str, variant: Any = "secondary") -> gr.Button:
    return gr.Button(label, size="md", scale=0, min_width=0, elem_id=name, variant=variant)


class GroupView:
    """What the buttons of a group's page do; `choice` names the group."""

    def __init__(self, studio: Studio, shared: Shared, choice: gr.State) -> None:
        self.studio, self.shared, self.choice = studio, shared, choice

    def result(self, choice: TableChoice) -> GroupResult:
        """The group as it is now. Raises `StudioError` where its runs were deleted."""
        return result_in(self.studio, choice)

    def choose_metric(self, metric: str, choice: TableChoice) -> TableChoice:
        self.studio.workspace.write_draft(METRIC, metric)
        return replace(choice, metric=metric)

    def wire_actions(
        self, stop: gr.Button, use: gr.Button, chat: gr.Button, table: gr.HTML, error_box: gr.HTML
    ) -> None:
        """Stop, use and chat; a row of the table opens its run or hands over its settings."""

        def stop_all(choice: TableChoice) -> Any:
            try:
                waiting_first = sorted(self.result(choice).open, key=lambda row: row.state.state != "queued")
                for row in waiting_first:
                    self.studio.supervisor.stop(row.run.id)
            except StudioError as error:
                return gr.HTML(html.problem(error), visible=True)
            return gr.HTML(visible=False)

        def use_best(choice: TableChoice) -> tuple[Any, Any, Any]:
            try:
                best = self.result(choice).best
                return (*self.settings_of(best.run.id if best else ""), gr.HTML(visible=False))
            except StudioError as error:
                return gr.skip(), gr.skip(), gr.HTML(html.problem(error), visible=True)

        def chat_with_two(choice: TableChoice) -> tuple[Any, Any]:
            ids = [row.run.id for row in self.result(choice).usable[:2]] or [""]
            return Wish(ids[0], others=tuple(ids[1:]), time=time.time()), gr.Tabs(selected="chat")

        def act(event: gr.EventData, choice: TableChoice) -> tuple[Any, ...]:
            run_id = str(event.value)
            if event.act == "open":
                return run_id, choice.act("open", run_id, []), gr.skip(), gr.skip(), gr.HTML(visible=False)
            try:
                return gr.skip(), gr.skip(), *self.settings_of(run_id), gr.HTML(visible=False)
            except StudioError as error:
                return gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.HTML(html.problem(error), visible=True)

        stop.click(stop_all, self.choice, error_box, **QUIET)
        use.click(use_best, self.choice, [self.shared.form, self.shared.tabs, error_box], **QUIET)
        chat.click(chat_with_two, self.choice, [self.shared.wish, self.shared.tabs], **QUIET)
        handed = [self.shared.run, self.choice, self.shared.form, self.shared.tabs, error_box]
        table.click(act, self.choice, handed, **QUIET)

    def settings_of(self, run_id: str) -> tuple[Handover, gr.Tabs]:
        """A run's settings for the train form, without its name, and the tab that holds the form."""
        config = settings_of(self.studio.workspace.run(run_id), self.studio.supervisor.state(run_id))
        values = {**flatten(config), "title": ""}
        return Handover(time.time(), values, f"Copied from {run_id}"), gr.Tabs(selected="train")

    def wire_naming(
        self, button: gr.Button, row: gr.Row, name: gr.Textbox, save: gr.Button, error_box: gr.HTML
    ) -> None:
        """A field for another name, in sight after a click."""

        def ask(choice: TableChoice) -> tuple[Any, Any]:
            return gr.Row(visible=True), self.result(choice).name

        def keep(typed: str, choice: TableChoice) -> tuple[Any, Any]:
            try:
                rename(self.studio.workspace, choice.group, typed)
            except StudioError as error:
                return gr.skip(), gr.HTML(html.problem(error), visible=True)
            return gr.Row(visible=False), gr.HTML(visible=False)

        button.click(ask, self.choice, [row, name], **QUIET)
        for event in (save.click, name.submit):
            event(keep, [name, self.choice], [row, error_box], **QUIET)
        self.choice.change(lambda: gr.Row(visible=False), None, row, **QUIET)

    def wire_deletion(
        self, button: gr.Button, confirm: gr.Row, question: gr.HTML, yes: gr.Button, no: gr.Button, error_box: gr.HTML
    ) -> None:
        """The question before all runs of the group are deleted."""

        def ask(choice: TableChoice) -> tuple[Any, Any]:
            return gr.Row(visible=True), deletion_question(
                self.studio, [row.run.id for row in self.result(choice).rows]
            )

        def delete(choice: TableChoice) -> tuple[Any, Any, Any]:
            problems = delete_runs(self.studio, [row.run.id for row in self.result(choice).rows])
            after = choice if problems else replace(choice, group="")
            return after, gr.Row(visible=False), gr.HTML(problems, visible=bool(problems))

        button.click(ask, self.choice, [confirm, question], **QUIET)
        no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
        yes.click(delete, self.choice, [self.choice, confirm, error_box], **QUIET)
        self.choice.change(lambda: gr.Row(visible=False), None, confirm, **QUIET)


def result_in(studio: Studio, choice: TableChoice) -> GroupResult:
    """The group that is looked at, as it is now. Raises `StudioError` where all its runs are gone."""
    states = studio.supervisor.runs()
    groups = groups_of((overview(studio.workspace.run(state.id), state), state) for state in states)
    if choice.group not in groups:
        raise StudioError("This group was deleted.", "Choose another one.")
    return result_of(groups[choice.group], choice.metric)


def stamp_group(studio: Studio, rows: Sequence[Row], choice: TableChoice) -> Hashable:
    """What the page of a group is made of."""
    states = tuple((row.run.id, row.state.events, row.state.state) for row in rows)
    names = tuple(row.run.group.name for row in rows if row.run.group)
    return states, names, choice.metric, kept_style(studio.workspace)


def view_group(studio: Studio, rows: Sequence[Row], choice: TableChoice, before: ViewState) -> ViewState:
    """What the page of a group shows; made anew only where something happened."""
    stamp = stamp_group(studio, rows, choice)
    cached = before.get("group")
    if cached is not None and cached[0] == stamp:
        return before
    result = result_of([(row.run, row.state) for row in rows], choice.metric)
    return {"group": (stamp, _values(studio, result))}


def _values(studio: Studio, result: GroupResult) -> ViewValues:
    in_order = sorted(result.rows, key=lambda row: row.run.created)
    evaluated = any(row.state.evaluations for row in in_order)
    states = [row.state if evaluated else studio.supervisor.state(row.run.id) for row in in_order]
    curves = {value_words(row.values): state for row, state in zip(in_order, states, strict=True)}
    return {
        "head": html.render("runs.group_head", result.name, result.in_words, _about(result)),
        "stop": bool(result.open),
        "use": result.best is not None,
        "chat": len(result.usable) > 1,
        "delete": not result.open,
        "metric": gr.update(
            choices=[(metric_title(name), name) for name in result.metrics],
            value=result.metric,
            visible=bool(result.metrics),
        ),
        "table": table_markup(result),
        "plot": plot_markup(result),
        "chart": studio.curves.draw(curves, kept_style(studio.workspace), evaluations_only=evaluated),
    }


def _about(result: GroupResult) -> str:
    return "Weak runs are stopped early (successive halving)." if result.stop_weak else ""


def table_markup(result: GroupResult) -> str:
    """The settings that were tried against the metric, the best run first."""
    heads = [(title_of(path), path) for path in result.paths]
    rows = [
        (
            row,
            ICONS[row.state.state],
            "Stopped early"
            if row.state.reason is Reason.PRUNED
            else words.STATES.get(row.state.state, row.state.state),
            [as_text(row.values.get(path)) for path in result.paths],
            shown(result, row),
            f"{row.run.step:,} of {row.run.total_steps:,}" if row.run.total_steps else "–",
            ending_words(row.state)[0],
        )
        for row in result.rows
    ]
    return html.render("runs.group_table", heads, metric_title(result.metric), rows)


def shown(result: GroupResult, row: GroupRow) -> str:
    """A run's metric in words."""
    if row.value is None:
        return "–"
    return f"{100 * row.value:.1f} %" if is_share(result.metric) else words.figure(row.value)


def plot_markup(result: GroupResult) -> str:
    """The metric against the first setting; runs that agree in the other settings are joined by a line."""
    if not result.paths:
        return ""
    first, *others = result.paths
    values = [row.values.get(first) for row in result.rows]
    numeric = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    names = [] if len(numeric) == len(values) else list(dict.fromkeys(as_text(value) for value in values))
    across = Axis(title_of(first), not names and plots.wants_logarithm([float(value) for value in numeric]), names)
    lines: dict[str, list[tuple[float, float]]] = {}
    dots = []
    for row in sorted(result.rows, key=lambda row: row.run.created):
        if row.value is None:
            continue
        value: Any = row.values.get(first)
        x = float(names.index(as_text(value))) if names else float(value)
        name = value_words({path: row.values.get(path) for path in others})
        lines.setdefault(name, []).append((x, row.value))
        number = list(lines).index(name) + 1
        dots.append(Dot(x, row.value, f"{value_words(row.values)}: {shown(result, row)}", number, row.best))
    series = [Series(name, sorted(points), number) for number, (name, points) in enumerate(lines.items(), start=1)]
    up = plots.losses_axis(metric_title(result.metric), [dot.y for dot in dots])
    return plots.picture(across, up, dots=dots, lines=series)
