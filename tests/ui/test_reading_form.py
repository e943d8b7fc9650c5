"""How the form of a reading is filled and what it says: columns to parts, a template, what stays as it was."""

from typing import Any

import gradio as gr
import pytest

from lora_studio.data.mapping import PARTS, Mapping
from lora_studio.ui import reading_form
from lora_studio.ui.reading_form import ReadingForm


@pytest.fixture
def form() -> ReadingForm:
    with gr.Blocks():
        return reading_form.draw()


@pytest.fixture
def result() -> dict[str, Any]:
    reading = {"user": "<b>", "assistant": "late", "history": "before"}
    return {
        "table": {"columns": ["row", "row", "<b>", "title"], "rows": []},
        "mapping": reading,
        "readings": [{"words": "`<b>` asks\u202e.", "mapping": reading}],
        "ambiguous": False,
        "question": "",
    }


def fields(**given: str) -> tuple[str, ...]:
    return tuple(given.get(name, "") for name in (*reading_form.PARTS, "template"))


def test_the_form_starts_with_the_reading_in_use(form: ReadingForm, result: dict[str, Any]) -> None:
    filled = reading_form.fill(form, result, corrected=False)
    user, assistant, system = (filled[dropdown] for dropdown in form.parts[:3])
    assert (user.value, assistant.value, system.value) == ("<b>", "late", "")
    assert user.choices == [("none", ""), ("row", "row"), ("<b>", "<b>"), ("title", "title"), ("late", "late")]
    assert filled[form.choice].visible is False
    assert filled[form.undo].visible is False


def test_a_reading_in_words_hides_nothing(result: dict[str, Any]) -> None:
    assert reading_form.choices(result) == [("“<b>” asks⟨U+202E⟩.", 0)]
    assert reading_form.chosen({**result, "mapping": {}}) is None


def test_parts_without_a_dropdown_stay_while_the_kind_of_row_does(result: dict[str, Any]) -> None:
    before = result["mapping"]
    changed = reading_form.mapping_from(fields(user="title", assistant="late"), before)
    assert changed == {"user": "title", "assistant": "late", "history": "before"}
    assert reading_form.mapping_from(fields(text="title"), before) == {"text": "title"}


def test_a_template_takes_the_place_of_the_column_that_asked(result: dict[str, Any]) -> None:
    given = fields(user="<b>", assistant="late", template=" {title}: {<b>} ")
    said = reading_form.mapping_from(given, {"user": "<b>", "assistant": "late"})
    assert said == {"assistant": "late", "user_template": "{title}: {<b>}"}


def test_every_part_of_the_form_is_one_that_the_reader_knows() -> None:
    assert set(reading_form.PARTS) <= set(PARTS)
    said = reading_form.mapping_from(fields(user="a", assistant="b", system="c", reasoning="d"), {})
    assert Mapping.from_dict(said).to_dict() == said
