"""A base whose checkpoint lacks tensors is refused with their names; what a model never saves is not missed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
)

from lora_studio.engine.models.load import load_model
from lora_studio.errors import StudioError

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    "gemma": Gemma3TextConfig(**SIZES),
    "gpt2": GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2),
    "opt": OPTConfig(vocab_size=60, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2),
}


@pytest.fixture(scope="module")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def saved(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(made[kind])
        return made[kind]

    return saved


def without(base: Path, folder: Path, part: str) -> str:
    """A copy of a model whose checkpoint lacks the tensors that have this in their names."""
    shutil.copytree(base, folder)
    whole = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in whole.items() if part not in name}
    assert len(left) < len(whole)
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "part", "named"),
    [
        ("llama", "lm_head", r"1 tensor \(lm_head\.weight\)"),
        ("llama", "model.norm", r"1 tensor \(model\.norm\.weight\)"),
        ("llama", "embed_tokens", r"1 tensor \(model\.embed_tokens\.weight\)"),
        ("llama", "layers.1.", r"9 tensors \(model\.layers\.1\.input_layernorm.* and 3 more\)"),
        ("tied", "embed_tokens", r"model\.embed_tokens\.weight"),
        ("mixtral", "experts.3.", r"model\.layers\.0\.mlp\.experts"),
        ("gpt2", "wpe", r"transformer\.wpe\.weight"),
    ],
)
def test_a_checkpoint_that_lacks_tensors_is_refused_with_their_names(
    save: Callable[[str], Path], tmp_path: Path, kind: str, part: str, named: str
) -> None:
    name = without(save(kind), tmp_path / "lacking", part)
    for quantization in ("none", "4bit"):
        with pytest.raises(StudioError, match=named) as caught:
            load_model(name, quantization=quantization)
        assert "would be random" in caught.value.message


def test_a_matrix_of_another_shape_is_refused(save: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(save("llama"), folder)
    whole = load_file(folder / "model.safetensors")
    save_file(whole | {"model.norm.weight": torch.ones(16)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudioError, match=r"model\.norm\.weight\) in another shape"):
        load_model(str(folder))


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_what_a_model_ties_or_never_saves_is_not_missed(
    save: Callable[[str], Path], kind: str, quantization: str
) -> None:
    assert load_model(str(save(kind)), quantization=quantization).num_parameters() > 0


def test_the_text_part_of_a_model_that_sees_and_a_checkpoint_in_4_bits_are_whole(
    save: Callable[[str], Path], tmp_path: Path
) -> None:
    sees = Gemma3Config(
        text_config=CONFIGS["gemma"].to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        },
        mm_tokens_per_image=4,
    )
    Gemma3ForConditionalGeneration(sees).save_pretrained(tmp_path / "sees")
    assert load_model(str(tmp_path / "sees")).num_parameters() > 0
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    rounded = AutoModelForCausalLM.from_pretrained(save("llama"), quantization_config=four_bit)
    rounded.save_pretrained(tmp_path / "rounded")
    assert load_model(str(tmp_path / "rounded")).num_parameters() > 0
