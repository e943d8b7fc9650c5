"""How a file is read, and the form by which a person corrects it: which column plays which part.

The form starts with the reading in use. What it says is a mapping (see data/mapping.py), checked by the reader itself.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.ui import text

PARTS = {
    "user": ("User", "What is asked."),
    "assistant": ("Assistant", "What is answered, and learned."),
    "system": ("System", "Set before the talk, row by row."),
    "reasoning": ("Reasoning", "Thoughts before the answer."),
    "messages": ("Conversation", "A list of turns in one column."),
    "text": ("Plain text", "The whole row is one text; leave the others empty."),
}
WHOLE = ("messages", "text", "dialogue", "chosen", "rejected", "label", "history")
NONE = ""

Result = Mapping[str, Any]
Reading = dict[str, Any]


@dataclass(frozen=True)
class ReadingForm:
    """`choice` asks where a file can be read in several ways; `parts` are the dropdowns in the order of `PARTS`."""

    question: gr.HTML
    choice: gr.Radio
    parts: tuple[gr.Dropdown, ...]
    template: gr.Textbox
    said: gr.HTML
    use: gr.Button
    undo: gr.Button

    def fields(self) -> list[Any]:
        return [*self.parts, self.template]

    def all(self) -> list[Any]:
        return [self.question, self.choice, *self.fields(), self.said, self.use, self.undo]


def draw() -> ReadingForm:
    question = gr.HTML(visible=False)
    choice = gr.Radio([], label="Read it as", visible=False)
    said = gr.HTML(visible=False)
    with gr.Accordion("Correct the reading", open=False):
        with gr.Column(elem_classes="grid"):
            parts = tuple(_draw_part(part) for part in PARTS)
        template = gr.Textbox(
            lines=2,
            label="User's turn from several columns",
            info="Columns in braces, for example {title} and {description}; instead of the user's column.",
            placeholder="none",
            elem_id="reading-template",
        )
        with gr.Row():
            use = gr.Button("Use this reading", size="md", scale=0, min_width=220)
            undo = gr.Button("Back to what was recognised", size="md", scale=0, min_width=280, visible=False)
    return ReadingForm(question, choice, parts, template, said, use, undo)


def _draw_part(part: str) -> gr.Dropdown:
    label, info = PARTS[part]
    with gr.Column(elem_classes="field"):
        return gr.Dropdown([("none", NONE)], value=NONE, label=label, info=info, elem_id=f"reading-{part}")


def fill(form: ReadingForm, result: Result, *, corrected: bool) -> dict[Any, Any]:
    """The form for a file just read: its columns to choose from, the reading in use, the question if there is one."""
    columns = [("none", NONE), *((name, name) for name in columns_of(result))]
    reading = result["mapping"]
    several = result["ambiguous"] and len(result["readings"]) > 1
    asked = text.notice(result["question"] or "The rows can be read in several ways. Which is meant?", kind="warning")
    return {
        form.question: gr.HTML(asked if several and not corrected else "", visible=several and not corrected),
        form.choice: gr.Radio(choices=choices(result), value=chosen(result), visible=several),
        **{
            dropdown: gr.Dropdown(choices=columns, value=reading.get(part, NONE))
            for part, dropdown in zip(PARTS, form.parts, strict=True)
        },
        form.template: reading.get("user_template", ""),
        form.said: gr.HTML("", visible=False),
        form.undo: gr.Button(visible=corrected),
    }


def columns_of(result: Result) -> list[str]:
    """The file's columns (the first of the table is the number of the row), and any that only later rows have."""
    used = [result["mapping"][part] for part in PARTS if part in result["mapping"]]
    return list(dict.fromkeys([*map(str, result["table"]["columns"][1:]), *used]))


def choices(result: Result) -> list[tuple[str, int]]:
    """Every reading in words. A radio shows words as they are, so what hides is made visible."""
    return [(_quoted(text.visible(one["words"])), index) for index, one in enumerate(result["readings"])]


def _quoted(words: str) -> str:
    """Names of columns in quotation marks, for where there is no other type to set them in."""
    return re.sub("`(.*?)`", r"“\1”", words)


def chosen(result: Result) -> int | None:
    """Which of the readings is in use."""
    same = (index for index, one in enumerate(result["readings"]) if one["mapping"] == result["mapping"])
    return next(same, None)


def mapping_from(fields: tuple[Any, ...], before: Reading) -> Reading:
    """What the form says, as a mapping. Parts without a dropdown stay as they were, unless the row's kind changes."""
    *columns, template = fields
    said = {part: name for part, name in zip(PARTS, columns, strict=True) if name}
    if template and template.strip():
        said["user_template"] = template.strip()
        if said.get("user") == before.get("user"):
            said.pop("user", None)  # left from the reading that the template replaces
    kept = {part: value for part, value in before.items() if part not in (*PARTS, "user_template")}
    if kind_of(said) != kind_of(before):
        kept = {part: value for part, value in kept.items() if part not in WHOLE}
    return {**kept, **said}


def kind_of(reading: Result) -> str:
    """What a row is under a reading: a text, a list of turns, or a question with its answer."""
    return next((part for part in ("text", "messages", "assistant") if reading.get(part)), "other")
