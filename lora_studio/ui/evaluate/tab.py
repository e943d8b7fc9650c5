"""The Evaluate tab: a test file answered by base and adapters and measured, and public benchmarks.

Jobs do the work; the tab paints their folders once a second, so a reload or another server shows the same.
"""

import contextlib
import json
from dataclasses import replace
from typing import Any

import gradio as gr

from lora_studio.chat import arbiter
from lora_studio.chat.choices import adapter_choices
from lora_studio.errors import LINE, StudioError, check_length
from lora_studio.evaluate import request as benchmarks
from lora_studio.evaluate import request as evaluating
from lora_studio.evaluate.request import (
    MAX_ADAPTERS,
    EvaluationRequest,
    Measuring,
    evaluation,
    make_request,
    request_of,
)
from lora_studio.files import JsonObject
from lora_studio.jobs.ending_words import ending_words
from lora_studio.jobs.kinds import BENCHMARK
from lora_studio.models.adapters import adapter_folder, read_card
from lora_studio.ui import html, job_views, theme
from lora_studio.ui.data.choice import SETTINGS, is_there
from lora_studio.ui.evaluate import results as board
from lora_studio.ui.evaluate.results import PARTS, EvaluationBoard, EvaluationView
from lora_studio.ui.studio import QUIET, Shared, Studio, Wish

ABOUT = (
    "lm-evaluation-harness asks the public benchmarks that papers report. It is a package of its own (pip install "
    "lm_eval) and fetches its questions from the Hugging Face Hub."
)


def build_harness(studio: Studio, adapters: gr.Dropdown) -> None:
    """A fold with the command; buttons to run it where the package is installed."""
    installed = benchmarks.installed()
    with gr.Accordion("Public benchmarks (lm-evaluation-harness)", open=False, elem_id="harness"):
        gr.HTML(html.hint(ABOUT))
        tasks = gr.Textbox(benchmarks.TASKS, label="Tasks", info="Names of lm_eval's tasks, with commas between them.")
        command = gr.HTML()
        if installed:
            with gr.Row(elem_classes="actions"):
                start = gr.Button("Run the benchmarks", scale=0, min_width=180)
                stop = gr.Button("Stop them", scale=0, min_width=120)
            log = gr.HTML()
    inputs = [adapters, tasks]

    def show(names: list[str] | None, task_names: str) -> str:
        try:
            return _shown(benchmarks.in_a_shell(words_for(studio, names, task_names)))
        except StudioError as error:
            return html.problem(error)

    def run(names: list[str] | None, task_names: str) -> str:
        try:
            start_benchmark(studio, names, task_names)
        except StudioError as error:
            return html.problem(error)
        return _shown(progress(studio))

    # As it comes: of an adapter that was deleted on another page Gradio would say that it is none of its choices.
    gr.on([adapters.change, tasks.change], show, inputs, command, preprocess=False, **QUIET)
    if installed:
        start.click(run, inputs, log, **QUIET)
        stop.click(lambda: stop_one(studio), None, None, **QUIET)
        displayed = gr.State("")

        def tick(before: str) -> tuple[object, object]:
            now = progress(studio)
            return (gr.skip(), gr.skip()) if now == before else (_shown(now), now)

        gr.Timer(3).tick(tick, displayed, [log, displayed], **QUIET)


def words_for(studio: Studio, names: list[str] | None, tasks: str, results: str = "") -> list[str]:
    """The command's words for the first adapter that is chosen. Raises `StudioError` where there is none."""
    check_length("The list of tasks", tasks, LINE)
    if not studio.workspace.policy.is_admin:
        raise StudioError("Public benchmarks are the owner's to run.", "They fetch from the Hub and run for hours.")
    if not names:
        raise StudioError("No adapter is chosen.", "Choose one above: its command appears here.")
    folder = adapter_folder(studio.workspace, names[0])
    card = read_card(folder)
    return benchmarks.command(
        folder, card.base, card.quantization, tasks, results or studio.workspace.benchmarks_folder
    )


def start_benchmark(studio: Studio, names: list[str] | None, tasks: str) -> str:
    """Starts or queues a benchmark of the first adapter that is chosen; its id. Raises `StudioError` where it can't."""
    words = words_for(studio, names, tasks, "results")
    return benchmarks.start_benchmark(studio.supervisor, f"{(names or [''])[0]} on {tasks}", words)


def stop_one(studio: Studio) -> None:
    """Ends the benchmarks that work or wait."""
    for job in studio.supervisor.jobs(BENCHMARK):
        if not job.final:
            studio.supervisor.stop(job.id)


def progress(studio: Studio) -> str:
    """The end of what the newest benchmark printed, with how it ended; "" where there is none."""
    newest = next(iter(studio.supervisor.jobs(BENCHMARK)), None)
    if newest is None:
        return ""
    if newest.state == "queued":
        return f"{newest.title}: waiting for its turn, as another job holds the device."
    end = "\nDone." if newest.state == "done" else "\n" + " ".join(ending_words(newest)) if newest.final else ""
    return studio.supervisor.log(newest.id, 40) + end


