"""What the data tab's events do, with a session that only plays answers back."""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_studio.access.policy import Users
from lora_studio.errors import StudioError
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.jobs.targets import Targets
from lora_studio.ui.components import Shared, Wish
from lora_studio.ui.data import choice as data_choice
from lora_studio.ui.data import mapping_form, tab
from lora_studio.ui.data.choice import PATHS
from lora_studio.ui.data.handlers import AnalysisHandlers
from lora_studio.ui.gradio_patches import without_app
from lora_studio.ui.studio import Studio
from lora_studio.workspace import Workspace
from tests.ui.fake_session import FakeSession

PREVIEW = {
    "row": 3,
    "split": "train",
    "examples": 1,
    "windows": 1,
    "window": 0,
    "record": {"q": "Hi"},
    "messages": [{"role": "user", "content": "Hi"}],
    "text": "Hi",
    "tokens": [{"id": 1, "text": "Hi", "trained": True, "special": False, "kept": True}],
    "full_length": 1,
    "kept_tokens": 1,
    "removed_tokens": 0,
    "removed_after": 0,
    "lost_trained_tokens": 0,
    "left_out": "",
    "trained_tokens": 1,
    "ends_with_eos": True,
}
READINGS: list[dict[str, Any]] = [
    {"name": "prompt_completion", "words": f"`q` asks, `{name}` answers.", "mapping": {"user": "q", "assistant": name}}
    for name in ("a", "b")
]
RESULT: dict[str, Any] = {
    "kind": "result",
    "sampled": None,
    "format": "text",
    "words": "Text.",
    "suggested": {"max_length": 64, "reason": "95 of 100 rows at most 3 tokens."},
    "packing": {"max_length": 1024, "rows": 2, "packs": 1, "padding_alone": 0.99, "padding_packed": 0.98},
    "steps": {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "processes": 1,
        "per_epoch": 1,
        "per_epoch_packed": 1,
    },
    "split_rows": 0,
    "truncated_rows": 0,
    "dropped_rows": 0,
    "windows": 3,
    "readings": READINGS,
    "ambiguous": True,
    "question": "Learn from `a`, or from `b`?",
    "mapping": READINGS[0]["mapping"],
    "speakers": {},
    "refusal": None,
    "hygiene": None,
    "assumptions": [],
    "template_origin": "",
    "rows": 3,
    "usable_rows": 3,
    "train_rows": 2,
    "validation_rows": 1,
    "marked_bad_rows": 0,
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
    "table": {"columns": ["row", "q", "a", "b"], "rows": [[1, "Hi", "A", "B"]]},
    "examples": [PREVIEW],
}


UNREAD = {
    "kind": "progress",
    "phase": "rows",
    "unread": {
        **{key: RESULT[key] for key in ("table", "ambiguous", "question", "readings")},
        "mapping": {},
        "speakers": {"customer": "", "bot": "assistant"},
    },
}


def script(method: str, **params: Any) -> list[dict[str, Any] | StudioError]:
    if method == "preview":
        window = params["window"] or 0
        return [{"kind": "result", **PREVIEW, "row": params["row_index"] + 10, "windows": 3, "window": window}]
    if method == "save_cleaned":
        Path(params["path"]).write_text("{}")
        return [{"kind": "result", "rows": 2, "removed": 1}]
    if method == "save_bad_rows":
        Path(params["path"]).write_text("{}")
        return [{"kind": "result", "rows": 1}]
    if method == "try_reading":
        return [{"kind": "result", "words": str(params["mapping"]), "failed": 0, "marked_bad": 0, "of": 3, "rows": []}]
    if ".xlsx" in params["train_file"]:
        sheets = {"kind": "progress", "phase": "tokenizer", "sheets": ["Notes", "Answers"]}
        refused = StudioError("The format of the rows is not known.")
        return [sheets, RESULT if params["train_file"].endswith("Answers") else refused]
    if params["train_file"] == "nobody":
        return [UNREAD, StudioError("The format of the rows is not known.")]
    if params["model"] == "gone":
        return [StudioError("There is no model 'gone'.", "Name another one.")]
    if (params["mapping"] or {}).get("text"):
        return [StudioError("Invalid column mapping: leave the other parts empty.")]
    if params["mapping"]:
        return [{**RESULT, "format": "mapped", "mapping": params["mapping"]}]
    return [{"kind": "progress", "phase": "encode", "done": 1, "total": 3}, RESULT]


@pytest.fixture
def act(workspace: Workspace) -> AnalysisHandlers:
    return acting(workspace)


