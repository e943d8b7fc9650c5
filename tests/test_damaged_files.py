"""One damaged file of one run, evaluation, export or queue leaves every list standing, and is shown where it lies."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import parse, to_yaml
from lora_studio.evaluate.job import folders as evaluation_folders
from lora_studio.export.job import create, make_request
from lora_studio.jobs.events import Evaluated, Finished, Reason, RunStarted, StepLogged, to_line
from lora_studio.jobs.kinds import EVALUATE, EXPORT, ending_words
from lora_studio.jobs.launchers.local import LocalLauncher
from lora_studio.jobs.queue import QueueEntry, read_queue, write_queue
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.jobs.watcher import keep_folded
from lora_studio.runs import summary
from lora_studio.runs.summary import overview
from lora_studio.ui.evaluate import results as evaluate_board
from lora_studio.ui.export import results as export_board
from lora_studio.ui.runs.results import listing
from lora_studio.ui.runs.table import RunBoard, TableChoice
from lora_studio.ui.runs.table import listing as list_runs
from lora_studio.workspace import RunFolder, Workspace
from tests.adapters import files, write
from tests.conftest import Say
from tests.ui.evaluated import SUMMARY, request

RESULT = {"state": "done", "train_rows": 4, "epochs": 1.0, "tokens": 40, "tokens_per_second": 9.0}
EXPORTED = {"words": "", "tried": "", "same": True, "notes": [], "link": "", "command": "", "bytes": 1, "place": "/"}


def wrong_types(content: bytes) -> bytes:
    """The same names with values of other kinds."""
    values = json.loads(content)
    named = values if isinstance(values, dict) else {"a": 1}
    return json.dumps({name: [1] if isinstance(value, str) else "x" for name, value in named.items()}).encode()


def not_numbers(content: bytes) -> bytes:
    values = json.loads(content)
    named = values if isinstance(values, dict) else {"a": 1}
    return json.dumps(
        {name: float("nan") if isinstance(value, int | float) else value for name, value in named.items()}
    ).encode()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "binary": lambda content: bytes(range(256)) * 4,
    "zeros": lambda content: bytes(200),
    "null": lambda content: b"null",
    "list": lambda content: b"[1, 2]",
    "number": lambda content: b"1e999",
    "text": lambda content: b'"a"',
    "no names": lambda content: b"{}",
    "nested": lambda content: b"[" * 100_000,
    "nested objects": lambda content: b'{"a":' * 100_000,
    "wrong types": wrong_types,
    "not a number": not_numbers,
}


class World:
    """Two finished runs, one that waits, an evaluation and an export; the first run's files are those to damage."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.bad, self.good, self.waiting = (self.run(title) for title in ("bad", "good", "waiting"))
        for run in (self.bad, self.good):
            now = time.time()
            events = [
                RunStarted(now - 3, 1, "CPU", "float32"),
                StepLogged(now - 2, 1, 1, 1.0, 0.5, 0.1),
                Evaluated(now - 1, 1, 1.0, 0.5),
                Finished(now, "done", 1),
            ]
            run.events.write_text("".join(map(to_line, events)), encoding="utf-8")
            run.complete.write_text(json.dumps(RESULT), encoding="utf-8")
            run.labels.write_text(json.dumps({"tags": ["x"], "note": "y"}), encoding="utf-8")
            run.worker.write_text(json.dumps({"pid": 2**30, "started": 1.0, "launched": 1.0}), encoding="utf-8")
            write(run.adapter, files())
            found = run.events.stat()
            state = Supervisor(workspace).state(run.id)
            keep_folded(run, state, (found.st_size, found.st_mtime_ns))
        write_queue(workspace, [QueueEntry(self.waiting.id)])
        self.evaluation = evaluation_folders(workspace).create(request().to_dict())
        self.evaluation.complete.write_text(json.dumps(SUMMARY), encoding="utf-8")
        self.export = create(workspace, make_request(workspace, self.bad.id, "zip"))
        self.export.complete.write_text(json.dumps({**EXPORTED, "files": []}), encoding="utf-8")
        for job in (self.evaluation, self.export):
            job.events.write_text(
                "".join(map(to_line, [RunStarted(now, 1, "CPU", ""), Finished(now, "done")])), encoding="utf-8"
            )

    def run(self, title: str) -> RunFolder:
        return self.workspace.create_run(title, to_yaml(parse({"title": title})), {"model": "demo", "data": "pirate"})

    def look(self) -> str:
        """What every list of page and terminal shows, in a fresh process' eyes."""
        workspace, now = Workspace(self.workspace.root), time.time()
        supervisor = Supervisor(workspace)
        states = supervisor.runs()
        assert len(states) == 3
        assert supervisor.state(self.bad.id).id == self.bad.id
        assert supervisor.state(self.good.id).state == "done"
        assert supervisor.queue() == [self.waiting.id]
        assert [overview(workspace.run(state.id), state).row()["run"] for state in states]
        shown = [list_runs(RunBoard(workspace).rows(states), 3, TableChoice(whole=True), "", now)]
        summary.speed(workspace, model="demo", quantization="none", device="cpu", data="pirate")
        for kind in (EVALUATE, EXPORT):
            assert len(supervisor.jobs(kind)) == 1
        assert supervisor.working() == []
        view = evaluate_board.EvaluationView(self.evaluation.id)
        shown += evaluate_board.EvaluationBoard(workspace, supervisor).look(view, now).values()
        shown.append(listing(evaluation_folders(workspace).all(), self.bad.id, has_adapter=True))
        view_of = export_board.ExportView(self.bad.id, export=self.export.id)
        shown += export_board.ExportBoard(workspace, supervisor).look(view_of, now).values()
        return "".join(shown) + "".join(
            words for state in map(supervisor.state, [self.bad.id]) for words in state.warnings
        )


