"""What a page costs that is left open: its timers tick all day, and nothing may pile up behind them."""

import gc
from pathlib import Path

import pytest

from lora_studio.access.accounts import OWNER
from lora_studio.access.policy import Users
from lora_studio.evaluate.job import create, make_request
from lora_studio.export import job
from lora_studio.jobs.kinds import EVALUATE, EXPORT
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui.evaluate import results as evaluate_board
from lora_studio.ui.export import results as export_board
from lora_studio.ui.runs import tab
from lora_studio.ui.runs.tab import Shown
from lora_studio.ui.runs.table import RunBoard, TableChoice
from lora_studio.ui.studio import Studio
from lora_studio.ui.words import status_line
from lora_studio.workspace import Workspace
from tests.adapters import files, write
from tests.ui.test_runs_tab import finished

TICKS = 120
DAY = 24 * 3600
MOST_OBJECTS_A_DAY = 50_000  # some megabytes, and less than one object a tick


@pytest.mark.slow
def test_a_day_of_ticks_leaves_nothing_behind(tmp_path: Path) -> None:
    whole = Workspace(tmp_path / "workspace")
    runs = [finished(whole, f"run {number}") for number in range(3)]
    write(runs[0].adapter, files())
    create(whole, make_request(whole, [runs[0].id], "pirate"))
    job.create(whole, job.make_request(whole, runs[0].id, "merged"))
    workspace = Users(whole, OWNER).workspace_for(lambda: OWNER)
    log = whole.logs_folder / "log"
    studio = Studio(workspace, Supervisor(workspace), Session(log), Session(log))
    board, evaluated = RunBoard(workspace), evaluate_board.EvaluationBoard(workspace, studio.supervisor)
    taken = export_board.ExportBoard(workspace, studio.supervisor)
    (shown,), (export,) = studio.supervisor.jobs(EVALUATE), studio.supervisor.jobs(EXPORT)
    before = Shown()

    def tick(number: int) -> None:
        nonlocal before
        studio.supervisor.tick()
        status_line(
            studio.supervisor.runs(),
            False,
            bool(studio.supervisor.working(EVALUATE)),
            exporting=bool(studio.supervisor.working(EXPORT)),
        )
        before = tab.look(studio, board, runs[number % 3].id, TableChoice(), before)
        evaluated.look(evaluate_board.EvaluationView(shown.id), 0.0)
        taken.look(export_board.ExportView(runs[0].id, export=export.id), 0.0)

    for number in range(30):
        tick(number)
    gc.collect()
    first = len(gc.get_objects())
    for number in range(TICKS):
        tick(number)
    gc.collect()
    assert (len(gc.get_objects()) - first) * DAY / TICKS < MOST_OBJECTS_A_DAY