def acting(workspace: Workspace) -> AnalysisHandlers:
    session: Any = FakeSession(script)
    studio = Studio(workspace, Supervisor(workspace), session, session)
    with without_app(), gr.Blocks():
        controls = tab.draw_controls(studio)
        return AnalysisHandlers(studio, controls, tab.draw_view(studio, controls))


def chosen(**changed: Any) -> list[Any]:
    values = {"data.train_file": "pirate", "model.name": " demo ", "data.max_length": 1024}
    rest = {"data.truncation": "keep_answer", "data.train_on": "assistant", "data.prompt_style": "auto"}
    last = {"data.system_prompt": "", "data.validation_file": "", "look.percentiles": "", "data.bad_rows": "skip"}
    split = {"data.validation_fraction": 0.1, "data.split_seed": 42, "data.max_samples": None}
    more = {"data.max_eval_samples": None, "data.enable_thinking": "default", "data.encoding": ""}
    return [({**values, **rest, **last, **split, **more, "data.mapping": None} | changed)[path] for path in PATHS]


def form_fields(*, roles: list[list[str]] | None = None, **parts: str) -> list[Any]:
    columns = [parts.get(part, "") for part in mapping_form.PARTS]
    return [*columns, *(roles or [[], [], [], []]), parts.get("template", "")]


ANALYZED = data_choice.values_of(chosen())


def test_looking_shows_progress_then_everything_that_was_found(act: AnalysisHandlers) -> None:
    updates = list(act.look(*chosen()))
    assert "Tokenizing: 1 of 3" in str(updates[1][act.view.status])
    assert "Plain text" in updates[-1][act.view.summary]
    assert "Example 1 of 3 (row 3 of the file)" in updates[-1][act.view.pager.position]
    assert updates[-1][act.view.result] == {name: value for name, value in RESULT.items() if name != "kind"}
    method, params = act.studio.inspector.asked[0]
    assert (method, params["train_file"], params["model"], params["system_prompt"]) == (
        "inspect",
        "pirate",
        "demo",
        None,
    )


def test_data_that_the_train_tab_asks_to_preview_is_chosen_and_analyzed(act: AnalysisHandlers) -> None:
    list(act.look(*chosen()))
    updates = list(act.open_wished(Wish(data="technical"), *chosen()))
    assert updates[0][act.controls.source].value == "technical"
    assert act.studio.inspector.asked[-1][1]["train_file"] == "technical"
    asked = len(act.studio.inspector.asked)
    assert list(act.open_wished(Wish(adapter="a-run"), *chosen())) == [act._unchanged()]
    assert len(act.studio.inspector.asked) == asked


def test_the_share_kept_back_and_the_number_of_rows_go_to_the_reader_and_to_the_train_tab(
    act: AnalysisHandlers,
) -> None:
    split = {"data.validation_fraction": 0.2, "data.split_seed": 7.0, "data.max_samples": 100.0}
    split["data.max_eval_samples"] = 9.0
    list(act.look(*chosen(**split)))
    params = act.studio.inspector.asked[0][1]
    assert [params[path.removeprefix("data.")] for path in split] == list(split.values())
    assert type(params["max_samples"]) is int
    assert {**act.hand_over(*chosen(**split))[0][1], **split} == act.hand_over(*chosen(**split))[0][1]
    for wrong in ({"data.validation_fraction": 0.95}, {"data.split_seed": None}, {"data.max_samples": 0}):
        (*_, last) = act.look(*chosen(**wrong))
        assert "can&#x27;t be" in str(last[act.view.status].value)


def test_the_thinking_switch_goes_to_the_reader_and_comes_back_after_a_reload(act: AnalysisHandlers) -> None:
    for shown, meant in (("default", None), ("off", False), ("on", True)):
        list(act.look(*chosen(**{"data.enable_thinking": shown})))
        assert act.studio.inspector.asked[-1][1]["enable_thinking"] is meant
        assert act.repaint()[act.controls.enable_thinking] == shown
        assert act.hand_over(*chosen(**{"data.enable_thinking": shown}))[0][1]["data.enable_thinking"] is meant


def test_a_failure_is_a_sentence_and_keeps_the_choice(act: AnalysisHandlers) -> None:
    last = list(act.look(*chosen(**{"model.name": "gone"})))[-1]
    assert "There is no model &#x27;gone&#x27;." in str(last[act.view.status].value)
    assert "Name another one." in str(last[act.view.status].value)
    assert act.controls.source not in last
    assert data_choice.remembered(act.studio.workspace)["model.name"] == "gone"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("data.train_file", " ", "No dataset is chosen"),
        ("model.name", " ", "No model is named"),
        ("data.max_length", None, "can&#x27;t be None"),
        ("data.max_length", 3, "Give 8 to 1,048,576 tokens"),
        ("look.percentiles", "50, most", "are not all percentiles"),
        ("look.percentiles", "101", "are not all percentiles"),
    ],
)
def test_a_choice_that_can_not_be_is_told_before_anything_starts(
    act: AnalysisHandlers, path: str, value: Any, words: str
) -> None:
    last = list(act.look(*chosen(**{path: value})))[-1]
    assert words in str(last[act.view.status].value)
    assert act.studio.inspector.asked == []


