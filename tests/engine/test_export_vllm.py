"""The command for vLLM is right, quotes what comes from people, and adapters that vLLM can't serve are refused."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lora_studio.engine.export.archive import serve_arguments, serve_script
from lora_studio.errors import StudioError
from lora_studio.models.adapter_files import max_rank
from lora_studio.workspace import RunFolder

from .exporting import last_event, take_away


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (4, 8), (16, 16), (24, 32), (129, 256), (300, 320), (512, 512)])
def test_the_rank_is_the_least_that_vllm_takes(rank: int, allowed: int) -> None:
    assert max_rank({"r": rank, "lora_alpha": 16}) == allowed


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"lora_bias": True},
        {"trainable_token_indices": [3]},
        {"r": 600},
    ],
    ids=str,
)
def test_what_vllm_cannot_serve_is_refused_with_a_way_out(settings: dict[str, Any]) -> None:
    with pytest.raises(StudioError, match=r"merged model instead"):
        max_rank({"r": 8, "lora_alpha": 16, **settings})


def test_experts_with_twice_the_rank_and_the_same_scale_are_served() -> None:
    fused = {"rank_pattern": {".*gate_up_proj": 32}, "alpha_pattern": {".*gate_up_proj": 64}}
    assert max_rank({"r": 16, "lora_alpha": 32, "target_parameters": ["gate_up_proj"], **fused}) == 32


ANY: dict[str, Any] = {"rank": 8, "revision": None, "max_model_len": None, "template": False}


def test_names_are_quoted_for_the_shell() -> None:
    evil = "/models/$(touch x); rm -rf ~ 'q"
    command = serve_arguments(evil, "a", rank=8, revision="`x`", max_model_len=None, template=False)
    assert shlex.split(command)[:5] == ["vllm", "serve", evil, "--revision", "`x`"]


def test_the_script_takes_another_base_from_the_environment(tmp_path: Path) -> None:
    evil = "/models/$(touch x) 'q}"
    script = tmp_path / "serve.sh"
    script.write_text(serve_script(evil, serve_arguments(evil, "a", **ANY)))
    (tmp_path / "vllm").write_text('#!/bin/sh\nprintf "%s\\n" "$2" "$3"\n')
    (tmp_path / "vllm").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for told, base in (({}, evil), ({"BASE": "/my base"}, "/my base")):
        done = subprocess.run(["sh", str(script)], env=path | told, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [base, "--enable-lora"]


def test_the_folder_serves_itself_wherever_it_is_put(trained: RunFolder) -> None:
    folder = take_away(
        trained, "vllm", base_name="Owner/Tiny", served_name="$(whoami) paint", max_model_len=128, trial=False
    )
    assert last_event(folder).state == "done", last_event(folder).message
    script = (folder.result / "serve.sh").read_text(encoding="utf-8")
    assert '\n[ -n "$BASE" ] || BASE=Owner/Tiny\n' in script
    command = shlex.split(script.splitlines()[-1].replace('"$BASE"', "Owner/Tiny"))
    assert command == [
        *("exec", "vllm", "serve", "Owner/Tiny", "--enable-lora", "--max-lora-rank", "8"),
        *("--lora-modules", "whoami-paint=./adapter", "--max-model-len", "128"),
        *("--chat-template", "./adapter/chat_template.jinja"),
    ]
    adapter = folder.result / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "Owner/Tiny"
    assert (adapter / "adapter_model.safetensors").read_bytes() == (
        trained.adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert shlex.split(folder.read_result()["command"]) == ["cd", str(folder.result), "&&", *command[1:]]
    assert Path(folder.result / "serve.sh").stat().st_mode & 0o100
