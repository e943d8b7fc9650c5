"""The standalone program makes the same run again, with nothing of LoRA Studio."""

import ast
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lora_studio.adapter_source import WEIGHTS_FILE
from lora_studio.engine import standalone
from lora_studio.engine.export_script import check
from lora_studio.errors import StudioError
from lora_studio.events import RunState, StepLogged
from lora_studio.parsing import parse, read_yaml
from lora_studio.workspace import RunFolder

from .conftest import MakeRun, events
from .exporting import last_event, take_away, texts_in

LIBRARIES = {"torch", "datasets", "peft", "transformers", "trl"}


def run_script(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """The program of that folder, run to its end in this process; the losses by step."""
    spec = importlib.util.spec_from_file_location("train_again", folder / "train.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    program.main()
    history = json.loads((folder / "out" / "history.json").read_text(encoding="utf-8"))
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def test_the_program_needs_no_library_but_those_it_names() -> None:
    tree = ast.parse(Path(standalone.__file__).read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in found}
    assert tops - set(sys.stdlib_module_names) == LIBRARIES


@pytest.mark.slow
def test_it_trains_the_run_again_with_the_same_losses_and_adapter(
    trained: RunFolder, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = take_away(trained, "script", keep_local_base=True)
    result = folder.read_result()
    assert (last_event(folder).state, result["same"]) == ("done", True), last_event(folder).message
    assert sorted(path.name for path in folder.result.iterdir()) == [
        "losses.json",
        "requirements.txt",
        "settings.json",
        "tokenizer",
        "train.parquet",
        "train.py",
        "validation.parquet",
    ]
    assert not [name for name, text in texts_in(folder.result).items() if str(data_file.parent) in text]
    known = {point.step: point.loss for point in events(trained, StepLogged)}
    assert len(known) == 8
    assert run_script(folder.result, monkeypatch) == pytest.approx(known, abs=1e-6)
    own, again = (load_file(place / WEIGHTS_FILE) for place in (trained.adapter, folder.result / "out" / "adapter"))
    assert own.keys() == again.keys()
    assert all((own[name] - again[name]).abs().max() < 1e-5 for name in own)


SETTINGS: list[dict[str, Any]] = [
    {"training__packing": True, "lora__loraplus_lr_ratio": 8.0, "training__lr_scheduler_type": "cosine_with_min_lr"},
    {
        "lora__use_dora": True,
        "lora__target_modules": "attention",
        "training__neftune_noise_alpha": 5.0,
        "training__label_smoothing_factor": 0.1,
        "training__train_sampling_strategy": "random",
        "lora__init_lora_weights": "gaussian",
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=["packed", "varied"])
def test_other_settings_are_carried_too(
    settings: dict[str, Any], make_run: MakeRun, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(training__num_train_epochs=1, evaluation__eval_strategy="no", **settings)
    assert train(run) == 0
    folder = take_away(run, "script", keep_local_base=True, trial=False)
    known = {point.step: point.loss for point in events(run, StepLogged)}
    assert run_script(folder.result, monkeypatch) == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"training__method": "dpo"}, "learned from pairs"),
        ({"lora__init_lora_weights": "pissa"}, "can't begin an adapter as pissa"),
    ],
)
def test_what_the_program_cannot_do_is_refused(settings: dict[str, Any], words: str, make_run: MakeRun) -> None:
    config = parse(read_yaml(make_run(**settings).config))
    with pytest.raises(StudioError, match=words):
        check(config, RunState())


def test_rows_that_changed_since_are_not_passed_off_as_the_runs(
    make_run: MakeRun, trained: RunFolder, data_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(data_file.read_text().splitlines(keepends=True)[1:]))
    run = make_run(data__train_file=str(other))
    shutil.copytree(trained.adapter, run.adapter)
    shutil.copyfile(trained.events, run.events)
    folder = take_away(run, "script", keep_local_base=True)
    assert "changed since this run" in last_event(folder).message
    assert not folder.result.exists()
