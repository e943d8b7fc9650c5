"""An interpreter for the subset of Go templates that our Modelfiles use, so that a template can be proved.

`fill` renders a conversation as Ollama does. Anything outside the subset (pipes, trimming, functions) is refused.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
