"""What the events of the Data tab do. The inspector, a child process, reads and tokenizes as training does."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gradio as gr

from lora_studio.access.policy import delete_upload
from lora_studio.config.fields import SettingValues
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import (
    Inspect,
    Inspected,
    Preview,
    Progress,
    Report,
    SaveBadRows,
    SaveCleaned,
    SavedCopy,
    TryReading,
)
from lora_studio.ui import form, html, job_views, plots
from lora_studio.ui.components import Handover, Updates, Wish
from lora_studio.ui.data import mapping_form, report
from lora_studio.ui.data.choice import (
    BAD_ROWS,
    CHOICE,
    MAPPING,
    OUTDATING,
    PATHS,
    SETTINGS,
    THINKING,
    check,
    handed_over,
    remembered,
    request_of,
    sources,
    stem_of,
    values_of,
)
from lora_studio.ui.data.controls import DataControls, from_hub, hub_of, on_sheet, sheet_of
from lora_studio.ui.data.mapping_form import ReadingForm
from lora_studio.ui.data.report import Pager, RowPages
from lora_studio.ui.studio import Studio, analysis_of

if TYPE_CHECKING:
    from lora_studio.data.report import Description, RowView
    from lora_studio.ui.data.mapping_form import UnreadRows

STEP_SECONDS = 0.3  # between two signs of progress: a slow browser must not have a heap of old ones to draw
SPLIT_OFF = ("Split from the training rows", "")


@dataclass(frozen=True)
class DataView:
    """What is shown of an analyzed file. `result` is the inspector's report, `analyzed` the settings it is of."""

    status: gr.HTML
    outdated: gr.HTML
    summary: gr.HTML
    example: gr.Column
    pager: Pager
    notes: gr.HTML
    reading: ReadingForm
    body: gr.Column
    histogram: gr.HTML
    cut: gr.Slider
    sentence: gr.HTML
    take: gr.Button
    use: gr.Button
    percentiles: gr.HTML
    forecast: gr.HTML
    bad_line: gr.HTML
    bad_rows: gr.HTML
    save_bad: gr.Button
    saved_bad: gr.HTML
    hygiene: gr.HTML
    remove: gr.Button
    remove_near: gr.Button
    rows: gr.Accordion
    table: gr.HTML
    cache: gr.HTML
    clear: gr.Button
    result: gr.State
    analyzed: gr.State

    def all(self) -> list[Any]:
        """Every component, those of the mapping's form and of the pager among them."""
        own = [part for part in vars(self).values() if part not in (self.reading, self.pager)]
        return [*own, *self.reading.all(), *self.pager.all()]


@dataclass
class Analysis:
    """A visitor's look at a file: whether its turn has come, and whether they asked for its end."""

    begun: bool = False
    stopping: bool = False


