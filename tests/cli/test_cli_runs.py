"""`runs` in the terminal: what runs came to, tags, notes, comparison, CSV."""

import json
import sys

import pytest

from lora_studio.config.parsing import parse, to_yaml
from lora_studio.jobs.events import CheckpointSaved, Evaluated, Finished, RunStarted, StepLogged, to_line
from lora_studio.workspace import RunFolder, Workspace
from tests.conftest import Say


def make(workspace: Workspace, title: str, rank: int) -> RunFolder:
    config = parse({"title": title, "lora": {"r": rank}})
    run = workspace.create_run(title, to_yaml(config), {"model": "demo", "data": "pirate", "created": 1.0})
    events = [
        RunStarted(1.0, 1, "cpu", "float32"),
        StepLogged(1.0, 4, 4, 1.0, loss=0.5, learning_rate=1e-3),
        Evaluated(2.0, 4, 1.0, 0.25, {"token_accuracy": 0.75}),
        CheckpointSaved(2.0, 4, "checkpoint-4", 0.25),
        Finished(3.0, "done", 4),
    ]
    run.events.write_text("".join(map(to_line, events)))
    folder = run.checkpoints / "checkpoint-4"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    measured = {"sentence": "The adapter does nothing.", "rows_sentence": "All 3 rows.", "base_loss": 1.5}
    run.complete.write_text(json.dumps({"state": "done", "difference": measured}))
    return run


def test_list_and_show_tell_the_key_numbers(workspace: Workspace, say: Say) -> None:
    run = make(workspace, "first", 4)
    code, out, _ = say("runs", "list")
    assert code == 0
    assert all(word in out for word in (run.id, "finished", "0.5000", "0.2500"))
    row = json.loads(say("runs", "list", "--json")[1])["runs"][0]
    assert (row["run"], row["eval_loss"], row["best_loss"], row["model"]) == (run.id, 0.25, 0.25, "demo")
    assert row["bytes"] > 0
    shown = say("runs", "show", run.id)[1]
    assert "The adapter does nothing. All 3 rows." in shown
    assert "checkpoint-4: validation loss 0.2500" in shown
    assert "verdict     Collapsed. The logits of base or adapter" in shown
    facts = json.loads(say("runs", "show", run.id, "--json")[1])
    assert facts["checkpoints"][0]["metrics"] == {"token_accuracy": 0.75}
    assert facts["difference"]["base_loss"] == 1.5


def test_tags_and_notes_are_printed_replaced_and_cleared(workspace: Workspace, say: Say) -> None:
    run = make(workspace, "first", 4)
    assert say("runs", "tag", run.id)[1] == "\n"
    assert say("runs", "tag", run.id, "good", "for later,good")[1] == "good, for later\n"
    assert say("runs", "note", run.id, "longer", "answers")[1] == "longer answers\n"
    assert json.loads(say("runs", "tag", run.id, "--json")[1]) == {
        "run": run.id,
        "tags": ["good", "for later"],
        "note": "longer answers",
    }
    assert "good, for later" in say("runs", "list")[1]
    assert say("runs", "tag", run.id, "")[1] == "\n"
    assert say("runs", "note", run.id)[1] == "longer answers\n"


def test_runs_are_compared_by_what_differs(workspace: Workspace, say: Say) -> None:
    first, second = make(workspace, "first", 4), make(workspace, "second", 8)
    code, out, _ = say("runs", "compare", first.id, second.id)
    assert code == 0
    assert "lora.r" in out
    assert "learning_rate" not in out
    assert "75.0 %  75.0 %" in out
    found = json.loads(say("runs", "compare", first.id, second.id, "--json")[1])
    assert [item["path"] for item in found["settings"]] == ["lora.r"]
    assert found["settings"][0]["values"] == [4, 8]
    assert {"name": "steps", "unit": "count", "values": [4, 4]} in found["results"]
    assert found["winner"] is None
    assert "No winner: The lowest validation loss is 0.25 twice." in out


def test_measurements_come_as_csv(workspace: Workspace, say: Say) -> None:
    run = make(workspace, "first", 4)
    assert say("runs", "csv", run.id)[1].splitlines()[0].startswith("kind,step,epoch,loss")
    assert len(say("runs", "csv", run.id)[1].splitlines()) == 3


def test_what_is_missing_or_too_much_is_said(workspace: Workspace, say: Say) -> None:
    run = make(workspace, "first", 4)
    assert "at least two runs" in say("runs", "compare", run.id)[2]
    assert say("runs", "compare", run.id, run.id)[0] == 2
    assert "takes a single run" in say("runs", "show", run.id, "other")[2]
    assert "There is no run" in say("runs", "csv", "nothing")[2]


def test_a_run_is_named_by_its_title_where_only_one_has_it(workspace: Workspace, say: Say) -> None:
    first, second, third = (make(workspace, title, 4) for title in ("My pirate", "twice", "Twice"))
    assert first.id in say("runs", "show", "my PIRATE")[1]
    code, out, told = say("runs", "show", "twice", "--json")
    assert (code, second.id in told, third.id in told) == (2, True, True)
    assert json.loads(out)["error"] == "Run 'twice': several runs have this name."


def test_nothing_is_deleted_without_a_yes(workspace: Workspace, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(workspace, "first", 4)
    assert (say("runs", "delete", "last")[0], run.path.is_dir()) == (2, True)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    assert (say("runs", "delete", "last")[0], run.path.is_dir()) == (2, True)
    assert all(word in asked[0] for word in (run.id, "first", "[y/N]"))
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert (say("runs", "delete", "last")[0], run.path.is_dir()) == (0, False)
