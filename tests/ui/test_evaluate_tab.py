"""The start of an evaluation from the page: weighed against the memory that is free, and asked where it is short."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_studio.config.parsing import parse, to_yaml
from lora_studio.errors import StudioError
from lora_studio.evaluate.job import EvaluationRequest, Measuring, create, request_of
from lora_studio.jobs.events import Finished, RunStarted, to_line
from lora_studio.jobs.kinds import Kind
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hardware import Device
from lora_studio.ui.evaluate import tab
from lora_studio.ui.evaluate.results import EvaluationView, remembered
from lora_studio.ui.studio import Studio
from lora_studio.workspace import Workspace
from tests.adapters import files, write
from tests.ui.fake_session import FakeSession


class Started(Supervisor):
    """A supervisor that starts nothing, but remembers what was to be started."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.requests: list[EvaluationRequest] = []
        self.resumed: list[str] = []
        self.holder: str | None = None
        self.cards = [Device("CPU", "cpu", 10**9, 10**6)]

    def devices(self, seconds: float = 0.0) -> list[Device]:
        return self.cards

    def submit(self, kind: Kind, make: Any, *, at_once: bool = False, secrets: Any = None, **where: Any) -> str:
        self.requests.append(request_of(make()))
        return f"evaluation-{len(self.requests)}{' beside' * at_once}"

    def resume(self, job_id: str, *more: Any, **given: Any) -> None:
        self.resumed.append(job_id)

    def busy(self, choice: str = "auto") -> str | None:
        return self.holder

    def is_alive(self, job_id: str) -> bool:
        return False


def test_an_evaluation_that_the_memory_will_hardly_do_for_is_asked_about_once(
    workspace: Workspace, tmp_path: Path
) -> None:
    session: Any = FakeSession(lambda method, **params: [])
    jobs = Started(workspace)
    studio = Studio(workspace, jobs, session, session)
    adapter = write(tmp_path / "adapter", files())
    chosen = {**Measuring().model_dump(), "adapters": [str(adapter)], "data": "pirate", "base": True}
    chosen |= {"max_new_tokens": 8, "labels": "", "mapping": "", "encoding": "gb18030 "}

    def begin(warned: str, **changed: Any) -> tuple[str, str, str]:
        return tab.start_one(studio, {**chosen, **changed}, warned)

    for field, words in (("max_samples", "Max rows"), ("max_new_tokens", "max_new_tokens: must be at least 1")):
        with pytest.raises(StudioError, match=words):
            begin("", **{field: 0})
    name, warned, words = begin("")
    assert (name, jobs.requests) == ("", [])
    assert "1.0 MB are free." in words
    assert begin(warned, max_new_tokens=9)[0] == ""  # another one is asked about anew
    assert begin(warned) == ("evaluation-1", "", "")
    assert jobs.requests[0].encoding == "gb18030"
    folder = create(workspace, jobs.requests[0])
    watching: Any = SimpleNamespace(jobs=jobs)

    def resume(view: EvaluationView) -> tuple[EvaluationView, str]:
        return tab.after_click(studio, watching, view, "resume", "")[:2]

    seen, words = resume(EvaluationView(folder.id))
    assert "press Resume again" in words
    assert jobs.resumed == []
    resume(seen)
    assert jobs.resumed == [folder.id]
    jobs.cards = [Device("CPU", "cpu", 10**11, 10**11)]
    assert begin("")[0] == "evaluation-2"


def test_beside_a_job_that_holds_the_device_one_waits_without_a_question_or_begins_after_one(
    workspace: Workspace, tmp_path: Path
) -> None:
    session: Any = FakeSession(lambda method, **params: [])
    jobs = Started(workspace)
    jobs.holder = "a run"
    studio = Studio(workspace, jobs, session, session)
    adapter = write(tmp_path / "adapter", files())
    chosen = {**Measuring().model_dump(), "adapters": [str(adapter)], "data": "pirate", "base": True}
    chosen |= {"max_new_tokens": 8, "labels": "", "mapping": "", "encoding": ""}
    assert tab.start_one(studio, {**chosen, "beside": False}, "") == ("evaluation-1", "", "")
    name, warned, words = tab.start_one(studio, {**chosen, "beside": True}, "")
    assert (name, "are free" in words) == ("", True)
    assert tab.start_one(studio, {**chosen, "beside": True}, warned)[0] == "evaluation-2 beside"


def test_adapters_that_another_tab_asks_for_replace_those_of_the_form(workspace: Workspace) -> None:
    adapters = [("New", "b"), ("Newer checkpoint", "a/checkpoint-9"), ("Older checkpoint", "a/checkpoint-3")]
    assert remembered(workspace, adapters, ["a", "b"])["adapters"] == ["a/checkpoint-9", "b"]
    assert remembered(workspace, adapters, ["gone"])["adapters"] == ["b"]


def test_a_dataset_of_the_hub_is_remembered_as_test_data(workspace: Workspace) -> None:
    workspace.write_draft("evaluate", {"adapters": ["b"], "data": "hub:owner/rows"})
    assert remembered(workspace, [("New", "b")])["data"] == "hub:owner/rows"


def test_test_data_follow_the_adapter_and_a_manual_choice_stays_until_it_changes(
    workspace: Workspace, tmp_path: Path
) -> None:
    session: Any = FakeSession(lambda method, **params: [])
    studio = Studio(workspace, Started(workspace), session, session)
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "a", "completion": "b"}\n')
    runs = {}
    for name, data in {
        "films": {"train_file": "recommender"},
        "own": {"train_file": str(own)},
        "whole": {"train_file": str(own), "validation_fraction": 0.0},
    }.items():
        run = workspace.create_run(name, to_yaml(parse({"data": data})), {})
        write(run.adapter, files())
        done = [RunStarted(1.0, 1, "cpu", ""), Finished(2.0, "done")]
        run.events.write_text("".join(map(to_line, done)), encoding="utf-8")
        runs[name] = run.id

    def chosen(*requested: str) -> list[Any]:
        return [update["value"] for update in map(dict_of, tab.fill(studio, *requested)[:2])]

    assert chosen(runs["films"]) == [[runs["films"]], "recommender"]
    rest = [*tab.fill(studio)[2:-2], "local", "auto"]
    tab.keep(studio, [runs["films"]], "pirate", *rest)
    assert chosen() == [[runs["films"]], "pirate"]
    assert chosen(runs["films"]) == [[runs["films"]], "pirate"]
    assert dict_of(tab.follow(studio, [runs["own"]], "pirate", *rest))["value"] == "validation"
    assert chosen() == [[runs["own"]], "validation"]
    tab.keep(studio, [runs["own"]], "pirate", *rest)
    assert "value" not in dict_of(tab.follow(studio, [runs["own"], runs["films"]], "pirate", *rest))
    assert chosen(runs["films"]) == [[runs["films"]], "recommender"]
    assert chosen(runs["whole"]) == [[runs["whole"]], "recommender"]  # nothing is held out: the choice stays


def dict_of(update: Any) -> dict[str, Any]:
    """The properties that an update of a component sets."""
    return update if isinstance(update, dict) else update.constructor_args
