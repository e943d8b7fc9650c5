"""The plan card: memory, time and the changes with a button each, quick enough to follow typing."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import nest, parse, to_yaml
from lora_studio.jobs import session
from lora_studio.jobs.preflight import Check, Report
from lora_studio.models.hardware import Device
from lora_studio.models.shape import read_config
from lora_studio.ui.data.choice import DataLooks
from lora_studio.ui.train import plan as plan_words
from lora_studio.ui.train import plan as plans
from lora_studio.units import GIB
from lora_studio.workspace import Workspace
from tests import adapters

GPU = Device("A GPU", "cuda", 24 * GIB, 23 * GIB)


def config(**settings: Any) -> Any:
    return parse(nest({path.replace("__", "."): value for path, value in settings.items()}))


def finished(workspace: Workspace, model: str, data: str) -> None:
    facts = {"model": model, "data": data}
    run = workspace.create_run("earlier", to_yaml(config()), facts)
    numbers = {"state": "done", "device_kind": "cpu", "quantization": "none", "tokens_per_second": 100.0}
    run.complete.write_text(json.dumps({**numbers, "tokens": 9_000, "train_rows": 90, "epochs": 2.0}))


def test_the_time_is_unknown_until_a_first_run_and_then_told_from_its_speed(workspace: Workspace) -> None:
    asked = config(training__max_steps=10)
    assert plans.plan(asked, workspace).seconds is None
    assert "unknown until a first run" in plan_words.numbers_markup(plans.plan(asked, workspace))
    finished(workspace, "another model", "pirate")
    assert plans.plan(asked, workspace).seconds is None
    finished(workspace, "demo", "pirate")
    assert plans.plan(asked, workspace).seconds == 10 * 16 * 50 / 100
    other = config(training__max_steps=10, data__train_file="technical")
    assert plans.plan(other, workspace).seconds is None


def test_a_model_that_is_not_here_has_no_memory_and_says_what_is_missing(workspace: Workspace) -> None:
    found = plans.plan(config(model__name="nobody/has-this-model"), workspace)
    assert found.memory is None
    assert "config.json" in plan_words.memory(None)


def test_an_adapter_to_continue_is_counted_by_its_own_rank(workspace: Workspace, tmp_path: Path) -> None:
    own = adapters.files(r=2, target_modules=["q_proj", "down_proj"])
    before = adapters.write(tmp_path / "before", own)
    asked = {"lora__r": 64, "lora__target_modules": "q_proj, down_proj", "lora__lora_dropout": 0.0}
    continuing = plans.plan(config(**asked, model__adapter_name_or_path=str(before)), workspace)
    fresh = plans.plan(config(**{**asked, "lora__r": 2}), workspace)
    assert continuing.memory is not None
    assert fresh.memory is not None
    assert continuing.memory.estimate.trainable == fresh.memory.estimate.trainable


def test_nothing_is_promised_of_a_model_that_was_not_counted(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    numbers = {**(read_config("demo") or {}), "model_type": "unheard_of"}
    (tmp_path / "config.json").write_text(json.dumps(numbers), encoding="utf-8")
    found = plans.plan(config(model__name=str(tmp_path)), workspace).memory
    assert found is not None
    shown = plan_words.memory(found)
    assert "Fits" not in shown
    assert plan_words.GUESS in shown


def test_the_card_shows_every_part_the_verdict_and_the_share() -> None:
    memory = plans.needed_memory(config(), GPU, None, busy=False)
    assert memory is not None
    assert (memory.verdict, memory.available) == ("fits", 23 * GIB)
    words = plan_words.memory(memory)
    assert all(title in words for title in ("Base model", "Optimizer", "Activations", "Loss", "System", "A GPU"))
    assert "of 23.0 GiB free" in words
    assert "rows of 1,024 tokens, the most allowed" in words
    assert "most allowed" not in plan_words.memory(plans.needed_memory(config(), GPU, 300, busy=False))
    waiting = plans.needed_memory(config(), GPU, None, busy=True)
    assert waiting is not None
    assert waiting.available == 24 * GIB
    assert "M</b>" in plan_words.numbers_markup(plans.Plan(16, memory=memory)) or "k" in plan_words.numbers_markup(
        plans.Plan(16, memory=memory)
    )


def test_a_plan_is_there_in_a_tenth_of_a_second(workspace: Workspace) -> None:
    plans.plan(config(), workspace)  # the first look counts the file's rows and asks for the device
    began = time.process_time()
    plans.plan(config(lora__r=32), workspace)
    assert time.process_time() - began < 0.1


def test_checks_are_numbered_and_say_what_to_do() -> None:
    report = Report((Check("Data", "ok", "All <rows>."), Check("Disk", "failed", "Full.", "Free some room.")))
    words = plan_words.checks(report)
    assert "1. Data" in words
    assert "All &lt;rows&gt;." in words
    assert "2. Disk" in words
    assert "Free some room." in words
    assert "1 of 2 checks failed" in words


def test_the_card_says_how_the_data_is_read_as_the_data_tab_did_or_by_a_quick_look(
    workspace: Workspace, tmp_path: Any
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question;answer\nWhere?;<b>Here</b>\nWhen?;Now\n")
    asked = config(data__train_file=str(file))
    found = plans.plan(asked, workspace)
    assert "`question` is the user turn, `answer` the assistant turn" in found.reading
    assert found.reading.endswith("Answer of the first row: “<b>Here</b>”.")
    shown = plan_words.numbers_markup(found)
    assert "<code>question</code>" in shown
    assert "&lt;b&gt;Here" in shown
    settings = {"data.train_file": str(file), "model.name": "demo", "data.mapping": None}
    result = {"usable_rows": 2, "train_rows": 2, "reading": "Read by the data tab."}
    result |= {"tokens": {"max": 9, "mean": 9}, "packing": {"packs": 1}}
    workspace.write_draft("data-found", {"settings": settings, "result": result})
    look = DataLooks().last(workspace)
    assert plans.plan(asked, workspace, look).reading == "Read by the data tab."
    other = config(data__train_file=str(file), data__mapping={"text": "answer"})
    assert "`answer` is plain text" in plans.plan(other, workspace, look).reading
    file.write_bytes("question;answer\nWhere?;H\xe8re\n".encode("latin-1"))
    named = config(data__train_file=str(file), data__encoding="cp1250")
    assert "H\u010dre" in plans.plan(named, workspace).reading


def test_what_can_not_be_read_is_said_on_the_card_before_a_start(workspace: Workspace, tmp_path: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"colour": "red", "shape": "round", "size": "big"}\n' * 3)
    found = plans.plan(config(data__train_file=str(file)), workspace)
    assert "The format of the rows is not known" in found.reading
    assert found.rows is not None


def test_the_card_reads_a_file_in_the_encoding_that_the_form_names(workspace: Workspace, tmp_path: Any) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("question;answer\nГде?;Здесь\n".encode("koi8-r"))
    asked = config(data__train_file=str(file), data__encoding="koi8-r")
    assert "“Здесь”" in plans.plan(asked, workspace).reading


def test_a_count_that_took_too_long_is_tried_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question;answer\nWhere?;Here\n")
    with monkeypatch.context() as busy:
        busy.setattr(session, "WALL_SECONDS", 0.001)
        assert session.count_rows(file).rows is None
    assert session.count_rows(file).rows == 1
