"""Which runs there are, on the runs tab: search, the table to choose from, and what is done with several at once."""

from dataclasses import replace
from typing import Any

import gradio as gr

from lora_studio.events import RunState
from lora_studio.ui import browser, run_deletion
from lora_studio.ui.run_board import Board
from lora_studio.ui.run_section import QUIET
from lora_studio.ui.run_table import Choice, chosen_rows, page_of, table
from lora_studio.ui.studio import Shared, Studio
from lora_studio.ui.text import count, progress

SELECTION, ORDER = "selected-run", "runs-order"
# Of two boxes ticked one right after the other neither click is left out, and the second knows of the first.
IN_TURN: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_id": "runs-list", "concurrency_limit": 1}


def build(studio: Studio, shared: Shared) -> tuple[dict[str, Any], gr.State]:
    """Search, table and what is done with ticked runs; what was chosen is the state."""
    choice = gr.State(Choice())
    with gr.Row(elem_classes="runs-top"):
        search = gr.Textbox(
            label="Search runs",
            placeholder="name, model, data, tag or note",
            elem_id="run-search",
            scale=3,
            min_width=220,
            max_lines=1,
        )
        compare = gr.Button(
            "Compare", visible=False, variant="primary", elem_id="runs-compare", scale=0, min_width=150, size="md"
        )
        delete = gr.Button("Delete…", visible=False, elem_id="runs-delete", size="md", scale=0, min_width=130)
        clear = gr.Button("Choose none", visible=False, elem_id="runs-clear", size="md", scale=0, min_width=120)
    with gr.Row(visible=False, elem_classes="confirm") as confirm:
        question = gr.HTML(min_width=260)
        yes = gr.Button("Delete for good", variant="stop", elem_id="runs-delete-yes", size="md", scale=0, min_width=150)
        no = gr.Button("Keep them", elem_id="runs-delete-no", size="md", scale=0, min_width=110)
    said = gr.HTML(visible=False)
    listed = gr.HTML(progress("Reading the runs"), js_on_load=browser.on_load("runTable"), elem_id="run-list")

    def act(event: gr.EventData, before: Choice) -> tuple[Any, Any]:
        now = before.act(str(event.act), str(event.value), [str(run) for run in event.listed])
        if event.act == "open":
            studio.workspace.write_draft(SELECTION, event.value)
            return event.value, replace(now, comparing=False)
        if event.act == "sort":
            studio.workspace.write_draft(ORDER, [now.sort, now.down])
        return gr.skip(), now

    def remove(before: Choice, looked_at: str) -> tuple[Any, ...]:
        problems = run_deletion.delete(studio, before.ticked)
        left = {run.id for run in studio.supervisor.runs()}
        ticked = tuple(run for run in before.ticked if run in left)
        seen = gr.HTML(problems, visible=bool(problems))
        now = replace(before, ticked=ticked, comparing=False)
        return now, looked_at if looked_at in left else "", gr.Row(visible=False), seen

    listed.click(act, choice, [shared.run, choice], **IN_TURN, **QUIET)
    search.input(
        lambda query, before: replace(before, query=query, page=0),
        [search, choice],
        choice,
        trigger_mode="always_last",
        **QUIET,
    )
    compare.click(lambda before: replace(before, comparing=not before.comparing), choice, choice, **QUIET)
    clear.click(lambda before: replace(before, ticked=(), comparing=False), choice, choice, **QUIET)
    delete.click(
        lambda before: (gr.Row(visible=True), run_deletion.question(studio, before.ticked)),
        choice,
        [confirm, question],
        **QUIET,
    )
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    yes.click(remove, [choice, shared.run], [choice, shared.run, confirm, said], **QUIET)
    choice.change(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    return {"list": listed, "compare": compare, "delete": delete, "clear": clear}, choice


def opening_choice(studio: Studio) -> Choice:
    """The order chosen last; everything else begins anew."""
    kept = studio.workspace.read_draft(ORDER)
    if isinstance(kept, list) and len(kept) == 2 and isinstance(kept[0], str) and isinstance(kept[1], bool):
        return Choice(sort=kept[0], down=kept[1])
    return Choice()


def view(
    board: Board, runs: list[RunState], choice: Choice, looked_at: str, now: float, owner: str = ""
) -> dict[str, Any]:
    """What list and buttons show; `owner` is the name of who looks, where runs of others are among them."""
    rows = board.rows(runs)
    if choice.sort == "bytes":
        rows = [replace(row, bytes=board.size(row.state)) for row in rows]
    found = chosen_rows(rows, choice)
    sized = {
        row.run.id: replace(row, bytes=board.size(row.state), by=_whose(row.run.maker, owner))
        for row in page_of(found, choice)[0]
    }
    ticked = len(set(choice.ticked) & {run.id for run in runs})
    words = "Back to one run" if choice.comparing else f"Compare {count(ticked, 'run')}"
    return {
        "list": table([sized.get(row.run.id, row) for row in found], len(runs), choice, looked_at, now),
        "compare": gr.update(value=words, visible=ticked > 1),
        "delete": gr.update(value=f"Delete {count(ticked, 'run')}…", visible=ticked > 0),
        "clear": ticked > 0,
    }


def _whose(maker: str, owner: str) -> str:
    if not owner:
        return ""
    return "yours" if maker in ("", owner) else f"by {maker}"


def opening_run(studio: Studio) -> str:
    """The run to look at when the page opens: the one that runs, else the one last looked at, else the newest."""
    runs = studio.supervisor.runs()
    active = next((run.id for run in runs if run.state in ("running", "stopping")), None)
    last = studio.workspace.read_draft(SELECTION)
    known = {run.id for run in studio.workspace.runs()}
    return active or (last if last in known else None) or (runs[0].id if runs else "")