@pytest.fixture
def world(workspace: Workspace) -> World:
    return World(workspace)


FILES: dict[str, Callable[[World], Path]] = {
    "run.json": lambda world: world.bad.facts,
    "complete.json": lambda world: world.bad.complete,
    "worker.json": lambda world: world.bad.worker,
    "labels.json": lambda world: world.bad.labels,
    "folded.json": lambda world: world.bad.folded,
    "events.jsonl": lambda world: world.bad.events,
    "an evaluation's request": lambda world: world.evaluation.facts,
    "an evaluation's numbers": lambda world: world.evaluation.complete,
    "an export's request": lambda world: world.export.facts,
    "an export's result": lambda world: world.export.complete,
    "queue.json": lambda world: world.workspace.queue,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_one_damaged_file_leaves_every_list_standing(name: str, world: World, say: Say) -> None:
    file = FILES[name](world)
    whole = file.read_bytes()
    ids = " ".join(run.id for run in (world.bad, world.good, world.waiting))
    assert "damaged" not in world.look()
    for how, damage in DAMAGE.items():
        if name == "events.jsonl" and how in ("wrong types", "not a number"):
            continue
        file.write_bytes(damage(whole))
        try:
            world.look()
            code, told, _ = say("runs", "list") if how in ("cut", "wrong types") else (0, ids, "")
        except Exception as error:
            raise AssertionError(f"{name}, {how}: {type(error).__name__}: {error}") from error
        assert code == 0
        assert all(name in told for name in ids.split()), how
    file.write_bytes(whole)
    assert "damaged" not in world.look()


def test_a_damaged_run_is_shown_as_one_and_can_be_deleted(world: World, say: Say) -> None:
    world.bad.facts.write_bytes(b"\0" * 50)
    assert f"{world.bad.id} (run.json is damaged)" in world.look()
    assert f"run.json of {world.bad.id} cannot be read: damaged." in say("runs", "list")[2]
    assert say("runs", "show", world.bad.id)[0] == 0
    assert say("runs", "delete", world.bad.id, "--yes")[0] == 0
    assert not world.bad.path.exists()


def test_a_damaged_result_and_worker_are_told_of(world: World) -> None:
    world.bad.complete.write_text("{")
    assert "complete.json of this run is damaged" in world.look()
    world.bad.worker.write_text("[]")
    world.bad.events.write_text(to_line(RunStarted(time.time(), 1, "CPU", "float32")))
    state = Supervisor(world.workspace).state(world.bad.id)
    assert (state.state, state.reason) == ("failed", Reason.RECORD_DAMAGED)
    assert ending_words(state)[0] == "worker.json is damaged, so how the run ended is unknown."


def test_a_damaged_queue_is_made_again_of_the_runs_that_were_never_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = world.run("later")
    expected = [QueueEntry(world.waiting.id), QueueEntry(later.id)]
    for content in ("", "{", '{"run": 1}', "[" * 100_000):
        world.workspace.queue.write_text(content)
        assert read_queue(world.workspace) == expected
    entries: list[Any] = [{"run": world.waiting.id}, {"run": 5}, "x", None, {"run": "a", "extra_epochs": "much"}]
    world.workspace.queue.write_text(json.dumps(entries))
    assert read_queue(world.workspace) == expected
    started: list[str] = []
    monkeypatch.setattr(LocalLauncher, "start", lambda self, run, *rest, **more: started.append(run.id))
    world.workspace.queue.write_text("{")
    Supervisor(world.workspace).tick()
    assert started == [world.waiting.id]
    assert json.loads(world.workspace.queue.read_text())[0]["run"] == later.id
