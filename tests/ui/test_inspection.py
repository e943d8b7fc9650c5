"""What the data tab's events do, with a session that only plays answers back."""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_studio.errors import StudioError
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui import data_tab, inspection
from lora_studio.ui.inspection import PATHS, Inspection
from lora_studio.ui.studio import Studio
from lora_studio.workspace import Workspace
from tests.ui.fake_session import FakeSession

PREVIEW = {
    "row": 3,
    "record": {"q": "Hi"},
    "messages": [{"role": "user", "content": "Hi"}],
    "text": "Hi",
    "tokens": [{"id": 1, "text": "Hi", "trained": True, "special": False}],
    "removed_tokens": 0,
    "trained_tokens": 1,
    "ends_with_eos": True,
}
RESULT = {
    "kind": "result",
    "format": "text",
    "words": "Text.",
    "assumptions": [],
    "template_origin": "",
    "rows": 3,
    "usable_rows": 3,
    "train_rows": 2,
    "validation_rows": 1,
    "bad_rows": 0,
    "bad_row_list": [],
    "bad_rows_by_reason": {},
    "tokens": {"min": 1, "mean": 2, "p50": 2, "p90": 3, "p95": 3, "p99": 3, "max": 30},
    "max_length": 1024,
    "trained_tokens": 6,
    "lost_trained_tokens": 0,
    "total_tokens": 6,
    "histogram": {"edges": [1, 2, 31], "counts": [1, 2]},
    "cut_curve": [
        {"max_length": 8, "rows": 1, "lost_trained_tokens": 2, "dropped_rows": 0},
        {"max_length": 1024, "rows": 0, "lost_trained_tokens": 0, "dropped_rows": 0},
    ],
    "table": {"columns": ["row", "q"], "rows": [[1, "Hi"]]},
    "examples": [PREVIEW],
}


def script(method: str, **params: Any) -> list[dict[str, Any] | StudioError]:
    if method == "preview":
        return [{"kind": "result", **PREVIEW, "row": params["row_index"] + 10}]
    if params["model"] == "gone":
        return [StudioError("There is no model 'gone'.", "Name another one.")]
    return [{"kind": "progress", "phase": "encode", "done": 1, "total": 3}, RESULT]


@pytest.fixture
def act(workspace: Workspace) -> Inspection:
    session: Any = FakeSession(script)
    studio = Studio(workspace, Supervisor(workspace), session, session)
    with gr.Blocks():
        return Inspection(studio, data_tab.draw_controls(studio), data_tab.draw_view())


def chosen(**changed: Any) -> list[Any]:
    values = {"data.train_file": "pirate", "model.name": " demo ", "data.max_length": 1024}
    rest = {"data.truncation": "keep_answer", "data.train_on": "assistant", "data.prompt_style": "auto"}
    return [({**values, **rest, "data.system_prompt": ""} | changed)[path] for path in PATHS]


def test_looking_shows_progress_then_everything_that_was_found(act: Inspection) -> None:
    updates = list(act.look(*chosen()))
    assert "Making tokens: 1 of 3" in str(updates[1][act.view.status])
    assert "Plain text." in updates[-1][act.view.summary]
    assert "Conversation 1 of 3 (row 3 of the file)" in updates[-1][act.view.position]
    assert updates[-1][act.view.found] == RESULT
    method, params = act.studio.inspector.asked[0]
    assert (method, params["train_file"], params["model"], params["system_prompt"]) == (
        "inspect",
        "pirate",
        "demo",
        None,
    )


def test_a_failure_is_a_sentence_and_keeps_the_choice(act: Inspection) -> None:
    last = list(act.look(*chosen(**{"model.name": "gone"})))[-1]
    assert "There is no model &#x27;gone&#x27;." in str(last[act.view.status].value)
    assert "Name another one." in str(last[act.view.status].value)
    assert act.controls.source not in last
    assert inspection.remembered(act.studio.workspace)["model.name"] == "gone"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("data.train_file", "/etc/passwd", "No data is chosen"),
        ("model.name", " ", "No model is named"),
        ("data.max_length", None, "can&#x27;t be None"),
        ("data.max_length", 3, "Give 8 to 1,048,576 tokens"),
    ],
)
def test_a_choice_that_can_not_be_is_told_before_anything_starts(
    act: Inspection, path: str, value: Any, words: str
) -> None:
    last = list(act.look(*chosen(**{path: value})))[-1]
    assert words in str(last[act.view.status].value)
    assert act.studio.inspector.asked == []


