"""What can be asked of an evaluation, and what its folder keeps."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import parse, to_yaml
from lora_studio.errors import StudioError
from lora_studio.evaluate import job
from lora_studio.evaluate.job import (
    NAMED,
    OF_RUN,
    VALIDATION,
    EvaluationRequest,
    create,
    evaluation,
    evaluations,
    make_request,
    of_run,
    request_of,
)
from lora_studio.jobs.kinds import remove
from lora_studio.models.hardware import Device
from lora_studio.workspace import Workspace, shipped_data


@pytest.fixture
def run(workspace: Workspace) -> str:
    return made_run(workspace, {"evaluation": {"labels": "Yes, No"}})


def made_run(workspace: Workspace, settings: dict[str, dict[str, Any]]) -> str:
    """A run with an adapter and a checkpoint, as far as files that run no model go."""
    made = workspace.create_run("Films", to_yaml(parse(settings)), {})
    for folder in (made.adapter, made.checkpoints / "checkpoint-4"):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
        (folder / "adapter_model.safetensors").touch()
        (folder / "trainer_state.json").touch()
    return made.id


def test_adapters_are_named_by_run_checkpoint_or_folder(workspace: Workspace, run: str) -> None:
    folder = str(workspace.run(run).adapter)
    request = make_request(workspace, [run, f"{run}/checkpoint-4"], "recommender")
    assert [(one.name, one.title, one.run) for one in request.columns] == [
        ("base", "Base", ""),
        ("adapter", "Films", run),
        ("adapter2", "Films, step 4", run),
    ]
    assert make_request(workspace, [folder], "recommender", compare=False).columns[0].folder == folder


def test_a_shipped_sets_name_stands_for_its_held_out_file(workspace: Workspace, run: str) -> None:
    request = make_request(workspace, [run], "recommender")
    assert request.data == str(shipped_data()["recommender"].heldout)
    assert request.title == "Films and base on Film recommender"


def test_validation_stands_for_the_rows_that_a_run_was_validated_with(workspace: Workspace, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    rules = {"validation_fraction": 0.25, "split_seed": 3, "max_samples": 9}

    def asked(**data: Any) -> EvaluationRequest:
        run = made_run(workspace, {"data": {"train_file": str(own), **data}})
        return make_request(workspace, [run], VALIDATION)

    request = asked(**rules)
    assert (request.data, request.title) == (str(own), "Films and base on validation rows of own.jsonl")
    assert request.split == {**rules, "max_eval_samples": None, "goal": "answers"}
    assert EvaluationRequest.from_dict(request.to_dict()) == request
    whole = asked(train_file="pirate", validation_file=str(own))
    assert (whole.data, whole.split) == (str(own), None)
    assert asked(train_file="pirate").data == str(shipped_data()["pirate"].train)
    sheet = asked(validation_file=f"{own}?sheet=Test")
    assert (sheet.data, sheet.title) == (
        f"{own}?sheet=Test",
        "Films and base on validation rows of own.jsonl, sheet Test",
    )
    with pytest.raises(StudioError, match="no validation rows"):
        asked(validation_fraction=0.0)


def test_labels_are_those_named_else_those_of_the_run(workspace: Workspace, run: str) -> None:
    assert make_request(workspace, [run], "recommender").labels == ("Yes", "No")
    named = make_request(workspace, [run], "recommender", labels="good, bad")
    assert (named.labels, named.labels_from) == (("good", "bad"), "they were given")


def test_the_encoding_is_the_one_named_else_the_runs(workspace: Workspace) -> None:
    run = made_run(workspace, {"data": {"encoding": "koi8_r"}})
    assert make_request(workspace, [run], "recommender").encoding == "koi8_r"
    named = make_request(workspace, [run], "recommender", encoding="cp1251")
    assert (named.encoding, EvaluationRequest.from_dict(named.to_dict())) == ("cp1251", named)
    with pytest.raises(StudioError, match=r"data\.encoding"):
        make_request(workspace, [run], "recommender", encoding="klingon")


def test_a_file_is_read_as_is_said_else_as_the_runs(workspace: Workspace) -> None:
    own, other = {"user": "Frage", "assistant": "Antwort"}, {"user": "q", "assistant": "a"}
    run = made_run(workspace, {"data": {"mapping": own}})
    request = make_request(workspace, [run], "recommender")
    assert (request.mapping, request.mapping_from) == (own, OF_RUN)
    named = make_request(workspace, [run], "recommender", mapping=json.dumps(other))
    assert (named.mapping, named.mapping_from) == (other, NAMED)
    folder = str(workspace.run(run).adapter.rename(workspace.root / "moved"))
    assert make_request(workspace, [folder], "recommender").mapping is None
    with pytest.raises(StudioError, match=r"data\.mapping"):
        make_request(workspace, [folder], "recommender", mapping="user: [")


@pytest.mark.parametrize("count", [0, 4])
def test_one_to_three_adapters_answer_at_once(workspace: Workspace, run: str, count: int) -> None:
    with pytest.raises(StudioError, match="adapters are selected"):
        make_request(workspace, [f"{run}{number}" for number in range(count)], "recommender")


@pytest.mark.parametrize("measuring", [{"batch_size": 0}, {"batch_size": 5000}, {"max_samples": -1}])
def test_settings_out_of_bounds_are_refused(workspace: Workspace, run: str, measuring: dict[str, int]) -> None:
    with pytest.raises(StudioError, match="cannot be"):
        make_request(workspace, [run], "recommender", measuring=measuring)


def test_an_engine_that_is_not_here_is_refused_before_anything_starts(
    workspace: Workspace, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for engine, words in (("vllm", "vLLM is not installed"), ("llama", "There is no engine 'llama'")):
        with pytest.raises(StudioError, match=words):
            make_request(workspace, [run], "recommender", measuring={"engine": engine})
    (tmp_path / "vllm").touch(0o755)
    with pytest.raises(StudioError, match="vLLM needs a GPU, and there is none here"):
        make_request(workspace, [run], "recommender", measuring={"engine": "vllm"})
    monkeypatch.setattr(job, "devices", lambda: [Device("H200", "cuda", 1, 1)])
    request = make_request(workspace, [run], "recommender", measuring={"engine": "vllm"})
    assert EvaluationRequest.from_dict(request.to_dict()).measuring.engine == "vllm"


def test_an_evaluation_takes_one_device_of_this_machine(workspace: Workspace, run: str) -> None:
    assert make_request(workspace, [run], "recommender", compute_device=" 1 ").compute_device == "1"
    for choice, target, message in (
        ("0,1", "local", "only a training takes several devices; name one"),
        ("fast", "local", "must be auto, cpu, or GPU numbers"),
        ("1", "slurm:two", "slurm:two chooses its devices itself"),
    ):
        with pytest.raises(StudioError, match=message):
            make_request(workspace, [run], "recommender", compute_device=choice, compute_target=target)


def test_what_was_asked_is_kept_and_found_again(workspace: Workspace, run: str) -> None:
    request = make_request(
        workspace, [run], "recommender", measuring={"max_samples": 7}, generation={"top_k": 3}, compute_device="cpu"
    )
    folder = create(workspace, request)
    assert request_of(folder) == request == EvaluationRequest.from_dict(request.to_dict())
    assert [one.id for one in evaluations(workspace)] == [one.id for one in of_run(workspace, run)] == [folder.id]
    assert of_run(workspace, "another") == []
    remove(evaluation(workspace, folder.id))
    assert evaluations(workspace) == []
    with pytest.raises(StudioError, match="no evaluation"):
        evaluation(workspace, folder.id)


def test_a_torn_last_line_is_no_row(workspace: Workspace, run: str, tmp_path: Path) -> None:
    folder = create(workspace, make_request(workspace, [run], "recommender"))
    assert list(folder.rows()) == []
    folder.predictions.write_text('{"row": 1}\n{"row": 2', encoding="utf-8")
    assert list(folder.rows()) == [{"row": 1}]