def _shown(words: str) -> str:
    return f'<div class="ls-raw"><pre>{html.escape(words)}</pre></div>'


LONGEST, LABELS = SETTINGS["generation.max_new_tokens"], SETTINGS["evaluation.labels"]
READING, ENCODING = SETTINGS["data.mapping"], SETTINGS["data.encoding"]
FIRST = {"base": True, **Measuring().model_dump(), "max_new_tokens": LONGEST.default}


FIRST |= dict.fromkeys(("labels", "mapping", "encoding"), "") | {"beside": False}


"""What the settings of an evaluation are at first."""
FIELDS = ("adapters", "data", *FIRST)
CLICKS = theme.on_load("evaluation", questions={"delete": "Delete this evaluation with all its answers?"})
BESIDE_A_RUN = html.notice("A run is training on the same device: both are slower until one of them is done.")


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it."""
    watching = EvaluationBoard(studio.workspace, studio.supervisor)
    form, start = _draw_form()
    build_harness(studio, form[0])
    message = gr.HTML(elem_id="evaluation-said")
    parts = {name: gr.HTML(js_on_load=CLICKS, elem_id=f"evaluation-{name}") for name in PARTS}
    downloaded = job_views.place(studio.workspace)
    view, warned = gr.State(EvaluationView()), gr.State("")

    def begin(now: EvaluationView, warned_of: str, *values: Any) -> tuple[Any, Any, Any]:
        try:
            name, warned, words = start_one(studio, dict(zip(FIELDS, values, strict=True)), warned_of)
        except StudioError as error:
            return now, "", html.problem(error)
        return _look_at(studio, name) if name else now, warned, words

    def act(event: gr.EventData, now: EvaluationView) -> tuple[Any, Any, Any]:
        return after_click(studio, watching, now, str(event.act), str(event.value))

    def opening(request: Wish) -> list[Any]:
        view = _look_at(studio, request.job) if request.job else EvaluationView(watching.opening())
        return [*fill(studio, *filter(None, (request.adapter, *request.others))), view]

    start.click(begin, [view, warned, *form], [view, warned, message], **QUIET)
    job_views.wire(
        parts,
        view,
        watching.look,
        wish=shared.wish,
        opening=opening,
        opened=[*form, view],
        act=act,
        messages=[message, downloaded],
        busy=studio.supervisor.busy,
    )
    gr.on([part.input for part in form], lambda *values: keep(studio, *values), form, None, **QUIET)


def _draw_form() -> tuple[list[Any], gr.Button]:
    """The fields in the order of `FIELDS`, and the start button."""
    with gr.Row(equal_height=True, elem_classes="ls-pager"):
        adapters = gr.Dropdown(
            [],
            label="Adapters",
            multiselect=True,
            max_choices=MAX_ADAPTERS,
            info="One to three runs or checkpoints of one base.",
            scale=4,
            min_width=280,
            elem_id="evaluate-adapters",
        )
        data = gr.Dropdown(
            [],
            label="Test data",
            allow_custom_value=True,
            info="Questions with answers that training did not see; a path can be typed.",
            scale=4,
            min_width=280,
            elem_id="evaluate-data",
        )
        start = gr.Button("Evaluate", variant="primary", scale=0, min_width=120, elem_id="evaluate-start")
    with gr.Accordion("Settings", open=False), gr.Column(elem_classes="grid"):
        base = gr.Checkbox(True, label="The base answers too", info="Needed to see what the adapter changed.")
        numbers = [
            gr.Number(field.default, label=field.title, info=field.description, precision=0, minimum=1)
            for field in Measuring.model_fields.values()
        ]
        longest = gr.Number(LONGEST.default, label=LONGEST.title, info=LONGEST.description, precision=0, minimum=1)
        labels = gr.Textbox(
            label=LABELS.title,
            info="Such as Yes, No; empty takes the run's own, or finds them in the expected answers.",
            max_lines=1,
        )
        reading = gr.Textbox(
            label=READING.title,
            info="Which column is what; empty reads it as the run's file, if it has those columns, or recognises it.",
            placeholder='{"user": "q", "assistant": "a"}',
            max_lines=1,
        )
        encoding = gr.Textbox(
            label=ENCODING.title,
            info="Of a text file that is not UTF-8; empty takes the run's, or finds it by the letters.",
            placeholder="gb18030",
            max_lines=1,
        )
        at_once = gr.Checkbox(False, label="Begin beside what works", info=job_views.BESIDE, elem_id="evaluate-beside")
    return [adapters, data, base, *numbers, longest, labels, reading, encoding, at_once], start


def fill(studio: Studio, *requested: str) -> list[Any]:
    """The form as it was sent last; the newest adapter at first, or those that are requested, which are kept."""
    adapters = adapter_choices(studio.workspace, studio.supervisor.runs())
    saved = board.remembered(studio.workspace, adapters, requested)
    if requested:
        with contextlib.suppress(StudioError):  # a full disk: it is shown all the same
            studio.workspace.write_draft(board.FORM, saved)
    first = [
        gr.Dropdown(choices=adapters, value=saved["adapters"]),
        gr.Dropdown(choices=board.data_choices(studio.workspace), value=saved["data"]),
    ]
    return first + [saved.get(name, FIRST[name]) for name in FIELDS[2:]]  # an empty number that is not said shows as 0


def keep(studio: Studio, *values: Any) -> None:
    """Keeps what is chosen, so that a reload brings it back."""
    studio.workspace.write_draft(board.FORM, dict(zip(FIELDS, values, strict=True)))


def start_one(studio: Studio, values: JsonObject, warned_of: str) -> tuple[str, str, str]:
    """Starts or queues what the form says; its id, what a person was warned of, and words. No id: the memory will
    hardly do.

    Who presses again after that warning starts it anyway. Raises `StudioError` for what can't be evaluated.
    """
    request, at_once = asked_for(studio, values), bool(values.get("beside"))
    this = json.dumps([request.to_dict(), at_once])
    begins = at_once or studio.supervisor.busy() is None
    if begins and this != warned_of and (question := _doubt(studio, request, "Evaluate")):
        return "", this, question
    name = evaluating.start(studio.supervisor, request, at_once=at_once)
    return name, "", _beside_words(studio, name)


def _beside_words(studio: Studio, name: str) -> str:
    """What is said of an evaluation that began while a run trains."""
    return BESIDE_A_RUN if studio.engine.run and studio.supervisor.is_alive(name) else ""


def _doubt(studio: Studio, request: EvaluationRequest, button: str) -> str:
    """What is asked before an evaluation for which the memory will hardly do; "" where it will."""
    verdict = evaluating.memory_for(request)
    if verdict.fits:
        return ""
    fewer = "take fewer rows at once, " if button == "Evaluate" else ""
    return html.notice(
        arbiter.shortage(verdict, studio.engine.run),
        f"It may fail or slow everything down. Wait, {fewer}or press {button} again to start anyway.",
        "warning",
    )


def asked_for(studio: Studio, values: JsonObject) -> EvaluationRequest:
    """What the form says. Raises `StudioError` for what can't be evaluated."""
    if not values["adapters"]:
        raise StudioError("No adapter is chosen.", "Train one on the Train tab; its first checkpoint can be evaluated.")
    data = str(values["data"] or "").strip()
    studio.workspace.policy.check_path(data)
    if not is_there(data, studio.workspace):
        raise StudioError(f"There is no test data {data!r}.", "Choose a file from the list, or type a file's path.")
    return make_request(
        studio.workspace,
        values["adapters"],
        data,
        compare=bool(values["base"]),
        labels=str(values["labels"] or ""),
        mapping=str(values["mapping"] or ""),
        encoding=str(values["encoding"] or "").strip() or None,
        measuring={name: values[name] for name in Measuring.model_fields},
        generation={"max_new_tokens": values["max_new_tokens"] or LONGEST.default},
    )


