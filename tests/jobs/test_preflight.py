"""The checks before a start: each finds its fault, and the verdict is that of the worst."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import nest, parse
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.preflight import Check, Machine, preflight
from lora_studio.jobs.protocol import FirstRows, ModelFacts
from lora_studio.models.hardware import Device
from lora_studio.models.shape import architecture, keep_layout, read_config
from lora_studio.units import GIB

CPU = Device("CPU, 2 cores", "cpu", 16 * GIB, 12 * GIB)
DATA: dict[str, Any] = {
    "sampled": None,
    "reading": "Format: `text` is a text. Trained tokens of the first row: “Hi”.",
    "train_rows": 90,
    "validation_rows": 10,
    "marked_bad_rows": 0,
    "bad_rows": 0,
    "dropped_rows": 0,
    "tokens": {"max": 120},
    "prompt_style": "chat",
    "examples": [{"ends_with_eos": True}],
}


FIRST = FirstRows(report=DATA, largest_id=5)


def config(**settings: Any) -> Config:
    return parse(nest({path.replace("__", "."): value for path, value in settings.items()}))


def check(title: str, config: Config, data: Any = DATA, memory: int = 12 * GIB, disk: int = 50 * GIB) -> Check:
    report = preflight(config, Machine(CPU, memory, disk), FirstRows(report=data, largest_id=5))
    return next(found for found in report.checks if found.title == title)


def test_the_defaults_pass_every_check() -> None:
    report = preflight(config(), Machine(CPU, 12 * GIB, 50 * GIB), FIRST)
    assert [found.state for found in report.checks] == ["ok"] * 9
    assert (report.state, report.words) == ("ok", "Ready to start.")


def test_what_the_data_child_refuses_fails_with_its_words() -> None:
    refused = StudioError("There is no file gone.jsonl.", "Give a file's path.")
    report = preflight(config(), Machine(CPU, 12 * GIB, 50 * GIB), refused)
    assert report.state == "failed"
    assert ("There is no file gone.jsonl.", "Give a file's path.") in {(c.found, c.advice) for c in report.checks}
    assert report.words.startswith("1 of 9 checks failed")


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


SEEN = ModelFacts(embeddings=400, parameters=1_000_000, trainable=12_345)


def seen_check(title: str, seen: ModelFacts | StudioError, largest_id: int = 5, **settings: Any) -> Check:
    first = FirstRows(report=DATA, largest_id=largest_id)
    report = preflight(config(**settings), Machine(CPU, 12 * GIB, 50 * GIB), first, seen)
    return next(found for found in report.checks if found.title == title)


def test_what_the_model_itself_says_is_told_before_the_start() -> None:
    assert "12,345 trainable parameters" in seen_check("Adapter", SEEN).found
    problem = SEEN.model_copy(update={"problem": ("It lacks lm_head.weight.", "Copy it again.")})
    assert seen_check("Model", problem) == Check("Model", "failed", "It lacks lm_head.weight.", "Copy it again.")
    no_module = SEEN.model_copy(update={"adapter_problem": ("No module x.", "Name another.")})
    assert seen_check("Adapter", no_module) == Check("Adapter", "failed", "No module x.", "Name another.")
    assert seen_check("Model", StudioError("Not loadable.", "Fetch it.")).state == "failed"


def test_rows_that_the_model_can_not_read_fail_before_the_start() -> None:
    assert seen_check("Data", SEEN, 399).state == "ok"
    found = seen_check("Data", SEEN, 400)
    assert (found.state, "ids up to 400" in found.found) == ("failed", True)
    learned = SEEN.model_copy(update={"positions": 100})
    assert seen_check("Data", learned).state == "failed"
    cut = {"data__max_length": 100}
    assert seen_check("Data", learned, **cut).state == "ok"


def stored(tmp_path: Path) -> dict[str, Any]:
    how = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    numbers = read_config("demo")
    assert numbers is not None
    (tmp_path / "config.json").write_text(json.dumps(numbers | {"quantization_config": how}), encoding="utf-8")
    return {"model__name": str(tmp_path)}


@pytest.mark.parametrize(("chosen", "state"), [("none", "note"), ("4bit", "ok"), ("8bit", "failed")])
def test_a_base_stored_in_4_bits_is_told_and_another_choice_refused(tmp_path: Path, chosen: str, state: str) -> None:
    found = check("Precision", config(**stored(tmp_path), model__quantization=chosen))
    assert (found.state, "stored in 4 bits" in found.found) == (state, True)


def test_settings_that_the_device_cannot_run_fail_each_with_what_to_take() -> None:
    mac = Machine(Device("Apple M2", "mps", 16 * GIB, 12 * GIB), 12 * GIB, 50 * GIB)
    settings = config(model__quantization="4bit", training__optim="paged_adamw_8bit", model__dtype="float16")
    report = preflight(settings, mac, FIRST)
    found = [check.found for check in report.checks if check.title == "Settings"]
    assert [words.partition(":")[0] for words in found] == ["training.optim", "model.dtype", "model.quantization"]
    assert [words.rpartition("; ")[2] for words in found] == [
        "use adamw_torch.",
        "use auto or float32.",
        "use none.",
    ]
    assert report.state == "failed"


def test_a_base_stored_in_4_bits_is_refused_on_an_apple_gpu(tmp_path: Path) -> None:
    mac = Machine(Device("Apple M2", "mps", 16 * GIB, 12 * GIB), 12 * GIB, 50 * GIB)
    report = preflight(config(**stored(tmp_path)), mac, FIRST)
    refused = next(found for found in report.checks if found.title == "Precision")
    assert (refused.state, refused.advice) == ("failed", "Use a 16-bit version of the base.")
    assert "cannot run here: bitsandbytes ships no kernels for Apple GPUs" in refused.found


def test_first_weights_that_need_the_whole_base_are_refused_on_one_that_is_stored_in_4_bits(tmp_path: Path) -> None:
    assert check("Precision", config(**stored(tmp_path), lora__init_lora_weights="pissa")).state == "failed"


def test_nothing_is_promised_of_the_memory_of_a_model_that_was_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    numbers = read_config("demo")
    (tmp_path / "config.json").write_text(json.dumps({**(numbers or {}), "model_type": "unheard_of"}), encoding="utf-8")
    asked = config(model__name=str(tmp_path))
    found = check("Memory", asked)
    assert (found.state, "a guess" in found.found) == ("ask", True)
    counted = architecture(numbers or {})
    assert counted is not None
    keep_layout(read_config(str(tmp_path)) or {}, replace(counted, exact=False))
    found = check("Memory", asked)
    assert (found.state, "A rough estimate" in found.found) == ("ok", True)
    assert "are not known before" not in check("Adapter", asked).found


def test_rows_marked_bad_are_told_and_lose_no_row() -> None:
    found = check("Data", config(), {**DATA, "marked_bad_rows": 200})
    assert found.state == "ok"
    assert "200 labelled bad and ignored" in found.found


def test_a_full_disk_fails_and_too_little_memory_asks() -> None:
    assert check("Disk", config(), disk=10_000).state == "failed"
    assert check("Memory", config(), memory=GIB // 2).state == "ask"
    report = preflight(config(), Machine(CPU, GIB // 2, 50 * GIB), FIRST)
    assert report.state == "ask"
    assert "Start anyway?" in report.words


def test_the_check_of_the_data_says_how_it_was_read() -> None:
    assert check("Data", config()).found == f"{DATA['reading']} Checked all rows: 100 valid."


def test_the_checks_come_with_advice_from_all_that_is_known() -> None:
    report = {**DATA, "train_rows": 20_000, "validation_rows": 0, "trained_tokens": 10**9}
    report["hygiene"] = {"labels": {"counts": {"No": 90, "Yes": 10}}}
    chosen = config(training__num_train_epochs=4, data__train_file="mine.jsonl")
    machine = Machine(CPU, 12 * GIB, 50 * GIB)
    result = preflight(chosen, machine, FirstRows(report=report, largest_id=5))
    assert [item.name for item in result.advice] == ["capacity", "epochs", "label"]
    first = preflight(chosen, machine, FirstRows(report={**report, "sampled": 100}, largest_id=5))
    assert first.advice == ()  # of a first look nothing is counted
    few = preflight(chosen, machine, FirstRows(report={**DATA, "trained_tokens": 900}, largest_id=5))
    assert [item.name for item in few.advice] == ["steps"]
    assert preflight(chosen, machine, StudioError("No data.")).advice == ()
