"""The form for a file's column mapping: which column plays which part, and what the role names mean."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_studio.data.mapping import KNOWN_PARTS, SPEAKERS, MappingValues
from lora_studio.data.turns import role_of
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import TriedReading
from lora_studio.ui import html
from lora_studio.ui.components import Updates

if TYPE_CHECKING:
    from lora_studio.data.preview import UnreadRows

PARTS = {
    "user": ("User", "The prompt."),
    "assistant": ("Assistant", "The answer, which is trained."),
    "system": ("System", "The system prompt of each row."),
    "reasoning": ("Reasoning", "Thoughts before the answer."),
    "history": ("History", "Earlier turns, as a list of prompts and answers."),
    "tools": ("Tools", "The functions that the assistant may call."),
    "messages": ("Messages", "A list of turns in one column."),
    "dialogue": ("Dialogue as text", "Turns in one text: “User: … Assistant: …”; no other columns."),
    "chosen": ("Chosen", "The preferred answer of a pair."),
    "rejected": ("Rejected", "The other answer of the pair."),
    "label": ("Label (good, bad)", "True where the answer is good; others are skipped."),
    "text": ("Plain text", "The whole row is one text; no other columns."),
}
ROLES = {
    "system": "Roles read as system",
    "user": "Roles read as user",
    "assistant": "Roles read as assistant",
    "tool": "Roles read as tool",
}
FORM_HINT = "Change the columns below; leave parts without a column empty."
TEMPLATE_LABEL = "User prompt from several columns"
NONE = ""

Result = Mapping[str, Any]


@dataclass(frozen=True)
class ReadingForm:
    """`choice` asks where a file can be read in several ways. `parts` are the dropdowns in the order of `PARTS`,
    `roles` those in the order of `SPEAKERS`. `rows` is what is known of the rows, `tried` what the form makes of them.
    """

    asking: gr.Column
    question: gr.HTML
    choice: gr.Radio
    box: gr.Column
    error_box: gr.HTML
    fold: gr.Accordion
    parts: tuple[gr.Dropdown, ...]
    speakers: gr.Column
    roles: tuple[gr.Dropdown, ...]
    template: gr.Textbox
    tried: gr.HTML
    use: gr.Button
    undo: gr.Button
    rows: gr.State

    def fields(self) -> list[Any]:
        return [*self.parts, *self.roles, self.template]

    def all(self) -> list[Any]:
        """Every component, one after another."""
        components = vars(self).values()
        return [part for item in components for part in (item if isinstance(item, tuple) else (item,))]


def problem(error: StudioError) -> str:
    """What is wrong with a reading, in the words of the form where a config file has names of its own.

    Only an error of a mapping names parts; in all others a name in backticks is a column's, which may be called `text`.
    """
    if error.hint != KNOWN_PARTS:
        return html.problem(error)
    labels = {part: label for part, (label, _) in PARTS.items()} | {"user_template": TEMPLATE_LABEL}
    message = re.sub(
        r"(?<!column )(?<!column, )(?<!mean )`(\w+)`",
        lambda part: f"“{labels[part[1]]}”" if part[1] in labels else part[0],
        error.message,
    )
    message = re.sub(r"\b(\w+)(?=: there is no column)", lambda part: labels.get(part[1], part[1]), message)
    return html.problem(StudioError(message, FORM_HINT))


def draw(example: Callable[[], None]) -> ReadingForm:
    """Draws the question, the example between, and the form below it."""
    with gr.Column(visible=False) as asking:
        question = gr.HTML()
        choice = gr.Radio([], label="Format")
    example()
    with gr.Column(visible=False) as box:
        error_box = gr.HTML(visible=False)
        with gr.Accordion("Fix column mapping", open=False) as fold:
            with gr.Column(elem_classes="grid"):
                parts = tuple(_draw_part(part) for part in PARTS)
            with gr.Column(visible=False) as speakers, gr.Column(elem_classes="grid"):
                roles = tuple(_draw_role(role) for role in SPEAKERS)
            template = gr.Textbox(
                lines=2,
                label=TEMPLATE_LABEL,
                info="Columns in braces, such as {title} and {description}; replaces the user column.",
                placeholder="none",
                elem_id="reading-template",
            )
            tried = gr.HTML(visible=False, elem_id="reading-tried")
            with gr.Row():
                use = gr.Button("Apply mapping", size="md", scale=0, min_width=160)
                undo = gr.Button("Reset to detected mapping", size="md", scale=0, min_width=240, visible=False)
    components = (asking, question, choice, box, error_box, fold, parts, speakers, roles, template, tried, use, undo)
    return ReadingForm(*components, gr.State(None))


def _draw_part(part: str) -> gr.Dropdown:
    label, info = PARTS[part]
    return gr.Dropdown([("none", NONE)], value=NONE, label=label, info=info, elem_id=f"reading-{part}")


def _draw_role(role: str) -> gr.Dropdown:
    return gr.Dropdown([], value=[], multiselect=True, label=ROLES[role], elem_id=f"reading-role-{role}")


def fill(form: ReadingForm, result: Result, *, corrected: bool, unread: bool = False) -> Updates:
    """The form for a file just read: its columns to choose from, the reading in use, the question if there is one.

    `unread` rows could not be used as they were read: the form stands open, and none of their readings is in use.
    """
    columns = [("none", NONE), *((name, name) for name in columns_of(result))]
    reading, speakers = result["mapping"], result["speakers"]
    several = result["ambiguous"] and len(result["readings"]) > 1
    question = html.notice(result["question"] or "Several formats fit these rows. Which one is meant?", kind="warning")
    return {
        form.box: gr.Column(visible=True),
        form.asking: gr.Column(visible=several),
        form.question: gr.HTML(question if several and not corrected else "", visible=several and not corrected),
        form.choice: gr.Radio(choices=choices(result), value=None if unread else chosen(result)),
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


def hide(form: ReadingForm) -> Updates:
    """Nothing of the form in sight, and folded for the next file."""
    unseen = dict.fromkeys((form.asking, form.box), gr.Column(visible=False))
    return {**unseen, form.fold: gr.Accordion(open=False)}


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
    """The first rows as a mapping reads them, before the whole file is read with it."""
    words = f'<p class="ls-words">{html.marked(tried.words)}</p>'
    if tried.failed:
        bad = tried.first_failure[0]
        where = f" ({bad['field']})" if bad["field"] else ""
        words += html.notice(
            f"{tried.failed:,} of {tried.of:,} sampled rows are invalid with this mapping.",
            f"Row {bad['row']:,}: {bad['reason']}{where}.",
            "warning",
        )
    if tried.marked_bad:
        words += html.notice(f"{tried.marked_bad:,} of {tried.of:,} sampled rows are labelled bad.")
    return words + "".join(map(_trial_row, tried.rows))


def _trial_row(row: Result) -> str:
    messages = html.bubbles(row["messages"]) if row["messages"] else None
    worse = html.bubbles(row["worse"]) if row["worse"] else ""
    return html.render("data.example", f"{row['row']:,}", messages, row.get("text", ""), worse)
