"""What the runs tab shows of run folders, without a page."""

import json
import os
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_studio.config.parsing import parse, to_yaml
from lora_studio.config.sections import Config
from lora_studio.jobs.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    Extended,
    Finished,
    PhaseStarted,
    RunStarted,
    StepLogged,
    Warned,
    to_line,
)
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.summary import Tags, read_tags, settings_of, write_tags
from lora_studio.ui import job_views
from lora_studio.ui.runs import header, results, tab
from lora_studio.ui.runs import table as runs_list
from lora_studio.ui.runs.details import saved
from lora_studio.ui.runs.tab import Shown
from lora_studio.ui.runs.table import RunBoard, TableChoice
from lora_studio.ui.studio import Studio
from lora_studio.workspace import RunFolder, Workspace


@pytest.fixture
def studio(workspace: Workspace) -> Studio:
    """A studio whose supervisor looks at folders and starts nothing, as its thread does not run."""
    log = workspace.logs_folder / "log"
    return Studio(workspace, Supervisor(workspace), Session(log), Session(log))


def finished(workspace: Workspace, title: str, *more: Event, config: Config | None = None) -> RunFolder:
    """A run that trained two steps and ended."""
    run = workspace.create_run(title, to_yaml(config or Config()), {"created": time.time() - 600})
    now = time.time()
    events = [
        RunStarted(now, 1, "cpu", "float32"),
        PhaseStarted(now, "train", 2, "steps"),
        StepLogged(now, 1, 2, 0.5, loss=2.0, learning_rate=1e-3),
        StepLogged(now + 1, 2, 2, 1.0, loss=1.0, learning_rate=1e-3),
        *more,
        *([] if any(isinstance(event, Finished) for event in more) else [Finished(now + 2, "done", 2)]),
    ]
    run.events.write_text("".join(map(to_line, events)))
    run.log.write_text("one\ntwo\n")
    return run


def with_checkpoints(workspace: Workspace, losses: dict[int, float], on_disk: tuple[int, ...]) -> RunFolder:
    """A finished run that saved checkpoints, of which some are still there."""
    run = finished(
        workspace, "saved", *[CheckpointSaved(1.0, step, f"checkpoint-{step}", loss) for step, loss in losses.items()]
    )
    for step in on_disk:
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"x" * 1998)
    return run


def look(studio: Studio, run_id: str, before: Shown | None = None, choice: TableChoice | None = None) -> Shown:
    return tab.look(studio, RunBoard(studio.workspace), run_id, choice or TableChoice(), before or Shown())


def shown_of(studio: Studio, run_id: str, before: Shown | None = None) -> dict[str, Any]:
    """What the parts of all sections show, by name."""
    now = look(studio, run_id, before)
    return now.listed | {name: value for _, parts in now.detail.values() for name, value in parts.items()}


def test_runs_that_are_still_to_be_read_are_counted_and_the_one_looked_at_is_whole(studio: Studio) -> None:
    older, run = finished(studio.workspace, "older"), finished(studio.workspace, "newer")
    studio.supervisor.runs()
    reading = Supervisor(studio.workspace, tick_seconds=60)
    later = Studio(studio.workspace, reading, studio.inspector, studio.chat)
    reading.start()
    words = look(later, "").listed["list"]
    assert "Reading 2 older runs" in words
    assert "No run yet" not in words
    shown = look(later, run.id)
    assert len(shown.detail["chart"][1]["chart"]["panels"][0]["lines"][0]["x"]) == 2
    words = look(later, run.id).listed["list"]
    assert "newer" in words
    assert "Reading 1 older run…" in words
    assert older.folded.exists()
    reading.close()


def test_an_empty_workspace_says_how_the_list_is_filled(studio: Studio) -> None:
    shown = look(studio, "")
    assert "No run yet" in shown.listed["list"]
    assert shown.places == (False, False, False, False, True), "the button that trains the demo"
    assert not shown.detail
    finished(studio.workspace, "first")
    assert not look(studio, "").empty