def _look_at(studio: Studio, name: str) -> EvaluationView:
    studio.workspace.write_draft(board.LOOKED_AT, name)
    return EvaluationView(name)


def after_click(
    studio: Studio, watching: EvaluationBoard, now: EvaluationView, act: str, value: str
) -> tuple[Any, Any, Any]:
    """View, message and download link after a click: choose, stop, resume, delete, download, filter, turn pages."""
    jobs = watching.jobs
    match act:
        case "open":
            return _look_at(studio, value), "", gr.skip()
        case "delete":
            jobs.delete(value)
            return (_look_at(studio, watching.opening()) if now.evaluation == value else now), "", gr.skip()
        case "stop":
            jobs.stop(now.evaluation)
        case "resume":
            begins = jobs.busy() is None
            request = request_of(evaluation(studio.workspace, now.evaluation))
            question = _doubt(studio, request, "Resume") if begins else ""
            if question and now.warned != now.evaluation:
                return replace(now, warned=now.evaluation), question, gr.skip()
            jobs.resume(now.evaluation)
            return now, _beside_words(studio, now.evaluation), gr.skip()
        case "download":
            path = board.file_of(studio.workspace, now.evaluation, value)
            target = job_views.new_file(studio.workspace, f"{now.evaluation}-{path.name}")
            target.write_bytes(path.read_bytes())
            return now, "", job_views.link(target)
        case _:
            return replace(now, rows=now.rows.act(act, value)), gr.skip(), gr.skip()
    return now, "", gr.skip()
