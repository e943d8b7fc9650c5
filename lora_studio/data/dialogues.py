"""Finds the turns of a dialogue that is written as one text ("Human: ... Assistant: ..."), by the marks in use.

The marks of a file are decided over many rows, so that other headings stay text of the turn they stand in.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lora_studio.data.messages import Message, RowError

NO_MARKS = "the text does not mark its turns like the other rows"
TOOL_MARKS = "the text contains marked tool calls, which are only supported in `messages` with `tool_calls`"
MIN_SHARE = 0.8
_LIKE_SHARE = 0.8
_LOOKED_AT, _MAX_TEXTS = 20_000, 200
# The answering names that go with an asking one, the likeliest first; any other pair comes after these.
_ANSWERING = {
    "human": ("assistant", "gpt", "ai", "bot", "chatgpt", "model"),
    "user": ("assistant", "ai", "bot", "model", "gpt", "chatgpt", "response"),
    "prompter": ("assistant",),
    "instruction": ("response", "output", "assistant", "answer"),
    "question": ("answer", "response", "output"),
    "prompt": ("response", "completion", "output", "answer", "assistant"),
    "q": ("a",),
}
_ASSISTANTS = (
    *("assistant", "response", "answer", "output", "completion", "gpt", "chatgpt", "bot", "ai", "model", "a"),
    "chatbot",
)
_ROLES = {
    **dict.fromkeys(_ANSWERING, "user"),
    **dict.fromkeys(_ASSISTANTS, "assistant"),
    **{"system": "system", "developer": "system", "input": "input", "tool": "tool", "ipython": "tool"},
}
_HEADED = "|".join(sorted((name for name in _ROLES if _ROLES[name] != "tool"), key=len, reverse=True))
_NAMED = "|".join(name for name in _HEADED.split("|") if name != "output")
_HEADING = rf"###[ \t]*({_HEADED})[ \t]*(?:[:：]|(?=\r?\n|\Z))[ \t]*\r?\n?"
INST = "[INST]"
# Every pattern begins with a fixed mark or at a line's start, so that it takes time in proportion to the text.
STYLES = {
    "<|im_start|>": re.compile(r"<\|im_start\|>[ \t]*(system|user|assistant|tool)(?:\r?\n|<\|im_sep\|>)"),
    "<|start_header_id|>": re.compile(r"<\|start_header_id\|>(system|user|assistant|tool|ipython)<\|end_header_id\|>"),
    "<|header_start|>": re.compile(r"<\|header_start\|>(system|user|assistant|tool|ipython)<\|header_end\|>"),
    "<|start_of_role|>": re.compile(r"<\|start_of_role\|>(system|user|assistant|tool)<\|end_of_role\|>"),
    "<start_of_turn>": re.compile(r"<start_of_turn>(system|user|model)\r?\n"),
    "<|turn>": re.compile(r"<\|turn>(system|user|model)\r?\n"),
    "<|START_OF_TURN_TOKEN|>": re.compile(r"<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>"),
    "<|start|>": re.compile(
        r"<\|start\|>(system|developer|user|assistant)(?:<\|channel\|>(?:analysis|commentary|final))?<\|message\|>"
    ),
    "<｜...｜>": re.compile(r"<｜(User|Assistant)｜>"),
    "[|...|]": re.compile(r"\[\|(system|user|assistant)\|\]"),
    "<|...|>": re.compile(r"<\|(system|user|assistant)\|>"),
    "###": re.compile(rf"^[ \t]*{_HEADING}", re.IGNORECASE | re.MULTILINE),
    "### within a line": re.compile(rf"(?<!#){_HEADING}", re.IGNORECASE),
    "NAME: within a line": re.compile(r"\b(SYSTEM|USER|HUMAN|QUESTION|ASSISTANT|ANSWER|AI|BOT|GPT)[ \t]*:[ \t]*"),
    "name:": re.compile(
        rf"^[ \t]*(?:\*\*)?({_NAMED})(?:\*\*)?[ \t]*[:：](?:\*\*)?[ \t]*", re.IGNORECASE | re.MULTILINE
    ),
}
_BY_NAME = ("###", "### within a line", "NAME: within a line", "name:")
_INITIALS = ("ai", "gpt", "q", "a")
_BEGINS = (
    *("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>", "<|startoftext|>", "<BOS_TOKEN>"),
    *("<｜begin▁of▁sentence｜>", "[gMASK]", "<sop>", "[BOS]"),
)
ENDS = (
    *(
        "<|im_end|>",
        "<|endoftext|>",
        "<|end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<end_of_turn>",
        "<eos>",
        "</s>",
        "<|eot|>",
    ),
    *("<|end_of_text|>", "<|return|>", "<turn|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "[|endofturn|]"),
)
_LONE_TOKEN = re.compile(r"<[^<>\s]{1,40}>")
# What Llama 3's templates write before a system prompt of their own accord, and would write a second time.
_LLAMA_DATES = re.compile(r"\ACutting Knowledge Date: [^\n]*\nToday Date: [^\n]*\s*")
_TOOLS = ("[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]")


@dataclass(frozen=True, slots=True)
class Marks:
    """How a file marks turns: the style, and the role of each name in use."""

    style: str
    roles: dict[str, str]

    def words(self) -> str:
        """A sentence that shows the marks of the user's and the assistant's turns."""
        if self.style == INST:
            return "`[INST]` marks user turns, `[/INST]` assistant turns"
        marks = {role: self._written(name) for name, role in reversed(self.roles.items())}
        return f"`{marks['user']}` marks user turns, `{marks['assistant']}` assistant turns"

    def _written(self, name: str) -> str:
        label = name.upper() if name in _INITIALS or self.style.startswith("NAME") else name.capitalize()
        if self.style in _BY_NAME:
            return f"### {label}" if self.style.startswith("###") else f"{label}:"
        if "..." in self.style:
            return self.style.replace("...", label if "｜" in self.style else name)
        return f"<|{name.upper()}_TOKEN|>" if self.style == "<|START_OF_TURN_TOKEN|>" else f"{self.style}{name}"


def marks_of(texts: Sequence[str], least: float = MIN_SHARE, *, rendered: bool = False) -> Marks | None:
    """The style by which at least the share `least` of the texts marks a user's turn and an answer; else None.

    Of several names the pair is taken whose asking name comes first and whose names belong together. `rendered`: only
    the marks count that chat templates write, and no names or headings.
    """
    texts = [text[:_LOOKED_AT] for text in texts[:: len(texts) // _MAX_TEXTS + 1]]
    best: tuple[float, Marks | None] = (0.0, None)
    for style in (INST, *(name for name in STYLES if not (rendered and name in _BY_NAME))):
        marks, times = _best_pair(style, texts)
        share = times / max(len(texts), 1)
        if marks and share > best[0] / _LIKE_SHARE:
            best = (share, marks)
    return best[1] if best[0] >= least else None


def _best_pair(style: str, texts: Sequence[str]) -> tuple[Marks | None, int]:
    """The pair of names that most texts use in one style, and the number of texts."""
    if style == INST:
        times = sum(0 <= text.find("[INST]") < text.rfind("[/INST]") for text in texts)
        return (Marks(style, {}) if times else None), times
    rows = [[mark.group(1).lower() for mark in STYLES[style].finditer(text)] for text in texts]
    pairs: Counter[tuple[str, str]] = Counter()
    first: Counter[str] = Counter()
    for names in rows:
        asking = list(dict.fromkeys(name for name in names if _ROLES[name] == "user"))
        first.update(asking[:1])
        for user in asking:
            after = dict.fromkeys(names[names.index(user) :])
            pairs.update((user, name) for name in after if _ROLES[name] == "assistant")
    if not pairs:
        return None, 0
    most = max(pairs.values())
    likely = [pair for pair, times in pairs.items() if times >= _LIKE_SHARE * most]
    user, assistant = max(likely, key=lambda pair: (first[pair[0]], -_rank(pair), pairs[pair]))
    roles = {user: "user", assistant: "assistant"}
    if style not in _BY_NAME:
        roles |= {name: _ROLES[name] for names in rows for name in names if name not in roles}
    else:
        if any(names[:1] == ["system"] for names in rows):
            roles["system"] = "system"
        if user == "instruction":
            roles["input"] = "input"
    return Marks(style, roles), pairs[user, assistant]


def _rank(pair: tuple[str, str]) -> int:
    user, assistant = pair
    partners = _ANSWERING[user]
    return partners.index(assistant) if assistant in partners else len(partners) + _ASSISTANTS.index(assistant)


def parse_dialogue(text: str, field: str, marks: Marks) -> list[Message]:
    """The turns of a dialogue; text before the first mark is the system prompt. Raises RowError."""
    if marks.style == INST:
        return _from_inst(text, field)
    turn_marks = _turn_marks(text, marks)
    roles = [role for role, _, _ in turn_marks]
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        raise RowError(NO_MARKS, field, text)
    head = _preamble(text[: turn_marks[0][1]])
    turns = [("system", head)] if head else []
    ends = [start for _, start, _ in turn_marks[1:]] + [len(text)]
    for (role, _, start), end in zip(turn_marks, ends, strict=True):
        content = tidy(text[start:end], ("###",) if marks.style.startswith("###") else ())
        if role == "system":
            content = _LLAMA_DATES.sub("", content)
        if role == "input":
            turns[-1] = ("user", f"{turns[-1][1]}\n\n{content}".strip())
        elif role == "system" and len(turns) == 1 and turns[0][0] == "system":
            turns[0] = ("system", f"{turns[0][1]}\n\n{content}".strip())
        else:
            turns.append((role, content))
    if turns[0] == ("system", ""):
        turns = turns[1:]
    return [Message(role, content) for role, content in turns]


def role_at(line: str, marks: Marks) -> str | None:
    """Who speaks from a line on that begins with a mark of the file; None for other lines."""
    mark = STYLES[marks.style].match(line) if marks.style in STYLES else None
    return marks.roles.get(mark.group(1).lower()) if mark else None


def _turn_marks(text: str, marks: Marks) -> list[tuple[str, int, int]]:
    """The role of each mark of the file in a text, and where the mark begins and ends. An input belongs to its turn."""
    turn_marks: list[tuple[str, int, int]] = []
    for mark in STYLES[marks.style].finditer(text):
        role = marks.roles.get(mark.group(1).lower())
        if role and (role != "input" or (turn_marks and turn_marks[-1][0] == "user")):
            turn_marks.append((role, mark.start(), mark.end()))
    return turn_marks


def _from_inst(text: str, field: str) -> list[Message]:
    if any(mark in text for mark in _TOOLS):
        raise RowError(TOOL_MARKS, field, text)
    before, questions, at = list[str](), list[str](), 0
    searched, close = 0, text.find("[/INST]")
    while close >= 0:
        start = text.rfind("[INST]", searched, close)
        if start >= 0:  # else the mark is spoken of in an answer
            before.append(text[at:start])
            questions.append(text[start + len("[INST]") : close])
            at = close + len("[/INST]")
        searched = close + len("[/INST]")
        close = text.find("[/INST]", searched)
    if not questions:
        raise RowError(NO_MARKS, field, text)
    head, *answers = (*before, text[at:])
    system = [_preamble(head).removeprefix("[SYSTEM_PROMPT]").removesuffix("[/SYSTEM_PROMPT]").strip()]
    first_question = questions[0].strip()
    if first_question.startswith("<<SYS>>") and "<</SYS>>" in first_question:
        instructions, _, first_question = first_question.removeprefix("<<SYS>>").partition("<</SYS>>")
        system.append(instructions.strip())
    messages: list[Message] = []
    for question, answer in zip([first_question, *questions[1:]], answers, strict=True):
        messages += [Message("user", question.strip()), Message("assistant", tidy(answer, _BEGINS))]
    whole = "\n\n".join(part for part in system if part)
    return [*([Message("system", whole)] if whole else []), *messages]


def _preamble(text: str) -> str:
    """The text before the first mark, without a begin-of-text token."""
    text = text.strip()
    for mark in _BEGINS:
        text = text.removeprefix(mark).lstrip()
    return "" if _LONE_TOKEN.fullmatch(text) else text


def tidy(text: str, marks: Sequence[str] = ()) -> str:
    """A turn without white space around it and without the marks that end it."""
    end, ended = len(text.rstrip()), True
    while ended:
        ended = False
        for mark in (*ENDS, *marks):
            if text.endswith(mark, 0, end):
                end, ended = end - len(mark), True
                while end and text[end - 1].isspace():
                    end -= 1
    return text[:end].lstrip()
