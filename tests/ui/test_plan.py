"""The plan card: memory, time and the changes with a button each, quick enough to follow typing."""

import json
import time
from typing import Any

from lora_studio.hardware import GIB, Device
from lora_studio.parsing import nest, parse, to_yaml
from lora_studio.preflight import Check, Report
from lora_studio.ui import plan as plans
from lora_studio.ui import plan_words
from lora_studio.workspace import Workspace

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
    assert "unknown until a first run" in plan_words.numbers(plans.plan(asked, workspace))
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
    assert "M</b>" in plan_words.numbers(plans.Plan(16, memory=memory)) or "k" in plan_words.numbers(
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
