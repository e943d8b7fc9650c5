"""The program that proves what works for each architecture: what it finds right, and that it can find a fault."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import matrix
from benchmarks.tiny_models import RECIPES, tiny_config
from lora_studio.workspace import model_source

CHEAP = ("train", "parameters", "chat")


def cells(output: str) -> dict[str, str]:
    """Llama's cells in the JSON object that is printed last."""
    found: dict[str, str] = json.loads(output.splitlines()[-1])["cells"]["Llama"]
    return found


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the program sets it: taken back with this


@pytest.mark.slow
def test_one_architecture_is_ok_and_its_results_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, table = tmp_path / "cells.jsonl", tmp_path / "table.md"
    given = ["--only", "Llama", "--columns", *CHEAP, "--results", str(kept)]
    assert matrix.main(given) == 0
    found = cells(capsys.readouterr().out)
    assert set(found) == set(CHEAP)
    assert all(words.startswith("ok") for words in found.values()), found

    written = kept.read_text(encoding="utf-8")
    assert matrix.main([*given, "--table", str(table)]) == 0, "what is there is not run again"
    assert cells(capsys.readouterr().out) == found
    assert kept.read_text(encoding="utf-8") == written
    text = table.read_text(encoding="utf-8")
    assert f"| Llama | llama | {found['train']} | {found['parameters']} | ok | not run |" in text
    assert "1 architecture, 3 cells: 3 ok, 0 refused, 0 failed." in text
    assert str(tmp_path) not in text


@pytest.mark.slow
def test_a_wrong_number_a_wrong_word_and_a_crash_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss, answer = matrix.Plain.loss, matrix.Plain.answer

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(matrix.Plain, "loss", lambda plain: loss(plain) + 0.001)
    monkeypatch.setattr(matrix.Plain, "answer", lambda plain, model: [*answer(plain, model)[:-1], -1])
    monkeypatch.setattr(matrix, "trained_adapter", crash)
    assert matrix.main(["--only", "Llama", "--columns", *CHEAP]) == 1
    assert cells(capsys.readouterr().out) == {
        "train": "FAILED: losses differ by 1.0e-03",
        "parameters": "FAILED: RuntimeError: no such thing",
        "chat": "FAILED: the base's column differs",
    }


@pytest.mark.slow
def test_every_recipe_is_a_model_of_the_installed_transformers() -> None:
    assert len(RECIPES) >= 42
    assert len({family for family, _ in RECIPES.values()}) == len(RECIPES) - 1, "Llama alone stands there twice"
    tokenizer = AutoTokenizer.from_pretrained(model_source("demo"))
    for name in RECIPES:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(tiny_config(name, tokenizer))
        assert model.num_parameters() < 300_000, name
