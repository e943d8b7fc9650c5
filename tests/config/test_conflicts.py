"""Settings that can't go together, or not on this machine, are all told before anything starts."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.compute import Compute, beyond_machine
from lora_studio.config.parsing import ConfigError, machine_conflicts, nest, parse
from lora_studio.models.adapter_files import is_regular_expression


def wrong(**settings: Any) -> set[str]:
    """The paths of what is wrong with a config of some settings by path (dots as `__`)."""
    try:
        parse(nest({path.replace("__", "."): value for path, value in settings.items()}))
    except ConfigError as error:
        return {problem.path for problem in error.problems}
    return set()


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora"])
def test_weights_taken_out_of_the_base_need_a_base_that_is_not_rounded(start: str) -> None:
    assert wrong(lora__init_lora_weights=start) == set()
    for quantization in ("4bit", "8bit"):
        assert wrong(lora__init_lora_weights=start, model__quantization=quantization) == {"lora.init_lora_weights"}


def test_loftq_needs_4bit_and_no_dora() -> None:
    assert wrong(lora__init_lora_weights="loftq") == {"lora.init_lora_weights"}
    assert wrong(lora__init_lora_weights="loftq", model__quantization="4bit") == set()
    both = wrong(lora__init_lora_weights="loftq", lora__use_dora=True, model__quantization="8bit")
    assert both == {"lora.init_lora_weights", "lora.use_dora"}


def test_orthogonal_weights_need_an_even_rank() -> None:
    assert wrong(lora__init_lora_weights="orthogonal", lora__r=7) == {"lora.r"}
    assert wrong(lora__init_lora_weights="orthogonal", lora__r=8) == set()


def test_a_broken_regular_expression_is_told_with_everything_else() -> None:
    found = wrong(lora__target_modules=r".*(q_proj", training__max_steps=0, training__warmup_steps=3)
    assert found == {"lora.target_modules", "training.max_steps"}


@pytest.mark.parametrize(
    ("target", "pattern"),
    [
        ("all-linear", False),
        ("q_proj, v_proj", False),
        ("layers.0.q_proj", False),
        (r".*\.q_proj", True),
        ("q|v", True),
    ],
)
def test_names_and_regular_expressions_are_told_apart(target: str, pattern: bool) -> None:
    assert is_regular_expression(target) is pattern


def test_a_warm_up_that_outlasts_the_run_is_refused() -> None:
    assert wrong(training__warmup_steps=10, training__max_steps=10) == {"training.warmup_steps"}
    assert wrong(training__warmup_steps=9, training__max_steps=10) == set()
    stable = {"training__lr_scheduler_type": "warmup_stable_decay", "training__warmup_ratio": 0.6}
    assert wrong(**stable, training__decay_ratio=0.5) == {"training.decay_ratio"}


def here(kind: str, **settings: Any) -> dict[str, str]:
    config = parse(nest({path.replace("__", "."): value for path, value in settings.items()}))
    return {problem.path: problem.message for problem in machine_conflicts(config, kind)}


def test_what_needs_a_gpu_is_refused_without_one_and_says_what_to_take() -> None:
    settings = {
        "training__optim": "paged_adamw_32bit",
        "model__dtype": "float16",
        "model__attn_implementation": "flash_attention_2",
    }
    found = here("cpu", **settings)
    assert set(found) == {"training.optim", "model.dtype", "model.attn_implementation"}
    assert found["training.optim"].endswith("use adamw_torch")
    assert here("cpu", training__optim="paged_lion_8bit")["training.optim"].endswith("use lion_8bit")
    assert set(here("cuda", training__optim="paged_adamw_8bit", model__dtype="float16")) == set()
    biased = {"model__dtype": "bfloat16", "lora__bias": "all"}
    assert [set(here(kind, **biased)) for kind in ("cpu", "cuda")] == [{"lora.bias"}, set()]


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("cuda", set()),
        ("rocm", {"training.optim"}),
        ("xpu", {"training.optim"}),
        ("mps", {"training.optim", "model.dtype", "model.quantization"}),
        ("cpu", {"training.optim", "model.dtype"}),
    ],
)
def test_each_kind_of_device_refuses_what_it_lacks(kind: str, refused: set[str]) -> None:
    settings = {"training__optim": "paged_adamw_8bit", "model__dtype": "float16", "model__quantization": "4bit"}
    found = here(kind, **settings)
    assert set(found) == refused
    assert all("cannot run here: " in words or "cannot be trained here: " in words for words in found.values())
    assert here(kind) == {}


def test_a_mac_says_why_and_what_to_take_instead() -> None:
    assert here("mps", model__quantization="8bit")["model.quantization"] == (
        "8bit cannot run here: bitsandbytes ships no kernels for Apple GPUs and would download them as code from the "
        "Hub; use none"
    )
    assert here("mps", training__optim="adamw_8bit")["training.optim"].endswith("use adamw_torch")
    assert "not built for Apple GPUs" in here("mps", model__attn_implementation="flash_attention_2").popitem()[1]


def test_quantization_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_studio.config.parsing._installed", lambda package: package != "bitsandbytes")
    assert here("cuda", model__quantization="4bit") == {
        "model.quantization": "4bit cannot run here: the package bitsandbytes is not installed; use none"
    }


def test_a_tracker_that_is_not_installed_is_refused_and_one_that_is_there_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if importlib.util.find_spec("trackio") is None:
        assert "pip install trackio" in here("cpu", tracking__report_to="trackio")["tracking.report_to"]
    (tmp_path / "wandb.py").write_text("run = None\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert here("cpu", tracking__report_to="wandb") == {}
    assert here("cpu") == {}


def test_rewards_decide_what_is_best_only_where_they_are_measured() -> None:
    assert wrong(evaluation__metric_for_best_model="reward_margin") == {"evaluation.metric_for_best_model"}
    compared = {"training__method": "dpo", "data__train_file": "preference"}
    assert wrong(evaluation__metric_for_best_model="reward_margin", **compared) == set()
    assert wrong(evaluation__metric_for_best_model="f1", **compared) == {"evaluation.metric_for_best_model"}


def test_kto_needs_batches_to_estimate_kl_in_and_has_a_loss_of_its_own() -> None:
    labelled = {"training__method": "kto", "data__train_file": "feedback"}
    assert wrong(**labelled) == set()
    assert wrong(evaluation__metric_for_best_model="reward_accuracy", **labelled) == set()
    single = {"training__per_device_train_batch_size": 1, "evaluation__per_device_eval_batch_size": 1}
    assert wrong(**single, **labelled) == {
        "training.per_device_train_batch_size",
        "evaluation.per_device_eval_batch_size",
    }
    assert wrong(**single) == set()
    assert wrong(preference__loss_type="robust", preference__label_smoothing=0.1, **labelled) == {
        "preference.loss_type",
        "preference.label_smoothing",
    }
    for path, value in {
        "training__packing": True,
        "training__label_smoothing_factor": 0.1,
        "training__neftune_noise_alpha": 5,
        "data__train_on": "all",
        "lora__init_lora_weights": "pissa",
        "lora__bias": "all",
        "evaluation__labels": "Yes, No",
    }.items():
        assert wrong(**{path: value}, **labelled) == {path.replace("__", ".", 1)}


def test_a_comparison_needs_the_bases_own_biases() -> None:
    assert wrong(lora__bias="all") == set()
    assert wrong(lora__bias="all", training__method="dpo", data__train_file="preference") == {"lora.bias"}


@pytest.mark.parametrize(
    ("compute", "quantization", "words"),
    [
        ({"processes": 3, "device": "0,1"}, "none", "compute.processes: must be auto or 2"),
        ({"strategy": "fsdp"}, "none", "compute.strategy: fsdp shares the base out among processes"),
        ({"strategy": "fsdp", "processes": 2}, "4bit", "compute.strategy: fsdp can't share out a base in 4bit"),
        ({"strategy": "fsdp", "device": "0,1"}, "8bit", "compute.strategy: fsdp can't share out a base in 8bit"),
        ({"strategy": "balanced"}, "none", "name them in compute.device"),
        ({"strategy": "balanced", "device": "cpu"}, "none", "name them in compute.device"),
        ({"strategy": "balanced", "device": "0,1", "processes": 2}, "none", "compute.processes: must be auto or 1"),
        ({"processes": 0}, "none", "must be auto or a number from 1 to 64"),
        ({"processes": "two"}, "none", "must be auto or a number from 1 to 64"),
        ({"processes": 2.5}, "none", "must be auto or a number from 1 to 64"),
    ],
)
def test_processes_strategies_and_devices_that_do_not_go_together(
    compute: dict[str, object], quantization: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse({"compute": compute, "model": {"quantization": quantization}})


def test_what_needs_the_whole_base_in_one_process_does_not_go_with_fsdp() -> None:
    shared = {"compute__strategy": "fsdp", "compute__processes": 2}
    assert wrong(**shared) == set()
    assert wrong(**shared, evaluation__gen_eval_samples=2) == {"evaluation.gen_eval_samples"}
    assert wrong(**shared, lora__init_lora_weights="eva") == {"lora.init_lora_weights"}


def test_a_machine_trains_in_as_many_processes_as_it_has_gpus_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    three, two = Compute(processes="3"), Compute(processes="2")
    assert beyond_machine(two, gpus=0) == ""
    assert "2 CPU cores" in beyond_machine(three, gpus=0)
    assert beyond_machine(three, gpus=4) == ""
    assert "2 GPUs" in beyond_machine(three, gpus=2)
    assert "2 CPU cores" in beyond_machine(Compute(processes="3", device="cpu"), gpus=4)
