"""How a file is read, and the form by which a person corrects it: which column plays which part, and who speaks.

The form starts with the reading in use. What it says is a mapping (see data/mapping.py), checked by the reader itself,
which also shows at each change what it would make of the first rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_studio.data.mapping import KNOWN_PARTS, SPEAKERS, MappingValues
from lora_studio.data.turns import role_of
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import TriedReading
from lora_studio.ui import html
from lora_studio.ui.studio import Updates

if TYPE_CHECKING:
    from lora_studio.data.preview import UnreadRows

PARTS = {
    "user": ("User", "What is asked."),
    "assistant": ("Assistant", "What is answered, and learned."),
    "system": ("System", "Set before the talk, row by row."),
    "reasoning": ("Reasoning", "Thoughts before the answer."),
    "history": ("Earlier turns", "A list of questions and answers before the user's turn."),
    "tools": ("Tools", "The functions that the assistant may call."),
    "messages": ("Conversation", "A list of turns in one column."),
    "dialogue": ("Dialogue as text", "Turns in one text, as in “User: … Assistant: …”; leave the others empty."),
    "chosen": ("Better answer", "For learning by comparison, with a worse one."),
    "rejected": ("Worse answer", "What the better answer is compared with."),
    "label": ("Mark", "True where the answer is good; others are left out."),
    "text": ("Plain text", "The whole row is one text; leave the others empty."),
}
ROLES = {
    "system": "Names of the system",
    "user": "Names of the user",
    "assistant": "Names of the assistant",
    "tool": "Names of a tool's result",
}
FORM_HINT = "Change the columns below; what has no column stays empty."
NONE = ""

Result = Mapping[str, Any]


@dataclass(frozen=True)
class ReadingForm:
    """`choice` asks where a file can be read in several ways. `parts` are the dropdowns in the order of `PARTS`,
    `roles` those in the order of `SPEAKERS`. `rows` is what is known of the rows, `tried` what the form makes of them.
    """

    box: gr.Column
    question: gr.HTML
    choice: gr.Radio
    fold: gr.Accordion
    parts: tuple[gr.Dropdown, ...]
    speakers: gr.Column
    roles: tuple[gr.Dropdown, ...]
    template: gr.Textbox
    tried: gr.HTML
    error_box: gr.HTML
    use: gr.Button
    undo: gr.Button
    rows: gr.State

    def fields(self) -> list[Any]:
        return [*self.parts, *self.roles, self.template]

    def all(self) -> list[Any]:
        displayed = [
            self.box,
            self.question,
            self.choice,
            self.fold,
            self.speakers,
            *self.fields(),
            self.tried,
            self.error_box,
        ]
        return [*displayed, self.use, self.undo, self.rows]


def problem(error: StudioError) -> str:
    """What is wrong with a reading, in the words of the form where a config file has names of its own."""
    labels = {part: label for part, (label, _) in PARTS.items()} | {"user_template": "User's turn from several columns"}
    message = re.sub(
        r"(?<!column )(?<!mean )`(\w+)`",
        lambda part: f"“{labels[part[1]]}”" if part[1] in labels else part[0],
        error.message,
    )
    message = re.sub(r"\b(\w+)(?=: there is no column)", lambda part: labels.get(part[1], part[1]), message)
    return html.problem(StudioError(message, FORM_HINT if error.hint == KNOWN_PARTS else error.hint))


def draw() -> ReadingForm:
    with gr.Column(visible=False) as box:
        question = gr.HTML(visible=False)
        choice = gr.Radio([], label="Read it as", visible=False)
        error_box = gr.HTML(visible=False)
        with gr.Accordion("Correct the reading", open=False) as fold:
            with gr.Column(elem_classes="grid"):
                parts = tuple(_draw_part(part) for part in PARTS)
            with gr.Column(visible=False) as speakers:
                gr.HTML(html.hint("Who speaks: what the names that the turns bear mean."))
                with gr.Column(elem_classes="grid"):
                    roles = tuple(_draw_role(role) for role in SPEAKERS)
            template = gr.Textbox(
                lines=2,
                label="User's turn from several columns",
                info="Columns in braces, for example {title} and {description}; instead of the user's column.",
                placeholder="none",
                elem_id="reading-template",
            )
            tried = gr.HTML(visible=False, elem_id="reading-tried")
            with gr.Row():
                use = gr.Button("Use this reading", size="md", scale=0, min_width=220)
                undo = gr.Button("Back to what was recognised", size="md", scale=0, min_width=280, visible=False)
    buttons = (tried, error_box, use, undo, gr.State(None))
    return ReadingForm(box, question, choice, fold, parts, speakers, roles, template, *buttons)


def _draw_part(part: str) -> gr.Dropdown:
    label, info = PARTS[part]
    return gr.Dropdown([("none", NONE)], value=NONE, label=label, info=info, elem_id=f"reading-{part}")


def _draw_role(role: str) -> gr.Dropdown:
    return gr.Dropdown([], value=[], multiselect=True, label=ROLES[role], elem_id=f"reading-role-{role}")


def fill(form: ReadingForm, result: Result, *, corrected: bool, unread: bool = False) -> Updates:
    """The form for a file just read: its columns to choose from, the reading in use, the question if there is one.

    `unread` rows could not be used as they were read: the form stands open.
    """
    columns = [("none", NONE), *((name, name) for name in columns_of(result))]
    reading, speakers = result["mapping"], result["speakers"]
    several = result["ambiguous"] and len(result["readings"]) > 1
    question = html.notice(
        result["question"] or "The rows can be read in several ways. Which is meant?", kind="warning"
    )
    return {
        form.box: gr.Column(visible=True),
        form.question: gr.HTML(question if several and not corrected else "", visible=several and not corrected),
        form.choice: gr.Radio(choices=choices(result), value=chosen(result), visible=several),
        form.fold: gr.Accordion(open=True) if unread else gr.skip(),
        **{
            dropdown: gr.Dropdown(choices=columns, value=reading.get(part, NONE))
            for part, dropdown in zip(PARTS, form.parts, strict=True)
        },
        form.speakers: gr.Column(visible=bool(speakers)),
        **{
            dropdown: gr.Dropdown(
                choices=list(speakers),
                value=[name for name in speakers if speakers[name] == role],
                multiselect=True,
            )
            for role, dropdown in zip(SPEAKERS, form.roles, strict=True)
        },
        form.template: reading.get("user_template", ""),
        form.tried: gr.HTML("", visible=False),
        form.error_box: gr.HTML("", visible=False),
        form.undo: gr.Button(visible=corrected),
        form.rows: _unread(result),
    }


def _unread(result: Result) -> "UnreadRows":
    return {
        "mapping": result["mapping"],
        "readings": result["readings"],
        "speakers": result["speakers"],
        "table": result["table"],
        "ambiguous": result["ambiguous"],
        "question": result["question"],
    }


def columns_of(result: Result) -> list[str]:
    """The file's columns (the first of the table is the number of the row), and any that only later rows have."""
    used = [result["mapping"][part] for part in PARTS if part in result["mapping"]]
    return list(dict.fromkeys([*map(str, result["table"]["columns"][1:]), *used]))


