"""The Evaluate tab: test data answered by base and adapters and scored, and public benchmarks.

Jobs do the work; the tab paints their folders once a second, so a reload or another server shows the same.
"""

import contextlib
import json
from dataclasses import replace
from typing import Any

import gradio as gr

from lora_studio.chat.choices import adapter_choices
from lora_studio.config.compute import AUTO, LOCAL
from lora_studio.errors import LINE, StudioError, check_length
from lora_studio.evaluate import job as evaluating
from lora_studio.evaluate.job import (
    MAX_ADAPTERS,
    VALIDATION,
    EvaluationRequest,
    Measuring,
    evaluation,
    make_request,
    request_of,
)
from lora_studio.files import JsonObject
from lora_studio.jobs.kinds import BENCHMARK, TRAIN, ending_words
from lora_studio.jobs.queue import shortage
from lora_studio.models.adapters import adapter_folder, read_card
from lora_studio.ui import html, job_views, theme
from lora_studio.ui.components import QUIET, Shared, Wish
from lora_studio.ui.data.choice import SETTINGS, is_there
from lora_studio.ui.evaluate import results as board
from lora_studio.ui.evaluate.results import PARTS, EvaluationBoard, EvaluationView, default_data
from lora_studio.ui.studio import Studio

ABOUT = (
    "Runs public benchmarks such as HellaSwag with lm-evaluation-harness (`pip install lm_eval`). Their questions are "
    "downloaded from the Hugging Face Hub."
)


def build_benchmarks(studio: Studio, adapters: gr.Dropdown) -> None:
    """A fold with the command, and buttons to run it if the package is installed."""
    installed = evaluating.installed()
    with gr.Accordion("Public benchmarks", open=False, elem_id="harness"):
        gr.HTML(html.hint(ABOUT))
        tasks = gr.Textbox(evaluating.TASKS, label="Tasks", info="lm_eval task names, separated by commas.")
        command = gr.HTML()
        if installed:
            with gr.Row(elem_classes="actions"):
                start = gr.Button("Run benchmarks", scale=0, min_width=160)
                stop = gr.Button("Stop benchmarks", scale=0, min_width=160)
            log = gr.HTML()
    inputs = [adapters, tasks]

    def show(names: list[str] | None, task_names: str) -> str:
        try:
            return _shown(evaluating.in_a_shell(words_for(studio, names, task_names)))
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
        raise StudioError("Only the owner can run public benchmarks.", "They download data and can run for hours.")
    if not names:
        raise StudioError("No adapter selected.", "Select one above to see its command.")
    folder = adapter_folder(studio.workspace, names[0])
    card = read_card(folder)
    return evaluating.command(
        folder, card.base, card.quantization, tasks, results or studio.workspace.benchmarks_folder
    )


def start_benchmark(studio: Studio, names: list[str] | None, tasks: str) -> str:
    """Starts or queues a benchmark of the first adapter that is chosen; its id. Raises `StudioError` where it can't."""
    words = words_for(studio, names, tasks, "results")
    return evaluating.start_benchmark(studio.supervisor, f"{(names or [''])[0]} on {tasks}", words)


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
        return f"{newest.title}: queued. {newest.waiting}"
    end = "\nDone." if newest.state == "done" else "\n" + " ".join(ending_words(newest)) if newest.final else ""
    return studio.supervisor.log(newest.id, 40) + end


def _shown(words: str) -> str:
    return f'<div class="ls-raw"><pre>{html.escape(words)}</pre></div>'


LONGEST, LABELS = SETTINGS["generation.max_new_tokens"], SETTINGS["evaluation.labels"]
MAPPING, ENCODING = SETTINGS["data.mapping"], SETTINGS["data.encoding"]
FIRST = {
    **{"base": True, **Measuring().model_dump(), "max_new_tokens": LONGEST.default},
    **dict.fromkeys(("labels", "mapping", "encoding"), ""),
    **{"beside": False, "compute_target": LOCAL, "compute_device": AUTO},
}
"""The default settings of an evaluation."""
FIELDS = ("adapters", "data", *FIRST)
CLICKS = theme.on_load("evaluation", questions={"delete": "Delete this evaluation and its answers?"})
BESIDE_A_RUN = html.notice("A run trains on the same device. Both are slower until one finishes.")


