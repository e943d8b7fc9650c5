"""Adapters of every kind that peft makes on a tiny Llama, and what peft alone says with each: nothing of ours."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lora_studio.workspace import model_source

Q = ["q_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear"},
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True, "lora_alpha": 3},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "r": 8,
        "rank_pattern": {"q_proj": 2, "v_proj": 4},
        "alpha_pattern": {"v_proj": 16},
    },
    "dora": {"target_modules": Q, "use_dora": True},
    "bias": {"target_modules": Q, "bias": "all"},
    "lora_bias": {"target_modules": Q, "lora_bias": True},
    "head": {"target_modules": Q, "modules_to_save": ["lm_head"]},
    "whole": {"target_modules": Q, "modules_to_save": ["embed_tokens"]},
    "tying": {"target_modules": Q, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "embedding": {"target_modules": [*Q, "embed_tokens"]},
    "output": {"target_modules": [*Q, "lm_head"]},
    "tokens": {"target_modules": Q, "trainable_token_indices": [1, 2, 40]},
    "parameters": {"target_modules": Q, "target_parameters": ["mlp.up_proj.weight"]},
    "norms": {"target_modules": Q, "modules_to_save": ["input_layernorm"]},
}


def tiny_llama(folder: Path, *, tied: bool = False, seed: int = 0, rows: int = 0, **settings: Any) -> Path:
    """A random Llama of two layers with biases and the built-in tokenizer; `rows` embeddings more than that has."""
    tokenizer = AutoTokenizer.from_pretrained(model_source("demo"))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + rows,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        attention_bias=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **settings,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bare(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base).eval()


def moved(model: Any, seed: int, strength: float = 0.2) -> Any:
    """The same with everything that is trained far from where it began."""
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn_like(weight) * strength)
    return model


def make(base: Path, folder: Path, seed: int = 1, **settings: Any) -> Path:
    """An adapter of peft's on the base, saved as peft saves it."""
    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **settings})
    moved(get_peft_model(bare(base), config), seed).save_pretrained(folder)
    return folder


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def alone(base: Path, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    """What plain peft computes with base and adapter."""
    return logits(PeftModel.from_pretrained(bare(base), adapter).eval(), ids)