def test_of_a_run_that_is_gone_nothing_stays_in_sight(studio: Studio) -> None:
    finished(studio.workspace, "here")
    shown = look(studio, "gone", Shown("gone"))
    assert not shown.run
    assert not shown.detail
    assert "here" in shown.listed["list"]


def test_the_settings_shown_are_those_of_the_run_and_not_of_the_form(studio: Studio) -> None:
    run = finished(studio.workspace, "small", config=parse({"lora": {"r": 3}}))
    studio.workspace.write_draft("form", {"preset": None, "values": {"lora.r": 64}})
    assert "r: 3" in shown_of(studio, run.id)["settings"]


def test_epochs_that_were_added_are_told_and_taken_into_a_duplicate(studio: Studio) -> None:
    run = finished(studio.workspace, "longer", Extended(time.time(), 2.0))
    assert "2 epochs were added" in shown_of(studio, run.id)["settings"]
    assert settings_of(run, studio.supervisor.state(run.id)).training.num_train_epochs == 5.0
    plain = finished(studio.workspace, "plain")
    assert "added" not in shown_of(studio, plain.id)["settings"]
    stepped = finished(
        studio.workspace, "steps", Extended(time.time(), 2.0), config=parse({"training": {"max_steps": 1}})
    )
    assert settings_of(stepped, studio.supervisor.state(stepped.id)).training.max_steps == 2


def test_a_finished_run_can_be_chatted_with_and_deleted_but_not_stopped(studio: Studio) -> None:
    run = finished(studio.workspace, "done")
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"")
    shown = shown_of(studio, run.id)
    assert (shown["stop"], shown["resume"], shown["chat"], shown["delete"]) == (False, False, True, True)
    assert shown["log"].endswith("two")
    assert shown["chart"]["panels"][0]["lines"][0]["y"] == [2.0, 1.0]


def test_a_run_whose_rows_changed_offers_to_go_on_with_them(studio: Studio) -> None:
    run = finished(studio.workspace, "other", Finished(time.time(), "failed", 2, "Other rows.", "Put back."))
    assert not shown_of(studio, run.id)["other_rows"]
    run.complete.write_text(json.dumps({"other_rows": True}), encoding="utf-8")
    assert shown_of(studio, run.id)["other_rows"]


def test_a_failed_run_says_why_and_offers_to_resume(studio: Studio) -> None:
    run = finished(studio.workspace, "bad", Finished(time.time(), "failed", 2, "Out of memory.", "Use 4bit."))
    shown = shown_of(studio, run.id)
    assert shown["resume"]
    assert "Out of memory. Use 4bit." in shown["line"]


def test_a_warning_is_told_once(studio: Studio) -> None:
    run = finished(
        studio.workspace, "warned", Warned(1.0, "The <eos> is missing."), Warned(2.0, "The <eos> is missing.")
    )
    shown = shown_of(studio, run.id)
    assert shown["notices"].count("The &lt;eos&gt; is missing.") == 1
    assert shown["fold"]["label"] == "Details (1 warning)"


def test_nothing_new_means_nothing_to_send(studio: Studio) -> None:
    run = finished(studio.workspace, "still")
    first = look(studio, run.id)
    assert look(studio, run.id, first) == first


def test_checkpoints_that_are_on_disk_are_listed_newest_first_with_the_best_named(studio: Studio) -> None:
    run = with_checkpoints(studio.workspace, {1: 0.5, 2: 0.75, 3: 0.1}, on_disk=(1, 2))
    table = shown_of(studio, run.id)["table"]
    assert table.index("Chat checkpoint-2") < table.index("Chat checkpoint-1")
    assert "checkpoint-3" not in table  # cleared away, as the limit of kept checkpoints does
    assert table.index(">0.75<") < table.index('<span class="tag">best</span>') < table.index(">0.5<")
    assert "2.0 kB" in table


