"""Public benchmarks on the evaluate tab: lm-evaluation-harness' command for the chosen adapter, and its start."""

import gradio as gr

from lora_studio.adapter_card import read_card
from lora_studio.adapter_source import adapter_folder
from lora_studio.errors import StudioError
from lora_studio.jobs import harness
from lora_studio.jobs.harness import Harness
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
    bench = Harness(studio.workspace)
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
            bench.start(words_for(studio, names, wanted))
        except StudioError as error:
            return text.problem(error)
        return text.notice("The benchmarks run; what they print appears here.")

    # As it comes: of an adapter that was deleted on another page Gradio would say that it is none of its choices.
    gr.on([adapters.change, tasks.change], show, asked, shown, preprocess=False, **QUIET)
    if there:
        start.click(run, asked, log, **QUIET)
        stop.click(bench.stop, None, None, **QUIET)
        gr.Timer(3).tick(lambda: _shown(bench.said()) if bench.said() else gr.skip(), None, log, **QUIET)


def words_for(studio: Studio, names: list[str] | None, tasks: str) -> list[str]:
    """The command's words for the first adapter that is chosen. Raises `StudioError` where there is none."""
    check_length("The list of tasks", tasks, LINE)
    if not studio.workspace.owned:
        raise StudioError("Public benchmarks are the owner's to run.", "They fetch from the Hub and run for hours.")
    if not names:
        raise StudioError("No adapter is chosen.", "Choose one above: its command appears here.")
    folder = adapter_folder(studio.workspace, names[0])
    card = read_card(folder)
    return harness.command(folder, card.base, card.quantization, tasks, studio.workspace.root / "benchmarks")


def _shown(words: str) -> str:
    return f'<div class="ls-raw"><pre>{text.escape(words)}</pre></div>'
