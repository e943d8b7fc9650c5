"""What the estimate counts of activations, beside the tensors that autograd really keeps for the backward pass."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import sdpa_attention

from lora_studio.models.memory import Arithmetic, fixed_bytes, layer_bytes
from lora_studio.models.shape import architecture
from lora_studio.models.targets import adapter

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
ROWS, TOKENS = 2, 32


def kept_bytes(family: str, layers: int, *, mixed: bool, masked: bool, eager: bool, **lora: Any) -> int:
    """Bytes of the tensors saved for backward by a model with an adapter, parameters left out."""
    config = AutoConfig.for_model(family, num_hidden_layers=layers, **SIZES)
    config._attn_implementation = "eager" if eager else "sdpa"
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if mixed else torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", **lora))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(ROWS, TOKENS, dtype=torch.long)
    mask[0, :3] = 0 if masked else 1
    lower = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), lower:
        model.get_base_model().model(torch.ones(ROWS, TOKENS, dtype=torch.long), attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("family", "dropout", "mixed", "masked", "eager", "dora"),
    [
        ("qwen3", 0.05, False, False, False, False),
        ("qwen3", 0.0, False, True, False, False),
        ("qwen3", 0.05, True, True, False, False),
        ("qwen3", 0.0, True, False, False, False),
        ("qwen3", 0.05, True, False, False, True),
        ("llama", 0.05, False, False, True, False),
        ("qwen2", 0.05, True, True, False, False),
        ("mistral", 0.0, True, False, False, True),
        ("gemma3_text", 0.05, True, False, False, False),
        ("olmo2", 0.05, False, False, False, False),
        ("phi3", 0.05, True, False, False, False),
        ("phi", 0.05, False, True, False, False),
    ],
)
def test_a_layer_keeps_what_the_estimate_counts(
    family: str, dropout: float, mixed: bool, masked: bool, eager: bool, dora: bool
) -> None:
    lora = {"lora_dropout": dropout, "use_dora": dora}
    more, fewer = (kept_bytes(family, layers, mixed=mixed, masked=masked, eager=eager, **lora) for layers in (3, 2))
    model = architecture({"model_type": family, "num_hidden_layers": 3, **SIZES})
    assert model is not None
    trained = adapter(model, r=8, use_dora=dora)
    how = Arithmetic(2 if mixed else 4, mixed, "none", dropout > 0, 4, eager, masked)
    copies = 2 * trained.lora // 3 if mixed else 0  # 16-bit copies of the adapter: counted with the adapter
    counted = ROWS * TOKENS * layer_bytes(model, trained, how, TOKENS, 1) + fixed_bytes(model, trained, how, 1)
    assert counted == pytest.approx(more - fewer - copies, rel=0.01)


@pytest.mark.parametrize("family", ["qwen3", "phi3"])
def test_keys_that_are_repeated_for_every_head_are_counted_so(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", lambda *_: False)
    more, fewer = (
        kept_bytes(family, layers, mixed=False, masked=False, eager=False, lora_dropout=0.05) for layers in (3, 2)
    )
    model = architecture({"model_type": family, "num_hidden_layers": 3, **SIZES})
    assert model is not None
    trained, how = adapter(model, r=8), Arithmetic(4, False, "none", True, 4, repeats=True)
    counted = ROWS * TOKENS * layer_bytes(model, trained, how, TOKENS, 1) + fixed_bytes(model, trained, how, 1)
    assert counted == pytest.approx(more - fewer, rel=0.01)
