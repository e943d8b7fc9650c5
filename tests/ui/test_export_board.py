"""The export tab without a page: what is shown, what is kept, and that names are text."""

import json
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_studio.config.parsing import parse, to_yaml
from lora_studio.errors import StudioError
from lora_studio.export.job import create, make_request
from lora_studio.export.targets import TARGETS
from lora_studio.jobs.events import Finished, PhaseStarted, Progress, RunStarted, to_line
from lora_studio.jobs.kinds import ExportFolder, ending_words
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui.components import Starter
from lora_studio.ui.export import tab
from lora_studio.ui.export.results import (
    ExportBoard,
    ExportView,
    cards_markup,
    download,
    form_markup,
    head_markup,
    keep,
    remembered,
    typed,
    values_of,
)
from lora_studio.workspace import Policy, Workspace
from tests.adapters import files, write

HOSTILE = "<b>${1+1}</b>"


@pytest.fixture
def run(workspace: Workspace) -> str:
    made = workspace.create_run(HOSTILE, to_yaml(parse({})), {})
    write(made.adapter, files())
    return made.id


@pytest.fixture
def board(workspace: Workspace) -> ExportBoard:
    return ExportBoard(workspace, Supervisor(workspace))


def finished(workspace: Workspace, run: str, names: tuple[str, ...] = ("a.txt", "b/c.txt")) -> ExportFolder:
    """An export that is done, as its child leaves it."""
    folder = create(workspace, make_request(workspace, run, "merged"))
    for name in names:
        (folder.result / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.result / name).write_text(name, encoding="utf-8")
    now = time.time()
    events = [RunStarted(now - 2, 1, "cpu", ""), Finished(now, "done")]
    folder.events.write_text("".join(map(to_line, events)), encoding="utf-8")
    result = {
        "words": "A model.",
        "command": f"cd {folder.result} && {sys.executable} 'a b'",
        "link": "javascript:alert(1)",
        "tried": "Loaded.",
        "same": True,
        "notes": [HOSTILE],
        "bytes": 12,
        "files": [{"name": name, "bytes": 6} for name in names],
        "place": str(folder.result),
    }
    folder.complete.write_text(json.dumps(result), encoding="utf-8")
    return folder


def test_every_form_is_a_card_with_its_size_and_a_set_of_fields(board: ExportBoard, run: str) -> None:
    seen = board.look(ExportView(run), time.time())
    assert seen["cards"].count('role="radio"') == len(TARGETS)
    assert seen["cards"].count('aria-checked="true"') == 1
    assert hash(ExportView(run))
    assert "about" in seen["cards"]
    assert "No export yet" in seen["list"]
    for target in TARGETS.values():
        fields = form_markup(target, {})
        assert all(f'data-setting="{name}"' in fields for name in target.settings.model_fields)
    assert "data-secret" in form_markup(TARGETS["hub"], {})


def test_the_size_follows_what_is_typed(board: ExportBoard, run: str) -> None:
    small = board.sizes(ExportView(run, "merged", (("dtype", "float16"),)))[0]["merged"]
    large = board.sizes(ExportView(run, "merged", (("dtype", "float32"),)))[0]["merged"]
    assert small is not None
    assert large is not None
    assert small < large
    assert board.sizes(ExportView(run, "merged", (("dtype", "nonsense"),)))[0]["merged"] == small


def test_settings_about_the_name_of_the_base_stand_only_where_the_base_is_a_local_folder(
    board: ExportBoard, workspace: Workspace, run: str, tmp_path: Path
) -> None:
    assert "base_name" not in board.look(ExportView(run), time.time())["form"]
    elsewhere = write(tmp_path / "a", files(base_model_name_or_path="Qwen/Qwen3-0.6B"))
    shown = board.look(ExportView(str(elsewhere)), time.time())["form"]
    assert ("base_name" in shown, "keep_local_base" in shown) == (True, False)
    local = write(tmp_path / "b", files(base_model_name_or_path=str(tmp_path)))
    seen = board.look(ExportView(str(local)), time.time())
    assert "keep_local_base" in seen["form"]
    assert "Needs the public name of the base model" in seen["ready"]
    keep(workspace, ExportView(str(local), "zip"), {"base_name": "O/N"})
    assert "Ready to export" in board.look(ExportView(str(local)), time.time())["ready"]


def test_a_form_that_takes_more_room_on_the_way_than_it_leaves_says_both() -> None:
    sizes = dict.fromkeys(TARGETS, 5_000_000_000)
    shown = cards_markup("zip", sizes, sizes | {"gguf": 37_000_000_000}, 10**11)
    assert shown.count("about 5.0 GB, needs 37 GB of disk") == 1
    assert shown.count("about 5.0 GB") == len(TARGETS)


