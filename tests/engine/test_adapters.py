"""Which modules an adapter sits on, and what is said about those the model has not."""

from pathlib import Path

import pytest

from lora_studio.engine.models.adapter import add_adapter
from lora_studio.engine.models.layout import last_names, linear_modules, target_modules
from lora_studio.engine.models.load import load_model
from lora_studio.errors import StudioError

AVAILABLE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("all-linear", "all-linear"),
        ("attention", ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("q_v", ["q_proj", "v_proj"]),
        ("(up|down)_proj", "(up|down)_proj"),
        ("q_proj", ["q_proj"]),
        (" q_proj ,v_proj,, q_proj", ["q_proj", "v_proj"]),
    ],
)
def test_a_setting_names_modules(setting: str, expected: str | list[str]) -> None:
    assert target_modules(setting, AVAILABLE) == expected


@pytest.mark.parametrize("setting", ["query", "q_proj, value", "lm_head", ",", "embed_tokens", "mlp.(up)"])
def test_a_module_that_is_not_there_is_told_with_those_that_are(setting: str) -> None:
    with pytest.raises(StudioError) as caught:
        target_modules(setting, AVAILABLE)
    assert "q_proj" in caught.value.hint


def test_attention_is_an_error_where_no_module_is_known_for_it() -> None:
    with pytest.raises(StudioError, match="known for attention"):
        target_modules("attention", ["dense", "mix"])


def test_the_output_layer_is_no_target(base: Path) -> None:
    assert last_names(linear_modules(load_model(str(base)))) == AVAILABLE


def test_a_fresh_adapter_depends_on_the_seed_alone(base: Path) -> None:
    def weights(seed: int) -> list[float]:
        model = add_adapter(
            load_model(str(base)), base="name", revision=None, target="all-linear", seed=seed, r=2, lora_alpha=4
        )
        assert model.peft_config["default"].base_model_name_or_path == "name"
        return [float(value.detach().sum()) for name, value in model.named_parameters() if "lora_A" in name]

    assert weights(1) == weights(1)
    assert weights(1) != weights(2)
