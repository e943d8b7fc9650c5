"""Public benchmarks on the Evaluate tab: the command of lm-evaluation-harness, and buttons that run it."""

import gradio as gr

from lora_studio.errors import LINE, StudioError, check_length
from lora_studio.evaluate import request as benchmarks
from lora_studio.jobs.ending_words import ending_words
from lora_studio.jobs.kinds import BENCHMARK
from lora_studio.models.adapters import adapter_folder, read_card
from lora_studio.ui import html
from lora_studio.ui.components import QUIET
from lora_studio.ui.studio import Studio

ABOUT = (
    "Runs public benchmarks such as HellaSwag with lm-evaluation-harness (`pip install lm_eval`). Their questions are "
    "downloaded from the Hugging Face Hub."
)


def build(studio: Studio, adapters: gr.Dropdown) -> None:
    """A fold with the command, and buttons to run it if the package is installed."""
    installed = benchmarks.installed()
    with gr.Accordion("Public benchmarks", open=False, elem_id="harness"):
        gr.HTML(html.hint(ABOUT))
        tasks = gr.Textbox(benchmarks.TASKS, label="Tasks", info="lm_eval task names, separated by commas.")
        command = gr.HTML()
        if installed:
            with gr.Row(elem_classes="actions"):
                start = gr.Button("Run benchmarks", scale=0, min_width=160)
                stop = gr.Button("Stop benchmarks", scale=0, min_width=160)
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
        raise StudioError("Only the owner can run public benchmarks.", "They download data and can run for hours.")
    if not names:
        raise StudioError("No adapter selected.", "Select one above to see its command.")
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
        return f"{newest.title}: queued, another job uses the device."
    end = "\nDone." if newest.state == "done" else "\n" + " ".join(ending_words(newest)) if newest.final else ""
    return studio.supervisor.log(newest.id, 40) + end


def _shown(words: str) -> str:
    return f'<div class="ls-raw"><pre>{html.escape(words)}</pre></div>'