def build(studio: Studio, shared: Shared) -> None:
    """Draws the tab and wires it: form and list on the left, the result on the right."""
    watching = EvaluationBoard(studio.workspace, studio.supervisor)
    parts = {}
    no_adapter = job_views.build_no_adapter(shared, "evaluate")
    with gr.Row(elem_classes="job-layout"):
        with gr.Column(elem_classes="job-form", min_width=0) as place:
            form, start, message = _draw_form()
        with gr.Column(elem_classes="job-main", min_width=0):
            for name in PARTS[1:]:
                parts[name] = gr.HTML(js_on_load=CLICKS, elem_id=f"evaluation-{name}")
            downloaded = job_views.place(studio.workspace)
        with gr.Column(elem_classes="job-rail", min_width=0):
            parts["list"] = gr.HTML(js_on_load=CLICKS, elem_id="evaluation-list")
    build_benchmarks(studio, form[0])
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
        has_adapters = bool(adapter_choices(studio.workspace, studio.supervisor.runs()))
        values = fill(studio, *filter(None, (request.adapter, *request.others)))
        return [*values, view, *job_views.visibility(has_adapters)]

    start.click(begin, [view, warned, *form], [view, warned, message], **QUIET)
    job_views.wire(
        parts,
        view,
        watching.look,
        wish=shared.wish,
        opening=opening,
        opened=[*form, view, place, no_adapter],
        act=act,
        messages=[message, downloaded],
        busy=studio.supervisor.busy,
    )
    form[0].input(lambda *values: follow(studio, *values), form, form[1], **QUIET)
    gr.on([part.input for part in form[1:]], lambda *values: keep(studio, *values), form, None, **QUIET)


def _draw_form() -> tuple[list[Any], gr.Button, gr.HTML]:
    """The fields in the order of `FIELDS`, the start button, and under it what there is to say of a start."""
    adapters = gr.Dropdown(
        [],
        label="Adapters",
        multiselect=True,
        max_choices=MAX_ADAPTERS,
        info="Up to three runs or checkpoints of one base.",
        elem_id="evaluate-adapters",
    )
    data = gr.Dropdown(
        [],
        label="Test data",
        allow_custom_value=True,
        info="Rows that training did not use. You can enter a path.",
        elem_id="evaluate-data",
    )
    start = gr.Button("Evaluate", variant="primary", elem_id="evaluate-start")
    message = gr.HTML(elem_id="evaluation-said")  # in sight also where the settings are unfolded
    with gr.Accordion("Settings", open=False), gr.Column(elem_classes="grid"):
        base = gr.Checkbox(True, label="Include base model", info="Shows what the adapter changed.")
        measuring = [
            gr.Dropdown(["transformers", "vllm"], value=field.default, label=field.title, info=field.description)
            if name == "engine"
            else gr.Number(field.default, label=field.title, info=field.description, precision=0, minimum=1)
            for name, field in Measuring.model_fields.items()
        ]
        longest = gr.Number(LONGEST.default, label=LONGEST.title, info=LONGEST.description, precision=0, minimum=1)
        labels = gr.Textbox(
            label=LABELS.title,
            info="Such as Yes, No. Empty: the run's labels, or detected.",
            max_lines=1,
        )
        mapping = gr.Textbox(
            label=MAPPING.title,
            info="Empty: the run's mapping, or detected.",
            placeholder='{"user": "q", "assistant": "a"}',
            max_lines=1,
        )
        encoding = gr.Textbox(
            label=ENCODING.title,
            info="For text that is not UTF-8. Empty: the run's, or detected.",
            placeholder="gb18030",
            max_lines=1,
        )
        at_once = gr.Checkbox(
            False, label=job_views.ALONGSIDE, info=job_views.ABOUT_ALONGSIDE, elem_id="evaluate-beside"
        )
        places = [job_views.target_field("evaluate"), job_views.device_field("evaluate")]
    return [adapters, data, base, *measuring, longest, labels, mapping, encoding, at_once, *places], start, message


def fill(studio: Studio, *requested: str) -> list[Any]:
    """The form as it was sent last; the newest adapter at first, or those that are requested, which are kept."""
    adapters = adapter_choices(studio.workspace, studio.supervisor.runs())
    saved = board.remembered(studio.workspace, adapters, requested)
    if requested:
        with contextlib.suppress(StudioError):  # a full disk: it is shown all the same
            studio.workspace.write_draft(board.FORM, saved)
    first = [
        gr.Dropdown(choices=adapters, value=saved["adapters"], multiselect=True),
        gr.Dropdown(
            choices=board.data_choices(studio.workspace, saved["adapters"]),
            value=saved["data"],
            allow_custom_value=True,
        ),
    ]
    fields = [saved.get(name, FIRST[name]) for name in FIELDS[2:-2]]  # an empty number without a value shows as 0
    places = [
        job_views.target_choice(studio.workspace, saved.get("compute_target")),
        job_views.device_choice(studio.supervisor.devices(), saved.get("compute_device")),
    ]
    return [*first, *fields, *places]