def test_a_stop_says_so_and_leaves_what_was_shown(act: AnalysisHandlers) -> None:
    running = act.look(*chosen())
    next(running)
    act.stop()
    act.studio.inspector.script = lambda method, **params: [StudioError("The session was closed.")]
    last = list(running)[-1]
    assert "Stopped." in str(last[act.view.status].value)
    assert act.view.body not in last


def test_a_visitor_stops_their_own_look_and_nobody_elses(tmp_path: Path) -> None:
    now = ["bert"]
    act = acting(Users(Workspace(tmp_path / "workspace"), "anna").workspace_for(lambda: now[0]))
    steps = [{"kind": "progress", "phase": "encode", "done": done, "total": 5} for done in range(5)]
    session: Any = act.studio.inspector
    session.script = lambda method, **params: [*steps, RESULT]
    berts = act.look(*chosen())
    next(berts)
    next(berts)
    now[0] = "carl"
    carls = act.look(*chosen())
    next(carls)  # it waits for bert's
    for now[0] in ("carl", "dora"):
        act.stop()
        assert session.running
    assert "Stopped." in str(list(carls)[-1][act.view.status].value)
    now[0] = "bert"
    act.stop()
    assert not session.running
    assert "Stopped." in str(list(berts)[-1][act.view.status].value)


def test_prepared_data_is_cleared_by_the_owner_alone(tmp_path: Path) -> None:
    now = ["bert"]
    act = acting(Users(Workspace(tmp_path / "workspace"), "anna").workspace_for(lambda: now[0]))
    entry = act.studio.workspace.cache_folder / "entry"
    entry.mkdir(parents=True)
    (entry / "ids").write_bytes(b"x" * 1000)
    shown = act.measure_disk()
    assert (shown[act.view.clear].visible, "Clearing" in shown[act.view.cache]) == (False, False)
    assert "owner can clear it" in act.clear_cache()[act.view.cache]
    assert entry.exists()
    now[0] = "anna"
    assert act.measure_disk()[act.view.clear].visible
    act.clear_cache()
    assert not entry.exists()


def test_an_upload_is_copied_chosen_and_offered(act: AnalysisHandlers, tmp_path: Path) -> None:
    (tmp_path / "my <data>.jsonl").write_text("{}")
    updates = act.keep_upload([str(tmp_path / "my <data>.jsonl")])
    kept = updates[act.controls.source].value
    assert Path(kept).parent == act.studio.workspace.uploads_folder
    assert (Path(kept).name, kept) in updates[act.controls.source].choices
    assert act.keep_upload(None) == {act.view.status: gr.skip()}


def test_the_cut_line_moves_without_asking_the_inspector(act: AnalysisHandlers) -> None:
    updates = act.move_cut(RESULT, 10)
    assert "At 8 tokens 1 row" in updates[act.view.sentence]
    assert updates[act.view.histogram]["cut"] == {"at": 8.5, "label": "max length 1,024 →"}
    assert act.settle_cut(RESULT, 10) == 8
    assert act.studio.inspector.asked == []
    assert act.move_cut(None, 10) == {act.view.status: gr.skip()}


def test_the_slider_tries_at_most_the_longest_row_and_the_line_names_the_setting(act: AnalysisHandlers) -> None:
    curve = [*RESULT["cut_curve"], {"max_length": 30, "rows": 0, "lost_trained_tokens": 0, "dropped_rows": 0}]
    shown = act.show({**RESULT, "cut_curve": curve}, dict(zip(PATHS, chosen(), strict=True)))
    assert (shown[act.view.cut].value, shown[act.view.cut].maximum) == (30, 30)
    assert "At 30 tokens nothing is cut" in shown[act.view.sentence]
    assert "max length is 1,024 now" in shown[act.view.sentence]
    assert shown[act.view.histogram]["cut"]["label"] == "max length 1,024 →"
    assert shown[act.view.use].visible is False
    assert act.settle_cut({**RESULT, "cut_curve": curve}, 12) == 8