def test_a_stop_says_so_and_leaves_what_was_shown(act: Inspection) -> None:
    running = act.look(*chosen())
    next(running)
    act.stop()
    act.studio.inspector.script = lambda method, **params: [StudioError("The session was closed.")]
    last = list(running)[-1]
    assert "Stopped." in str(last[act.view.status].value)
    assert act.view.body not in last


def test_an_upload_is_copied_chosen_and_offered(act: Inspection, tmp_path: Path) -> None:
    (tmp_path / "my <data>.jsonl").write_text("{}")
    updates = act.keep_upload(str(tmp_path / "my <data>.jsonl"))
    kept = updates[act.controls.source].value
    assert Path(kept).parent == act.studio.workspace.uploads_folder
    assert (Path(kept).name, kept) in updates[act.controls.source].choices
    assert act.keep_upload(None) == {}


def test_the_cut_line_moves_without_asking_the_inspector(act: Inspection) -> None:
    updates = act.move_cut(RESULT, 10)
    assert "At 8 tokens: 1 row" in updates[act.view.sentence]
    assert "cut at 8" in updates[act.view.histogram]
    assert act.use_cut(RESULT, 10) == 8
    assert act.studio.inspector.asked == []
    assert act.move_cut(None, 10) == {}


def test_pages_turn_and_stop_at_the_ends(act: Inspection) -> None:
    list(act.look(*chosen()))
    assert act.forward(RESULT, 0)[act.view.index] == 1
    assert "row 11 of the file" in act.forward(RESULT, 0)[act.view.position]
    assert act.forward(RESULT, 2)[act.view.index] == 2
    assert act.back(RESULT, 0)[act.view.index] == 0
    assert act.go(RESULT, 99)[act.view.index] == 2
    assert act.go(None, 1) == {}


def test_a_reader_that_was_closed_reads_the_file_again_for_the_next_page(act: Inspection) -> None:
    list(act.look(*chosen()))
    act.stop()
    act.forward(RESULT, 0)
    assert [method for method, _ in act.studio.inspector.asked] == ["inspect", "inspect", "preview"]


def test_a_reload_shows_the_last_choice_and_what_was_found(act: Inspection) -> None:
    assert act.view.summary not in act.repaint()
    list(act.look(*chosen(**{"data.max_length": 512})))
    updates = act.repaint()
    assert updates[act.controls.max_length] == 512
    assert "Plain text." in updates[act.view.summary]


def test_a_choice_changed_after_looking_hides_what_no_longer_fits(act: Inspection) -> None:
    list(act.look(*chosen()))
    act.hand_over(*chosen(**{"data.train_file": "technical"}))
    updates = act.repaint()
    assert updates[act.controls.source].value == "technical"
    assert act.view.summary not in updates


def test_an_upload_deleted_meanwhile_is_forgotten(act: Inspection) -> None:
    act.studio.workspace.write_draft("data", {"settings": {"data.train_file": "/gone.jsonl", "data.max_length": 64}})
    values = inspection.remembered(act.studio.workspace)
    assert (values["data.train_file"], values["data.max_length"]) == ("pirate", 64)


def test_handing_over_carries_every_choice_to_the_train_tab_and_keeps_it_as_a_draft(act: Inspection) -> None:
    (_, values), tabs = act.hand_over(*chosen(**{"data.max_length": 128}))
    assert (values["data.train_file"], values["data.max_length"], tabs.selected) == ("pirate", 128, "train")
    draft = json.loads((act.studio.workspace.drafts_folder / "data.json").read_text())
    assert draft["settings"]["data.max_length"] == 128
