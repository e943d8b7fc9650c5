"""What an adapter's small files may hold: peft's own pass, damaged and hostile ones are refused and leave nothing."""

import errno
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from lora_studio.chat import choices
from lora_studio.errors import StudioError
from lora_studio.models.adapters import read_header
from lora_studio.workspace import Workspace
from tests.adapters import files, write, zipped
from tests.cpu_time import CpuTime

DEEP = b'{"a":' * 5000 + b"1" + b"}" * 5000
EXPLODING = r"(.|\w|[a-z])*!"
WEIGHTS = "adapter_model.safetensors"


def settings(**values: Any) -> dict[str, bytes]:
    return {"adapter_config.json": json.dumps({**json.loads(files()["adapter_config.json"]), **values}).encode()}


def header(words: bytes, tail: bytes = b"") -> dict[str, bytes]:
    return {WEIGHTS: struct.pack("<Q", len(words)) + words + tail}


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "rank as text": (settings(r="x"), r"r must be a whole number \(found 'x'\)"),
    "rank as list": (settings(r=[1]), "r must be a whole number"),
    "rank without end": (settings(r=10**9), "r must be at most"),
    "rank below one": (settings(r=-1), "r must be at least"),
    "rank that is no number": ({"adapter_config.json": b'{"peft_type": "LORA", "r": NaN}'}, "which is not a number"),
    "rank of modules as list": (settings(rank_pattern=["a"]), "rank_pattern"),
    "rank of a module as text": (settings(rank_pattern={"q_proj": "x"}), "rank_pattern"),
    "strength as text": (settings(lora_alpha="high"), "lora_alpha must be a number"),
    "kind as list": (settings(peft_type=["LORA"]), "peft_type must be text"),
    "kind unknown": (settings(peft_type="XLORA"), "type XLORA"),
    "no kind": ({"adapter_config.json": b"{}"}, "it is missing"),
    "base as list": (settings(base_model_name_or_path=["demo"]), "base_model_name_or_path"),
    "revision as list": (settings(revision=["x"]), "revision"),
    "a module to import": (settings(megatron_config={"a": 1}, megatron_core="os"), "megatron_config"),
    "modules that explode": (settings(target_modules=EXPLODING), "takes too long"),
    "modules kept out that explode": (settings(exclude_modules=EXPLODING), "takes too long"),
    "strengths that explode": (settings(alpha_pattern={EXPLODING: 2}), "takes too long"),
    "settings deep": ({"adapter_config.json": b'{"peft_type": "LORA", "x": ' + DEEP + b"}"}, "nested too deeply"),
    "settings deep for a library": (settings(x=json.loads("[" * 200 + "]" * 200)), "nested too deeply"),
    "settings a list": ({"adapter_config.json": b"[]"}, "contains no settings"),
    "settings not UTF-8": ({"adapter_config.json": b'{"peft_type": "L\xf6RA"}'}, "not UTF-8"),
    "half of a surrogate pair": (settings(x="\ud800"), "half of a surrogate pair"),
    "card a list": ({"studio.json": b"[]"}, "contains no settings"),
    "card deep": ({"studio.json": DEEP}, "nested too deeply"),
    "card with a prompt of numbers": ({"studio.json": b'{"system_prompt": [1]}'}, "system_prompt must be text"),
    "card with an unknown precision": ({"studio.json": b'{"quantization": "2bit"}'}, "quantization"),
    "template in Latin-1": ({"chat_template.jinja": "{{ 'f\xfcr' }}".encode("latin-1")}, "not UTF-8"),
    "tokenizer settings damaged": ({"tokenizer_config.json": b'{"a"'}, "tokenizer_config.json cannot be read"),
    "header of names alone": (header(json.dumps({f"t{n}": EMPTY for n in range(20_000)}).encode()), "bytes of names"),
    "header deep": (header(DEEP), "header"),
    "header without end": ({WEIGHTS: struct.pack("<Q", 2**63) + b"{}"}, "header is damaged"),
    "header a list": (header(b"[1, 2]"), "cannot be read"),
    "header with notes of numbers": (header(b'{"__metadata__": {"a": 1}}'), "cannot be read"),
    "header of negative shapes": (
        header(b'{"a": {"shape": [-1], "data_offsets": [0, 4]}}', b"\0" * 4),
        "cannot be read",
    ),
    "header of numbers without end": (header(b'{"a": {"shape": [1], "data_offsets": [0, 1e999]}}'), "cannot be read"),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_peft_would_not_write_is_refused_in_words_and_leaves_nothing(
    workspace: Workspace, tmp_path: Path, given: dict[str, bytes], words: str
) -> None:
    archive = zipped(tmp_path / "evil.zip", files() | given)
    with pytest.raises(StudioError, match=words):
        choices.from_zip(archive, workspace, archive.name)
    assert list(workspace.adapters_folder.iterdir()) == []


@pytest.mark.slow
def test_a_header_of_many_names_costs_no_memory_and_no_time(tmp_path: Path) -> None:
    names = json.dumps({f"tensor{number}": EMPTY for number in range(300_000)}).encode()
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", len(names)) + names)
    with CpuTime() as spent, pytest.raises(StudioError, match="bytes of names for 0 bytes of weights"):
        read_header(tmp_path / WEIGHTS)
    assert spent.seconds < 0.1


def full(*_given: Any, **_named: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_part_of_an_adapter(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "good.zip", files())
    monkeypatch.setattr(choices, "_copy", full)
    with pytest.raises(StudioError, match=r"disk .* is full"):
        choices.from_zip(archive, workspace, archive.name)
    assert list(workspace.adapters_folder.iterdir()) == []


def test_a_full_disk_leaves_no_part_of_an_upload(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path in given:
        path.write_text("{}" * 1000)
    real = shutil.copyfile

    def half(source: Path, target: Path) -> None:
        real(source, target)
        os.truncate(target, 100)
        full()

    monkeypatch.setattr("lora_studio.workspace.shutil.copyfile", half)
    for keep in (lambda: workspace.save_upload(given[0]), lambda: workspace.save_uploads(given)):
        with pytest.raises(StudioError, match=r"one\.jsonl cannot be stored: No space left"):
            keep()
        assert list(workspace.uploads_folder.iterdir()) == []


def test_an_adapter_that_was_brought_in_can_be_removed_and_nothing_else(workspace: Workspace, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "good.zip", files())
    folder = choices.from_zip(archive, workspace, archive.name)
    other = write(tmp_path / "other", files())
    with pytest.raises(StudioError, match="not among the imported adapters"):
        choices.remove(other, workspace)
    choices.remove(folder, workspace)
    assert other.is_dir()
    assert list(workspace.adapters_folder.iterdir()) == []


def test_a_zip_that_lists_countless_files_is_refused_before_the_list_is_read(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "many.zip", files() | {f"{number:05}": b"" for number in range(20_000)})
    monkeypatch.setattr(choices.zipfile, "ZipFile", full)
    with pytest.raises(StudioError, match="lists too many files"):
        choices.from_zip(archive, workspace, archive.name)