def test_windows_of_a_long_text_turn_and_the_next_row_begins_with_its_first(act: AnalysisHandlers) -> None:
    pager = act.view.pager
    first = list(act.look(*chosen()))[-1]
    assert first[pager.windows].visible is False
    second = act.pages.later(RESULT, ANALYZED, 1, 0)
    assert "row 11 of the file), training row; part 2 of 3" in second[pager.position]
    assert (second[pager.window], second[pager.windows].visible) == (1, True)
    last = act.pages.later(RESULT, ANALYZED, 1, 1)
    assert (last[pager.later].interactive, last[pager.earlier].interactive) == (False, True)
    assert act.pages.earlier(RESULT, ANALYZED, 1, 0)[pager.window] == 0
    asked = act.studio.inspector.asked[-1][1]
    assert (asked["row_index"], asked["window"]) == (1, 0)
    assert asked["of"]["train_file"] == act.studio.inspector.asked[0][1]["train_file"]
    assert act.pages.forward(RESULT, ANALYZED, 1)[pager.window] == 0
    assert act.studio.inspector.asked[-1][1].items() >= {"row_index": 2, "window": None}.items()


def test_a_slow_page_is_not_sent_every_step_and_a_stop_does_not_wait_for_those_left(act: AnalysisHandlers) -> None:
    session: Any = act.studio.inspector
    steps = [{"kind": "progress", "phase": "encode", "done": done, "total": 500} for done in range(500)]
    session.script = lambda method, **params: [*steps, RESULT]
    assert len(list(act.look(*chosen()))) < 20
    looking = act.look(*chosen())
    next(looking)
    next(looking)
    act.stop()
    (last,) = looking
    assert "Stopped. The dataset is still chosen." in last[act.view.status].value


def test_all_bad_rows_are_written_where_the_page_can_link_to_them(act: AnalysisHandlers) -> None:
    list(act.look(*chosen()))
    link = act.save_bad_rows(ANALYZED)
    method, params = act.studio.inspector.asked[-1]
    assert method == "save_bad_rows"
    assert params["path"] in link
    assert Path(params["path"]).is_relative_to(act.studio.workspace.downloads_folder)


def test_bad_rows_that_stop_a_run_are_told_and_shown_without_reading_again(act: AnalysisHandlers) -> None:
    result = {**RESULT, "bad_rows": 1, "refusal": {"message": "1 row cannot be used.", "hint": "Mend it."}}
    values = chosen(**{"data.bad_rows": "stop"})
    updates = act.choose_bad_rows(result, *values)
    assert "Mend it." in updates[act.view.bad_line]
    assert updates[act.controls.train].interactive is False
    assert "left out and" not in updates[act.view.bad_line]
    assert act.studio.inspector.asked == []
    assert act.view.summary in act.repaint()
    assert act.choose_bad_rows(result, *chosen())[act.controls.train].interactive is True
    list(act.look(*values))
    assert act.studio.inspector.asked[0][1]["bad_rows"] == "skip"
    assert act.hand_over(*values)[0][1]["data.bad_rows"] == "stop"


def test_pages_turn_and_stop_at_the_ends(act: AnalysisHandlers) -> None:
    list(act.look(*chosen()))
    assert act.pages.forward(RESULT, ANALYZED, 0)[act.view.pager.index] == 1
    assert "row 11 of the file" in act.pages.forward(RESULT, ANALYZED, 0)[act.view.pager.position]
    assert act.pages.forward(RESULT, ANALYZED, 2)[act.view.pager.index] == 2
    assert act.pages.back(RESULT, ANALYZED, 0)[act.view.pager.index] == 0
    assert act.pages.go(RESULT, ANALYZED, 99)[act.view.pager.index] == 2
    assert (
        act.pages.go(None, ANALYZED, 1) == act.pages.go(RESULT, ANALYZED, None) == {act.view.pager.position: gr.skip()}
    )


def test_a_reader_is_told_which_file_a_page_is_of_for_it_may_have_been_closed(act: AnalysisHandlers) -> None:
    list(act.look(*chosen()))
    act.stop()
    act.pages.forward(RESULT, ANALYZED, 0)
    assert [method for method, _ in act.studio.inspector.asked] == ["inspect", "preview"]


def test_a_page_pages_through_its_own_analysis_where_another_page_shows_other_data(act: AnalysisHandlers) -> None:
    first = list(act.look(*chosen(**{"data.train_file": "technical"})))[-1]
    list(act.look(*chosen()))  # on the visitor's other page
    analyzed = first[act.view.analyzed]
    act.pages.forward(RESULT, analyzed, 0)
    act.save_bad_rows(analyzed)
    list(act.remove_duplicates(False, analyzed))
    files = [params["of"]["train_file"] for _, params in act.studio.inspector.asked[-3:]]
    assert files == ["technical"] * 3


