"""Dialogues written as one text ("Human: ... Assistant: ...") to messages: the ways of marking turns in use."""

import re

from lora_studio.data.messages import Message, RowError

NO_MARKS = "the text does not mark its turns as the other rows do"
_USERS = "human|user|instruction|question|prompter|q"
_ASSISTANTS = "assistant|response|answer|output|gpt|chatgpt|bot|ai|model|a"
_ROLES = {
    **dict.fromkeys(_USERS.split("|"), "user"),
    **dict.fromkeys(_ASSISTANTS.split("|"), "assistant"),
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("input",), "input"),
}
_WORDS = f"({_USERS}|{_ASSISTANTS}|system|input)"
STYLES = {
    "###": re.compile(rf"(?:^|\s*)###\s*{_WORDS}\s*:?[ \t]*\n?", re.IGNORECASE),
    "<|im_start|>": re.compile(r"\s*(?:<\|im_end\|>)?\s*<\|im_start\|>(system|user|assistant)\n"),
    "<|...|>": re.compile(r"\s*(?:</s>|<\|end\|>)?\s*<\|(system|user|assistant)\|>\n?"),
    "name:": re.compile(
        r"(?:^|\n)[ \t]*(?:\*\*)?(human|user|question|q|assistant|answer|gpt|chatgpt|bot|ai|model|a|system)"
        r"(?:\*\*)?[ \t]*:(?:\*\*)?[ \t]*",
        re.IGNORECASE,
    ),
}
_INST = re.compile(r"(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?=(?:<s>)?\s*\[INST\]|$)", re.DOTALL)
_SYS = re.compile(r"^\s*<<SYS>>(.*?)<</SYS>>\s*", re.DOTALL)
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|end|>", "</s>", "###")


def style_of(text: str) -> str | None:
    """The way in which a text marks a user's turn and an answer after it; None for other texts."""
    if "[/INST]" in text:
        return "[INST]"
    for name, pattern in STYLES.items():
        roles = [_ROLES[found.group(1).lower()] for found in pattern.finditer(text)]
        if "user" in roles and "assistant" in roles[roles.index("user") :]:
            return name
    return None


def parse_dialogue(text: str, field: str) -> list[Message]:
    """The turns of a dialogue; what stands before the first mark is the system prompt."""
    style = style_of(text)
    if style is None:
        raise RowError(NO_MARKS, field, text)
    if style == "[INST]":
        return _from_inst(text)
    marks = list(STYLES[style].finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = [("system", text[: marks[0].start()].strip())] if text[: marks[0].start()].strip() else []
    for mark, end in zip(marks, ends, strict=True):
        role, said = _ROLES[mark.group(1).lower()], _tidy(text[mark.end() : end])
        if role == "input" and turns and turns[-1][0] == "user":
            turns[-1] = ("user", f"{turns[-1][1]}\n\n{said}".strip())
        else:
            turns.append(("user" if role == "input" else role, said))
    return [Message(role, said) for role, said in turns]


def _from_inst(text: str) -> list[Message]:
    messages: list[Message] = []
    for asked, answered in _INST.findall(text):
        system = _SYS.match(asked) if not messages else None
        if system:
            messages.append(Message("system", system.group(1).strip()))
            asked = asked[system.end() :]
        messages += [Message("user", asked.strip()), Message("assistant", _tidy(answered))]
    return messages


def _tidy(said: str) -> str:
    """A turn without white space around it and without the marks that end it."""
    said = said.strip()
    ended = True
    while ended:
        ended = False
        for mark in _ENDS:
            if said.endswith(mark):
                said, ended = said.removesuffix(mark).rstrip(), True
    return said
