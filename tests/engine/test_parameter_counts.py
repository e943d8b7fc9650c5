"""The parameters that config.json promises are those of the models themselves, built on the meta device."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from lora_studio.models.shape import architecture
from lora_studio.models.targets import adapter

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"head_dim": 24}),
    ("qwen2", {}),
    ("qwen3", {"tie_word_embeddings": False}),
    ("gemma", {}),
    ("gemma2", {"head_dim": 16}),
    ("gemma3_text", {"head_dim": 16}),
    ("granite", {}),
    ("smollm3", {}),
    ("olmo2", {}),
    ("phi3", {}),
    ("phi", {"qk_layernorm": True}),
    ("mixtral", {"num_local_experts": 4}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 48, "mlp_only_layers": [0]}),
    ("qwen3_moe", {**EXPERTS, "head_dim": 16, "decoder_sparse_step": 2}),
]


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
DENSE = ["gate_proj", "up_proj", "down_proj"]


def recipe(family: str, experts: int) -> dict[str, Any]:
    """LoraConfig's arguments for a mixture as peft's guide gives them: each expert has rank r // experts, at least 1.

    peft takes the names of dense layers for those of experts in some families: there they are named as parameters.
    """
    renamed = family == "qwen3_moe"
    rank = max(1, 16 // experts)
    return {
        "target_modules": [*ATTENTION, *([] if renamed else [*DENSE, "shared_expert_gate"])],
        "target_parameters": [*STACKS, *(f"mlp.{name}.weight" for name in DENSE if renamed)],
        "rank_pattern": dict.fromkeys(STACKS, rank),
    }


def counts(family: str, numbers: dict[str, Any], target: str = "all-linear", **lora: Any) -> tuple[int, int]:
    """Parameters of the model, and those that its adapter trains."""
    experts = numbers.get("num_local_experts") or numbers.get("num_experts")
    targets = recipe(family, experts) if experts else {"target_modules": target}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **numbers))
        parameters = sum(parameter.numel() for parameter in model.parameters())
        config = LoraConfig(r=16, task_type="CAUSAL_LM", **targets, **lora)
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    return parameters, adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(("family", "more"), FAMILIES, ids=[family for family, _ in FAMILIES])
def test_a_known_family_is_counted_exactly(family: str, more: dict[str, Any]) -> None:
    numbers = {**TINY, **more}
    model = architecture({"model_type": family, **AutoConfig.for_model(family, **numbers).to_dict()})
    assert model is not None
    assert (model.parameters, adapter(model, r=16).trainable) == counts(family, numbers)
    assert model.exact


@pytest.mark.parametrize(("family", "more"), FAMILIES, ids=[family for family, _ in FAMILIES])
def test_every_norm_is_known_by_its_path_and_size(family: str, more: dict[str, Any]) -> None:
    config = AutoConfig.for_model(family, **{**TINY, **more})
    found = architecture({"model_type": family, **config.to_dict()})
    assert found is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    norms: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        if module.endswith("norm"):
            norms[module] = norms.get(module, 0) + parameter.numel()
    assert {path: norm.size for norm in found.norms for path in norm.paths} == norms


@pytest.mark.parametrize("setting", ["bias", "use_dora", "modules_to_save"])
def test_what_is_trained_beside_the_matrices_is_counted_exactly(setting: str) -> None:
    lora: dict[str, Any] = {"bias": "lora_only", "use_dora": True, "modules_to_save": ["lm_head"]}
    numbers = {**TINY, "attention_bias": True, "tie_word_embeddings": False}
    model = architecture({"model_type": "llama", **numbers})
    assert model is not None
    chosen = {setting: lora[setting]}
    assert adapter(model, r=16, **chosen).trainable == counts("llama", numbers, **chosen)[1]


@pytest.mark.parametrize(
    "name", ["norm", "q_norm", "input_layernorm", "embed_tokens", "head", "layers.1.mlp.up_proj", "mlp"]
)
def test_modules_trained_whole_are_all_whose_path_ends_with_the_name(name: str) -> None:
    numbers = {**TINY, "tie_word_embeddings": False}
    model = architecture({"model_type": "qwen3", **numbers})
    assert model is not None
    found = adapter(model, r=16, target_modules="q_v", modules_to_save=[name])
    _, trained = counts("qwen3", numbers, r".*\.[qv]_proj", modules_to_save=[name])
    assert (found.trainable, found.missing) == (trained, ())


@pytest.mark.real
def test_seven_real_models_are_counted_exactly() -> None:
    files = sorted(Path(os.environ["LORA_STUDIO_REAL"], "configs").glob("*.json"))
    assert len(files) == 7
    for file in files:
        numbers = json.loads(file.read_text(encoding="utf-8"))
        model = architecture(numbers)
        assert model is not None, file.name
        family = numbers.pop("model_type")
        assert (model.parameters, adapter(model, r=16).trainable) == counts(family, numbers), file.name