def test_a_reload_shows_the_last_choice_and_what_was_found(act: AnalysisHandlers) -> None:
    assert act.view.summary not in act.repaint()
    list(act.look(*chosen(**{"data.max_length": 512})))
    updates = act.repaint()
    assert updates[act.controls.max_length] == 512
    assert "Plain text" in updates[act.view.summary]


def test_a_choice_changed_after_looking_hides_what_no_longer_fits(act: AnalysisHandlers) -> None:
    list(act.look(*chosen()))
    act.hand_over(*chosen(**{"data.train_file": "technical"}))
    updates = act.repaint()
    assert updates[act.controls.source].value == "technical"
    assert act.view.summary not in updates


def test_an_upload_deleted_meanwhile_is_forgotten(act: AnalysisHandlers) -> None:
    act.studio.workspace.write_draft("data", {"settings": {"data.train_file": "/gone.jsonl", "data.max_length": 64}})
    values = data_choice.remembered(act.studio.workspace)
    assert (values["data.train_file"], values["data.max_length"]) == ("pirate", 64)


def test_handing_over_carries_every_choice_to_the_train_tab_and_keeps_it_as_a_draft(act: AnalysisHandlers) -> None:
    (_, values, *_), tabs, start = act.hand_over(*chosen(**{"data.max_length": 128}))
    assert start.interactive is False
    assert (values["data.train_file"], values["data.max_length"], tabs.selected) == ("pirate", 128, "train")
    assert "look.percentiles" not in values
    draft = json.loads((act.studio.workspace.drafts_folder / "data.json").read_text())
    assert draft["settings"]["data.max_length"] == 128


def test_files_uploaded_together_become_one_choice(act: AnalysisHandlers, tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(folder)
    updates = act.keep_upload([str(tmp_path / "first" / "rows.jsonl"), str(tmp_path / "second" / "rows.jsonl")])
    kept = Path(updates[act.controls.source].value)
    assert kept.name == "rows-and-1-more"
    assert sorted(path.read_text() for path in kept.iterdir()) == ["first", "second"]


def test_a_second_file_is_kept_to_measure_on(act: AnalysisHandlers, tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text("{}")
    updates = act.keep_validation(str(tmp_path / "held.jsonl"))
    kept = updates[act.controls.validation].value
    list(act.look(*chosen(**{"data.validation_file": kept})))
    assert act.studio.inspector.asked[0][1]["validation_file"] == kept
    assert act.repaint()[act.controls.validation].value == kept


def test_the_reader_is_told_how_many_processes_share_a_step(act: AnalysisHandlers) -> None:
    workspace = act.studio.workspace
    Targets(workspace).save("slurm:two", {"nodes": 2, "gpus_per_node": 3})
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 1),
        ({"processes": 2}, 2),
        ({"device": "0,1,3"}, 3),
        ({"device": "0,1", "strategy": "balanced"}, 1),
        ({"target": "slurm:two"}, 6),
        ({"target": "slurm:two", "processes": "4"}, 1),
        ({"target": "slurm:gone"}, 1),
        ({"processes": "many"}, 1),
    ]
    for compute, processes in cases:
        workspace.write_draft("form", {"values": {f"compute.{name}": value for name, value in compute.items()}})
        list(act.look(*chosen()))
        assert act.studio.inspector.asked[-1][1].get("processes", 1) == processes, compute


def test_the_reader_is_told_of_the_cache_the_percentiles_and_the_rows_of_a_step(act: AnalysisHandlers) -> None:
    workspace = act.studio.workspace
    workspace.write_draft("form", {"values": {"training.per_device_train_batch_size": 7}})
    list(act.look(*chosen(**{"look.percentiles": "75, 99.9"})))
    asked = act.studio.inspector.asked[0][1]
    assert (asked["percentiles"], asked["per_device_train_batch_size"]) == ([75.0, 99.9], 7)
    workspace.write_draft("form", {"values": {"training.per_device_train_batch_size": "many"}})
    list(act.look(*chosen()))
    assert act.studio.inspector.asked[1][1]["per_device_train_batch_size"] == 4
    assert asked["cache_folder"] == str(workspace.cache_folder)
    assert "look.percentiles" not in asked


