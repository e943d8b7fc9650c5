"""Runs beside each other, found and deleted: plain values, no page."""

import dataclasses
from typing import Any

from lora_studio.config.parsing import parse
from lora_studio.jobs.events import Evaluated, RunState, StepLogged
from lora_studio.runs.checkpoints import deletions
from lora_studio.runs.summary import Overview, Tags, differences, matching, overview, results
from lora_studio.workspace import Workspace


def run_of(title: str, **more: Any) -> Overview:
    plain = Overview(title, title, "done", "demo", "pirate", Tags(), 0.0)
    return dataclasses.replace(plain, **more)


def test_only_settings_that_differ_are_named_in_the_order_of_the_schema() -> None:
    configs = [
        parse({"title": "a", "training": {"learning_rate": 1e-3}, "lora": {"r": 8}}),
        parse({"title": "b", "training": {"learning_rate": 1e-4}, "lora": {"r": 8}}),
        parse({"title": "c", "model": {"quantization": "4bit"}, "lora": {"r": 8}}),
    ]
    found = differences(configs)
    assert [item.path for item in found] == ["model.quantization", "training.learning_rate"]
    assert found[1].values == (1e-3, 1e-4, 2e-4)
    assert found[1].title == "Learning rate"


def test_the_same_settings_differ_in_nothing() -> None:
    assert differences([parse({"title": "a"}), parse({"title": "b"})]) == []


def test_results_name_only_what_one_of_the_runs_has() -> None:
    measured = RunState(
        steps=[StepLogged(1.0, 4, 4, 1.0, loss=0.5, learning_rate=1e-3, tokens=100)],
        evaluations=[Evaluated(1.0, 4, 1.0, 0.6, {"f1": 0.75})],
    )
    rows = {
        item.name: item.values for item in results([(run_of("a", eval_loss=0.6), measured), (run_of("b"), RunState())])
    }
    assert rows["final f1"] == (0.75, None)
    assert rows["final validation loss"] == (0.6, None)
    assert "base loss on the same rows" not in rows
    assert "time" not in rows


def test_every_word_of_a_search_has_to_be_found_somewhere() -> None:
    runs = [
        run_of("Pirate A", labels=Tags(("Baseline",), "")),
        run_of("pirate b", labels=Tags((), "answers too LONG")),
        run_of("other", model="Qwen/Qwen3-0.6B"),
    ]

    def found(query: str) -> list[str]:
        return [run.title for run in matching(runs, query)]

    assert found("") == ["Pirate A", "pirate b", "other"]
    assert found("pirate baseline") == ["Pirate A"]
    assert found("long") == ["pirate b"]
    assert found("qwen3 done") == ["other"]
    assert found("pirate nothing") == []


def test_a_damaged_labels_file_spoils_no_list(workspace: Workspace) -> None:
    run = workspace.create_run("one", "title: one\n", {"model": "demo", "data": "/a/b/shop.csv"})
    run.labels.write_text("[]")
    seen = overview(run, RunState(id=run.id, title="one", state="done"))
    assert "cannot be read" in seen.labels.note
    assert (seen.data, seen.model) == ("shop.csv", "demo")


def test_a_deletion_tells_its_size_what_stands_against_it_and_who_began_with_it(workspace: Workspace) -> None:
    old = workspace.create_run("old", "title: old\n", {})
    (old.path / "weights").write_bytes(b"x" * 1000)
    going = workspace.create_run("going", "title: going\n", {})
    new = workspace.create_run("new", f"model:\n  adapter_name_or_path: {old.path}\n", {})
    states = [
        RunState(id=old.id, title="old", state="done"),
        RunState(id=going.id, title="going", state="running"),
        RunState(id=new.id, title="new", state="done"),
    ]
    first, second = deletions(workspace, [old.id, going.id, "gone"], states)
    assert first.bytes > 1000
    assert first.continued_by == ("new",)
    assert not first.against
    assert "stop it first" in second.against
    assert second.continued_by == ()
