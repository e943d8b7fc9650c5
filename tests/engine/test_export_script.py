"""The standalone program makes the same run again, with nothing of LoRA Studio."""

import ast
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lora_studio.config.parsing import parse, read_yaml
from lora_studio.engine import train_script
from lora_studio.engine.export.script import (
    check,
    check_names,
    compare_losses,
    last_step_to_try,
    lora_settings,
    same_tensors,
)
from lora_studio.errors import StudioError
from lora_studio.jobs.events import RunState, StepLogged
from lora_studio.models.adapter_files import WEIGHTS_FILE
from lora_studio.workspace import RunFolder
from tests.adapters import safetensors

from .conftest import MakeRun, build_tokenizer, events
from .exporting import last_event, run_script, take_away, texts_in

LIBRARIES = {"torch", "datasets", "peft", "transformers", "trl"}


def test_the_program_needs_no_library_but_those_it_names() -> None:
    tree = ast.parse(Path(train_script.__file__).read_text(encoding="utf-8"))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in found}
    assert tops - set(sys.stdlib_module_names) == LIBRARIES


@pytest.mark.slow
def test_it_trains_the_run_again_with_the_same_losses_and_adapter(
    trained: RunFolder, base: Path, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = take_away(trained, "script", base_name="nobody/has-this")  # the trial loads the run's own folder
    result = folder.read_result()
    assert (last_event(folder).state, result["same"]) == ("done", True), last_event(folder).message
    assert "It trains the same" in result["tried"]  # on the CPU a run's step rounds otherwise than trl's
    assert any("It loads nobody/has-this" in note for note in result["notes"])
    assert sorted(path.name for path in folder.result.iterdir()) == [
        "losses.json",
        "requirements.txt",
        "settings.json",
        "tokenizer",
        "train.parquet",
        "train.py",
        "validation.parquet",
    ]
    here = (str(data_file.parent), str(base))
    assert not [name for name, text in texts_in(folder.result).items() if any(place in text for place in here)]
    known = {point.step: point.loss for point in events(trained, StepLogged)}
    assert len(known) == 8
    assert run_script(folder.result, monkeypatch, "--base", str(base)) == pytest.approx(known, abs=1e-5)
    assert_same_adapter(trained, folder.result)


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
    *(
        {
            "training__method": method,
            "data__train_file": data,
            "data__max_samples": 8,
            "data__max_length": 96,
            "preference__beta": 0.2,
            "training__learning_rate": 1e-3,
        }
        for method, data in (("dpo", "preference"), ("kto", "feedback"))
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=["packed", "varied", "dpo", "kto"])
def test_other_settings_are_carried_too(
    settings: dict[str, Any], make_run: MakeRun, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(training__num_train_epochs=1, evaluation__eval_strategy="no", **settings)
    assert train(run) == 0
    folder = take_away(run, "script", keep_local_base=True, trial=False)
    known = {point.step: point.loss for point in events(run, StepLogged)}
    assert run_script(folder.result, monkeypatch) == pytest.approx(known, abs=1e-5)
    assert_same_adapter(run, folder.result)


def assert_same_adapter(run: RunFolder, made: Path) -> None:
    own, again = (load_file(place / WEIGHTS_FILE) for place in (run.adapter, made / "out" / "adapter"))
    assert {name: tensor.shape for name, tensor in own.items()} == {name: one.shape for name, one in again.items()}
    assert all((own[name] - again[name]).abs().max() < 1e-5 for name in own)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random mixture of experts, whose experts peft adapts as parameters and not as modules."""
    folder = tmp_path_factory.mktemp("models") / "experts"
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_adapters_on_experts_are_trained_again_with_all_their_tensors(
    experts: Path, make_run: MakeRun, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(
        model__name=str(experts),
        training__num_train_epochs=1,
        lora__lora_dropout=0.0,
        evaluation__eval_strategy="no",
    )
    assert train(run) == 0
    assert any("experts" in name for name in load_file(run.adapter / WEIGHTS_FILE))
    folder = take_away(run, "script", keep_local_base=True, trial=False)
    known = {point.step: point.loss for point in events(run, StepLogged)}
    assert run_script(folder.result, monkeypatch) == pytest.approx(known, abs=1e-5)
    assert_same_adapter(run, folder.result)


CONTINUED: dict[str, dict[str, Any]] = {
    "places": {
        "target_modules": ["q_proj", "down_proj", "up_proj"],
        "layers_to_transform": [1],
        "layers_pattern": "layers",
        "exclude_modules": ["up_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"down_proj": 32},
        "lora_bias": True,
    },
    "parameters": {
        "target_modules": ["q_proj"],
        "target_parameters": ["mlp.gate_proj.weight"],
        "use_rslora": True,
    },
    "embeddings": {"target_modules": ["embed_tokens", "v_proj"]},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONTINUED)
def test_an_adapter_of_any_make_is_gone_on_with_as_the_run_did(
    kind: str, base: Path, make_run: MakeRun, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, **CONTINUED[kind])
    get_peft_model(model, settings).save_pretrained(tmp_path / "before", save_embedding_layers=False)
    run = make_run(
        model__adapter_name_or_path=str(tmp_path / "before"),
        training__num_train_epochs=1,
        lora__lora_dropout=0.0,
        evaluation__eval_strategy="no",
    )
    assert train(run) == 0
    folder = take_away(run, "script", keep_local_base=True, trial=False)
    known = {point.step: point.loss for point in events(run, StepLogged)}
    assert run_script(folder.result, monkeypatch) == pytest.approx(known, abs=1e-5)
    assert_same_adapter(run, folder.result)


UNCOMMON: dict[str, Any] = {
    "exclude_modules": ".*k_proj",
    "layers_to_transform": [0],
    "layers_pattern": "layers",
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"q_proj": 3},
    "bias": "lora_only",
    "use_rslora": True,
    "use_dora": True,
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1, 2],
    "target_parameters": ["mlp.gate_proj.weight"],
    "alora_invocation_tokens": [5],
    "ensure_weight_tying": True,
    "fan_in_fan_out": True,
}


def test_every_saved_setting_of_an_adapter_reaches_the_program(make_run: MakeRun, tmp_path: Path) -> None:
    saved = LoraConfig(r=4, target_modules=["q_proj"], **UNCOMMON)
    saved.save_pretrained(str(tmp_path))
    config = parse(read_yaml(make_run(lora__init_lora_weights="gaussian").config))
    made = LoraConfig(task_type="CAUSAL_LM", **lora_settings(config, tmp_path))
    assert {name: getattr(made, name) for name in UNCOMMON} == UNCOMMON
    assert made.init_lora_weights == "gaussian"


def test_a_script_that_trains_another_adapter_is_no_result(tmp_path: Path) -> None:
    shapes = {"a.lora_A.weight": [2, 4], "a.lora_B.weight": [4, 2]}
    for name, tensors in (("own", shapes), ("same", shapes), ("fewer", {"a.lora_A.weight": [2, 4]})):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS_FILE).write_bytes(safetensors(tensors))
    assert same_tensors(tmp_path / "own", tmp_path / "same") == 2
    with pytest.raises(StudioError, match=r"an adapter with 1 tensors; that of the run has 2.*lora_B"):
        same_tensors(tmp_path / "own", tmp_path / "fewer")
    state = state_of(20, seconds=1)
    own = [{"step": point.step, "loss": point.loss} for point in state.steps]
    assert compare_losses(own, state, must_equal=True) == ("losses equal those of the run exactly", True)
    other = [{**entry, "loss": entry["loss"] + 0.001} for entry in own]
    with pytest.raises(StudioError, match=r"its losses differ from those of the run by at most 0\.001"):
        compare_losses(other, state, must_equal=True)
    assert not compare_losses(other, state, must_equal=False)[1]
    with pytest.raises(StudioError, match="does not reproduce the run"):
        compare_losses([], state, must_equal=True)


def test_an_adapter_to_go_on_from_under_other_names_is_refused(tmp_path: Path) -> None:
    shapes = {"base_model.model.model.a.lora_A.weight": [2, 4], "base_model.model.model.a.lora_B.weight": [4, 2]}
    others = {name.replace("model.model.model", "model.model.language_model"): shape for name, shape in shapes.items()}
    more = {**shapes, "base_model.model.model.embed_tokens.weight": [4, 4]}
    for name, tensors in (("run", shapes), ("more", more), ("renamed", others)):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS_FILE).write_bytes(safetensors(tensors))
    check_names(tmp_path / "more", tmp_path / "run")
    with pytest.raises(StudioError, match=r"lacks base_model\.model\.model\.a\.lora_A\.weight and others"):
        check_names(tmp_path / "renamed", tmp_path / "run")


def test_the_trial_goes_past_the_warm_up_as_far_as_time_allows() -> None:
    assert last_step_to_try(state_of(100, seconds=1), warmup=0) == 3
    assert last_step_to_try(state_of(100, seconds=1), warmup=30) == 33
    assert last_step_to_try(state_of(100, seconds=20), warmup=30) == 14
    assert last_step_to_try(state_of(2, seconds=1), warmup=1) == 2


def state_of(steps: int, seconds: float) -> RunState:
    """A run whose every step took so many seconds."""
    state = RunState()
    for step in range(1, steps + 1):
        state.steps.append(StepLogged(step * seconds, step, steps, 1.0, 1 / step, 0.1))
    return state


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora__init_lora_weights": "pissa"}, "does not support the LoRA initialization pissa"),
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