def test_a_first_look_is_shown_at_once_and_replaced_by_the_whole(act: AnalysisHandlers) -> None:
    sample = {**RESULT, "sampled": 2}
    progress = {"kind": "progress", "phase": "sample", "done": 2, "total": 0, "sample": sample}
    act.studio.inspector.script = lambda method, **params: [progress, RESULT]
    _, first, whole = list(act.look(*chosen()))
    assert "Preview: the first 2 rows" in first[act.view.summary]
    assert first[act.view.pager.next].interactive is False
    assert act.pages.forward(sample, ANALYZED, 0) == {act.view.pager.position: gr.skip()}
    assert "Preview" not in whole[act.view.summary]
    assert whole[act.view.pager.next].interactive is True


def test_an_ambiguous_file_asks_and_the_other_reading_is_taken_with_a_click(act: AnalysisHandlers) -> None:
    form = act.view.reading
    shown = list(act.look(*chosen()))[-1]
    assert "Learn from <code>a</code>" in shown[form.question].value
    assert (shown[form.choice].value, shown[form.asking].visible) == (0, True)
    assert shown[form.choice].choices == [("“q” asks, “a” answers.", 0), ("“q” asks, “b” answers.", 1)]
    taken = list(act.take_reading(RESULT, 1, *chosen()))[-1]
    assert taken[act.controls.mapping] == {"user": "q", "assistant": "b"}
    assert (taken[form.choice].value, taken[form.question].visible) == (1, False)


def test_a_corrected_reading_is_read_kept_and_handed_to_the_train_tab(act: AnalysisHandlers) -> None:
    form = act.view.reading
    fields = form_fields(user="q", assistant="b")
    taken = list(act.use_reading(RESULT, *fields, *chosen()))[-1]
    mapping = {"user": "q", "assistant": "b"}
    assert taken[act.controls.mapping] == mapping
    assert taken[form.undo].visible is True
    assert taken[form.parts[1]].value == "b"
    assert data_choice.remembered(act.studio.workspace)["data.mapping"] == mapping
    (_, values, *_), _, _ = act.hand_over(*chosen(**{"data.mapping": mapping}))
    assert values["data.mapping"] == mapping


def test_a_reading_that_does_not_fit_is_told_beside_its_form_and_not_kept(act: AnalysisHandlers) -> None:
    list(act.look(*chosen()))
    last = list(act.use_reading(RESULT, *form_fields(user="q", assistant="a", text="b"), *chosen()))[-1]
    assert "leave the other parts empty" in last[act.view.reading.error_box].value
    assert act.view.body not in last
    assert act.controls.mapping not in last
    assert last[act.view.reading.choice] == 0
    assert data_choice.remembered(act.studio.workspace)["data.mapping"] is None


def test_the_sheet_of_a_workbook_is_chosen_even_where_its_first_one_is_no_dataset(act: AnalysisHandlers) -> None:
    workspace, controls = act.studio.workspace, act.controls
    book = workspace.uploads_folder / "book.xlsx"
    book.write_bytes(b"")
    assert act.choose(book)[controls.sheet].visible is False
    updates = list(act.look_anew(*chosen(**{"data.train_file": str(book)})))
    assert "not known" in updates[-1][act.view.status].value
    (offered,) = [update for update in updates if controls.sheet in update]
    field = offered[controls.sheet]
    assert (field.visible, field.value) == (True, "")
    assert field.choices == [("First sheet with rows", ""), ("Notes", "Notes"), ("Answers", "Answers")]
    sheet = ("book.xlsx, sheet Answers", f"{book}?sheet=Answers")
    assert sheet in offered[controls.source].choices
    assert sheet in offered[controls.validation].choices
    named = act.choose_sheet(str(book), "Answers")
    assert (named[controls.source].value, named[controls.sheet].visible) == (sheet[1], True)
    updates = list(act.analyze_other(*chosen(**{"data.train_file": sheet[1]})))
    assert updates[-1][act.view.body].visible is True
    again = act.repaint()
    assert (again[controls.source].value, again[controls.sheet].value) == (sheet[1], "Answers")
    assert act.choose_sheet(sheet[1], "")[controls.source].value == str(book)
    assert act.choose_other("pirate")[controls.sheet].visible is False


def test_rows_that_nobody_could_read_are_shown_with_the_form_and_read_as_it_says(act: AnalysisHandlers) -> None:
    form = act.view.reading
    failed = list(act.look(*chosen(**{"data.train_file": "nobody"})))[-1]
    assert "format of the rows is not known" in failed[act.view.status].value
    assert (failed[form.box].visible, failed[form.fold].open) == (True, True)
    assert failed[form.roles[2]].value == ["bot"]
    assert failed[form.roles[1]].choices == [("customer", "customer"), ("bot", "bot")]
    assert "The first 1 row of the file" in failed[act.view.table]
    assert failed[act.view.result] is None
    other = act.choose("pirate")
    assert (failed[act.view.rows].open, other[act.view.rows].open, other[form.fold].open) == (True, False, False)
    fields = form_fields(messages="q", roles=[[], ["customer"], ["bot"], []])
    taken = list(act.use_reading(failed[form.rows], *fields, *chosen()))[-1]
    assert taken[act.controls.mapping] == {"messages": "q", "roles": {"customer": "user"}}
    assert taken[act.view.body].visible is True


