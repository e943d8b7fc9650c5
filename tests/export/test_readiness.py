"""What an export still needs is said before it starts."""

import os
from pathlib import Path
from typing import Any

import pytest

from lora_studio.export.job import Plan, readiness
from lora_studio.export.targets import FOLDER_VARIABLE, TARGETS, Sizes
from lora_studio.workspace import DEMO_MODEL

SIZES = Sizes(10_000_000, 600_000_000, family="LlamaForCausalLM")


def words(name: str, *, sizes: Sizes = SIZES, base: str = "Qwen/Qwen3-0.6B", has_run: bool = True, **settings: Any):
    free = settings.pop("free", 10**12)
    target = TARGETS[name]
    state = readiness(Plan(target, target.settings(**settings), sizes, base, has_run, free))
    return state.kind, state.words


@pytest.fixture(autouse=True)
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without llama.cpp, Ollama and token."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in (FOLDER_VARIABLE, "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)


def test_an_export_that_needs_nothing_says_its_size() -> None:
    assert words("zip") == ("good", "Ready to export: about 10 MB.")
    assert words("merged")[1] == "Ready to export: about 1.2 GB."


def test_a_missing_llama_cpp_is_told_before_the_start_wherever_it_is_used(tmp_path: Path) -> None:
    for name, settings in (("gguf", {}), ("ollama", {"weights": "gguf"})):
        kind, sentence = words(name, **settings)
        assert kind == "warning"
        assert sentence.startswith("Needs llama.cpp: one more step.")
    other = Sizes(1, 1, family="Qwen3ForCausalLM")
    assert words("ollama", sizes=other)[1].startswith("Needs llama.cpp")
    assert "llama.cpp" not in words("ollama")[1]
    assert "llama.cpp" not in words("ollama", sizes=other, base_in_ollama="llama3")[1]
    assert "llama.cpp" not in words("ollama", sizes=other, weights="safetensors")[1]


def test_a_converter_without_quantizer_makes_only_direct_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert words("gguf", quantization="q8_0")[0] == "good"
    assert words("gguf", quantization="q4_k_m") == (
        "error",
        "Needs llama-quantize for q4_k_m, which is not built. Build it, or choose f16, bf16, q8_0.",
    )


def test_too_little_disk_a_local_base_and_a_missing_run_are_told() -> None:
    assert words("merged", free=10**9) == ("error", "Needs 1.2 GB of disk space, and 1.0 GB are free.")
    local = "Needs the public name of the base model: the base is a local folder."
    assert words("zip", base="/models/mine") == ("error", local)
    assert words("zip", base="/models/mine", base_name="O/N")[0] == "good"
    assert words("zip", base="/models/mine", keep_local_base=True)[0] == "good"
    assert words("hub", base="/models/mine") == ("error", local)
    assert words("script", base="/models/mine") == ("error", local)
    assert words("config", base="/models/mine")[0] == "good"
    assert words("zip", base=DEMO_MODEL)[0] == "good"
    assert words("script", has_run=False)[0] == "error"
    assert words("config", has_run=True)[0] == "good"


def test_a_token_ollama_and_a_base_to_download_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert words("hub")[1].endswith("enter it below or set HF_TOKEN.")
    monkeypatch.setenv("HF_TOKEN", "x")
    assert words("hub")[1].endswith("HF_TOKEN is set.")
    assert words("ollama") == (
        "warning",
        "Ready to export. Ollama is not installed here: run the command where it is.",
    )
    program = tmp_path / "ollama"
    program.write_text("")
    os.chmod(program, 0o755)
    assert words("ollama") == ("good", "Ready to export: about 1.2 GB.")
    assert "downloaded first" in words("merged", sizes=Sizes(1, None))[1]
