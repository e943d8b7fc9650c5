"""Switches of speed and memory: what goes together, what a device lacks, and where they appear."""

from typing import Any

import pytest

from lora_studio.config import training
from lora_studio.config.parsing import contradictions, irrelevant, machine_conflicts, nest, parse
from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten
from lora_studio.models.memory import with_settings

DEFAULTS = flatten(Config())


def changed(**settings: Any) -> Config:
    return with_settings(Config(), {path.replace("__", "."): value for path, value in settings.items()})


def here(kind: str, **settings: Any) -> dict[str, str]:
    return {problem.path: problem.message for problem in machine_conflicts(changed(**settings), kind)}


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"training__padding_free": True, "training__packing": True}, "training.padding_free"),
        ({"training__padding_free": True, "training__method": "dpo"}, "training.padding_free"),
        (
            {"training__gradient_checkpointing": False, "training__gradient_checkpointing_offload": True},
            "training.gradient_checkpointing_offload",
        ),
        (
            {"training__gradient_checkpointing": False, "training__gradient_checkpointing_every_n_layers": 2},
            "training.gradient_checkpointing_every_n_layers",
        ),
        (
            {"training__activation_offloading": True, "training__gradient_checkpointing_offload": True},
            "training.activation_offloading",
        ),
        (
            {"training__torch_compile": True, "compute__strategy": "fsdp", "compute__processes": "2"},
            "training.torch_compile",
        ),
    ],
)
def test_switches_that_do_not_go_together_are_refused(settings: dict[str, Any], path: str) -> None:
    assert path in {problem.path for problem in contradictions(changed(**settings))}


def test_a_machine_without_a_gpu_refuses_what_only_a_gpu_has() -> None:
    names = ("gradient_checkpointing_offload", "activation_offloading", "use_liger_kernel", "tf32")
    found = here("cpu", model__dtype="float32", **{f"training__{name}": True for name in names})
    assert set(found) == {f"training.{name}" for name in names}
    assert all(
        words.startswith("cannot be used here: ") and words.endswith("; turn it off") for words in found.values()
    )
    assert here("cuda", training__gradient_checkpointing_offload=True) == {}
    assert here("cuda", training__activation_offloading=True, training__dataloader_num_workers=2) == {}


def test_what_is_not_installed_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: set[str] = set()
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None if name in missing else object())
    monkeypatch.setattr(training.shutil, "which", lambda name: None)
    assert "C++ compiler" in here("cpu", training__torch_compile=True)["training.torch_compile"]
    assert here("cuda", training__torch_compile=True, training__use_liger_kernel=True) == {}
    missing |= {"triton", "liger_kernel"}
    found = here("cuda", training__torch_compile=True, training__use_liger_kernel=True)
    assert "triton is not installed" in found["training.torch_compile"]
    assert "liger-kernel is not installed" in found["training.use_liger_kernel"]


def test_switches_appear_where_they_have_an_effect() -> None:
    def gone(**changes: Any) -> set[str]:
        return set(irrelevant({**DEFAULTS, **{path.replace("__", "."): value for path, value in changes.items()}}))

    assert "training.tf32" in gone()
    assert "training.tf32" not in gone(model__dtype="float32")
    assert "training.gradient_checkpointing_offload" in gone(training__gradient_checkpointing=False)
    assert "training.gradient_checkpointing_offload" not in gone()
    assert "training.padding_free" in gone(training__packing=True)
    assert "training.padding_free" in gone(training__method="dpo")
    assert "training.dataloader_pin_memory" in gone(compute__device="cpu")


def test_only_what_differs_is_handed_to_transformers() -> None:
    assert training.checkpointing_arguments(Config().training) == {}
    both = parse(
        nest({"training.gradient_checkpointing_every_n_layers": 3, "training.gradient_checkpointing_offload": True})
    )
    assert training.checkpointing_arguments(both.training) == {"every_n_layers": 3, "offload": True}
    assert training.pins_memory(Config().training, "cuda")
    assert not training.pins_memory(changed(training__dataloader_pin_memory=False).training, "cuda")
    assert not training.pins_memory(Config().training, "cpu")