def test_each_reading_of_rows_that_could_not_be_read_can_be_chosen_with_a_click(act: AnalysisHandlers) -> None:
    choice = act.view.reading.choice
    list(act.look(*chosen()))  # other data was analyzed before
    failed = list(act.look(*chosen(**{"data.train_file": "nobody"})))[-1]
    assert (failed[choice].value, len(failed[choice].choices)) == (None, 2), "a click on a marked one fires no event"
    unread = {**UNREAD["unread"], "mapping": READINGS[0]["mapping"]}
    again = list(act.use_reading(unread, *form_fields(text="q"), *chosen(**{"data.train_file": "nobody"})))[-1]
    assert again[choice] is None


def test_a_page_that_opens_compares_nothing_for_its_fields_are_not_filled_yet(workspace: Workspace) -> None:
    session: Any = FakeSession(script)
    studio = Studio(workspace, Supervisor(workspace), session, session)
    with without_app(), gr.Blocks() as page, gr.Tab("Data"):
        parts = Shared(gr.Tabs(), *(gr.State() for _ in range(4)), gr.Button(), gr.HTML())
        tab.build(studio, parts)
    states = {key for key, block in page.blocks.items() if isinstance(block, gr.State)}
    outdates = [event for event in page.fns.values() if event.name == "compare"]
    assert not [event for event in outdates if states & {target for target, _ in event.targets}]
    looks = [event for event in page.fns.values() if hasattr(AnalysisHandlers, str(event.name))]
    looks = [event._id for event in looks if event.concurrency_id == "inspect"]
    assert set(looks) == {event.trigger_after for event in outdates if event.trigger_after is not None}, (
        "what changed while an analysis went on is told at its end"
    )


def test_a_reading_is_tried_while_the_form_is_filled_in(act: AnalysisHandlers) -> None:
    tried = act.try_reading(RESULT, "pirate", "", *form_fields(user="q", assistant="b"))
    assert "&#x27;assistant&#x27;: &#x27;b&#x27;" in tried.value
    assert act.studio.inspector.asked[0][1]["train_file"] == "pirate"
    clash = form_fields(messages="q", roles=[["x"], ["x"], [], []])
    assert "can&#x27;t be both system and user" in act.try_reading(RESULT, "pirate", "", *clash).value
    said = list(act.use_reading(RESULT, *clash, *chosen()))[-1]
    assert "can&#x27;t be both" in said[act.view.reading.error_box].value


def test_another_file_is_read_as_it_is_recognised(act: AnalysisHandlers) -> None:
    last = list(act.look_anew(*chosen(**{"data.mapping": {"text": "gone"}})))[-1]
    assert last[act.controls.mapping] is None
    assert act.studio.inspector.asked[0][1]["mapping"] is None


def test_the_suggested_length_is_taken_with_a_click(act: AnalysisHandlers) -> None:
    shown = list(act.look(*chosen()))[-1]
    assert shown[act.view.take].value == "Use suggested: 64 tokens"
    assert act.take_suggestion(RESULT) == 64