def test_a_finished_export_shows_its_files_and_names_are_text(
    board: ExportBoard, workspace: Workspace, run: str
) -> None:
    folder = finished(workspace, run)
    seen = board.look(ExportView(run, export=folder.id), time.time())
    assert "Finished" in seen["list"]
    assert seen["head"].count('data-act="download"') == 3
    assert "Loaded." in seen["head"]
    assert "javascript:" not in seen["head"]
    whole = "".join(seen.values())
    assert "<b>$" not in whole
    assert "${" not in whole


def test_one_that_lacks_what_was_asked_for_is_not_called_finished(
    board: ExportBoard, workspace: Workspace, run: str
) -> None:
    folder = finished(workspace, run)
    folder.complete.write_text(json.dumps({**folder.read_result(), "missing": f"{HOSTILE}.gguf"}), encoding="utf-8")
    seen = board.look(ExportView(run, export=folder.id), time.time())
    assert "Incomplete after" in seen["head"]
    assert "One more step: convert the merged model (12 B) to " in seen["head"]
    assert "Incomplete" in seen["list"]
    assert '<span class="dot worse">' in seen["list"]
    assert "Finished" not in seen["head"] + seen["list"]
    assert "<b>$" not in seen["head"]


def test_a_visitor_downloads_what_came_out_and_reads_no_place_of_the_machine(workspace: Workspace, run: str) -> None:
    class Visitor(Policy):
        is_admin = False

    folder = finished(workspace, run)
    view = ExportView(run, export=folder.id)
    assert (
        f'<p class="id">{folder.result}'
        in ExportBoard(workspace, Supervisor(workspace)).look(view, time.time())["head"]
    )
    visited = workspace.with_policy(Visitor)
    seen = "".join(ExportBoard(visited, Supervisor(visited)).look(view, time.time()).values())
    assert str(workspace.root) not in seen
    assert '<pre tabindex="0">cd . &amp;&amp; python &#x27;a b' in seen
    assert seen.count('data-act="download"') == 3


def test_one_that_goes_on_says_how_far_it_is(board: ExportBoard, workspace: Workspace, run: str) -> None:
    folder = create(workspace, make_request(workspace, run, "merged"))
    now = time.time()
    events = [RunStarted(now, 1, "cpu", ""), PhaseStarted(now, "write", 2_000_000, "bytes"), Progress(now, 500_000, 2)]
    folder.events.write_text("".join(map(to_line, events)), encoding="utf-8")
    state = board.jobs.state(folder.id)
    assert (state.state, "process" in ending_words(state)[0]) == ("failed", False)
    words = head_markup(replace(state, state="running", phase_total=2_000_000), {})
    assert "Writing, percent: 25 of 100 (500 kB of 2.0 MB)" in words
    assert 'data-act="stop"' in words


def test_results_are_downloaded_one_by_one_or_as_a_zip(workspace: Workspace, board: ExportBoard, run: str) -> None:
    folder = finished(workspace, run)
    result = folder.read_result()
    one = download(workspace, folder, result, "1")
    assert (one.name, one.read_text()) == ("c.txt", "b/c.txt")
    with zipfile.ZipFile(download(workspace, folder, result, "all")) as archive:
        assert [Path(name).name for name in archive.namelist()] == ["a.txt", "c.txt"]
    (folder.result / "a.txt").unlink()
    with pytest.raises(StudioError, match="no longer exists"):
        download(workspace, folder, result, "0")


def test_what_is_chosen_and_typed_comes_back_and_another_tab_can_choose(workspace: Workspace) -> None:
    adapters = [("One", "one"), ("Two", "two")]
    assert remembered(workspace, []) == ExportView()
    assert remembered(workspace, adapters) == ExportView("one")
    keep(workspace, ExportView("two", "vllm"), {"served_name": "x", "max_model_len": ""})
    keep(workspace, ExportView("two", "zip"), {"base_name": "O/N"})
    assert remembered(workspace, adapters) == ExportView("two", "zip", (("base_name", "O/N"),))
    assert typed("vllm", dict(values_of(workspace, "vllm"))) == {"served_name": "x"}
    assert remembered(workspace, adapters, "one") == ExportView("one", "zip", (("base_name", "O/N"),))
    assert remembered(workspace, adapters, "gone").adapter == "two"


def test_a_double_click_exports_once(workspace: Workspace, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(tab.exporting, "start", lambda *given, **_: started.append(given) or f"export-{len(started)}")
    studio: Any = SimpleNamespace(workspace=workspace, supervisor=Supervisor(workspace))
    now, starter = ExportView(adapter=run, target="config"), Starter()
    ids = [tab.start(studio, starter, now, {}, "") for _ in range(2)]
    assert (ids, len(started)) == (["export-1", "export-1"], 1)
    assert tab.start(studio, starter, replace(now, target="zip"), {}, "") == "export-2"