def choices(result: Result) -> list[tuple[str, int]]:
    """Every reading in words. A radio shows words as they are, so what hides is made visible."""
    return [(_quoted(html.visible(candidate["words"])), index) for index, candidate in enumerate(result["readings"])]


def _quoted(words: str) -> str:
    """Names of columns in quotation marks, for where there is no other type to set them in."""
    return re.sub("`(.*?)`", r"“\1”", words)


def chosen(result: Result) -> int | None:
    """Which of the readings is in use."""
    same = (index for index, candidate in enumerate(result["readings"]) if candidate["mapping"] == result["mapping"])
    return next(same, None)


def mapping_from(fields: Sequence[Any], before: MappingValues) -> MappingValues:
    """What the form says, as a mapping. Parts without a field stay as they were.

    Raises StudioError where a name is to mean two roles.
    """
    columns, role_names, template = fields[: len(PARTS)], fields[len(PARTS) : -1], fields[-1]
    mapping = {part: name for part, name in zip(PARTS, columns, strict=True) if name}
    if template and template.strip():
        mapping["user_template"] = template.strip()
        if mapping.get("user") == before.get("user"):
            mapping.pop("user", None)  # left from the reading that the template replaces
    unchanged = {part: value for part, value in before.items() if part not in (*PARTS, "roles", "user_template")}
    roles = roles_from(role_names) if mapping.get("messages") else {}
    return {**unchanged, **mapping, **({"roles": roles} if roles else {})}


def roles_from(names_by_role: Sequence[Sequence[str] | None]) -> dict[str, str]:
    """What role names mean beyond what they mean by themselves."""
    roles: dict[str, str] = {}
    for role, names in zip(SPEAKERS, names_by_role, strict=True):
        for name in names or ():
            if name in roles:
                raise StudioError(f"“{name}” can't be both {roles[name]} and {role}.", "Take it out of one of the two.")
            roles[name] = role
    return {name: role for name, role in roles.items() if role_of(name) != role}


def trial(tried: TriedReading) -> str:
    """What a reading would make of the first rows, before the whole file is read by it."""
    words = f'<p class="ls-words">{html.marked(tried.words)}</p>'
    if tried.failed:
        bad = tried.first_failure[0]
        where = f" ({bad['field']})" if bad["field"] else ""
        words += html.notice(
            f"{tried.failed:,} of the {tried.of:,} rows looked at can't be used like this.",
            f"Row {bad['row']:,}: {bad['reason']}{where}.",
            "warning",
        )
    if tried.marked_bad:
        words += html.notice(f"{tried.marked_bad:,} of the {tried.of:,} rows looked at are left out: marked bad.")
    return words + "".join(map(_trial_row, tried.rows))


def _trial_row(row: Result) -> str:
    messages = html.bubbles(row["messages"]) if row["messages"] else None
    worse = html.bubbles(row["worse"]) if row["worse"] else ""
    return html.render("data.example", f"{row['row']:,}", messages, row.get("text", ""), worse)
