"""The form's plain half: values to widgets and back, what is typed wrongly, problems beside their fields."""

from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import ConfigError, Problem, parse
from lora_studio.config.sections import Config
from lora_studio.config.settings import settings
from lora_studio.ui import form
from lora_studio.units import float_text
from lora_studio.workspace import Workspace

BY_PATH = {setting.path: setting for setting in settings()}


def typed(**changes: Any) -> list[Any]:
    """The form's widgets at the defaults, with some of them changed (`lora__r=8`)."""
    named = {path.replace("__", "."): value for path, value in changes.items()}
    return [named.get(path, raw) for path, raw in zip(BY_PATH, form.shown(Config()), strict=True)]


def test_the_untouched_form_is_the_default_config() -> None:
    assert form.read(form.shown(Config())) == Config()


def test_a_config_comes_back_the_same_through_the_widgets() -> None:
    config = parse(
        {
            "title": "Mine",
            "model": {"name": "demo", "quantization": "4bit", "revision": "main"},
            "data": {"enable_thinking": False, "system_prompt": "Be brief.\n", "max_samples": 7},
            "lora": {"use_dora": True, "target_modules": ["q_proj", "v_proj"]},
            "training": {"learning_rate": 3e-5, "gradient_checkpointing": True, "max_steps": 10},
        }
    )
    assert form.read(form.shown(config)) == config


def test_at_most_twelve_inputs_are_in_sight() -> None:
    assert 6 <= sum(setting.basic for setting in BY_PATH.values()) <= 12


@pytest.mark.parametrize("text", ["2e-4", "0.0002", "0,0002", " 2E-4 "])
def test_a_learning_rate_may_be_written_in_any_usual_way(text: str) -> None:
    assert form.read(typed(training__learning_rate=text)).training.learning_rate == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("value", "text"), [(2e-4, "2e-4"), (1e-5, "1e-5"), (0.05, "0.05"), (3.0, "3"), (0.0, "0"), (2.5e-4, "2.5e-4")]
)
def test_a_number_is_shown_as_people_write_it(value: float, text: str) -> None:
    assert float_text(value) == text
    assert float(text) == value


def test_an_optional_number_may_be_left_empty_and_another_may_not() -> None:
    assert form.read(typed(data__max_samples=None)).data.max_samples is None
    with pytest.raises(ConfigError) as caught:
        form.read(typed(lora__r=None))
    assert [problem.path for problem in caught.value.problems] == ["lora.r"]


def test_an_empty_optional_number_is_what_its_box_sends_also_from_an_earlier_draft() -> None:
    shown = form.to_draft(form.shown(Config()))
    assert (shown["lora.loraplus_lr_ratio"], shown["data.max_samples"]) == ("", None)
    assert form.from_draft(shown | {"lora.loraplus_lr_ratio": None}, form.shown(Config())) == form.shown(Config())


def test_what_is_no_number_is_named_with_what_was_typed() -> None:
    with pytest.raises(ConfigError) as caught:
        form.read(typed(training__learning_rate="fast", lora__r=2.5))
    assert {problem.path: problem.value for problem in caught.value.problems} == {
        "training.learning_rate": "fast",
        "lora.r": 2.5,
    }


def test_switches_with_a_third_state_offer_it() -> None:
    assert [value for _, value in form.options(BY_PATH["training.gradient_checkpointing"])] == ["auto", "on", "off"]
    assert [value for _, value in form.options(BY_PATH["data.enable_thinking"])] == ["default", "on", "off"]
    assert form.read(typed(data__enable_thinking="on")).data.enable_thinking is True
    assert form.read(typed(data__enable_thinking="default")).data.enable_thinking is None


