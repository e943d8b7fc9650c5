"""A folder for Ollama: a Modelfile whose template was proved, with the weights that the family needs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lora_studio.engine.export.gguf import check_adapter
from lora_studio.errors import StudioError
from lora_studio.export.ollama import fill
from lora_studio.models.adapter_files import WEIGHTS_FILE
from lora_studio.workspace import RunFolder, Workspace
from tests.adapters import files, write

from ..llama_stand_in import write_llama_cpp
from .conftest import build_tokenizer
from .exporting import build_export, last_event, take_away

CHAT = [{"role": "user", "content": "Paint the sky red."}]
ASKED = "<|im_start|>user\nPaint the sky red.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def no_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")


def template_in(modelfile: str) -> str:
    found = re.search(r'^TEMPLATE """(.*?)"""$', modelfile, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found.group(1)


def test_a_merged_model_with_a_modelfile_that_asks_as_the_training_did(trained: RunFolder) -> None:
    folder = take_away(trained, "ollama", weights="safetensors")
    result, text = folder.read_result(), (folder.result / "Modelfile").read_text(encoding="utf-8")
    assert (last_event(folder).state, result["same"]) == ("done", True)
    assert fill(template_in(text), CHAT) == ASKED
    assert "\nFROM ./model\n" in text
    assert '\nPARAMETER stop "<|im_end|>"\n' in text
    assert "\nPARAMETER temperature 0\n" in text
    assert (folder.result / "model" / "model.safetensors").is_file()
    assert result["command"].endswith("ollama create test && ollama run test")
    assert "48 of 48 dialogues" in result["tried"]


def test_without_llama_cpp_a_family_that_needs_it_gets_the_exact_commands(
    trained: RunFolder, no_llama_cpp: None
) -> None:
    folder = take_away(trained, "ollama", quantization="q4_k_m")
    result, text = folder.read_result(), (folder.result / "Modelfile").read_text(encoding="utf-8")
    assert "\nFROM ./test-Q4_K_M.gguf\n" in text
    place, first, second, _, last = result["command"].splitlines()
    assert place.startswith("LLAMA_CPP_DIR=")
    convert = f'"$LLAMA_CPP_DIR"/convert_hf_to_gguf.py {folder.result}/model --outfile {folder.result}/between.gguf'
    assert convert in first
    assert f"/llama-quantize {folder.result}/between.gguf {folder.result}/test-Q4_K_M.gguf Q4_K_M &&" in second
    assert last.startswith(f"cd {folder.result} && ollama create")
    assert "test-Q4_K_M.gguf was not created because llama.cpp was not found" in result["words"]
    assert result["missing"] == "test-Q4_K_M.gguf"
    typed = (folder.result / "commands.txt").read_text(encoding="utf-8")
    assert 'python "$LLAMA_CPP_DIR"/convert_hf_to_gguf.py model --outfile between.gguf' in typed
    assert str(folder.result) not in typed


def test_a_gguf_export_without_its_gguf_says_what_was_made_and_what_was_not(
    trained: RunFolder, no_llama_cpp: None
) -> None:
    result = take_away(trained, "gguf", quantization="q8_0").read_result()
    assert result["missing"] == "test-Q8_0.gguf"
    assert result["words"].startswith("The merged model is in model/. test-Q8_0.gguf was not created")
    assert not [file for file in result["files"] if file["name"].endswith(".gguf")]


def test_with_llama_cpp_the_file_is_made_and_nothing_else_stays(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(write_llama_cpp(tmp_path / "llama.cpp")))
    folder = take_away(trained, "gguf", quantization="q5_k_m")
    result = folder.read_result()
    assert last_event(folder).state == "done"
    assert [file["name"] for file in result["files"]] == ["test-Q5_K_M.gguf"]
    assert "GGUF with 7 tensors" in result["tried"]
    assert not result["missing"]
    assert f"llama-server -m {folder.result}/test-Q5_K_M.gguf --jinja" == result["command"]
    phases = [event for event in folder.events.read_text().splitlines() if '"phase": "convert"' in event]
    assert len(phases) >= 4


def test_a_half_built_llama_cpp_and_one_that_fails_are_told(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = write_llama_cpp(tmp_path / "half", quantizer=False)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(half))
    ended = last_event(take_away(trained, "gguf", quantization="q4_k_m"))
    assert (ended.state, "llama-quantize" in ended.message) == ("failed", True)
    (half / "convert_hf_to_gguf.py").write_text("print('a full disk, say'); raise SystemExit(1)", encoding="utf-8")
    folder = take_away(trained, "gguf", quantization="f16")
    assert "The conversion failed (exit code 1): a full disk, say" in last_event(folder).message
    assert not folder.unfinished.exists()
    (half / "convert_hf_to_gguf.py").write_text("import a_package_that_is_not_there", encoding="utf-8")
    assert "requirements.txt" in last_event(take_away(trained, "gguf", quantization="f16")).hint


def test_an_adapter_alone_goes_only_where_ollama_takes_one(trained: RunFolder) -> None:
    ended = last_event(take_away(trained, "ollama", base_in_ollama="qwen3"))
    assert "Ollama supports adapters for" in ended.message
    assert "Qwen3" in ended.message


def test_a_template_without_a_counterpart_is_refused_before_anything_slow(trained: RunFolder) -> None:
    file = trained.adapter / "chat_template.jinja"
    kept = file.read_text(encoding="utf-8")
    try:
        file.write_text("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}", encoding="utf-8")
        folder = take_away(trained, "ollama")
    finally:
        file.write_text(kept, encoding="utf-8")
    assert "cannot be converted for Ollama" in last_event(folder).message
    assert '"phase": "model"' not in folder.events.read_text()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama, a family on which Ollama puts adapters."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter_on(base: Path, folder: Path, **settings: Any) -> PeftModel:
    """An adapter of random numbers, saved with plain peft."""
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], **settings)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return adapted


@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({"r": 4, "lora_alpha": 8}, 8),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 16),
        ({"r": 8, "lora_alpha": 16, "use_rslora": True}, 45),
        ({"r": 4, "lora_alpha": 0.3}, 1),
    ],
    ids=str,
)
def test_the_scale_is_written_as_ollama_applies_it(
    settings: dict[str, Any], alpha: int, llama: Path, workspace: Workspace, tmp_path: Path
) -> None:
    adapted = adapter_on(llama, tmp_path / "adapter", **settings)
    folder = build_export(workspace, str(tmp_path / "adapter"), "ollama", base_in_ollama="llama3.2")
    assert last_event(folder).state == "done", last_event(folder).message
    assert "the answer equals that of base and adapter" in folder.read_result()["tried"]
    made = folder.result / "adapter"
    assert sorted(path.name for path in made.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    written, weights = json.loads((made / "adapter_config.json").read_text()), load_file(made / WEIGHTS_FILE)
    assert (written["lora_alpha"], written["use_rslora"]) == (alpha, False)
    for path in ("self_attn.q_proj", "mlp.down_proj"):
        place = f"base_model.model.model.layers.0.{path}"
        first, second = weights[f"{place}.lora_A.weight"], weights[f"{place}.lora_B.weight"]
        applied = alpha / first.shape[0] * (second @ first)
        wanted = adapted.get_submodule(place).get_delta_weight("default")
        assert torch.allclose(applied, wanted, rtol=1e-5, atol=1e-6)


PLAIN = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
LOST: list[tuple[dict[str, Any], dict[str, list[int]], str]] = [
    ({"use_dora": True}, {}, "DoRA's magnitudes"),
    ({"modules_to_save": ["lm_head"]}, {"base_model.model.lm_head.weight": [4, 4]}, "modules trained in full"),
    ({"lora_bias": True}, {}, "its own biases"),
    ({"bias": "all"}, {"base_model.model.model.layers.0.mlp.up_proj.bias": [4]}, "trained biases"),
    ({"alpha_pattern": {"q_proj": 9}}, {}, "different ranks or alphas per module"),
    ({"rank_pattern": {"q_proj": 9}}, {}, "different ranks or alphas per module"),
    ({"trainable_token_indices": [3]}, {}, "trained tokens"),
    ({"target_parameters": ["experts.down_proj"]}, {}, "matrices on stacked experts"),
    ({"alora_invocation_tokens": [3]}, {}, "an invocation"),
    ({}, {"base_model.model.model.embed_tokens.lora_embedding_A": [2, 4]}, "weights for embed_tokens"),
    ({}, {"base_model.model.lm_head.lora_A.weight": [2, 4]}, "weights for lm_head"),
]


@pytest.mark.parametrize(("settings", "tensors", "words"), LOST, ids=[words for *_, words in LOST])
def test_what_ollama_would_leave_out_is_refused_with_a_way_out(
    settings: dict[str, Any], tensors: dict[str, list[int]], words: str, tmp_path: Path
) -> None:
    place = "base_model.model.model.layers.0.self_attn.q_proj"
    plain = {f"{place}.lora_A.weight": [2, 4], f"{place}.lora_B.weight": [4, 2]}
    check_adapter(write(tmp_path / "plain", files(plain, **PLAIN)))
    with pytest.raises(StudioError, match=words) as found:
        check_adapter(write(tmp_path / "more", files({**plain, **tensors}, **PLAIN, **settings)))
    assert "Leave the base in Ollama empty" in found.value.hint


def test_it_is_refused_before_the_template_and_the_model_are_looked_at(
    llama: Path, workspace: Workspace, tmp_path: Path
) -> None:
    adapter_on(llama, tmp_path / "adapter", r=4, lora_alpha=8, use_dora=True)
    folder = build_export(workspace, str(tmp_path / "adapter"), "ollama", base_in_ollama="llama3.2")
    assert "this adapter has DoRA's magnitudes" in last_event(folder).message
    assert '"phase": "model"' not in folder.events.read_text()
