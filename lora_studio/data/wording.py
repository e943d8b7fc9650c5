"""A reading of a file in one sentence, in the file's own column names."""

from dataclasses import replace

from lora_studio.data.columns import Columns, quoted
from lora_studio.data.mapping import Format, places

_EXTRAS = {
    "system": "the system prompt",
    "history": "the earlier turns",
    "tools": "the tools on offer",
    "reasoning": "the reasoning before the answer",
    "label": "the mark of good answers, the only ones that are used",
}
_SECTIONS = ("title", "description", "input", "output", "constraints", "examples", "note")
_THOUGHT = "<think>"


def in_words(shape: Format, columns: Columns) -> Format:
    """The format with its sentence, and with what is left aside."""
    part = {key: quoted([name]) for key, name in shape.columns.items()}
    words = _main(shape, part)
    said = _EXTRAS if "messages" in part or "dialogue" not in part else ("system", "label")
    words += "".join(f"; {part[key]} is {_EXTRAS[key]}" for key in said if key in part)
    mapping = shape.mapping
    used = {*shape.columns.values(), *places(mapping.user_template or "" if mapping else "")}
    if mapping and mapping.system_prompt:
        words += "; a system prompt is put in front of rows without one"
    aside = quoted(name for name in columns.names if name not in used)
    words += "." + (f" Left aside: {aside}." if aside else "")
    answers = shape.columns.get("completion") or shape.columns.get("output")
    if answers and any(isinstance(value, str) and _THOUGHT in value for value in columns.values(answers)[:50]):
        words += f" Some answers hold reasoning in {_THOUGHT} marks, which is learned with them."
    turns = shape.columns.get("messages")
    if turns and any(isinstance(value, str) and value.lstrip("[ ")[:2] == "{'" for value in columns.values(turns)[:50]):
        words += " The turns are written as Python prints lists."
    return replace(shape, words=words)


def _main(shape: Format, part: dict[str, str]) -> str:
    if "input_ids" in part:
        learned = part.get("labels") or part.get("loss_mask")
        beside = f", {learned} what of them is learned" if learned else ", all of which are learned"
        padding = f"; {part['attention_mask']} marks padding, which is left out" if "attention_mask" in part else ""
        return f"{part['input_ids']} holds tokens{beside}{padding}"
    if "text" in part:
        return f"{part['text']} is plain text, learned as it stands"
    if "dialogue" in part:
        how = shape.marks.words() if shape.marks else "but no marks say who speaks"
        return f"{part['dialogue']} is a conversation written as one text: {how}"
    if "chosen" in part:
        prompt = _user(shape, part) or "What both begin with"
        words = f"{prompt} is the prompt, {part['chosen']} the better answer, {part['rejected']} the worse"
        return f"{words}; all are written as one text: {shape.marks.words()}" if shape.marks else words
    asked = _user(shape, part)
    if "description" in part:
        answer = f"{asked} make the user's turn, {part['completion']} is the assistant's"
        turns = f"; rows that have {part['messages']} bring their turns there" if "messages" in part else ""
        return answer + turns
    if "messages" in part and "completion" not in part:
        how = "who speaks and what is said" if shape.name == "sharegpt" else "a role and content"
        return f"{part['messages']} holds the conversation, a list of turns, each with {how}"
    answered = part.get("output") if "instruction" in part else part["completion"]
    if shape.marks:
        return f"{asked} and {answered} together are a conversation written as one text: {shape.marks.words()}"
    return f"{asked} is the user's turn, {answered} the assistant's"


def _user(shape: Format, part: dict[str, str]) -> str:
    """What the user's turn is made of."""
    template = shape.mapping.user_template if shape.mapping else None
    if template:
        return "A template of " + quoted(places(template))
    if "description" in part:
        return ", ".join(part[name] for name in _SECTIONS if name in part)
    if "messages" in part:
        return part["messages"]
    asked = part.get("instruction") or part.get("prompt") or ""
    return f"{asked} followed by {part['input']}" if asked and "input" in part else asked
