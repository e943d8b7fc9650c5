"""The merged model computes what base and adapter compute, whatever kind of adapter it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Qwen2Config, Qwen2ForCausalLM

from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.workspace import RunFolder, Workspace

from .conftest import MakeRun
from .exporting import build_export, last_event, take_away, texts_in, workspace_of

IDS = torch.tensor([[5, 9, 33, 71, 12, 40, 8]])


def scores_of_adapter(run: RunFolder, base: Path) -> torch.Tensor:
    loaded = load_base(str(base), dtype="float32")
    add_adapters(loaded, {"it": run.adapter})
    with torch.no_grad(), loaded.use_adapter("it"):
        return loaded.model(input_ids=IDS).logits


def scores_of_merged(folder: Path) -> torch.Tensor:
    """Read with nothing of the studio."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_merged_in_float32_computes_the_same_and_travels_whole(trained: RunFolder, base: Path) -> None:
    folder = take_away(trained, "merged", dtype="float32", max_shard_size="100 kb")
    result = folder.read_result()
    assert (last_event(folder).state, result["same"]) == ("done", True)
    assert (scores_of_merged(folder.result) - scores_of_adapter(trained, base)).abs().max() < 1e-4
    assert len(list(folder.result.glob("*.safetensors"))) > 1
    tokenizer = AutoTokenizer.from_pretrained(folder.result)
    assert tokenizer.chat_template == (trained.adapter / "chat_template.jinja").read_text(encoding="utf-8")
    settings = json.loads((folder.result / "generation_config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.eos_token_id
    assert not [name for name, text in texts_in(folder.result).items() if str(base.parent) in text]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_on_a_base_in_four_bits_is_merged_into_the_base_as_it_was(
    dtype: str, trained: RunFolder, base: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))
    card = json.loads((folder / "studio.json").read_text()) | {"quantization": "4bit"}
    (folder / "studio.json").write_text(json.dumps(card))
    export = build_export(workspace_of(trained), str(folder), "merged", dtype=dtype)
    assert last_event(export).state == "done", last_event(export).message
    assert "quantization_config" not in json.loads((export.result / "config.json").read_text())
    weights = load_file(export.result / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {f"torch.{dtype}"}
    apart = (scores_of_merged(export.result) - scores_of_adapter(trained, base)).abs().max()
    rounded = load_base(str(base), dtype="float32", quantization="4bit")
    add_adapters(rounded, {"it": trained.adapter})
    with torch.no_grad(), rounded.use_adapter("it"):
        lost = (rounded.model(input_ids=IDS).logits - scores_of_adapter(trained, base)).abs().max()
    assert apart < lost / 3


VARIANTS: list[dict[str, Any]] = [
    {"lora__use_dora": True},
    {"lora__use_rslora": True, "lora__r": 9},
    {"lora__modules_to_save": "lm_head"},
    {"lora__modules_to_save": "embed_tokens"},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_every_kind_of_adapter_is_merged_exactly(settings: dict[str, Any], make_run: MakeRun, train: Any) -> None:
    run = make_run(training__max_steps=2, evaluation__eval_strategy="no", **settings)
    assert train(run) == 0
    folder = take_away(run, "merged", dtype="float32")
    assert last_event(folder).state == "done", last_event(folder).message


OUTPUT_AND_BIASES: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "lm_head"]},
    {"bias": "all"},
    {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
]


@pytest.mark.parametrize("settings", OUTPUT_AND_BIASES, ids=str)
def test_adapters_of_the_output_layer_and_of_biases_are_merged_exactly(
    settings: dict[str, Any], base: Path, workspace: Workspace, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, tie_word_embeddings=True, **shape)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen2")
    tokenizer.save_pretrained(tmp_path / "qwen2")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "qwen2")
    adapted = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=4, **settings))
    for name, weight in adapted.named_parameters():
        if "lora_" in name or (settings.get("bias") and name.endswith("bias")):
            weight.data.normal_()
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    wanted = adapted.eval()(input_ids=IDS).logits.detach()
    folder = build_export(workspace, str(tmp_path / "adapter"), "merged", dtype="float32")
    assert last_event(folder).state == "done", last_event(folder).message
    assert (scores_of_merged(folder.result) - wanted).abs().max() < 1e-4


def test_a_base_that_is_stored_in_four_bits_is_taken_out_of_them(
    trained: RunFolder, base: Path, workspace: Workspace, tmp_path: Path
) -> None:
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    rounded = AutoModelForCausalLM.from_pretrained(base, quantization_config=four, dtype=torch.float32)
    rounded.save_pretrained(tmp_path / "tiny-bnb-4bit")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "tiny-bnb-4bit")
    adapter = Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))
    card = json.loads((adapter / "studio.json").read_text()) | {"base_model": str(tmp_path / "tiny-bnb-4bit")}
    (adapter / "studio.json").write_text(json.dumps(card))
    folder = build_export(workspace, str(adapter), "merged", dtype="float32")
    assert last_event(folder).state == "done", last_event(folder).message
    result = folder.read_result()
    assert result["same"]
    assert "The base is stored in 4 bits (bitsandbytes)" in result["notes"][0]
    assert "quantization_config" not in json.loads((folder.result / "config.json").read_text())
    assert {str(weight.dtype) for weight in load_file(folder.result / "model.safetensors").values()} == {
        "torch.float32"
    }
    plain = PeftModel.from_pretrained(rounded.dequantize(dtype=torch.float32), str(adapter)).eval()
    with torch.no_grad():
        assert (scores_of_merged(folder.result) - plain(input_ids=IDS).logits).abs().max() < 1e-4


def test_a_base_in_a_form_that_nothing_takes_it_out_of_is_refused_at_once(
    trained: RunFolder, base: Path, workspace: Workspace, tmp_path: Path
) -> None:
    stored = Path(shutil.copytree(base, tmp_path / "tiny-gptq"))
    config = json.loads((stored / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (stored / "config.json").write_text(json.dumps(config))
    adapter = Path(shutil.copytree(trained.adapter, tmp_path / "adapter"))
    card = json.loads((adapter / "studio.json").read_text()) | {"base_model": str(stored)}
    (adapter / "studio.json").write_text(json.dumps(card))
    folder = build_export(workspace, str(adapter), "merged")
    assert "is stored as gptq" in last_event(folder).message
    assert "16-bit" in last_event(folder).hint
    assert '"phase": "model"' not in folder.events.read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"lora_bias": True}, "adds a bias (lora_bias) to"), ({"alora_invocation_tokens": [5, 6]}, "of type aLoRA")],
    ids=str,
)
@pytest.mark.parametrize("target", ["merged", "gguf"])
def test_what_no_weights_can_hold_is_refused_before_anything_slow(
    settings: dict[str, Any], words: str, target: str, base: Path, workspace: Workspace, tmp_path: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **settings)
    get_peft_model(plain, config).save_pretrained(str(tmp_path / "adapter"))
    folder = build_export(workspace, str(tmp_path / "adapter"), target)
    ended = last_event(folder)
    assert (ended.state, words in ended.message) == ("failed", True), ended.message
    assert "Export the adapter instead (zip)" in ended.hint
    assert '"phase": "model"' not in folder.events.read_text()
