"""A folder for Ollama: a Modelfile whose template was proved, with the weights that the family needs."""

import re
from pathlib import Path

import pytest

from lora_studio.go_template import fill
from lora_studio.workspace import RunFolder

from ..llama_stand_in import write_llama_cpp
from .exporting import last_event, take_away

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
    assert "llama.cpp was not found" in result["words"]
    typed = (folder.result / "commands.txt").read_text(encoding="utf-8")
    assert 'python "$LLAMA_CPP_DIR"/convert_hf_to_gguf.py model --outfile between.gguf' in typed
    assert str(folder.result) not in typed


def test_with_llama_cpp_the_file_is_made_and_nothing_else_stays(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(write_llama_cpp(tmp_path / "llama.cpp")))
    folder = take_away(trained, "gguf", quantization="q5_k_m")
    result = folder.read_result()
    assert last_event(folder).state == "done"
    assert [file["name"] for file in result["files"]] == ["test-Q5_K_M.gguf"]
    assert "GGUF with 7 tensors" in result["tried"]
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
    assert "Ollama puts adapters on" in ended.message
    assert "Qwen3" in ended.message


def test_a_template_without_a_counterpart_is_refused_before_anything_slow(trained: RunFolder) -> None:
    file = trained.adapter / "chat_template.jinja"
    kept = file.read_text(encoding="utf-8")
    try:
        file.write_text("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}", encoding="utf-8")
        folder = take_away(trained, "ollama")
    finally:
        file.write_text(kept, encoding="utf-8")
    assert "can't be written for Ollama" in last_event(folder).message
    assert '"phase": "model"' not in folder.events.read_text()
