"""What is taken of a model itself: its parameters, what peft would train, learned positions, and what is stored."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import transformers_weight_conversion as peft_conversion
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DeepseekV3Config,
    GptOssConfig,
    LlamaConfig,
    Qwen3NextConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lora_studio.config.parsing import nest, parse
from lora_studio.config.sections import Config
from lora_studio.engine.models.adapter import look_at_model, take_layout
from lora_studio.engine.models.load import load_model
from lora_studio.errors import StudioError
from lora_studio.models.memory import estimate, trained_adapter, weight_bytes
from lora_studio.models.shape import architecture, kept_layout
from lora_studio.models.targets import EXPERT_NAMES, RENAMED_BY_PEFT, adapter

SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "opt": {**SIZES, "ffn_dim": 64, "max_position_embeddings": 40, "word_embed_proj_dim": 32},
    "gpt_neox": SIZES,
    "bloom": {"vocab_size": 90, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    "starcoder2": SIZES,
    "gpt_oss": {**SIZES, "num_local_experts": 4, "head_dim": 16},
    "olmoe": {**SIZES, "num_experts": 4},
    "cohere2": SIZES,
    "deepseek_v3": {
        **SIZES,
        "num_key_value_heads": 2,
        "n_routed_experts": 4,
        "moe_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "qwen3_next": {**SIZES, "num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16},
    "ernie4_5_moe": {**SIZES, "moe_num_experts": 4, "moe_intermediate_size": 24, "moe_layer_start_index": 1},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save_config(folder: Path, config: Any) -> dict[str, Any]:
    config.architectures = ["SomethingForCausalLM"]
    config.save_pretrained(folder)
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def settings(**changed: Any) -> dict[str, Any]:
    return Config().lora.model_dump() | {"lora_dropout": 0.0} | changed


def by_peft(model: Any, r: int) -> int:
    """What peft trains where each linear module and each stack of experts is named by its whole path."""
    renamed = set(peft_conversion._MODEL_TO_CONVERSION_PATTERN) & RENAMED_BY_PEFT
    linear = [path for path, part in model.named_modules() if type(part).__name__ in ("Linear", "Conv1D")]
    linear.remove(next(path for path in linear if model.get_submodule(path) is model.get_output_embeddings()))
    weights = [
        path for path in linear if model.config.model_type in renamed and path.rpartition(".")[2] in EXPERT_NAMES
    ]
    stacks = {path: len(tensor) for path, tensor in model.named_parameters() if tensor.ndim == 3 and "experts" in path}
    lora = LoraConfig(
        r=r,
        target_modules=[path for path in linear if path not in weights],
        target_parameters=[*stacks, *(f"{path}.weight" for path in weights)] or None,
        rank_pattern={path: max(1, r // experts) for path, experts in stacks.items()},
        task_type="CAUSAL_LM",
    )
    return int(get_peft_model(model, lora).get_nb_trainable_parameters()[0])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_parameters_and_what_is_trained_are_the_models_own(family: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(family, **FAMILIES[family])
    numbers = save_config(tmp_path, config)
    seen = look_at_model(str(tmp_path), None, lora=settings(r=9), seed=0, adapter=None)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
        parameters = plain.num_parameters()
        trainable = by_peft(plain, 9)
    layout = architecture(numbers)
    assert layout is not None
    assert (layout.parameters, layout.counted, layout.exact) == (parameters, True, False)
    assert seen["trainable"] == trainable
    assert seen["positions"] == (40 if family in ("gpt2", "opt") else None)
    assert seen["embeddings"] == 90
    assert adapter(layout, r=9).trainable == trainable


def test_the_families_whose_experts_are_reached_are_those_of_the_installed_peft() -> None:
    reached = {
        family
        for family, like in peft_conversion._MODEL_TO_CONVERSION_PATTERN.items()
        if like in peft_conversion._MOE_TARGET_MODULE_MAPPING and family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    }
    assert set(RENAMED_BY_PEFT) == reached | {"mixtral", "glm4v_moe"}
    names = peft_conversion._MOE_TARGET_MODULE_MAPPING["qwen2_moe"]
    assert set(EXPERT_NAMES) == set(names)


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (GptOssConfig(num_hidden_layers=24, num_local_experts=32), 20.91),
        (Qwen3NextConfig(), 79.67),
        (DeepseekV3Config(), 671.03),
    ],
    ids=["gpt-oss-20b", "qwen3-next-80b", "deepseek-v3"],
)
def test_models_that_are_published_have_the_size_that_they_are_known_for(
    config: Any, billions: float, tmp_path: Path
) -> None:
    numbers = save_config(tmp_path, config)
    guessed = architecture(numbers)
    assert guessed is None or not guessed.counted
    take_layout(str(tmp_path))
    layout = architecture(numbers)
    assert layout is not None
    assert layout.parameters / 1e9 == pytest.approx(billions, abs=0.01)
    found = estimate(parse(nest({"model.dtype": "bfloat16"})), layout, "cuda")
    assert found.parts["weights"] == 2 * layout.parameters
    assert (found.counted, found.exact) == (True, False)


def test_a_layout_belongs_to_one_config_alone(tmp_path: Path) -> None:
    numbers = save_config(tmp_path, AutoConfig.for_model("gpt_neox", **SIZES))
    take_layout(str(tmp_path))
    assert kept_layout(numbers) is not None
    assert kept_layout(numbers | {"hidden_size": 64}) is None


def test_a_base_stored_in_4_bits_stays_so_and_is_counted_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = LlamaConfig(**(SIZES | {"hidden_size": 64}))
    AutoModelForCausalLM.from_config(whole).save_pretrained(tmp_path / "whole")
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=four_bit)
    stored.save_pretrained(tmp_path / "stored")
    with pytest.raises(StudioError, match="stored in 4bit and cannot be loaded in 8bit"):
        load_model(str(tmp_path / "stored"), quantization="8bit")
    for chosen in ("none", "4bit"):
        loaded: Any = load_model(str(tmp_path / "stored"), quantization=chosen)
        assert type(loaded.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    layout = architecture(json.loads((tmp_path / "stored" / "config.json").read_text(encoding="utf-8")))
    assert layout is not None
    assert layout.stored == "4bit"
    parts = [estimate(parse(nest({"model.quantization": chosen})), layout, "cuda").parts for chosen in ("none", "4bit")]
    assert parts[0] == parts[1]
    assert parts[0]["weights"] == weight_bytes(layout, "4bit", 2)


def test_an_adapter_to_continue_is_counted_by_its_own_settings(base: Path, tmp_path: Path) -> None:
    own = LoraConfig(r=3, target_modules=["q_proj"], rank_pattern={"layers.1.*.q_proj": 5}, task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(load_model(str(base)), own)
    adapted.save_pretrained(tmp_path / "before")
    seen = look_at_model(str(base), None, lora=settings(r=64), seed=0, adapter=str(tmp_path / "before"))
    assert seen["trainable"] == adapted.get_nb_trainable_parameters()[0]


def test_a_checkpoint_that_lacks_tensors_and_modules_that_are_not_there_are_told(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lacking"
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    seen = look_at_model(str(folder), None, lora=settings(target_modules="nothing"), seed=0, adapter=None)
    assert "model.norm.weight" in seen["problem"][0]
    assert "no linear module nothing" in seen["adapter_problem"][0]
    whole = look_at_model(str(base), None, lora=settings(), seed=0, adapter=None)
    assert (whole["problem"], "adapter_problem" in whole) == (None, False)
    layout = architecture(json.loads((base / "config.json").read_text(encoding="utf-8")))
    assert layout is not None
    assert whole["trainable"] == trained_adapter(Config(), layout).trainable
