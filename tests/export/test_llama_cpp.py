"""An installed llama.cpp is found where a person put it, and called as it wants to be."""

import os
import subprocess
from pathlib import Path

import pytest

from lora_studio.export.targets import (
    QUANTIZATIONS,
    LlamaCpp,
    commands,
    find_llama_cpp,
    progress_of,
    server,
    typed_commands,
)
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
    assert server({"LLAMA_CPP_DIR": str(folder), "PATH": ""}) == "llama-server"
    (folder / "build" / "bin" / "llama-server").write_text("", encoding="utf-8")
    assert server({"LLAMA_CPP_DIR": str(folder), "PATH": ""}) == str(folder / "build" / "bin" / "llama-server")
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
    tools = LlamaCpp("python", Path("c.py"), Path("quantize"))
    assert commands("q8_0", "model", "a.gguf", "b.gguf", tools) == [
        ["python", "c.py", "model", "--outfile", "a.gguf", "--outtype", "q8_0"]
    ]
    assert commands("q4_k_m", "model", "a.gguf", "b.gguf", tools) == [
        ["python", "c.py", "model", "--outfile", "b.gguf", "--outtype", "bf16"],
        ["quantize", "b.gguf", "a.gguf", "Q4_K_M"],
    ]
    assert [kind.bits for kind in QUANTIZATIONS.values()] == sorted(
        (kind.bits for kind in QUANTIZATIONS.values()), reverse=True
    )


def test_the_commands_for_a_person_run_in_any_folder_with_the_variable_or_with_llama_cpp_at_home(
    tmp_path: Path,
) -> None:
    home, model, out = tmp_path / "my home", tmp_path / "it's a model", tmp_path / "a b.gguf"
    write_llama_cpp(home / "llama.cpp")
    named = write_llama_cpp(tmp_path / "named here")
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    typed = typed_commands("q4_k_m", str(model), str(out), str(tmp_path / "between.gguf"))
    for told in ({}, {"LLAMA_CPP_DIR": str(named)}):
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), **told}
        subprocess.run(["sh", "-c", typed], cwd="/", env=environment, check=True)
        assert out.read_bytes().endswith(b"bf16Q4_K_M")
        assert not (tmp_path / "between.gguf").exists()
        out.unlink()


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