def test_the_page_opens_on_the_run_last_looked_at_else_the_newest(studio: Studio) -> None:
    assert runs_list.opening_run(studio) == ""
    older = finished(studio.workspace, "older")
    newer = finished(studio.workspace, "newer")
    assert runs_list.opening_run(studio) == newer.id
    studio.workspace.write_draft(runs_list.SELECTION, older.id)
    assert runs_list.opening_run(studio) == older.id


def test_what_can_not_be_done_is_said_in_words(studio: Studio) -> None:
    run = finished(studio.workspace, "complete")
    update = header.acting(studio.supervisor.resume)(run.id)
    assert isinstance(update, (dict, gr.HTML))
    assert "is complete" in str(update["value"] if isinstance(update, dict) else update.value)


def test_a_log_that_grows_is_shown_again(studio: Studio, tmp_path: Path) -> None:
    run = finished(studio.workspace, "loud")
    first = look(studio, run.id)
    with run.log.open("a") as log:
        log.write("three\n")
    assert shown_of(studio, run.id, first)["log"].endswith("three")


def test_two_ticked_runs_are_laid_over_each_other_with_what_differs(studio: Studio) -> None:
    first = finished(studio.workspace, "same name", config=parse({"lora": {"r": 4}}))
    second = finished(studio.workspace, "same name", config=parse({"lora": {"r": 8}}))
    shown = look(studio, first.id, choice=TableChoice(ticked=(first.id, second.id), comparing=True))
    assert not shown.run
    assert not shown.detail
    compared = shown.compare["compare"][1]
    assert compared["settings"].count('scope="row"') == 1
    assert "LoRA rank (r)" in compared["settings"]
    assert f"same name ({first.id[-4:]})" in compared["results"]
    names = {line["name"] for panel in compared["chart"]["panels"] for line in panel["lines"]}
    assert any(first.id[-4:] in name for name in names)
    assert any(second.id[-4:] in name for name in names)
    again = look(studio, first.id, shown, TableChoice(ticked=(first.id, second.id), comparing=True))
    assert again.compare is shown.compare


def test_the_winner_of_a_comparison_is_marked_and_the_settings_that_differ_come_first(studio: Studio) -> None:
    small, large = (
        finished(studio.workspace, name, Evaluated(time.time(), 2, 1.0, loss), config=parse({"lora": {"r": r}}))
        for name, loss, r in (("small", 1.5, 4), ("large", 1.25, 8))
    )
    shown = look(studio, small.id, choice=TableChoice(ticked=(small.id, large.id), comparing=True))
    compared = shown.compare["compare"][1]
    assert list(compared)[:3] == ["words", "winner", "settings"]
    assert "<b>Winner</b> large has the lowest validation loss: 1.25." in compared["winner"]
    assert '<th scope="col" class="won">★ large</th>' in compared["settings"]
    assert '<td class="won">1.25</td>' in compared["results"]
    assert '<td class="won">1.5</td>' not in compared["results"]


def test_one_ticked_run_is_no_comparison(studio: Studio) -> None:
    run = finished(studio.workspace, "alone")
    assert look(studio, run.id, choice=TableChoice(ticked=(run.id, "gone"), comparing=True)).run == run.id


def test_what_the_adapter_does_stands_at_the_top(studio: Studio) -> None:
    run = finished(studio.workspace, "idle")
    assert "<b>Learned</b> Training loss 2 → 1." in shown_of(studio, run.id)["line"]
    numbers = {"base_loss": 2.0, "adapter_loss": 2.0, "moves": False, "changed_tokens": 0.003, "divergence": 1e-5}
    run.complete.write_text(json.dumps({"state": "done", "difference": numbers}))
    line = shown_of(studio, run.id)["line"]
    assert "<b>Flat</b> The adapter answers as the base does: 0.3 % of the top-1 tokens differ." in line
    moved = numbers | {"adapter_loss": 1.25, "moves": True, "changed_tokens": 0.21, "divergence": 3.3, "rows": 25}
    run.complete.write_text(json.dumps({"state": "done", "difference": moved}))
    line = shown_of(studio, run.id)["line"]
    assert "<b>Learned</b> Loss 2 → 1.25 on 25 rows (base → adapter)." in line
    assert "21 % of top-1 tokens differ from the base (KL 3.3 nats/token)." in line


