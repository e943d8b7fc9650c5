"""Which attention a run takes, why, and what it needs: known without torch, for every kind of device."""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any, get_args

import pytest

from lora_studio.config.parsing import machine_conflicts, nest, parse
from lora_studio.config.sections import Model
from lora_studio.models.accelerators import (
    DEVICE_KINDS,
    HUB_KERNELS,
    PACKAGES,
    attention_lacks,
    automatic_attention,
    joins_rows,
)
from lora_studio.models.shape import linear_layers

FLASH_2, FLASH_3 = "flash_attention_2", "flash_attention_3"


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets packages seem to be installed; those that are not named are missing."""

    def installed(*names: str) -> None:
        modules = dict(PACKAGES.values())
        spec, version = importlib.util.find_spec, importlib.metadata.version
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: (spec("json") if modules[name] in names else None) if name in modules else spec(name),
        )

        def version_of(name: str) -> str:
            if name in names:
                return "1"
            if name in modules.values():
                raise importlib.metadata.PackageNotFoundError
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", version_of)

    return installed


def refused(kind: str, **settings: Any) -> str:
    config = parse(nest({path.replace("__", "."): value for path, value in settings.items()}))
    return {problem.path: problem.message for problem in machine_conflicts(config, kind)}.get(
        "model.attn_implementation", ""
    )


def test_every_implementation_of_the_schema_is_known_on_every_device(
    install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    install("flash-attn", "flash-attn-3", "kernels")
    names = get_args(Model.model_fields["attn_implementation"].annotation)
    able = {
        kind: {name for name in names if name != "auto" and not attention_lacks(name, kind)} for kind in DEVICE_KINDS
    }
    assert able["cuda"] == set(names) - {"auto"}
    assert able["cpu"] == able["mps"] == able["xpu"] == {"sdpa", "eager"}
    assert able["rocm"] == {"sdpa", "eager", FLASH_2, "flex_attention"}


def test_auto_takes_the_best_that_is_installed_and_says_why(install: Any) -> None:
    install()
    assert (
        automatic_attention("cuda").words
        == "sdpa: FlashAttention 2 is not used, the package flash-attn is not installed"
    )
    assert automatic_attention("cpu").words == "sdpa: FlashAttention 2 is not used, it needs a CUDA GPU"
    install("flash-attn")
    assert automatic_attention("cuda", half=True, capability=(8, 0)).name == FLASH_2
    assert automatic_attention("cuda", half=False).reason.endswith("it needs 16-bit precision")
    assert "this one has 7.5" in automatic_attention("cuda", half=True, capability=(7, 5)).reason
    assert automatic_attention("cuda", unsupported=[FLASH_3, FLASH_2]).reason.endswith("the model does not support it")
    install("flash-attn", "flash-attn-3", "kernels")
    assert automatic_attention("cuda", half=True, capability=(9, 0)).name == FLASH_3
    assert automatic_attention("cuda", half=True, capability=(8, 0)).name == FLASH_2
    assert automatic_attention("cuda", half=True, capability=(10, 0)).name == FLASH_2


def test_what_auto_would_not_take_can_be_chosen_or_is_refused_with_a_reason(install: Any) -> None:
    install()
    assert refused("cuda", model__attn_implementation=FLASH_3) == (
        "flash_attention_3 cannot run here: the package flash-attn-3 is not installed; use auto or sdpa"
    )
    assert "no backward pass" in refused("cpu", model__attn_implementation="flex_attention")
    install("flash-attn")
    assert "16-bit precision" in refused("cuda", model__attn_implementation=FLASH_2, model__dtype="float32")
    assert not refused("cuda", model__attn_implementation=FLASH_2)
    assert not refused("cuda", model__attn_implementation="eager")


@pytest.mark.parametrize("kernel", HUB_KERNELS)
def test_kernels_of_the_hub_are_never_taken_unasked_and_not_downloaded_offline(
    install: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: str
) -> None:
    install("kernels")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert automatic_attention("cuda").name == "sdpa"
    assert not refused("cuda", model__attn_implementation=kernel)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE disables downloads" in refused("cuda", model__attn_implementation=kernel)
    (tmp_path / f"models--{kernel.replace('/', '--')}").mkdir()
    assert not refused("cuda", model__attn_implementation=kernel)


def test_batches_go_without_padding_where_the_attention_reads_them_without_a_mask() -> None:
    for name in (FLASH_2, FLASH_3, *HUB_KERNELS):
        assert joins_rows("auto", name, possible=True)
        assert not joins_rows("auto", name, possible=False)
        assert not joins_rows(False, name, possible=True)
    assert not joins_rows("auto", "sdpa", possible=True)
    assert joins_rows(True, "sdpa", possible=True)


def test_layers_that_carry_a_state_are_known_by_a_models_config() -> None:
    assert linear_layers({"layer_types": ["linear_attention", "full_attention"]}) == "linear_attention"
    assert linear_layers({"text_config": {"layer_types": ["conv", "full_attention"]}}) == "conv"
    assert linear_layers({"model_type": "falcon_mamba"}) == "falcon_mamba"
    assert linear_layers({"model_type": "qwen3", "layer_types": ["sliding_attention"]}) == ""
