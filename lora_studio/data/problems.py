"""Rows that describe a problem in several fields (title, description, input, output, examples) to the user's turn."""

import json
from typing import Any

from lora_studio.data.columns import ASSISTANT, Columns
from lora_studio.data.turns import as_text

STATEMENT = ("description", "problem_description", "statement", "problem_statement", "problem")
SECTIONS = {
    "input": ("input_format", "input_specification", "input_description", "input_spec"),
    "output": ("output_format", "output_specification", "output_description", "output_spec"),
    "constraints": ("constraints", "constraint"),
    "examples": ("examples", "sample_tests", "public_tests", "sample_io", "test_cases"),
    "note": ("note", "notes"),
}
ANSWERS = ("generation", "solution", "solutions", "code", "python_solution", "editorial", *ASSISTANT)
_HEADINGS = {"input": "Input", "output": "Output", "constraints": "Constraints", "examples": "Examples", "note": "Note"}


def lacks_solution(columns: Columns) -> bool:
    """Whether the rows describe problems, but none of their columns can be the solution."""
    described = columns.find(STATEMENT) and any(columns.find(aliases) for aliases in SECTIONS.values())
    return bool(described) and find_problem(columns) is None


def find_problem(columns: Columns) -> dict[str, str] | None:
    """Which column plays which part of a problem and its solution; None where the rows are no such.

    What the output is to look like is never the answer; a column named `output` alone may be.
    """
    statement = columns.find(STATEMENT)
    if statement is None or columns.find(("instruction",)):
        return None
    parts = {"title": columns.find(("title", "name")), "description": statement}
    parts |= {part: columns.find(names) for part, names in SECTIONS.items()}
    plain = {part: columns.find((part,)) for part in ("input", "output")}
    taken = {name for name in (*parts.values(), *plain.values()) if name}
    answer = columns.find(ANSWERS, without=taken)
    if answer is None and parts["output"] and plain["output"]:
        answer = plain["output"]
    for part, name in plain.items():
        parts[part] = parts[part] or (name if name != answer else None)
    if answer is None and plain["output"]:  # then `output` can only be the answer, and not what the output looks like
        answer, parts["output"] = plain["output"], None
    described = [part for part in ("input", "output", "constraints", "examples", "note") if parts[part]]
    if answer is None or not described:
        return None
    found = {part: name for part, name in parts.items() if name}
    return {**found, "completion": answer}


def problem_text(fields: dict[str, Any], columns: dict[str, str]) -> str:
    """The problem as one text: title, description, and each further part under its heading."""
    blocks = [as_text(fields.get(columns[part]), columns[part]) for part in ("title", "description") if part in columns]
    for part, heading in _HEADINGS.items():
        if part in columns:
            said = _section(fields.get(columns[part]), columns[part])
            blocks.append(f"{heading}:\n{said}" if said.strip() else "")
    return "\n\n".join(block.strip() for block in blocks if block.strip())


def _section(value: Any, field: str) -> str:
    """A part of a problem as text: examples may be a list of inputs with their outputs."""
    if isinstance(value, list):
        return "\n\n".join(_section(item, field) for item in value)
    if isinstance(value, dict):
        return "\n".join(f"{str(key).capitalize()}: {_section(item, field)}" for key, item in value.items())
    if isinstance(value, bool):
        return json.dumps(value)
    return as_text(value, field)
