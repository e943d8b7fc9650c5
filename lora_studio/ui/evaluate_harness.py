"""Public benchmarks on the evaluate tab: lm-evaluation-harness' command for the chosen adapter, and its start."""

import gradio as gr

from lora_studio.adapter_card import read_card
from lora_studio.adapter_source import adapter_folder
from lora_studio.errors import StudioError
from lora_studio.jobs import harness
from lora_studio.jobs.ending_words import ending_words
from lora_studio.jobs.kinds import BENCHMARK
from lora_studio.text_limits import LINE, check_length
from lora_studio.ui import text
from lora_studio.ui.run_section import QUIET
from lora_studio.ui.studio import Studio

ABOUT = (
    "lm-evaluation-harness asks the public benchmarks that papers report. It is a package of its own (pip install "
    "lm_eval) and fetches its questions from the Hugging Face Hub."
)


def build(studio: Studio, adapters: gr.Dropdown) -> None:
    """A fold with the command; buttons to run it where the package is installed."""
    there = harness.installed()
    with gr.Accordion("Public benchmarks (lm-evaluation-harness)", open=False, elem_id="harness"):
        gr.HTML(text.hint(ABOUT))
        tasks = gr.Textbox(harness.TASKS, label="Tasks", info="Names of lm_eval's tasks, with commas between them.")
        shown = gr.HTML()
        if there:
            with gr.Row(elem_classes="actions"):
                start = gr.Button("Run the benchmarks", scale=0, min_width=180)
                stop = gr.Button("Stop them", scale=0, min_width=120)
            log = gr.HTML()
    asked = [adapters, tasks]

    def show(names: list[str] | None, wanted: str) -> str:
        try:
            return _shown(harness.in_a_shell(words_for(studio, names, wanted)))
        except StudioError as error:
            return text.problem(error)

    def run(names: list[str] | None, wanted: str) -> str:
        try:
            start_one(studio, names, wanted)
        except StudioError as error:
            return text.problem(error)
        return _shown(progress(studio))

    # As it comes: of an adapter that was deleted on another page Gradio would say that it is none of its choices.
    gr.on([adapters.change, tasks.change], show, asked, shown, preprocess=False, **QUIET)
    if there:
        start.click(run, asked, log, **QUIET)
        stop.click(lambda: stop_one(studio), None, None, **QUIET)
        seen = gr.State("")

        def tick(before: str) -> tuple[object, object]:
            now = progress(studio)
            return (gr.skip(), gr.skip()) if now == before else (_shown(now), now)

        gr.Timer(3).tick(tick, seen, [log, seen], **QUIET)


def words_for(studio: Studio, names: list[str] | None, tasks: str, results: str = "") -> list[str]:
    """The command's words for the first adapter that is chosen. Raises `StudioError` where there is none."""
    check_length("The list of tasks", tasks, LINE)
    if not studio.workspace.owned:
        raise StudioError("Public benchmarks are the owner's to run.", "They fetch from the Hub and run for hours.")
    if not names:
        raise StudioError("No adapter is chosen.", "Choose one above: its command appears here.")
    folder = adapter_folder(studio.workspace, names[0])
    card = read_card(folder)
    return harness.command(folder, card.base, card.quantization, tasks, results or studio.workspace.benchmarks_folder)


def start_one(studio: Studio, names: list[str] | None, tasks: str) -> str:
    """Starts or queues a benchmark of the first adapter that is chosen; its id. Raises `StudioError` where it can't."""
    words = words_for(studio, names, tasks, "results")
    return harness.start(studio.supervisor, f"{(names or [''])[0]} on {tasks}", words)


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
    return f'<div class="ls-raw"><pre>{text.escape(words)}</pre></div>'