def follow(studio: Studio, *values: Any) -> Any:
    """The test data of the first adapter when that one changes; else the data that was chosen stays."""
    form = dict(zip(FIELDS, values, strict=True))
    adapters = form["adapters"] or []
    before = board.remembered(studio.workspace, adapter_choices(studio.workspace, studio.supervisor.runs()))
    update = gr.skip()
    if adapters and adapters[:1] != before["adapters"][:1]:
        form["data"] = default_data(studio.workspace, adapters[0]) or form["data"]
        choices = board.data_choices(studio.workspace, adapters)
        update = gr.Dropdown(choices=choices, value=form["data"], allow_custom_value=True)
    studio.workspace.write_draft(board.FORM, form)
    return update


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
    begins = at_once or studio.supervisor.busy(request.wanted) is None
    if begins and this != warned_of and (question := _doubt(studio, request, "Evaluate")):
        return "", this, question
    device = studio.supervisor.allocation().for_session(choice=request.compute_device)
    memory = None if this == warned_of else evaluating.memory_for(request, device).need
    jobs = studio.supervisor
    name = evaluating.start(jobs, request, at_once=at_once, memory=memory, offered=jobs.devices())
    return name, "", _beside_words(studio, name)


def _beside_words(studio: Studio, name: str) -> str:
    """The notice about an evaluation that began on a device on which a run trains."""
    if not studio.supervisor.is_alive(name):
        return ""
    devices = set(studio.supervisor.state(name).devices)
    shares = any(devices & set(run.devices) for run in studio.supervisor.working(TRAIN))
    return BESIDE_A_RUN if shares else ""


def _doubt(studio: Studio, request: EvaluationRequest, button: str) -> str:
    """What is asked before an evaluation for which the memory will hardly do; "" where it will."""
    device = studio.supervisor.allocation().for_session(choice=request.compute_device)
    verdict = evaluating.memory_for(request, device)
    if verdict.fits or request.compute_target != LOCAL:
        return ""
    smaller = "lower the batch size, " if button == "Evaluate" else ""
    return html.notice(
        shortage(verdict, studio.engine.run),
        f"It may fail or slow down other jobs. Wait, {smaller}or press {button} again to start anyway.",
        "warning",
    )


def asked_for(studio: Studio, values: JsonObject) -> EvaluationRequest:
    """What the form says. Raises `StudioError` for what can't be evaluated."""
    if not values["adapters"]:
        raise StudioError("No adapter selected.", "Select one. You can evaluate a run from its first checkpoint on.")
    data = str(values["data"] or "").strip()
    if data != VALIDATION:
        studio.workspace.policy.check_path(data)
    if data != VALIDATION and not is_there(data, studio.workspace):
        raise StudioError(f"Test data {data!r} does not exist.", "Choose a file from the list or enter a path.")
    target, longest = str(values.get("compute_target") or LOCAL), values["max_new_tokens"]
    return make_request(
        studio.workspace,
        values["adapters"],
        data,
        compare=bool(values["base"]),
        labels=str(values["labels"] or ""),
        mapping=str(values["mapping"] or ""),
        encoding=str(values["encoding"] or "").strip() or None,
        measuring={name: values[name] for name in Measuring.model_fields},
        generation={"max_new_tokens": LONGEST.default if longest is None else longest},
        compute_target=target,
        compute_device=str(values.get("compute_device") or AUTO) if target == LOCAL else AUTO,
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
            request = request_of(evaluation(studio.workspace, now.evaluation))
            begins = jobs.busy(request.wanted) is None
            question = _doubt(studio, request, "Resume") if begins else ""
            if question and now.warned != now.evaluation:
                return replace(now, warned=now.evaluation), question, gr.skip()
            jobs.resume(now.evaluation, at_once=bool(question))
            return now, _beside_words(studio, now.evaluation), gr.skip()
        case "download":
            path = board.file_of(studio.workspace, now.evaluation, value)
            target = job_views.new_file(studio.workspace, f"{now.evaluation}-{path.name}")
            target.write_bytes(path.read_bytes())
            return now, "", job_views.link(target)
        case _:
            return replace(now, rows=now.rows.act(act, value)), gr.skip(), gr.skip()
    return now, "", gr.skip()
