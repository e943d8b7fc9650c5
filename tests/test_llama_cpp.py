"""An installed llama.cpp is found where a person put it, and called as it wants to be."""

import os
from pathlib import Path

import pytest

from lora_studio.llama_cpp import QUANTIZATIONS, commands, find_llama_cpp, progress_of
from tests.llama_stand_in import write_llama_cpp


def test_it_is_found_by_its_folder_and_by_the_path_and_else_not_at_all(tmp_path: Path) -> None:
    folder = write_llama_cpp(tmp_path / "llama.cpp")
    named = find_llama_cpp({"LLAMA_CPP_DIR": str(folder), "PATH": "/nowhere"})
    assert named is not None
    assert named.converter == folder / "convert_hf_to_gguf.py"
    assert named.quantizer == folder / "build" / "bin" / "llama-quantize"
    bare = write_llama_cpp(tmp_path / "bare", quantizer=False)
    on_path = os.pathsep.join([str(bare), str(folder / "build" / "bin")])
    found = find_llama_cpp({"PATH": on_path})
    assert found is not None
    assert (found.converter.parent, found.quantizer) == (bare, named.quantizer)
    alone = find_llama_cpp({"LLAMA_CPP_DIR": str(bare), "PATH": ""})
    assert alone is not None
    assert alone.quantizer is None
    assert find_llama_cpp({"PATH": str(tmp_path)}) is None
    assert find_llama_cpp({"LLAMA_CPP_DIR": str(tmp_path / "gone"), "PATH": ""}) is None


def test_its_own_python_is_used_where_it_has_one(tmp_path: Path) -> None:
    folder = write_llama_cpp(tmp_path / "llama.cpp")
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("", encoding="utf-8")
    found = find_llama_cpp({"LLAMA_CPP_DIR": str(folder), "PATH": ""})
    assert found is not None
    assert found.python == str(python)


def test_a_form_that_the_converter_knows_takes_one_command_and_the_others_two() -> None:
    assert commands("q8_0", "model", "a.gguf", "b.gguf") == [
        ["python", "convert_hf_to_gguf.py", "model", "--outfile", "a.gguf", "--outtype", "q8_0"]
    ]
    assert commands("q4_k_m", "model", "a.gguf", "b.gguf") == [
        ["python", "convert_hf_to_gguf.py", "model", "--outfile", "b.gguf", "--outtype", "bf16"],
        ["llama-quantize", "b.gguf", "a.gguf", "Q4_K_M"],
    ]
    assert [kind.bits for kind in QUANTIZATIONS.values()] == sorted(
        (kind.bits for kind in QUANTIZATIONS.values()), reverse=True
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Writing:  45%|████▌     | 1.10G/2.47G [00:11<00:14, 97.6Mbyte/s]", (45, 100)),
        ("[  12/ 291]   blk.0.attn_k.weight - [ 2048,  256], type = f16, converting to q4_K", (12, 291)),
        ("INFO:hf-to-gguf:blk.0.attn_k.weight, torch.bfloat16 --> F16, shape = {2048, 256}", None),
    ],
)
def test_progress_is_read_off_its_output(line: str, told: tuple[int, int] | None) -> None:
    assert progress_of(line) == told