def test_choices_are_called_by_words_and_kept_by_name() -> None:
    offered = form.options(BY_PATH["data.truncation"])
    assert offered[0] == ("keep answer, cut prompt", "keep_answer")
    said = [(path, value) for path, setting in BY_PATH.items() for value in setting.names if setting.names]
    assert all(value in BY_PATH[path].choices for path, value in said)
    assert len(said) == 9, "choices of transformers and peft keep their names"
    assert [words for words, _ in form.options(BY_PATH["training.save_strategy"])] == ["steps", "epoch", "no"]
    assert form.in_words("data.truncation", "drop") == "drop row"
    assert form.in_words("training.learning_rate", 2e-4) == "2e-4"
    assert form.in_words("training.packing", True) == "on"
    assert form.in_words("data.max_length", 2048) == "2,048"
    assert form.in_words("data.max_samples", None) == "–"
    assert form.in_words("data.train_file", "/home/ada/uploads/mine.csv") == "mine.csv"
    assert form.in_words("data.train_file", "owner/name") == "owner/name"
    assert form.in_words("model.adapter_name_or_path", "/w/runs/first/adapter") == "first"
    assert form.in_words("model.adapter_name_or_path", "/w/runs/first/checkpoints/checkpoint-8") == "first/checkpoint-8"
    assert form.in_words("model.adapter_name_or_path", "/w/adapters/mine") == "mine"
    assert form.each_in_words("data.train_file", ["/a/x.csv", "pirate"]) == ["x.csv", "pirate"]
    assert form.each_in_words("data.train_file", ["/a/x.csv", "/b/x.csv"]) == ["/a/x.csv", "/b/x.csv"]


def test_a_draft_brings_back_every_letter_also_what_is_wrong() -> None:
    raws = typed(training__learning_rate="2e-", lora__r=None, title="half a na")
    assert form.from_draft(form.to_draft(raws), form.shown(Config())) == raws


@pytest.mark.parametrize("draft", [None, [], "text", {"lora.r": {"no": "number"}, "gone.setting": 3}])
def test_a_draft_that_can_not_be_read_changes_nothing(draft: Any) -> None:
    start = form.shown(Config())
    assert form.from_draft(draft, start) == start


def test_problems_stand_beside_their_fields_and_the_rest_is_told_apart() -> None:
    fields, others = form.beside_fields(
        [Problem("lora.r", "input should be greater than or equal to 1", 0), Problem("lora.rank", "unknown setting", 4)]
    )
    assert fields == {"lora.r": "Input should be greater than or equal to 1."}
    assert others == ["lora.rank: unknown setting (found 4)"]


def test_the_effective_batch_is_said_under_the_fields_that_make_it() -> None:
    noted = form.notes(
        form.read(typed(training__per_device_train_batch_size=4, training__gradient_accumulation_steps=8))
    )
    assert noted["training.per_device_train_batch_size"] == "Effective batch: 4 × 8 = 32 rows."
    assert noted["model.attn_implementation"] == "sdpa: FlashAttention 2 is not used, it needs a CUDA GPU."
    assert set(form.notes(form.read(typed(model__attn_implementation="eager")))) < set(noted)
    old = form.notes(form.read(typed()), "cuda", (7, 5))["model.attn_implementation"]
    assert old == (
        "sdpa: FlashAttention 2 is not used, it needs a GPU of compute capability 8.0 or higher, and this one has 7.5."
    )
    compared = form.notes(form.read(typed(training__method="dpo", data__train_file="preference")))
    assert compared["training.per_device_train_batch_size"].endswith("pairs.")


def test_known_settings_are_taken_from_a_mapping_right_or_wrong() -> None:
    given = {"title": "x", "lora": {"r": "many", "rank": 3}, "training": "nonsense"}
    assert form.known_values(given) == {"title": "x", "lora.r": "many"}


def test_data_fields_offer_shipped_sets_uploads_and_the_sheets_of_workbooks(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    book = workspace.uploads_folder / "book.xlsx"
    book.write_bytes(b"")
    assert form.keep_sheets(workspace, f"{book}?sheet=Answers", ["Notes", "Answers"])
    assert not form.keep_sheets(workspace, str(book), ["Notes", "Answers"])
    assert form.known_files({"pirate": "Pirate persona"}, workspace) == [
        ("Pirate persona (pirate)", "pirate"),
        ("book.xlsx", str(book)),
        ("book.xlsx, sheet Notes", f"{book}?sheet=Notes"),
        ("book.xlsx, sheet Answers", f"{book}?sheet=Answers"),
    ]
    assert form.in_words("data.train_file", f"{book}?sheet=Answers") == "book.xlsx, sheet Answers"
    assert form.keep_sheets(workspace, str(book), ["Notes"])  # the others were deleted: nothing is left to choose
    assert form.workbooks(workspace) == {}


def test_a_model_chosen_with_what_the_list_says_of_it_is_its_name_alone() -> None:
    chosen = typed(model__name="Qwen/Qwen3-0.6B · downloaded · 596 M · fits")
    assert form.read(chosen).model.name == "Qwen/Qwen3-0.6B"
