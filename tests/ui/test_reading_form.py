"""How the form of a reading is filled and what it says: columns to parts, a template, what stays as it was."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
import pytest

from lora_studio.data.mapping import PARTS, Mapping, ReadingError
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import TriedReading
from lora_studio.ui.data import mapping_form
from lora_studio.ui.data.mapping_form import ReadingForm
from lora_studio.ui.gradio_patches import without_app


@pytest.fixture
def form() -> ReadingForm:
    with without_app(), gr.Blocks():
        return mapping_form.draw(lambda: None)


@pytest.fixture
def result() -> dict[str, Any]:
    reading = {"user": "<b>", "assistant": "late", "label": "mark"}
    return {
        "table": {"columns": ["row", "row", "<b>", "title"], "rows": []},
        "mapping": reading,
        "readings": [{"words": "`<b>` asks\u202e.", "mapping": reading}],
        "speakers": {"human": "user", "critic": "", "bot": "assistant", "call": "call"},
        "ambiguous": False,
        "question": "",
    }


def fields(roles: Sequence[Sequence[str]] = ((), (), (), ()), **given: str) -> tuple[Any, ...]:
    return (*(given.get(name, "") for name in mapping_form.PARTS), *roles, given.get("template", ""))


def test_the_form_starts_with_the_reading_in_use(form: ReadingForm, result: dict[str, Any]) -> None:
    filled = mapping_form.fill(form, result, corrected=False)
    user, assistant, system = (filled[dropdown] for dropdown in form.parts[:3])
    assert (user.value, assistant.value, system.value) == ("<b>", "late", "")
    assert user.choices == [
        ("none", ""),
        ("row", "row"),
        ("<b>", "<b>"),
        ("title", "title"),
        ("late", "late"),
        ("mark", "mark"),
    ]
    assert filled[form.asking].visible is False
    assert filled[form.undo].visible is False


def test_a_reading_in_words_hides_nothing(result: dict[str, Any]) -> None:
    assert mapping_form.choices(result) == [("“<b>” asks⟨U+202E⟩.", 0)]
    assert mapping_form.chosen({**result, "mapping": {}}) is None


def test_parts_without_a_field_stay_as_they_were(result: dict[str, Any]) -> None:
    before = {**result["mapping"], "system_prompt": "Be brief."}
    changed = mapping_form.mapping_from(fields(user="title", assistant="late"), before)
    assert changed == {"user": "title", "assistant": "late", "system_prompt": "Be brief."}


def test_a_template_takes_the_place_of_the_column_that_asked(result: dict[str, Any]) -> None:
    given = fields(user="<b>", assistant="late", template=" {title}: {<b>} ")
    said = mapping_form.mapping_from(given, {"user": "<b>", "assistant": "late"})
    assert said == {"assistant": "late", "user_template": "{title}: {<b>}"}


def test_every_part_of_the_form_is_one_that_the_reader_knows() -> None:
    assert set(mapping_form.PARTS) <= set(PARTS)
    said = mapping_form.mapping_from(fields(user="a", assistant="b", system="c", reasoning="d"), {})
    assert Mapping.from_dict(said).to_dict() == said


def test_role_names_start_with_what_they_mean_and_only_what_differs_is_kept(
    form: ReadingForm, result: dict[str, Any]
) -> None:
    filled = mapping_form.fill(form, result, corrected=False)
    assert [filled[dropdown].value for dropdown in form.roles] == [[], ["human"], ["bot"], []]
    roles = [["critic"], ["human"], ["bot"], ["call"]]
    said = mapping_form.mapping_from(fields(roles, messages="talk"), {})
    assert said == {"messages": "talk", "roles": {"critic": "system", "call": "tool"}}
    assert "roles" not in mapping_form.mapping_from(fields(roles, user="a", assistant="b"), {})
    with pytest.raises(StudioError, match="both system and user"):
        mapping_form.mapping_from(fields([["bot"], ["bot"], [], []], messages="talk"), {})


def test_a_reading_on_trial_shows_the_first_rows_and_what_fails() -> None:
    rows = [
        {
            "row": 1,
            "messages": [{"role": "user", "content": "<i>"}],
            "text": "",
            "worse": [{"role": "assistant", "content": "no"}],
        }
    ]
    bad = {"row": 7, "reason": "the answer is empty", "field": "a"}
    found = {"words": "`q` asks.", "rows": rows, "failed": 2, "of": 50, "first_failure": [bad], "marked_bad": 0}
    drawn = mapping_form.trial(TriedReading(**found))
    assert "&lt;i&gt;" in drawn
    assert "Rejected" in drawn
    assert "2 of 50 sampled rows" in drawn
    assert "Row 7: the answer is empty (a)." in drawn
    assert "labelled bad" not in drawn
    assert "20 of 50 sampled rows are labelled bad." in mapping_form.trial(TriedReading(**{**found, "marked_bad": 20}))
    assert "<pre>a ${</pre>".replace("${", "&#36;&#123;") in mapping_form.trial(
        TriedReading(**(found | {"failed": 0, "rows": [{"row": 1, "messages": [], "text": "a ${", "worse": []}]}))
    )


def test_a_column_that_is_called_like_a_part_is_named_as_the_file_names_it() -> None:
    """“Plain text” is a field of the form, and no column of this file."""
    unknown = ReadingError("Unknown: `text`, `label` contain text. The first line names `text`.", "Set data.mapping.")
    shown = mapping_form.problem(unknown)
    assert "<code>text</code>, <code>label</code> contain text" in shown
    assert "Plain text" not in shown
    with pytest.raises(StudioError) as refused:
        Mapping.from_dict({"chosen": "text", "rejected": "text"}).check(["text"])
    assert "“Chosen” and “Rejected” name the same column, <code>text</code>" in mapping_form.problem(refused.value)
