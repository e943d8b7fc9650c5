"""The plan card: memory, time and the changes with a button each, quick enough to follow typing."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import nest, parse, to_yaml
from lora_studio.jobs import session
from lora_studio.jobs.preflight import Check, Report
from lora_studio.models.advice import Advice
from lora_studio.models.hardware import Device
from lora_studio.models.memory import with_settings
from lora_studio.models.shape import read_config
from lora_studio.ui.studio import DataLooks
from lora_studio.ui.train import card, picker
from lora_studio.ui.train import plan as plans
from lora_studio.units import GIB
from lora_studio.workspace import Workspace
from tests import adapters
from tests.cpu_time import CpuTime

GPU = Device("A GPU", "cuda", 24 * GIB, 23 * GIB)


def config(**settings: Any) -> Any:
    return parse(nest({path.replace("__", "."): value for path, value in settings.items()}))


def finished(workspace: Workspace, model: str, data: str, **more: float) -> None:
    facts = {"model": model, "data": data}
    run = workspace.create_run("earlier", to_yaml(config()), facts)
    numbers = {"state": "done", "device_kind": "cpu", "quantization": "none", "tokens_per_second": 100.0, **more}
    run.complete.write_text(json.dumps({**numbers, "tokens": 9_000, "train_rows": 90, "epochs": 2.0}))


def test_the_time_comes_from_operations_and_device_until_a_first_run_and_then_from_its_speed(
    workspace: Workspace,
) -> None:
    asked = config(training__max_steps=10)
    guessed = plans.plan(asked, workspace)
    assert guessed.speed_from == plans.ESTIMATED
    assert guessed.seconds
    assert "rough: from FLOPs and device" in card.numbers_markup(guessed)
    finished(workspace, "another model", "pirate")
    assert plans.plan(asked, workspace).speed_from == plans.ESTIMATED
    finished(workspace, "demo", "pirate")
    known = plans.plan(asked, workspace)
    assert (known.seconds, known.speed_from) == (plans.START_SECONDS + 10 * 16 * 50 / 100, plans.MEASURED)
    assert "from an earlier run" in card.numbers_markup(known)
    other = plans.plan(config(training__max_steps=10, data__train_file="technical"), workspace)
    assert other.lengths is not None
    assert not other.lengths.counted
    assert other.seconds == pytest.approx(plans.START_SECONDS + 10 * 16 * other.lengths.mean / 100)
    finished(workspace, "another model", "technical", start_seconds=7.0)
    assert plans.plan(asked, workspace).start_seconds == 7.0
    finished(workspace, "demo", "pirate", start_seconds=30.0)
    finished(workspace, "another model", "technical", start_seconds=8.0)
    measured = plans.plan(asked, workspace)
    assert (measured.seconds, measured.start_seconds) == (30 + 10 * 16 * 50 / 100, 30.0)
    assert "≈ 1 min 50 s<small>start 30 s included; from an earlier run" in card.numbers_markup(measured)


@pytest.mark.usefixtures("looked_at_here")
def test_data_of_ones_own_with_few_steps_is_advised_more_epochs(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,answer\n" + "".join(f"Where is {at}?,Here.\n" for at in range(50)))
    demo = {"training__num_train_epochs": 4, "training__per_device_train_batch_size": 8}
    few = config(data__train_file=str(file), training__gradient_accumulation_steps=1, **demo)
    planned = plans.plan(few, workspace)
    assert planned.steps == 4 * 6
    (longer,) = planned.advice
    assert longer.settings == {"training.num_train_epochs": 17.0}
    assert "24 steps may be too few" in card.advice(planned)
    after = plans.plan(with_settings(few, longer.settings), workspace)
    assert (after.steps, after.advice, card.advice(after)) == (17 * 6, (), "")
    for enough in ({"training__max_steps": 24}, {"training__num_train_epochs": 30}, {"data__train_file": "pirate"}):
        settings = {path.replace("__", "."): value for path, value in enough.items()}
        assert plans.plan(with_settings(few, settings), workspace).advice == ()


def test_two_pieces_of_advice_are_in_sight_and_the_others_folded() -> None:
    items = tuple(Advice(name, f"Found {name}.", "A reason.", f"Change {name}", {}) for name in "abcd")
    shown = card.advice(plans.Plan(16, advice=items))
    before, _, folded = shown.partition("<details>")
    assert [f"Change {name}" in before for name in "abcd"] == [True, True, False, False]
    assert "More advice (2)" in folded
    assert folded.count('data-act="advice"') == 2


def test_a_time_without_numbers_of_the_model_is_not_known(workspace: Workspace) -> None:
    unknown = plans.plan(config(model__name="nobody/has-this-model", training__max_steps=10), workspace)
    assert unknown.seconds is None
    assert "unknown until the model is on this machine" in card.numbers_markup(unknown)


def test_a_model_that_is_not_here_has_no_memory_and_says_what_is_missing(workspace: Workspace) -> None:
    found = plans.plan(config(model__name="nobody/has-this-model"), workspace)
    assert found.memory is None
    assert "config.json" in card.memory(None)


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
    shown = card.memory(found)
    assert "Fits" not in shown
    assert card.GUESS in shown


def test_the_card_shows_every_part_the_verdict_and_the_share() -> None:
    memory = plans.needed_memory(config(), GPU, None, busy=False)
    assert memory is not None
    assert (memory.verdict, memory.available) == ("fits", 23 * GIB)
    words = card.memory(memory)
    assert all(title in words for title in ("Base model", "Optimizer", "Activations", "Loss", "System", "A GPU"))
    assert "of 23.0 GiB free" in words
    assert "rows of 1,024 tokens, the maximum" in words
    assert "the maximum" not in card.memory(plans.needed_memory(config(), GPU, 300, busy=False))
    waiting = plans.needed_memory(config(), GPU, None, busy=True)
    assert waiting is not None
    assert waiting.available == 24 * GIB
    assert "of 24.0 GiB in total" in card.memory(waiting), "a run that waits has what is held now"
    assert "<details>" in words
    assert "<dt>Trained parameters</dt>" in card.numbers_markup(plans.Plan(16, memory=memory))
    small = Device("A GPU", "cuda", 2 * GIB, memory.estimate.total - 1)
    assert "<details open>" in card.memory(
        plans.needed_memory(config(training__gradient_checkpointing=False), small, None, busy=False)
    )


def test_a_plan_is_there_in_a_tenth_of_a_second(workspace: Workspace) -> None:
    plans.plan(config(), workspace)  # the first look counts the file's rows and asks for the device
    with CpuTime() as spent:
        plans.plan(config(lora__r=32), workspace)
    assert spent.seconds < 0.1


def test_checks_are_numbered_and_say_what_to_do() -> None:
    report = Report((Check("Data", "ok", "All <rows>."), Check("Disk", "failed", "Full.", "Free some room.")))
    words = card.checks(report)
    assert "1. Data" in words
    assert "All &lt;rows&gt;." in words
    assert "2. Disk" in words
    assert "Free some room." in words
    assert "1 of 2 checks failed" in words


@pytest.mark.usefixtures("looked_at_here")
def test_the_card_says_how_the_data_is_read_as_the_data_tab_did_or_by_a_quick_look(
    workspace: Workspace, tmp_path: Any
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question;answer\nWhere?;<b>Here</b>\nWhen?;Now\n")
    asked = config(data__train_file=str(file))
    found = plans.plan(asked, workspace)
    assert "`question` is the user turn, `answer` the assistant turn" in found.reading
    assert found.reading.endswith("Answer of the first row: “<b>Here</b>”.")
    shown = picker.data_facts(found)
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


@pytest.mark.usefixtures("looked_at_here")
def test_what_can_not_be_read_is_said_on_the_card_before_a_start(workspace: Workspace, tmp_path: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"colour": "red", "shape": "round", "size": "big"}\n' * 3)
    found = plans.plan(config(data__train_file=str(file)), workspace)
    assert "The format of the rows is not known" in found.reading
    assert found.rows is not None


@pytest.mark.usefixtures("looked_at_here")
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


def test_what_a_base_model_lacks_stands_above_its_memory(tmp_path: Path) -> None:
    mixture = {
        **{"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 100},
    }
    (tmp_path / "config.json").write_text(json.dumps(mixture))
    needed = plans.needed_memory(
        config(model__name=str(tmp_path), lora__target_modules="attention"), GPU, 300, busy=False
    )
    shown = card.memory(needed)
    assert "weights of experts, get no adapter and stay frozen." in shown
    assert shown.index("Base model</h3>") < shown.index("Memory <span")
    assert "Base model</h3>" not in card.memory(plans.needed_memory(config(), GPU, 300, busy=False))
