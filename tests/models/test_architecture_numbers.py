"""Parameters counted from config.json alone, and what that says of an adapter's size."""

from pathlib import Path
from typing import Any

import pytest

from lora_studio.models.shape import Architecture, architecture, read_config
from lora_studio.models.targets import adapter

QWEN3_0_6B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}


def qwen() -> Architecture:
    found = architecture(QWEN3_0_6B)
    assert found is not None
    return found


def test_rank_16_on_all_linear_modules_of_qwen3_0_6b_trains_1_67_percent() -> None:
    model = qwen()
    trained = adapter(model, r=16)
    assert (model.parameters, trained.trainable) == (596_049_920, 10_092_544)
    assert round(100 * trained.trainable / (model.parameters + trained.added), 2) == 1.67


@pytest.mark.parametrize(
    ("target", "modules"),
    [
        ("attention", ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("q_v", ["q_proj", "v_proj"]),
        ("q_proj, down_proj", ["q_proj", "down_proj"]),
        (r"model\.layers\.\d+\.mlp\.(up|down)_proj", ["up_proj", "down_proj"]),
    ],
)
def test_targets_are_chosen_by_word_list_and_pattern(target: str, modules: list[str]) -> None:
    chosen = adapter(qwen(), r=4, target_modules=target)
    assert [item.leaf for item, _ in chosen.targets] == modules
    assert chosen.trainable == sum(4 * (item.inputs + item.outputs) * 28 for item, _ in chosen.targets)


def test_a_pattern_can_name_single_layers() -> None:
    chosen = adapter(qwen(), r=4, target_modules=r".*layers\.(0|1)\.self_attn\.q_proj")
    assert [layers for _, layers in chosen.targets] == [2]


def test_names_that_the_model_has_not_are_told() -> None:
    assert adapter(qwen(), r=4, target_modules="q_proj, wq").missing == ("wq",)
    assert adapter(qwen(), r=4, target_modules="layers.99.*").missing == ("layers.99.*",)


def test_dora_adds_a_magnitude_an_output_and_whole_modules_a_copy() -> None:
    plain, dora = adapter(qwen(), r=4, target_modules="q_v"), adapter(qwen(), r=4, target_modules="q_v", use_dora=True)
    assert dora.trainable - plain.trainable == 28 * (2048 + 1024)
    whole = adapter(qwen(), r=4, target_modules="q_v", modules_to_save=["embed_tokens"])
    assert whole.trainable - plain.trainable == 151936 * 1024


def test_a_config_that_is_no_language_model_has_no_numbers() -> None:
    assert architecture({"model_type": "vit", "hidden_size": 768}) is None
    assert architecture({}) is None


def test_an_unknown_family_is_counted_like_llama_and_says_so() -> None:
    found = architecture({**QWEN3_0_6B, "model_type": "brand_new"})
    assert found is not None
    assert not found.exact


def test_a_model_of_the_hub_is_read_from_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert read_config("someone/model") is None
    snapshot = tmp_path / "models--someone--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    assert read_config("someone/model") == {"model_type": "llama"}
    assert read_config("someone/model", "abc") == {"model_type": "llama"}


def test_the_built_in_model_and_a_folder_are_read_directly(tmp_path: Path) -> None:
    assert (read_config("demo") or {})["model_type"] == "qwen3"
    (tmp_path / "config.json").write_text("not json")
    assert read_config(str(tmp_path)) is None