class AnalysisHandlers:
    """What the tab's events do. Keeps no state but the looks that are going on, by visitor."""

    def __init__(self, studio: Studio, controls: DataControls, view: DataView) -> None:
        self.studio, self.controls, self.view = studio, controls, view
        self.pages = RowPages(view.pager, self._preview)
        self._looks: dict[str, Analysis] = {}

    def other(self, path: str, value: Any) -> bool:
        """Whether a field holds something else than what was analyzed last: leaving a dropdown fires its event, too."""
        return (str(value or "").strip() or None) != remembered(self.studio.workspace)[path]

    def choose_other(self, source: Any) -> Updates:
        """Other data may be chosen: what is in sight is not of it, and goes."""
        return self.choose(source) if self.other("data.train_file", source) else self._unchanged()

    def analyze_other(self, *widget_values: Any) -> Iterator[Updates]:
        """Analyzes the data where it is not what was analyzed last."""
        yield from self._if_other("data.train_file", self.look_anew, widget_values)

    def open_wished(self, wish: Wish, *widget_values: Any) -> Iterator[Updates]:
        """Chooses and analyzes the data that another tab asks to preview; a wish for another tab is left alone."""
        if not wish.data:
            yield self._unchanged()
            return
        values = [wish.data if at == "data.train_file" else raw for at, raw in zip(PATHS, widget_values, strict=True)]
        source = gr.Dropdown(choices=sources(self.studio.workspace), value=wish.data, allow_custom_value=True)
        yield self.choose_other(wish.data) | {self.controls.source: source}
        yield from self.analyze_other(*values)

    def analyze_copy(self, *widget_values: Any) -> Iterator[Updates]:
        """Analyzes a cleaned copy, whose columns are those of its file, where there is one."""
        yield from self._if_other("data.train_file", self.look, widget_values)

    def measure_other(self, *widget_values: Any) -> Iterator[Updates]:
        """Analyzes the data with other validation rows than the last ones."""
        yield from self._if_other("data.validation_file", self.look, widget_values)

    def _if_other(self, path: str, look: Callable[..., Iterator[Updates]], values: Sequence[Any]) -> Iterator[Updates]:
        """Of a handler that yields nothing Gradio empties every output."""
        if self.other(path, values[PATHS.index(path)]):
            yield from look(*values)
        else:
            yield self._unchanged()

    def choose(self, source: Any) -> Updates:
        """Other data is chosen: what is in sight is not of it, and goes."""
        return self._nothing() | {
            self.view.status: gr.HTML(html.progress("Opening the data"), visible=True),
            self.controls.sheet: sheet_of(self.studio.workspace, str(source or "")),
        }

    def choose_sheet(self, source: str, sheet: str) -> Updates:
        """Another sheet of the workbook becomes the dataset."""
        name = on_sheet(source, sheet)
        offered = gr.Dropdown(choices=sources(self.studio.workspace), value=name, allow_custom_value=True)
        return self.choose_other(name) | {self.controls.source: offered}

    def _nothing(self) -> Updates:
        """Nothing of a file in sight."""
        c, v = self.controls, self.view
        return {
            **dict.fromkeys((v.example, v.body), gr.Column(visible=False)),
            **dict.fromkeys((v.summary, v.notes, v.outdated), ""),
            **dict.fromkeys((v.result, v.analyzed)),
            v.rows: gr.Accordion(visible=False, open=False),
            c.look: gr.Button(variant="primary"),
            c.train: gr.Button(visible=False),
            **mapping_form.hide(v.reading),
        }

    def _unchanged(self) -> Updates:
        """Nothing to show: an update without any component is an error to Gradio."""
        return {self.view.status: gr.skip()}

    def keep_upload(self, paths: list[str] | None) -> Updates:
        """Copies an upload into the workspace and chooses it; several files become a folder of their own."""
        if not paths:
            return self._unchanged()
        try:
            saved = self.studio.workspace.save_uploads([Path(path) for path in paths])
        except StudioError as error:
            return {self.controls.upload: None, self.view.status: gr.HTML(html.problem(error), visible=True)}
        return self._choose_upload(saved) | {self.controls.upload: None}

    def _choose_upload(self, path: Path) -> Updates:
        """A file that was added to the uploads is the dataset."""
        c, offered = self.controls, sources(self.studio.workspace)
        return self.choose(path) | {
            c.source: gr.Dropdown(choices=offered, value=str(path)),
            c.validation: gr.Dropdown(choices=[SPLIT_OFF, *offered]),
            c.uploads: report.uploads(self.studio.workspace),
        }

    def choose_hub(self, *fields: str) -> Updates:
        """A dataset of the Hub by its id, subset and split becomes the dataset."""
        try:
            name = from_hub(*fields)
        except StudioError as error:
            return {self.view.status: gr.HTML(html.problem(error), visible=True)}
        return self.choose_other(name) | {self.controls.source: gr.Dropdown(value=name, allow_custom_value=True)}

    def remove_duplicates(self, near: bool, analyzed: SettingValues | None) -> Iterator[Updates]:
        """Writes a copy of the file in sight without duplicates among the uploads, and chooses it."""
        workspace, v = self.studio.workspace, self.view
        idle = {v.remove: gr.Button(interactive=True), v.remove_near: gr.Button(interactive=True)}
        yield {
            v.status: gr.HTML(html.progress("Removing duplicates"), visible=True),
            **dict.fromkeys(idle, gr.Button(interactive=False)),
        }
        copy, last_update = SavedCopy(rows=0, removed=0), time.monotonic()
        try:
            of = self._analysis(analyzed)
            target = job_views.new_file(workspace, f"{stem_of(of.train_file)}-deduplicated.jsonl")
            for answer in self.studio.inspector.stream(SaveCleaned(path=str(target), near=near, of=of)):
                if isinstance(answer, SavedCopy):
                    copy = answer
                elif isinstance(answer, Progress) and time.monotonic() - last_update >= STEP_SECONDS:
                    yield {v.status: report.step(answer)}
                    last_update = time.monotonic()
            chosen = workspace.save_upload(target)
        except StudioError as error:
            yield idle | {v.status: gr.HTML(html.problem(error), visible=True)}
            return
        removed, rows = html.count(copy.removed, "row"), html.count(copy.rows, "row")
        gr.Info(f"{removed} removed; {html.escape(chosen.name)} has {rows}.")
        yield idle | self._choose_upload(chosen)

    def keep_validation(self, path: str) -> Updates:
        """Copies a second file into the workspace and chooses it to measure on."""
        try:
            saved = self.studio.workspace.save_upload(Path(path))
        except StudioError as error:
            return {self.view.status: gr.HTML(html.problem(error), visible=True)}
        c, offered = self.controls, sources(self.studio.workspace)
        return {
            c.source: gr.Dropdown(choices=offered),
            c.validation: gr.Dropdown(choices=[SPLIT_OFF, *offered], value=str(saved)),
            c.uploads: report.uploads(self.studio.workspace),
        }

    def look(self, *widget_values: Any) -> Iterator[Updates]:
        """Inspects the chosen file and shows what was found; a failure is a sentence, and the choice stays."""
        yield from self._inspect(values_of(widget_values))

    def look_anew(self, *widget_values: Any) -> Iterator[Updates]:
        """Another file is read as it is recognised, not as the one before was corrected to be."""
        yield from self._inspect({**values_of(widget_values), MAPPING: None})

    def use_reading(self, rows: "UnreadRows | None", *widget_values: Any) -> Iterator[Updates]:
        """Reads the file as the form says. `given` are the form's fields, then what is chosen."""
        fields = len(self.view.reading.fields())
        if rows:
            try:
                mapping = mapping_form.mapping_from(widget_values[:fields], rows["mapping"])
            except StudioError as error:
                yield {self.view.reading.error_box: gr.HTML(mapping_form.problem(error), visible=True)}
                return
            yield from self._inspect({**values_of(widget_values[fields:]), MAPPING: mapping}, correcting=rows)
        else:
            yield self._unchanged()

    def take_reading(self, rows: "UnreadRows | None", index: int | None, *widget_values: Any) -> Iterator[Updates]:
        """Reads the file in another of the ways that it can be read."""
        if rows and index is not None:
            mapping = rows["readings"][index]["mapping"] or None
            yield from self._inspect({**values_of(widget_values), MAPPING: mapping}, correcting=rows)
        else:
            yield self._unchanged()

    def try_reading(self, rows: "UnreadRows | None", source: str, encoding: str | None, *fields: Any) -> Any:
        """Shows what the form would make of the first rows, while it is filled in."""
        if not rows or self.studio.inspector.busy:
            return gr.skip()
        try:
            mapping = mapping_form.mapping_from(fields, rows["mapping"])
            request = TryReading(train_file=source, encoding=encoding or None, mapping=mapping)
            result = self.studio.inspector.call(request)
        except StudioError as error:
            return gr.HTML(mapping_form.problem(error), visible=True)
        return gr.HTML(mapping_form.trial(result), visible=True)

    def _inspect(self, values: SettingValues, *, correcting: "UnreadRows | None" = None) -> Iterator[Updates]:
        """`correcting` is what was found with the reading that is to be changed: it stays where the new one fails."""
        c, v, workspace = self.controls, self.view, self.studio.workspace
        maker = workspace.policy.owner_id
        look = self._looks[maker] = Analysis()
        yield {
            v.status: gr.HTML(html.progress("Starting the analysis"), visible=True),
            v.reading.error_box: gr.HTML("", visible=False),
            c.look: gr.Button(interactive=False),
            c.stop: gr.Button(visible=True),
            **({} if correcting is not None else {c.mapping: values[MAPPING]}),
        }
        idle: Updates = {c.look: gr.Button(interactive=True), c.stop: gr.Button(visible=False)}
        unread: UnreadRows | None = None
        try:
            check(values)
            if correcting is None:
                workspace.write_draft(CHOICE, {"settings": values})
            content: Report = {}
            last_update = 0.0
            for answer in self.studio.inspector.stream(request_of(values, self.studio.supervisor.targets), beat=True):
                look.begun = True
                if look.stopping:
                    raise StudioError("The analysis was stopped.")
                if isinstance(answer, Inspected):
                    content = answer.report
                    continue
                if isinstance(answer, Progress) and answer.sheets is not None:
                    yield self._offer_sheets(values, answer.sheets)
                    continue
                if not isinstance(answer, Progress):
                    yield self._unchanged()  # a visitor who left is noticed where something is told
                    continue
                unread = cast("UnreadRows | None", answer.unread)
                first = self.show(cast("Description", answer.sample), values) if answer.sample else {}
                if first or time.monotonic() - last_update >= STEP_SECONDS:
                    yield first | {v.status: report.step(answer)}
                    last_update = time.monotonic()
            result = cast("Description", content)
            workspace.write_draft(CHOICE, {"settings": values})
            self.studio.looks.keep(self.studio.workspace, values, result)
            updates = self.show(result, values) | self.measure_disk()
            idle[c.look] = gr.Button(interactive=True, variant="secondary")
            yield updates | idle | {c.mapping: values[MAPPING], v.status: gr.HTML("", visible=False)}
        except StudioError as error:
            before = {} if correcting is None else {v.reading.choice: self._in_use(values, correcting)}
            failed = before | self._failed(error, correcting, unread, stopped=look.stopping)
            if c.look in failed:  # nothing is in sight, so that the next step is to analyze
                idle[c.look] = gr.Button(interactive=True, variant="primary")
            yield failed | idle
        finally:
            look.begun = False
            if self._looks.get(maker) is look:
                del self._looks[maker]

    def _offer_sheets(self, values: SettingValues, sheets: list[str]) -> Updates:
        """The sheets of a workbook that is being analyzed, in their field and in the lists of datasets."""
        workspace, c, source = self.studio.workspace, self.controls, str(values["data.train_file"])
        if not form.keep_sheets(workspace, source, sheets):
            return self._unchanged()
        offered = sources(workspace)
        return {
            c.sheet: sheet_of(workspace, source),
            c.source: gr.Dropdown(choices=offered),
            c.validation: gr.Dropdown(choices=[SPLIT_OFF, *offered]),
        }

    def _failed(
        self, error: StudioError, correcting: "UnreadRows | None", unread: "UnreadRows | None", *, stopped: bool
    ) -> Updates:
        """A stop leaves what is in sight; a reading that does not fit is told beside its form.

        Rows that can't be used as they are read are shown all the same, with the form to say how to read them.
        """
        v = self.view
        if stopped:
            return {v.status: gr.HTML(html.notice("Stopped. The dataset is still chosen."), visible=True)}
        message = gr.HTML(mapping_form.problem(error), visible=True)
        if correcting is not None:
            return {v.reading.error_box: message, v.status: gr.HTML("", visible=False)}
        nothing = self._nothing() | {v.status: message}
        if not unread:
            return nothing
        form = mapping_form.fill(v.reading, unread, corrected=False, unread=True)
        return nothing | form | {v.rows: gr.Accordion(visible=True, open=True), v.table: report.rows_table(unread)}

    def _in_use(self, values: SettingValues, rows: "UnreadRows") -> int | None:
        """The analysis's reading; none of rows that could not be read: a click on a marked one is no event."""
        last = self.studio.looks.last(self.studio.workspace)
        read = last is not None and last.settings["data.train_file"] == values["data.train_file"]
        return mapping_form.chosen(rows) if read else None

    def stop(self) -> None:
        """Ends the inspector's child: certain in every phase, and the next look starts a new one. Where it is
        not sure that a visitor's turn has come, the child is left to whoever is being answered."""
        look = self._looks.get(self.studio.workspace.policy.owner_id)
        if look is not None:
            look.stopping = True
            if look.begun or self.studio.workspace.policy.is_admin:
                self.studio.inspector.close()

    def show(self, result: "Description", values: SettingValues) -> Updates:
        """Everything that is known of a file."""
        v = self.view
        low, high = report.cut_bounds(result)
        bad = bool(result["bad_row_list"])
        place = report.cut_place(result, result["max_length"])
        return {
            v.outdated: "",
            v.example: gr.Column(visible=True),
            v.body: gr.Column(visible=True),
            v.summary: report.first_look(result) + report.summary(result),
            **self._judge(result, values),
            v.notes: report.notes(result),
            **mapping_form.fill(v.reading, result, corrected=values[MAPPING] is not None),
            v.forecast: report.forecast(result),
            v.percentiles: report.percentiles(result),
            v.hygiene: report.hygiene(result),
            **self._removals(result),
            v.cut: gr.Slider(minimum=low, maximum=high, value=place),
            **self.move_cut(result, place),
            v.bad_rows: gr.HTML(report.bad_rows_table(result), visible=bad),
            v.save_bad: gr.Button(visible=bad and result["sampled"] is None),
            v.saved_bad: "",
            v.rows: gr.Accordion(visible=True),
            v.table: report.rows_table(result),
            v.result: result,
            v.analyzed: dict(values),
            **self.pages.paint(result["examples"][0] if result["examples"] else None, 0, result),
        }

    def _removals(self, result: "Description") -> Updates:
        """The buttons that remove duplicates, as far as there are any."""
        exact, near = report.repeated_rows(result)
        return {
            self.view.remove: gr.Button(visible=exact > 0),
            self.view.remove_near: gr.Button(visible=near > 0),
        }

    def _judge(self, result: "Description", values: SettingValues) -> Updates:
        """What depends on whether invalid rows are skipped: if they are to stop a run, nothing can be trained."""
        stop = values[BAD_ROWS] == "stop"
        able = not (stop and result["refusal"])
        return {
            self.view.bad_line: report.bad_rows_line(result, stop=stop),
            self.controls.train: gr.Button(visible=True, interactive=able, variant="primary"),
        }

    def compare(self, analyzed: SettingValues | None, *widget_values: Any) -> Updates:
        """Marks what is in sight as outdated if it is of other settings; the next step is to analyze again then."""
        if not analyzed:
            return self._unchanged()
        warning = report.outdated(analyzed, values_of(widget_values), OUTDATING)
        return {
            self.view.outdated: warning,
            self.controls.look: gr.Button(variant="primary" if warning else "secondary"),
            self.controls.train: gr.Button(variant="secondary" if warning else "primary"),
        }

    def choose_bad_rows(self, result: "Description | None", *widget_values: Any) -> Updates:
        """Skip or stop: both are known already, so nothing is read again."""
        if not result:
            return self._unchanged()
        values = values_of(widget_values)
        self.studio.workspace.write_draft(CHOICE, {"settings": values})
        self.studio.looks.keep(self.studio.workspace, values, result)
        return self._judge(result, values)

    def move_cut(self, result: "Description | None", length: float) -> Updates:
        """The limit and its sentence, from numbers that are already counted."""
        if not result:
            return self._unchanged()
        at, longest, used = report.cut_place(result, length), result["tokens"]["max"], result["max_length"]
        suggested = result["suggested"]["max_length"]
        new = at not in (used, suggested) and min(at, used) < longest  # from the longest row on, all are the same
        return {
            self.view.histogram: plots.lengths(
                result, at, report.cut_words(result, at), is_set=at == report.cut_place(result, used)
            ),
            self.view.sentence: report.limit_sentence(result, at),
            self.view.take: gr.Button(f"Use suggested: {html.count(suggested, 'token')}", visible=suggested != used),
            self.view.use: gr.Button(f"Use {html.count(at, 'token')}", visible=new),
        }

    def drag_cut(self, result: Any, event: gr.EventData) -> Updates:
        """The limit was dragged in the chart: the slider follows. `result` is a `Description`, a type that Gradio,
        which looks for the event among the types, can't read."""
        if not result:
            return self._unchanged()
        low, high = report.cut_bounds(result)
        at = report.cut_place(result, min(max(float(event.value), low), high))
        return {self.view.cut: at, **self.move_cut(result, at)}

    def settle_cut(self, result: "Description | None", length: float) -> Any:
        """The slider stops where numbers are counted, so that it shows what the sentence says."""
        return report.cut_place(result, length) if result else gr.skip()

    def take_suggestion(self, result: "Description | None") -> Any:
        """The suggested length becomes the max length."""
        return result["suggested"]["max_length"] if result else gr.skip()

    def measure_disk(self) -> Updates:
        """What lies on the disk for whoever looks."""
        workspace, v = self.studio.workspace, self.view
        octets = workspace.cache_size()
        clearable = gr.Button(interactive=octets > 0, visible=workspace.policy.is_admin)
        updates = {v.cache: report.cache(octets, owned=workspace.policy.is_admin), v.clear: clearable}
        return updates | {self.controls.uploads: report.uploads(workspace)}

    def delete_upload(self, event: gr.EventData) -> Updates:
        """The page is as after a reload: without the file, and with what was found where that was of another one."""
        name = Path(str(event.value)).name
        try:
            delete_upload(self.studio.workspace, str(event.value))
        except StudioError as error:
            return {self.controls.uploads: html.problem(error) + report.uploads(self.studio.workspace)}
        gone = html.notice(f"{name} was deleted.", kind="good")
        return self._nothing() | self.repaint() | {self.view.status: gr.HTML(gone, visible=True)}

    def clear_cache(self) -> Updates:
        """Prepared rows are made again when they are wanted."""
        try:
            self.studio.workspace.clear_cache()
        except StudioError as error:
            return {self.view.cache: html.problem(error)}
        return self.measure_disk()

    def _preview(self, analyzed: SettingValues | None, index: int, window: int | None) -> "RowView":
        answer = self.studio.inspector.call(Preview(row_index=index, window=window, of=self._analysis(analyzed)))
        return cast("RowView", answer.report)

    def save_bad_rows(self, analyzed: SettingValues | None) -> str:
        """All bad rows into a file, and the link to it."""
        try:
            of = self._analysis(analyzed)
            target = job_views.new_file(self.studio.workspace, f"{stem_of(of.train_file)}-invalid-rows.jsonl")
            self.studio.inspector.call(SaveBadRows(path=str(target), of=of))
        except StudioError as error:
            return html.problem(error)
        return job_views.link(target)

    def _analysis(self, analyzed: SettingValues | None) -> Inspect:
        """The request that the analysis on this page came from: the inspector may hold another file by now.

        Raises `StudioError` where nothing is known of data, as after the visitor's files were deleted.
        """
        if not analyzed or self.studio.looks.last(self.studio.workspace) is None:
            raise StudioError("This dataset is not analyzed yet.", "Press Analyze dataset.")
        return request_of(dict(analyzed), self.studio.supervisor.targets)

    def repaint(self) -> Updates:
        """After a reload: the last choice, and what was found for it."""
        workspace = self.studio.workspace
        values = remembered(workspace)
        updates: Updates = dict(zip(self.controls.chosen(), (values[path] for path in PATHS), strict=True))
        offered, c, source = sources(workspace), self.controls, str(values["data.train_file"])
        updates[c.source] = gr.Dropdown(choices=offered, value=source, allow_custom_value=True)
        validation = values["data.validation_file"] or ""
        second = gr.Dropdown(choices=[SPLIT_OFF, *offered], value=validation, allow_custom_value=True)
        updates[c.validation] = second
        updates[c.system_prompt] = values["data.system_prompt"] or ""
        updates[c.enable_thinking] = form.to_widget(SETTINGS[THINKING], values[THINKING])
        updates |= {c.sheet: sheet_of(workspace, source)}
        if hub := hub_of(source):
            updates |= dict(zip((c.hub_id, c.hub_subset, c.hub_split), hub, strict=True))
        updates |= self.measure_disk() | {self.controls.whole: gr.Column(visible=True)}
        result = analysis_of(workspace, values)
        if result is not None:
            updates |= self.show(result, values) | {self.view.status: gr.HTML("", visible=False)}
            updates[self.controls.look] = gr.Button(variant="secondary")
        return updates

    def hand_over(self, *widget_values: Any) -> tuple[Handover, gr.Tabs, gr.Button]:
        """To the train tab, with everything chosen here: what was looked at is what is trained on.

        Nothing can be started until its form holds it.
        """
        values = values_of(widget_values)
        workspace = self.studio.workspace
        with contextlib.suppress(StudioError):  # the form can't be kept either then, and says so
            workspace.write_draft(CHOICE, {"settings": values})
        look = self.studio.looks.last(workspace)
        shape = look.shape if look is not None and look.settings == values else ""
        return (
            Handover(time.time(), handed_over(values, shape), "The Data tab"),
            gr.Tabs(selected="train"),
            gr.Button(interactive=False),
        )
