"""The process behind the page opens nobody's data: a file made to fill the memory fills that of a child."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_studio.config.sections import Config
from lora_studio.jobs.preflight import this_machine
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hardware import recent_devices
from lora_studio.ui import form
from lora_studio.ui.components import Shared, Wish
from lora_studio.ui.data import tab as data_tab
from lora_studio.ui.data.handlers import AnalysisHandlers
from lora_studio.ui.gradio_patches import without_app
from lora_studio.ui.studio import Studio
from lora_studio.ui.train import form_state, picker
from lora_studio.ui.train import tab as train_tab
from lora_studio.ui.train.plan import plan
from lora_studio.workspace import Workspace
from tests.opened import opened_files
from tests.ui.fake_session import FakeSession
from tests.ui.test_inspection import chosen, script

Watched = tuple[Path, Callable[[], list[str]]]


@pytest.fixture
def files(workspace: Workspace) -> Iterator[Watched]:
    """A file of 1 kB that stands for 40 MB among the uploads, and which of the uploads are opened in this process."""
    bomb = workspace.uploads_folder / "bomb.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"instruction": column, "output": pa.array(["b"] * 40)}), bomb, compression="zstd")
    with opened_files() as opened:
        yield bomb, lambda: [path for path, _ in opened if path.startswith(str(workspace.uploads_folder))]


def handlers(studio: Studio) -> dict[str, Any]:
    """The train tab's events by name."""
    with without_app(), gr.Blocks() as page:
        start = gr.Button("Start training", render=False)
        with gr.Tabs() as tabs, gr.Tab("Train"):
            states = {"data": gr.State(), "form": gr.State(), "run": gr.State(""), "wish": gr.State(Wish())}
            shared = Shared(tabs, start=start, status=gr.HTML(), **states)
            train_tab.build(studio, shared)
    return {str(event.name): event.fn for event in page.fns.values()}


def test_the_watch_sees_what_is_opened(files: Watched) -> None:
    bomb, opened = files
    bomb.read_bytes()
    assert opened() == [str(bomb)]


def test_the_train_tab_counts_plans_and_offers_without_opening_a_file(workspace: Workspace, files: Watched) -> None:
    bomb, opened = files
    session: Any = FakeSession(script)
    supervisor: Any = SimpleNamespace(busy=lambda choice: None)
    studio = Studio(workspace, supervisor, session, session)
    raws = form.overlay(form.shown(Config()), {"data.train_file": str(bomb), "data.validation_file": str(bomb)})
    events = handlers(studio)
    shown = events["use_data"]((1.0, {"data.train_file": str(bomb)}, "the data tab"), "demo", *raws)
    assert shown
    assert plan(form_state.checked(raws, workspace), workspace).rows == 40
    assert str(bomb) in str(picker.data_choices(workspace))
    this_machine(recent_devices()[0], workspace)
    assert opened() == []


def test_the_data_tab_looks_corrects_pages_and_hands_over_without_opening_a_file(
    workspace: Workspace, files: Watched
) -> None:
    bomb, opened = files
    session: Any = FakeSession(script)
    studio = Studio(workspace, Supervisor(workspace), session, session)
    with without_app(), gr.Blocks():
        controls = data_tab.draw_controls(studio)
        act = AnalysisHandlers(studio, controls, data_tab.draw_view(studio, controls))
    choice = chosen(**{"data.train_file": str(bomb), "data.validation_file": str(bomb)})
    for events in (act.look(*choice), act.look_anew(*choice)):
        (*_, last) = events
        assert last[act.view.result]
    act.choose_bad_rows(last[act.view.result], *choice)
    act.save_bad_rows(last[act.view.analyzed])
    act.hand_over(*choice)
    act.repaint()
    act.measure_disk()
    assert len(session.asked) >= 3
    assert opened() == []