def test_the_cache_is_measured_and_cleared(act: AnalysisHandlers) -> None:
    folder = act.studio.workspace.cache_folder
    folder.mkdir(parents=True)
    (folder / "rows.bin").write_bytes(bytes(2500))
    assert "2.5 kB of tokenized rows" in act.measure_disk()[act.view.cache]
    assert "cache is empty" in act.clear_cache()[act.view.cache]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "there"),
    [("pirate", True), ("hub:owner/name?split=test", True), ("part-*.jsonl", True), ("gone-*.jsonl", False)],
)
def test_a_typed_name_may_be_a_set_a_pattern_or_a_set_of_the_hub(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, there: bool
) -> None:
    (tmp_path / "part-1.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert data_choice.is_there(name, workspace) is there


def test_a_folder_can_be_chosen_and_a_name_no_file_can_bear_can_not(tmp_path: Path, workspace: Workspace) -> None:
    assert data_choice.is_there(str(tmp_path), workspace)
    assert not data_choice.is_there("a" * 5000, workspace)
    assert not data_choice.is_there("null\0byte", workspace)


def test_leaving_a_list_without_a_choice_reads_nothing_and_another_choice_does(act: AnalysisHandlers) -> None:
    list(act.look(*chosen()))
    before = len(act.studio.inspector.asked)
    left = [act.choose_other("pirate"), *act.analyze_other(*chosen()), *act.measure_other(*chosen())]
    assert [list(update.values()) for update in left] == [[gr.skip()]] * 3  # an update of nothing is an error to Gradio
    assert len(act.studio.inspector.asked) == before
    assert act.view.summary in act.choose_other("technical")
    list(act.analyze_other(*chosen(**{"data.train_file": "technical"})))
    list(act.measure_other(*chosen(**{"data.train_file": "technical", "data.validation_file": "alpaca"})))
    assert len(act.studio.inspector.asked) == before + 2


def test_another_model_marks_the_figures_as_outdated_and_analyzing_leads_again(act: AnalysisHandlers) -> None:
    shown = list(act.look(*chosen()))[-1]
    c, v = act.controls, act.view
    assert (shown[c.look].variant, shown[c.train].variant, shown[c.train].visible) == ("secondary", "primary", True)
    analyzed = shown[v.analyzed]
    changed = act.compare(analyzed, *chosen(**{"model.name": "other"}))
    assert "Outdated: Base model changed since this analysis." in changed[v.outdated]
    assert (changed[c.look].variant, changed[c.train].variant) == ("primary", "secondary")
    same = act.compare(analyzed, *chosen(**{"data.bad_rows": "stop"}))
    assert (same[v.outdated], same[c.look].variant, same[c.train].variant) == ("", "secondary", "primary")
    assert act.compare(None, *chosen()) == {v.status: gr.skip()}


def test_the_limit_dragged_in_the_chart_moves_the_slider_to_a_counted_length(act: AnalysisHandlers) -> None:
    moved = act.drag_cut(RESULT, gr.EventData(None, {"act": "limit", "value": 11}))
    assert (moved[act.view.cut], moved[act.view.histogram]["cut"]["label"]) == (8, "max length 1,024 →")
    assert act.drag_cut(RESULT, gr.EventData(None, {"act": "limit", "value": 9000}))[act.view.cut] == 8
    assert act.drag_cut(None, gr.EventData(None, {"value": 11})) == {act.view.status: gr.skip()}


def test_duplicates_are_removed_into_a_copy_that_is_chosen_and_keeps_the_mapping(act: AnalysisHandlers) -> None:
    repeated = {"rows": 1, "groups": 1, "examples": [[1, 2]]}
    quality = {"exact_duplicates": repeated, "near_duplicates": {**repeated, "rows": 0, "sampled": None}}
    values = dict(zip(PATHS, chosen(), strict=True))
    shown = act._removals({**RESULT, "hygiene": quality})  # type: ignore[typeddict-item]
    assert (shown[act.view.remove].visible, shown[act.view.remove_near].visible) == (True, False)
    assert act.show(RESULT, values)[act.view.remove].visible is False
    mapping = {"user": "q", "assistant": "b"}
    list(act.look(*chosen(**{"data.mapping": mapping})))
    *steps, updates = act.remove_duplicates(True, ANALYZED | {"data.mapping": mapping})
    assert "Removing duplicates" in steps[0][act.view.status].value
    assert not steps[0][act.view.remove_near].interactive
    assert updates[act.view.remove_near].interactive
    method, params = act.studio.inspector.asked[-1]
    assert (method, params["near"], params["of"]["train_file"]) == ("save_cleaned", True, "pirate")
    copy = updates[act.controls.source].value
    assert copy == str(act.studio.workspace.uploads_folder / "pirate-deduplicated.jsonl")
    list(act.analyze_copy(*chosen(**{"data.train_file": copy, "data.mapping": mapping})))
    assert act.studio.inspector.asked[-1][1].items() >= {"train_file": copy, "mapping": mapping}.items()


def test_a_dataset_of_the_hub_has_fields_of_its_own(act: AnalysisHandlers) -> None:
    c, address = act.controls, "https://huggingface.co/datasets/owner/name"
    updates = act.choose_hub(address, "en us", "validation")
    name = "hub:owner/name?config=en%20us&split=validation"
    assert updates[c.source].value == name
    list(act.analyze_other(*chosen(**{"data.train_file": name})))
    assert act.studio.inspector.asked[-1][1]["train_file"] == name
    after = act.repaint()
    assert (after[c.hub_id], after[c.hub_subset], after[c.hub_split]) == ("owner/name", "en us", "validation")
    assert act.choose_hub("owner/name", "", "")[c.source].value == "hub:owner/name"
    refused = act.choose_hub("no name", "", "")
    assert c.source not in refused
    assert "no name" in refused[act.view.status].value
