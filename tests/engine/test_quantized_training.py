"""Training on a base in 4 or 8 bits: what is measured in between changes nothing, on every kind of CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import modules
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from lora_studio.engine.models.load import load_model

IDS = torch.tensor([list(range(20, 60)), list(range(80, 120))])


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose matrices have neither rows that divide by 32 nor columns that divide by 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=150,
        hidden_size=72,
        intermediate_size=50,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("odd")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def adapted(base: Any) -> Any:
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape)
    return model


def learn(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch in training."""
    model.train()
    model.zero_grad()
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


def measure(model: Any) -> float:
    model.eval()
    with torch.no_grad():
        return float(model(IDS, labels=IDS).loss)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_loss_and_gradients_of_a_batch_are_the_same_before_and_after_a_measurement(
    odd: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)  # such a CPU has a packed layout for measuring
    model = adapted(load_model(str(odd), quantization=quantization))
    loss, gradients = learn(model)
    measured = [measure(model), measure(model)]
    loss_after, gradients_after = learn(model)
    assert measured[0] == measured[1]
    assert loss_after == loss
    assert len(gradients) == 28
    assert all(torch.equal(gradients[name], gradients_after[name]) for name in gradients)
    if quantization == "4bit":
        assert measured[0] == pytest.approx(loss, abs=1e-5)


def test_losses_in_4_bits_are_those_of_transformers_and_peft(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    expected = learn(adapted(LlamaForCausalLM.from_pretrained(odd, quantization_config=settings)))[0]
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    model = adapted(load_model(str(odd), quantization="4bit"))
    measure(model)
    assert learn(model)[0] == expected
