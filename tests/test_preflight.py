"""The checks before a start: each finds its fault, and the verdict is that of the worst."""

from typing import Any

import pytest

from lora_studio.config import Config
from lora_studio.errors import StudioError
from lora_studio.hardware import GIB, Device
from lora_studio.parsing import nest, parse
from lora_studio.preflight import Check, Machine, preflight

CPU = Device("CPU, 2 cores", "cpu", 16 * GIB, 12 * GIB)
DATA: dict[str, Any] = {
    "sampled": None,
    "reading": "Read so: `text` is a text. The first row trains: “Hi”.",
    "train_rows": 90,
    "validation_rows": 10,
    "marked_bad_rows": 0,
    "bad_rows": 0,
    "dropped_rows": 0,
    "tokens": {"max": 120},
    "prompt_style": "chat",
    "examples": [{"ends_with_eos": True}],
}


def config(**settings: Any) -> Config:
    return parse(nest({path.replace("__", "."): value for path, value in settings.items()}))


def check(title: str, config: Config, data: Any = DATA, memory: int = 12 * GIB, disk: int = 50 * GIB) -> Check:
    report = preflight(config, Machine(CPU, memory, disk), data)
    return next(found for found in report.checks if found.title == title)


def test_the_defaults_pass_every_check() -> None:
    report = preflight(config(), Machine(CPU, 12 * GIB, 50 * GIB), DATA)
    assert [found.state for found in report.checks] == ["ok"] * 8
    assert (report.state, report.words) == ("ok", "Ready to start.")


def test_what_the_data_child_refuses_fails_with_its_words() -> None:
    refused = StudioError("There is no file gone.jsonl.", "Give a file's path.")
    report = preflight(config(), Machine(CPU, 12 * GIB, 50 * GIB), refused)
    assert report.state == "failed"
    assert ("There is no file gone.jsonl.", "Give a file's path.") in {(c.found, c.advice) for c in report.checks}
    assert report.words.startswith("1 of 8 checks failed")


@pytest.mark.parametrize(
    ("title", "settings", "data", "state"),
    [
        ("Model", {"model__name": "./gone"}, {}, "failed"),
        ("Model", {"model__name": "nobody/has-this-model"}, {}, "failed"),
        ("Data", {}, {"bad_rows": 200}, "note"),
        ("Template", {}, {"examples": [{"ends_with_eos": False}]}, "note"),
        ("Adapter", {"lora__target_modules": "q_proj, wq"}, {}, "failed"),
        ("Batch", {"training__gradient_accumulation_steps": 64}, {}, "note"),
        ("Validation", {}, {"validation_rows": 0}, "note"),
        ("Validation", {"evaluation__load_best_model_at_end": True}, {"validation_rows": 0}, "failed"),
        ("Validation", {"evaluation__early_stopping_patience": 2}, {"validation_rows": 0}, "failed"),
    ],
)
def test_a_fault_is_found(
    title: str, settings: dict[str, Any], data: dict[str, Any], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = check(title, config(**settings), {**DATA, **data})
    assert found.state == state
    assert found.found


def test_rows_marked_bad_are_told_and_lose_no_row() -> None:
    found = check("Data", config(), {**DATA, "marked_bad_rows": 200})
    assert found.state == "ok"
    assert "200 are marked bad and left out" in found.found


def test_a_full_disk_fails_and_too_little_memory_asks() -> None:
    assert check("Disk", config(), disk=10_000).state == "failed"
    assert check("Memory", config(), memory=GIB // 2).state == "ask"
    report = preflight(config(), Machine(CPU, GIB // 2, 50 * GIB), DATA)
    assert report.state == "ask"
    assert "Start anyway?" in report.words


def test_the_check_of_the_data_says_how_it_was_read() -> None:
    assert check("Data", config()).found == f"{DATA['reading']} Looked at all rows: 100 can be used."