def test_a_link_opens_its_run_and_one_to_a_run_that_is_gone_says_so(studio: Studio) -> None:
    older, newer = finished(studio.workspace, "older"), finished(studio.workspace, "newer")
    assert runs_list.opening_run(studio, older.id) == older.id
    assert runs_list.opening_run(studio, "gone") == newer.id
    assert runs_list.missing_run(studio, older.id) is None
    assert "There is no run <code>gone</code>" in str(runs_list.missing_run(studio, "gone"))


def test_the_table_of_all_runs_takes_the_place_of_the_list_and_the_run(studio: Studio) -> None:
    run = finished(studio.workspace, "one")
    assert look(studio, run.id).places == (True, True, False, False, False)
    whole = look(studio, run.id, choice=TableChoice(whole=True))
    assert whole.places[0] is False
    assert "<table" in whole.listed["list"]
    assert look(studio, "", choice=TableChoice()).places == (False, False, False, False, False)


def test_tags_and_note_are_those_of_the_run_and_a_damaged_file_is_told(studio: Studio) -> None:
    run = finished(studio.workspace, "noted")
    write_tags(run, Tags(("a", "b"), "first try"))
    shown = shown_of(studio, run.id)
    assert (shown["tags"]["value"], shown["note"]["value"]) == ("a, b", "first try")
    assert json.loads(shown["filled"]["value"])["run"] == run.id
    run.labels.write_text("{")
    assert "cannot be read" in shown_of(studio, run.id)["note"]["value"]


def test_only_the_field_that_was_changed_is_written_and_the_other_keeps_what_the_terminal_wrote(studio: Studio) -> None:
    run = finished(studio.workspace, "noted")
    filled = json.loads(shown_of(studio, run.id)["filled"]["value"])
    write_tags(run, Tags(("external",), ""))
    assert saved(studio.workspace, filled, "tags", "") == gr.skip()
    now = json.loads(saved(studio.workspace, filled, "note", "seen "))
    assert read_tags(run) == Tags(("external",), "seen")
    assert saved(studio.workspace, now, "note", "seen ") == gr.skip()
    saved(studio.workspace, now, "tags", "mine")
    assert read_tags(run) == Tags(("mine",), "seen")


HOSTILE = """# <script>hit()</script> ${1+1}

[x](javascript:hit()) ![y](http://elsewhere/z.png) <http://elsewhere> <img src=x onerror=hit()>

| a | b |
|---|---|
| `${2+2}` | **bold** <b>raw</b> |

```html
<iframe src=//elsewhere></iframe>
```

[r]: http://elsewhere
"""


def test_a_report_is_shown_as_markdown_in_which_nothing_runs_and_nothing_is_fetched() -> None:
    shown = results.rendered(HOSTILE)
    assert "<h1>" in shown
    assert "<table>" in shown
    assert "<strong>bold</strong>" in shown
    for bad in ("<script", "<img", "<a ", "<iframe", "<b>", "href=", "src=x onerror=hit()>\n<", "${", "{"):
        assert bad not in shown, bad


def test_files_made_for_a_download_go_when_they_are_old(workspace: Workspace) -> None:
    old = job_views.new_file(workspace, "../../a name.csv")
    old.write_text("1")
    assert old.parent.parent.parent == workspace.downloads_folder
    hour_ago = time.time() - 2 * job_views.KEPT_SECONDS
    os.utime(old.parent, (hour_ago, hour_ago))
    new = job_views.new_file(workspace, "b.csv")
    new.write_text("12")
    assert not old.exists()
    assert new.parent.is_dir()
    assert "b.csv (2 B)" in job_views.link(new)
