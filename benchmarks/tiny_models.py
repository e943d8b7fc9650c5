"""Recipes of tiny random models: each architecture's config class with small numbers, and the built-in tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

from lora_studio.workspace import model_source

SPREAD = 0.3  # of the random weights: so much that answers differ from one position to the next
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": SPREAD,
}
NO_GROUPS = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
HEAD = {"head_dim": 16}
WINDOW = {"sliding_window": 32}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {"shared_expert_intermediate_size": 24}
OF_GEMMA_4 = {"global_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 1536}
LINEAR_ATTENTION = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
LATENT_ATTENTION = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2}

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", SIZES),
    "Llama with tied embeddings": ("llama", {**SIZES, "tie_word_embeddings": True}),
    "Mistral": ("mistral", {**SIZES, **HEAD, **WINDOW}),
    "Ministral 3": ("ministral3", {**SIZES, **HEAD}),
    "Qwen2": ("qwen2", SIZES),
    "Qwen3": ("qwen3", {**SIZES, **HEAD, "tie_word_embeddings": True}),
    "Qwen3.5": ("qwen3_5_text", {**SIZES, **HEAD, **LINEAR_ATTENTION, "num_hidden_layers": 4}),
    "Gemma": ("gemma", {**SIZES, **HEAD}),
    "Gemma 2": ("gemma2", {**SIZES, **HEAD, **WINDOW, "query_pre_attn_scalar": 16}),
    "Gemma 3": ("gemma3_text", {**SIZES, **HEAD, **WINDOW, "query_pre_attn_scalar": 16}),
    "Gemma 4": ("gemma4_text", {**SIZES, **HEAD, **WINDOW, **OF_GEMMA_4}),
    "Phi": ("phi", SIZES),
    "Phi-3": ("phi3", {**SIZES, "sliding_window": None}),
    "SmolLM3": ("smollm3", {**SIZES, "no_rope_layer_interval": 2}),
    "OLMo 2": ("olmo2", SIZES),
    "OLMo 3": ("olmo3", {**SIZES, **WINDOW}),
    "Granite": (
        "granite",
        {**SIZES, "embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5},
    ),
    "GLM-4": ("glm4", {**SIZES, **HEAD}),
    "EXAONE 4": ("exaone4", {**SIZES, **WINDOW}),
    "Cohere 2": ("cohere2", {**SIZES, **HEAD, **WINDOW}),
    "StarCoder2": ("starcoder2", SIZES),
    "StableLM": ("stablelm", SIZES),
    "Nemotron": ("nemotron", {**SIZES, **HEAD}),
    "Arcee": ("arcee", SIZES),
    "Seed-OSS": ("seed_oss", {**SIZES, **HEAD}),
    "HunYuan": ("hunyuan_v1_dense", {**SIZES, **HEAD}),
    "Apertus": ("apertus", SIZES),
    "ERNIE 4.5": ("ernie4_5", SIZES),
    "GPT-2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": SPREAD}),
    "GPT-NeoX": ("gpt_neox", NO_GROUPS),
    "Falcon": ("falcon", NO_GROUPS),
    "BLOOM": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": SPREAD}),
    "OPT": ("opt", {**NO_GROUPS, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": SPREAD}),
    "Mixtral": ("mixtral", {**SIZES, **LOCAL_EXPERTS}),
    "Qwen2-MoE": ("qwen2_moe", {**SIZES, **EXPERTS, **SHARED}),
    "Qwen3-MoE": ("qwen3_moe", {**SIZES, **HEAD, **EXPERTS}),
    "Qwen3-Next": ("qwen3_next", {**SIZES, **HEAD, **EXPERTS, **SHARED, **LINEAR_ATTENTION, "num_hidden_layers": 4}),
    "OLMoE": ("olmoe", {**SIZES, "num_experts": 4, "num_experts_per_tok": 2}),
    "GraniteMoE": ("granitemoe", {**SIZES, **LOCAL_EXPERTS}),
    "gpt-oss": ("gpt_oss", {**SIZES, **HEAD, **WINDOW, **LOCAL_EXPERTS}),
    "DeepSeek V3": (
        "deepseek_v3",
        {
            **NO_GROUPS,
            **LATENT_ATTENTION,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    ),
    "LFM2": ("lfm2", {**SIZES, "layer_types": ["conv", "full_attention"]}),
    "Granite 4 hybrid": (
        "granitemoehybrid",
        {
            **SIZES,
            **MAMBA,
            "num_local_experts": 0,
            "shared_intermediate_size": 48,
            "layer_types": ["mamba", "attention"],
        },
    ),
}
"""By the name that people use: transformers' `model_type` and the small numbers of its config."""


def tiny_config(name: str, tokenizer: Any) -> Any:
    """The config of a recipe, with the tokenizer's vocabulary and end token."""
    family, numbers = RECIPES[name]
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return CONFIG_MAPPING[family](**{**numbers, **ends, "vocab_size": len(tokenizer)})


def make_model(name: str, folder: Path) -> None:
    """Writes the random model of a recipe; norms and biases stand away from 1 and 0, so that losing one shows."""
    tokenizer = AutoTokenizer.from_pretrained(model_source("demo"))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, tokenizer))
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data += 0.1 * torch.randn_like(weight)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
