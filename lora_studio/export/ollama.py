"""A chat template and a Modelfile for Ollama, derived from the Jinja template and then proved.

Marked conversations are rendered with Jinja to find the text around each role. The resulting Go template, interpreted
here as Ollama does it, must render many other conversations identically, otherwise there is none: a wrong template is
worse than no template.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from lora_studio.config.sections import Generation
from lora_studio.data.render_process import render_text
from lora_studio.errors import StudioError

_ACTION = re.compile(r"\{\{(.*?)(\}\}|\Z)", re.DOTALL)
_TOKEN = re.compile(r'\s*(?:("(?:[^"\\\n]|\\.)*")|(:=|=|[(),])|(\$?\w*(?:\.\w+)+|\$\w*|\.|\w+))')
_QUOTED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN_SIGNS = re.compile(r'\{\{|"""|[^\S\n ]|[^\x20-\x7e\n\x80-\U0010ffff]')


class GoTemplateError(ValueError):
    """A template that is not in the part of the language known here."""


@dataclass(frozen=True)
class _If:
    branches: list[tuple[Any, list[Any]]]  # a condition of None is `else`


@dataclass(frozen=True)
class _Range:
    index: str
    over: Any
    body: list[Any]


@dataclass(frozen=True)
class _Set:
    name: str
    value: Any


@dataclass(frozen=True)
class _Out:
    value: Any


@dataclass(frozen=True)
class _Call:
    function: str
    arguments: list[Any]


@dataclass(frozen=True)
class _Field:
    root: str  # "" is the dot, else a variable; "$" is what the template was given
    names: tuple[str, ...]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "len": len,
    "slice": lambda values, start: values[start:],
}


def text(literal: str) -> str:
    """A text as template source that yields it: what the language or a Modelfile would read otherwise is quoted."""
    source, at = "", 0
    for match in _PLAIN_SIGNS.finditer(literal):
        source += literal[at : match.start()] + _quoted(match.group())
        at = match.end()
    source += literal[at:]
    if source.endswith("{"):  # would join with the braces of what follows
        source = source[:-1] + _quoted("{")
    return "".join(sign if sign == "\n" or sign.isprintable() else _quoted(sign) for sign in source)


def _quoted(signs: str) -> str:
    inner = "".join(
        _QUOTED.get(sign) or (sign if sign.isprintable() else f"\\U{ord(sign):08x}") for sign in signs
    )  # Go reads \U with eight digits
    return '{{ "' + inner + '" }}'


def fill(source: str, messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt that Ollama makes of a conversation: messages of one role in a row are one, system prompts are joined.

    Raises `GoTemplateError` for a template outside the known part.
    """
    collated: list[dict[str, str]] = []
    for message in messages:
        role, content, thought = message["role"], message["content"], message.get("reasoning_content", "")
        if collated and collated[-1]["Role"] == role:
            collated[-1]["Content"] += "\n\n" + content
        else:
            collated.append({"Role": role, "Content": content, "Thinking": thought})
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    data = {"System": system, "Messages": collated}
    return "".join(_run(_parse(source), data, [{"$": data}]))


Scope = dict[str, Any]
"""Variables of a template by name, as one block sets them."""


def _run(nodes: Sequence[Any], dot: Any, scopes: list[Scope]) -> Iterator[str]:
    inner = [*scopes, {}]
    for node in nodes:
        match node:
            case str():
                yield node
            case _Out():
                yield str(_value(node.value, dot, inner))
            case _Set():
                inner[-1][node.name] = _value(node.value, dot, inner)
            case _If():
                for condition, body in node.branches:
                    if condition is None or _value(condition, dot, inner):
                        yield from _run(body, dot, inner)
                        break
            case _Range():
                for number, item in enumerate(_value(node.over, dot, inner)):
                    yield from _run(node.body, item, [*inner, {node.index: number}])


def _value(expression: Any, dot: Any, scopes: list[Scope]) -> Any:
    match expression:
        case _Call():
            return _FUNCTIONS[expression.function](*(_value(item, dot, scopes) for item in expression.arguments))
        case _Field():
            value = dot if not expression.root else _variable(expression.root, scopes)
            for name in expression.names:
                if name not in value:
                    raise GoTemplateError(f"there is no {name} here")
                value = value[name]
            return value
        case _:
            return expression


def _variable(name: str, scopes: list[Scope]) -> Any:
    value = next((scope[name] for scope in reversed(scopes) if name in scope), None)
    if value is None:
        raise GoTemplateError(f"there is no variable {name}")
    return value


def _parse(source: str) -> list[Any]:
    """The nodes of a template, nested as `if` and `range` nest them."""
    root: list[Any] = []
    open_bodies: list[list[Any]] = [root]
    blocks: list[_If | _Range] = []
    at = 0
    for match in _ACTION.finditer(source):
        if not match.group(2):
            break  # nothing closes it: the rest is text
        if match.start() > at:
            open_bodies[-1].append(source[at : match.start()])
        at = match.end()
        tokens = _tokens(match.group(1))
        if tokens == ["end"]:
            if not blocks:
                raise GoTemplateError("an end without a beginning")
            blocks.pop()
            open_bodies.pop()
        elif tokens[0] == "else":
            block = blocks[-1] if blocks else None
            if not isinstance(block, _If) or tokens[1:2] not in ([], ["if"]):
                raise GoTemplateError("an else without an if")
            open_bodies[-1] = []
            block.branches.append((_expression(tokens[2:]) if tokens[1:] else None, open_bodies[-1]))
        else:
            node = _node(tokens)
            open_bodies[-1].append(node)
            if isinstance(node, _If | _Range):
                blocks.append(node)
                open_bodies.append(node.body if isinstance(node, _Range) else node.branches[0][1])
    if blocks:
        raise GoTemplateError("an if or range without an end")
    if source[at:]:
        root.append(source[at:])
    return root


def _node(tokens: list[str]) -> Any:
    match tokens:
        case ["if", *rest]:
            return _If([(_expression(rest), [])])
        case ["range", index, ",", _, ":=", *rest]:
            return _Range(index, _expression(rest), [])
        case [name, ":=", *rest] if name.startswith("$"):
            return _Set(name, _expression(rest))
        case _:
            return _Out(_expression(tokens))


def _tokens(action: str) -> list[str]:
    if action.startswith("-") or action.endswith("-"):
        raise GoTemplateError("trimming is not known here")
    tokens, at, action = [], 0, action.rstrip()
    while at < len(action):
        match = _TOKEN.match(action, at)
        if match is None:
            raise GoTemplateError(f"{action[at:].strip()[:40]!r} is not known here")
        tokens.append(next(group for group in match.groups() if group))
        at = match.end()
    if not tokens:
        raise GoTemplateError("an empty action")
    return tokens


def _expression(tokens: list[str]) -> Any:
    value, remaining = _terms(tokens)
    if remaining:
        raise GoTemplateError(f"{remaining[0]!r} is not known here")
    return value


def _terms(tokens: list[str]) -> tuple[Any, list[str]]:
    """One value, or a function with its arguments, up to a closing parenthesis."""
    if not tokens:
        raise GoTemplateError("a value is missing")
    if tokens[0] not in _FUNCTIONS:
        return _operand(tokens)
    function, remaining, arguments = tokens[0], tokens[1:], []
    while remaining and remaining[0] != ")":
        argument, remaining = _operand(remaining)
        arguments.append(argument)
    return _Call(function, arguments), remaining


def _operand(tokens: list[str]) -> tuple[Any, list[str]]:
    first, remaining = tokens[0], tokens[1:]
    if first == "(":
        value, remaining = _terms(remaining)
        if remaining[:1] != [")"]:
            raise GoTemplateError("a parenthesis is not closed")
        return value, remaining[1:]
    if first.startswith('"'):
        return _unquoted(first), remaining
    if first.isdigit():
        return int(first), remaining
    if first[0] not in "$.":
        raise GoTemplateError(f"{first!r} is not known here")
    root, *names = first.split(".")
    return _Field(root, tuple(name for name in names if name)), remaining


def _unquoted(token: str) -> str:
    escapes = {written[1]: sign for sign, written in _QUOTED.items()}
    return re.sub(
        r"\\(?:U([0-9a-f]{8})|(.))",
        lambda match: chr(int(match[1], 16)) if match[1] else escapes[match[2]],
        token[1:-1],
    )


Chat = list[dict[str, str]]
_HINT = (
    "Use the merged model with a program that supports Jinja templates, such as vLLM or llama.cpp's server with "
    "--jinja. Or train with the prompt style chatml, alpaca or plain."
)
_SYSTEM, _THOUGHT = "qsystemq", "qthoughtq"
_ASKED, _SAID = ("qaskedoneq", "qaskedtwoq", "qaskedthreeq"), ("qsaidoneq", "qsaidtwoq")
_HALF_TOKEN = re.compile(r"[<\[][^<>\[\]\s]*\Z")
_OPEN, _CLOSE = "<think>\n", "</think>"
_TEXTS = (
    "Hello",
    "Two\nlines, and\n\na gap",
    'Quotes "a" \'b\' `c` and """three"""',
    "Braces {{ .System }} {% if x %} ${1+1}",
    "Umlauts äöü, 漢字, 🙂, a\\backslash and <b>markup</b>",
    "7",
)


class _NoCounterpartError(Exception):
    """What of a template has no counterpart in Ollama."""


@dataclass(frozen=True)
class GoTemplate:
    """The template's source, what follows an answer, what was compared, and what a person should know of it."""

    source: str
    after_answer: str
    system: bool
    compared: int
    notes: tuple[str, ...] = ()


@dataclass
class _Parts:
    """The texts around each role's words; `inside` says where a system prompt stands: "" is a turn of its own."""

    opening: str
    user: tuple[str, str]
    assistant: tuple[str, str]
    prompt: str
    system: tuple[str, str] | None = None
    inside: str = ""
    thought: tuple[str, str, str] | None = None
    notes: list[str] = field(default_factory=list)


class _Probe:
    """The Jinja template, without the beginning-of-text token that Ollama writes itself."""

    def __init__(self, template: str, variables: Mapping[str, object], bos: str) -> None:
        self._template, self._variables, self._bos = template, variables, bos

    def __call__(self, chat: Chat, *, prompt: bool = True) -> str:
        return render_text(self._template, self._variables, chat, prompt=prompt).removeprefix(self._bos)

    def gaps(self, chat: Chat, words: Sequence[str], *, prompt: bool = True) -> list[str]:
        """What stands before, between and after the words, which must come in that order, each once."""
        remaining, gaps = self(chat, prompt=prompt), []
        for word in words:
            if remaining.count(word) != 1:
                raise _NoCounterpartError("it omits, repeats or reorders messages")
            before, remaining = remaining.split(word)
            gaps.append(before)
        return [*gaps, remaining]


def to_go(template: str, variables: Mapping[str, object], *, bos: str = "") -> GoTemplate:
    """A chat template for Ollama; `variables` are the tokenizer's special tokens and enable_thinking.

    `bos` is the beginning-of-text token where the tokenizer writes it by itself, as Ollama then does. Raises
    `StudioError` for a template that Go's language or Ollama's messages have no counterpart for.
    """
    probe = _Probe(template, variables, bos)
    try:
        parts = _parts(probe)
        source = _source(parts)
        compared = _prove(probe, source, system=parts.system is not None)
    except _NoCounterpartError as error:
        raise StudioError(f"This chat template cannot be converted for Ollama: {error}.", _HINT) from None
    except TemplateError as error:
        raise StudioError(
            f"This chat template cannot be converted for Ollama: it rejects a dialogue ({error}).", _HINT
        ) from None
    notes = [*parts.notes, *_remarks(probe, source, template)]
    return GoTemplate(source, parts.assistant[1] + parts.user[0], parts.system is not None, compared, tuple(notes))


def _chat(questions: Sequence[str], replies: Sequence[str] = (), system: str = "") -> Chat:
    """Questions and answers in turns, after a system prompt where one is given."""
    turns = [("user", question) for question in questions]
    answers = [("assistant", answer) for answer in replies]
    woven = [turn for pair in itertools.zip_longest(turns, answers) for turn in pair if turn]
    return [{"role": role, "content": content} for role, content in [("system", system)] * bool(system) + woven]


def _parts(probe: _Probe) -> _Parts:
    """The texts of each role, from what stands between marked words."""
    first_question, second_question, third_question = _ASKED
    words = [first_question, _SAID[0], second_question, _SAID[1], third_question]
    first, after_question, between_turns, after_second, between_second, last = probe.gaps(_chat(_ASKED, _SAID), words)
    if (after_question, between_turns) != (after_second, between_second):
        raise _NoCounterpartError("it renders later turns differently from the first")
    if probe.gaps(_chat([first_question]), [first_question]) != [first, last]:
        raise _NoCounterpartError("it renders a first user turn differently if more turns follow")
    alone = probe.gaps(_chat([first_question]), [first_question], prompt=False)[1]
    after_user = _common_start(_common_start(after_question, last), alone)
    ended = probe.gaps(_chat([first_question], [_SAID[0]]), [first_question, _SAID[0]], prompt=False)[2]
    after_answer = between_turns[
        : len(between_turns) - len(_common_end(between_turns[len(_common_start(between_turns, ended)) :], first))
    ]
    before_user = between_turns[len(after_answer) :]
    parts = _Parts(
        opening=first[: len(first) - len(before_user)],
        user=(before_user, after_user),
        assistant=(after_question[len(after_user) :], after_answer),
        prompt=last[len(after_user) :],
    )
    _place_system(probe, parts, first)
    _place_thought(probe, parts)
    return parts


def _place_system(probe: _Probe, parts: _Parts, first: str) -> None:
    """Where a system prompt stands: before everything, within the first question, within the last, or nowhere."""
    nowhere = "The chat template does not support a system prompt, so Ollama ignores system prompts."
    first_question, second_question = _ASKED[:2]
    try:
        rendered = probe(_chat([first_question], system=_SYSTEM))
    except TemplateError:
        parts.notes.append(nowhere)
        return
    if _SYSTEM not in rendered:
        parts.notes.append(nowhere)
        return
    before, after, _ = probe.gaps(_chat([first_question], system=_SYSTEM), [_SYSTEM, first_question])
    longer = probe(_chat([first_question, second_question], [_SAID[0]], _SYSTEM))
    if longer.find(_SYSTEM) > longer.find(first_question):
        parts.system, parts.inside = (before.removeprefix(first), after), "last"
    elif after.endswith(parts.user[0]):
        parts.system = before, after[: len(after) - len(parts.user[0])]
    else:
        parts.system, parts.inside = (before, after), "first"


def _place_thought(probe: _Probe, parts: _Parts) -> None:
    """A thought's place in earlier answers, for a template that takes thoughts out of the answers' text."""
    first_question, second_question = _ASKED[:2]
    written = _chat([first_question, second_question], [f"{_OPEN}{_THOUGHT}\n{_CLOSE}\n\n{_SAID[0]}"])
    if probe(written).count(f"{_THOUGHT}\n{_CLOSE}\n\n{_SAID[0]}") and not parts.assistant[0].rstrip().endswith(_CLOSE):
        return
    chat = _chat([first_question, second_question], [_SAID[0]])
    chat[1]["reasoning_content"] = _THOUGHT
    if _THOUGHT not in probe(chat):
        parts.thought = ("", _OPEN, f"\n{_CLOSE}\n\n")
        return
    _, before, after, _, _ = probe.gaps(chat, [first_question, _THOUGHT, _SAID[0], second_question])
    start = before[len(parts.user[1]) : len(before) - len(_OPEN)]
    if not before.endswith(_OPEN) or not parts.assistant[0].startswith(start):
        raise _NoCounterpartError("it marks reasoning in a way that Ollama does not support")
    parts.thought = start, _OPEN, after


def _source(parts: _Parts) -> str:
    """The parts as a template, as one text without line breaks of its own."""
    before, after = map(text, parts.assistant)
    user, user_end = map(text, parts.user)
    content = "{{ .Content }}"
    lines = [f"{{{{ if not .System }}}}{text(parts.opening)}{{{{ end }}}}"] if parts.system and parts.opening else []
    lines += [text(parts.opening)] if not parts.system else []
    lines += ["{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"]
    turns = []
    if parts.system and not parts.inside:
        turns += [("system", f"{text(parts.system[0])}{content}{text(parts.system[1])}")]
    if parts.system and parts.inside == "first":
        start, end = map(text, parts.system)
        turns += [("system", f"{start}{content}{end}")]
        user = f"{{{{ if or (not $.System) (not (eq $i 1)) }}}}{user}{{{{ end }}}}"
    if parts.system and parts.inside == "last":
        start, end = map(text, parts.system)
        user += f"{{{{ if and $last $.System }}}}{start}{{{{ $.System }}}}{end}{{{{ end }}}}"
    turns += [("user", f"{user}{content}{user_end}")]
    turns += [("assistant", f"{_thinking(parts, before)}{content}{{{{ if not $last }}}}{after}{{{{ end }}}}")]
    for number, (role, turn) in enumerate(turns):
        lines += [f'{{{{ {"else " * bool(number)}if eq .Role "{role}" }}}}{turn}']
    lines += ["{{ end }}"]
    if parts.prompt:
        lines += [f'{{{{ if and $last (ne .Role "assistant") }}}}{text(parts.prompt)}{{{{ end }}}}']
    return "".join([*lines, "{{ end }}"])


def _thinking(parts: _Parts, before: str) -> str:
    """What stands before an answer; Ollama finds the marks of thoughts by the texts around `.Thinking`."""
    if parts.thought is None:
        return before
    start, opened, closed = parts.thought
    if not start:
        return f"{before}{{{{ if and $last .Thinking }}}}{text(opened)}{{{{ .Thinking }}}}{text(closed)}{{{{ end }}}}"
    thought = f"{{{{ if .Thinking }}}}{text(opened)}{{{{ .Thinking }}}}{text(closed)}"
    return f"{text(start)}{thought}{{{{ else }}}}{text(parts.assistant[0][len(start) :])}{{{{ end }}}}"


def _prove(probe: _Probe, source: str, *, system: bool) -> int:
    """How many conversations come out the same from both templates; raises at the first that does not."""
    compared = 0
    for chat in _conversations(system):
        if fill(source, chat) != probe(chat):
            raise _NoCounterpartError("a dialogue is rendered differently")
        compared += 1
    return compared


def _conversations(system: bool) -> Iterator[Chat]:
    """Dialogues of one to four questions, with and without a system prompt, each word of many kinds."""
    for turns in range(1, 5):
        for at in range(len(_TEXTS)):
            words = [_TEXTS[(at + step) % len(_TEXTS)] for step in range(2 * turns)]
            for prompt in ("", _TEXTS[at]) if system else ("",):
                yield _chat(words[::2], words[1::2][: turns - 1], prompt)


def _remarks(probe: _Probe, source: str, template: str) -> Iterator[str]:
    """Where conversations of a rarer kind come out in another way, which a person should know."""
    if "strftime_now" in template:
        yield "The chat template writes the date; the Modelfile keeps the date of the export."
    if _differs(probe, source, _chat(["  Hello \n", "Again"], ["\n Hi "])):
        yield "The chat template strips white space around messages; Ollama does not."


def _differs(probe: _Probe, source: str, chat: Chat) -> bool:
    return fill(source, chat) != probe(chat)


def _common_start(text: str, other: str) -> str:
    """What two texts begin with alike; a token such as <|end|> is in it whole or not at all."""
    at = next((at for at, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return _HALF_TOKEN.sub("", text[:at])


def _common_end(text: str, other: str) -> str:
    return next((text[at:] for at in range(len(text)) if other.endswith(text[at:])), "")


ADAPTED_BY_OLLAMA = frozenset(
    ("LlamaForCausalLM", "MistralForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "MixtralForCausalLM")
)
"""Architectures on which Ollama puts a LoRA adapter by itself (ADAPTER)."""
_QUOTES = '"""'


def stop_texts(after_answer: str, end: str, tokens: Iterable[str], more: Sequence[str] = ()) -> tuple[str, ...]:
    """Where an answer ends: at the end-of-text token, and at the first special token that follows an answer.

    `tokens` are the tokenizer's special ones; `more` are texts that a person named.
    """
    candidates = [token for token in tokens if token and token in after_answer]
    first = sorted(candidates, key=lambda token: (after_answer.find(token), -len(token)))[:1]
    return tuple(dict.fromkeys(text for text in (*first, end, *more) if text))


def carried_by_quotes(text: str) -> bool:
    """Whether a Modelfile carries a text as it is: no three quotes in a row, and no sign that is not printed."""
    return _QUOTES not in text and all(sign.isprintable() or sign in "\n\r\t" for sign in text)


def modelfile(
    source: str,
    template: str,
    stops: Sequence[str],
    generation: Generation,
    *,
    system: str = "",
    adapter: str = "",
    notes: Sequence[str] = (),
) -> str:
    """The file's text; `source` is what FROM names, `notes` stand on top as comments.

    A system prompt that quotes do not carry is left out: say so in a note (`carried_by_quotes`).
    """
    lines = [f"# {' '.join(note.split())}" for note in notes]
    lines += [f"FROM {source}"]
    lines += [f"ADAPTER {adapter}"] if adapter else []
    lines += [f"TEMPLATE {_QUOTES}{template}{_QUOTES}"]
    if system and carried_by_quotes(system):
        lines += [f"SYSTEM {_QUOTES}{system}{_QUOTES}"]
    lines += [f"PARAMETER stop {_in_quotes(text)}" for text in stops if carried_by_quotes(text)]
    lines += [
        f"PARAMETER temperature {generation.temperature:g}",
        f"PARAMETER top_p {generation.top_p:g}",
        f"PARAMETER top_k {generation.top_k}",
        f"PARAMETER min_p {generation.min_p:g}",
        f"PARAMETER repeat_penalty {generation.repetition_penalty:g}",
        f"PARAMETER seed {generation.seed}",
    ]
    return "\n".join(lines) + "\n"


def _in_quotes(text: str) -> str:
    return f'"{text}"' if '"' not in text and "\n" not in text else f"{_QUOTES}{text}{_QUOTES}"
