"""Parses lists of turns in the forms that files use (OpenAI, ShareGPT, Bedrock, Gemini, pairs) to messages.

Also reads lists and objects stored as text, and removes the nulls that Arrow fills into tool calls and schemas.
"""

import ast
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_studio.data.messages import (
    EMPTY_ANSWER,
    EMPTY_TURN,
    FILLED,
    Arguments,
    BadRow,
    Message,
    Reading,
    Record,
    RowError,
    Tool,
    ToolCall,
    is_blank,
)
from lora_studio.files import JsonObject

_NEVER_NULL = ("properties", "items", "enum", "required", "type", "anyOf", "additionalProperties")
_MIN_CALLS = 2


def without_filled(reading: Reading, sample: Iterable[Record | BadRow]) -> Reading:
    """The reading without the nulls that Arrow filled into tool calls and schemas, if a sample shows them."""
    calls = [call for row in sample if isinstance(row, Record) for call in _calls(row.fields)]
    if not is_filled(calls):
        return reading

    def rows() -> Iterator[Record | BadRow]:
        for row in reading.rows():
            if isinstance(row, BadRow):
                yield row
                continue
            fields = {name: without_nulls(value) for name, value in row.fields.items()}
            if fields != row.fields:
                reading.tally.count(FILLED)
            yield Record(row.row, fields)

    return Reading(rows, reading.assumptions, reading.tally)


def without_nulls(value: Any) -> Any:
    """A JSON value without the empty fields of its objects."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return value


def is_filled(calls: list[tuple[str, JsonObject]]) -> bool:
    """Whether calls, each a function's name and arguments, have the fields that Arrow gives them."""
    if len(calls) < _MIN_CALLS or any(arguments.keys() != calls[0][1].keys() for _, arguments in calls):
        return False
    used: dict[str, set[str]] = {}
    for name, arguments in calls:
        used.setdefault(name, set()).update(key for key, value in arguments.items() if value is not None)
    return len(used) > 1 and any(keys < set().union(*used.values()) for keys in used.values())


def has_filled_schema(tool: Any) -> bool:
    """Whether a tool's schema has a null where a schema can have none."""
    if isinstance(tool, list):
        return any(map(has_filled_schema, tool))
    if not isinstance(tool, dict):
        return False
    properties = tool.get("properties")
    if isinstance(properties, dict) and any(value is None for value in properties.values()):
        return True
    return any(key in tool and tool[key] is None for key in _NEVER_NULL) or any(map(has_filled_schema, tool.values()))


def _calls(value: Any) -> Iterator[tuple[str, JsonObject]]:
    """The calls anywhere in a value, each as the function's name and its arguments."""
    if isinstance(value, list):
        for item in value:
            yield from _calls(item)
    elif isinstance(value, dict):
        name, arguments = value.get("name"), value.get("arguments")
        if isinstance(name, str) and isinstance(arguments, dict):
            yield name, arguments
        for item in value.values():
            if isinstance(item, list | dict):
                yield from _calls(item)


WITHOUT_COMMAS = "the turns are written in numpy's format, without commas between them"
_MAX_LENGTH = 1 << 20  # characters; Python's parser takes about a hundred times as many bytes
_MAX_DEPTH = 64
_OPEN, _CLOSE = "[{(", "]})"


def read_value(text: str) -> Any:
    """The value that a text stands for. Raises ValueError where it is neither JSON nor a Python list or dict."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None
    except ValueError as error:
        if not _may_be_python(text):
            raise error from None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise ValueError(WITHOUT_COMMAS if lacks_commas(text) else "the text is neither JSON nor Python") from None


def lacks_commas(text: str) -> bool:
    """Whether the objects of a list have no commas between them, as numpy prints arrays."""
    depth, before, quote, at = 0, "", "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[at - 1] != "\\" else quote
        elif letter in "'\"":
            quote, before = letter, letter
        elif letter == "{" and depth == 1 and before == "}":
            return True
        elif not letter.isspace():
            depth += (letter in _OPEN) - (letter in _CLOSE)
            before = letter
    return False


def _may_be_python(text: str) -> bool:
    """Whether a text may be a Python list or dict, small and shallow enough to parse."""
    start = text.lstrip()[:200]
    inside = start.lstrip("[{( \t\r\n")
    if start[:1] not in ("[", "{") or inside[:1] not in ("'", '"') or len(text) > _MAX_LENGTH:
        return False
    depth = most = 0
    for letter in text:
        depth += (letter in _OPEN) - (letter in _CLOSE)
        most = max(most, depth)
    return most <= _MAX_DEPTH


NOT_A_LIST = "the conversation is not a list of messages"
NOT_A_MESSAGE = "a message is not an object with a role and content"
UNKNOWN_ROLE = "a message has an unknown role"
NOT_TEXT = "the value is not text"
MISSING = "the row lacks a required field"
MEDIA = "images, audio and video are not supported"
BROKEN_CALL = "a tool call is not an object with a name and arguments"
BROKEN_TOOLS = "the list of tools cannot be parsed"
PARTLY_TRAINED = "a turn is only partly to be trained, which is not supported"
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "tool_calls": "call",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("reasoning", "thinking", "reasoning_content")
_CALL_PARTS = ("tool_call", "tool_use", "function_call")
_CALL_KEYS = ("toolUse", "functionCall", "function_call")
_RESULT_KEYS = ("toolResult", "functionResponse", "function_response", "tool_result")
_MEDIA_KEYS = ("image", "audio", "video", "file", "document", "inlinedata", "inline_data")
_CONTENT_KEYS = ("content", "value", "text", "parts")
_HOLDERS = ("messages", "contents", "conversations", "conversation")
_SYSTEM_KEYS = ("system", "systemInstruction", "system_instruction")
_WEIGHT_KEYS = ("weight", "loss", "loss_weight", "train", "training")
_PART_WEIGHT_KEYS = ("train_detail", "training_detail")
_NESTED = 3
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")


def is_turn(value: Any) -> bool:
    """Whether a value is a turn, and not a row that happens to have a `role`: who speaks and what is said or called."""
    return isinstance(value, dict) and bool(
        value.keys() & {"role", "from"} and value.keys() & {*_CONTENT_KEYS, "tool_calls"}
    )


def as_text(value: Any, field: str, depth: int = 0) -> str:
    """A cell as text: numbers and truth values as JSON writes them, None as empty, the text that a list or parts hold.

    Anything else is a RowError, also a list of several texts.
    """
    if isinstance(value, str):
        return value
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if depth > _NESTED:
        raise RowError(NOT_TEXT, field, type(value).__name__)
    if isinstance(value, list) and len(value) == 1:
        return as_text(value[0], field, depth + 1)
    inner = next((value[key] for key in _CONTENT_KEYS if key in value), None) if isinstance(value, dict) else None
    if inner is not None:
        return as_text(inner, field, depth + 1)
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    raise RowError(NOT_TEXT, field, value)


def held_turns(value: Any) -> Any:
    """The list of turns in an object that holds one (`{"messages": [...]}`), else the value itself."""
    turns = [value[name] for name in _HOLDERS if isinstance(value.get(name), list)] if isinstance(value, dict) else []
    return turns[0] if turns else value


def held_beside(value: Any, names: Sequence[str]) -> Any:
    """The value of the first of the names in an object with turns; None elsewhere."""
    inside = value if isinstance(value, dict) and held_turns(value) is not value else {}
    return next((inside[name] for name in names if inside.get(name)), None)


def parse_turns(value: Any, field: str, roles: Mapping[str, str] = ROLES) -> list[Message]:
    """The messages of a list of turns, or of a JSON text that holds one; `roles` says what role names mean."""
    if isinstance(value, str):
        value = _load(value, NOT_A_LIST, field)
    system, value = held_beside(value, _SYSTEM_KEYS), held_turns(value)
    if not isinstance(value, list) or not value:
        raise RowError(MISSING if value is None else NOT_A_LIST, field, "" if value is None else value)
    messages = [Message("system", as_text(system, field))] if system else list[Message]()
    for item in value:
        if not isinstance(item, dict):
            raise RowError(NOT_A_MESSAGE, field, item)
        if item.get("role") == "system" and "content" in item and item["content"] is None:
            continue  # an empty cell, and no system prompt that is empty
        _append(messages, parse_item(item, field, roles))
    _refuse_empty(messages, field)
    return messages


def _refuse_empty(messages: Sequence[Message], field: str) -> None:
    """Raises RowError for a turn that says nothing, with the column that it stands in."""
    for position, message in enumerate(messages, 1):
        reason = {"user": EMPTY_TURN, "assistant": EMPTY_ANSWER}.get(message.role)
        if reason and is_blank(message.content) and not message.tool_calls:
            raise RowError(reason, field, f"message {position}: {message.content!r}")


def role_of(written: Any) -> str | None:
    """The role of a known role name; None for an unknown one."""
    return (ROLES.get(written) or ROLES.get(written.strip().lower())) if isinstance(written, str) else None


def role_names(value: Any) -> list[str]:
    """The role names in a list of turns or its text; [] for other values."""
    if isinstance(value, str):
        try:
            value = read_value(value) if value.lstrip().startswith("[") else None
        except ValueError:
            value = None
    turns = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
    written = [item.get("role", item.get("from")) for item in turns if item.keys() & {"role", "from"}]
    return list(dict.fromkeys(name for name in written if isinstance(name, str)))


def _append(messages: list[Message], new: Iterable[Message]) -> None:
    """Adds turns; tool calls written as turns of their own join the assistant's turn that they belong to."""
    for message in new:
        last = messages[-1] if messages else None
        if last and last.role == message.role == "assistant" and message.tool_calls and not message.content:
            calls = last.tool_calls + message.tool_calls
            messages[-1] = replace(last, tool_calls=calls)
        else:
            messages.append(message)


def parse_item(item: JsonObject, field: str, roles: Mapping[str, str] = ROLES) -> list[Message]:
    """The message, or the question and answer, that one element of a list of turns holds."""
    if item.keys() & {"role", "from", "parts"}:
        return _parse_message(item, field, roles)
    pairs = [(roles[key], as_text(value, f"{field}.{key}")) for key, value in item.items() if roles.get(key) in _SPOKEN]
    if not pairs:
        raise RowError(NOT_A_MESSAGE, field, item)
    return [Message(role, text) for role, text in pairs]


_SPOKEN = ("system", "user", "assistant")


def _parse_message(item: JsonObject, field: str, roles: Mapping[str, str]) -> list[Message]:
    """The turn of an element, after the tools' results that it brings."""
    written = item.get("role", item.get("from", "user"))
    role = (roles.get(written) or roles.get(written.strip().lower())) if isinstance(written, str) else None
    if role is None:
        raise RowError(UNKNOWN_ROLE, f"{field}.{'role' if 'role' in item else 'from'}", written)
    content_keys = [key for key in _CONTENT_KEYS if key in item]
    if not content_keys and not item.keys() & {"tool_calls", "function_call"}:
        raise RowError(NOT_A_MESSAGE, field, item)
    key = next((key for key in content_keys if item[key] is not None), content_keys[0] if content_keys else "content")
    content = item.get(key)
    if role == "call":
        return [Message("assistant", "", tool_calls=parse_calls(content, f"{field}.{key}"))]
    if len(item) == 2 and isinstance(content, str) and item.keys() & {"role", "from"}:
        return [Message(role, content)]  # most turns of most files: nothing else stands in them
    text, thought, calls, results = _parse_content(content, f"{field}.{key}")
    thought = next((item[name] for name in _THOUGHT_KEYS if isinstance(item.get(name), str)), thought)
    if any(item.get(name) for name in _PART_WEIGHT_KEYS):
        raise RowError(PARTLY_TRAINED, field, item)
    if item.get("tool_calls"):
        calls += parse_calls(item["tool_calls"], f"{field}.tool_calls")
    elif item.get("function_call"):
        calls += parse_calls(item["function_call"], f"{field}.function_call")
    name, answered = item.get("name"), item.get("tool_call_id")
    message = Message(
        role,
        text,
        thought or None,
        calls,
        name if isinstance(name, str) else None,
        tool_call_id=answered if isinstance(answered, str) else None,
        trained=not any(_is_off(item.get(key)) for key in _WEIGHT_KEYS),
    )
    return results if results and not (text or calls or thought) else [*results, message]


def _is_off(mark: Any) -> bool:
    """Whether a turn's weight excludes it from training; tables hold it as text."""
    return mark in (0, False) or (isinstance(mark, str) and mark.strip().lower() in ("0", "0.0", "false"))


_Content = tuple[str, str, tuple[ToolCall, ...], list[Message]]


def _parse_content(content: Any, field: str) -> _Content:
    """Text, reasoning, tool calls and tools' results of a message's content: a string or a list of parts."""
    if not isinstance(content, list):
        return as_text(content, field), "", (), []
    texts, thoughts = list[str](), list[str]()
    calls: tuple[ToolCall, ...] = ()
    results: list[Message] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and (kind == "tool_result" or (kind is None and part.keys() & {*_RESULT_KEYS})):
            results.append(_result(part, field))
        elif isinstance(part, dict) and kind is None:
            text, thought, called = _untyped(part, field)
            texts.append(text)
            thoughts.append(thought)
            calls += called
        elif kind in _TEXT_PARTS:
            texts.append(as_text(part.get("text", part.get("value")), field))
        elif kind in _THOUGHT_PARTS:
            thoughts.append(as_text(part.get(kind, part.get("text", part.get("value"))), field))
        elif kind in _CALL_PARTS:
            calls += parse_calls(part.get("value", part.get(kind, part)), field)
        elif isinstance(kind, str) and any(word in kind for word in _MEDIA_KEYS):
            raise RowError(MEDIA, field, kind)
        else:
            raise RowError(NOT_TEXT, field, part)
    return "".join(texts), "".join(thoughts), calls, results


def _untyped(part: JsonObject, field: str) -> tuple[str, str, tuple[ToolCall, ...]]:
    """Text, reasoning and tool calls of a part whose keys tell what it is, as Bedrock and Gemini write them."""
    present = {key: value for key, value in part.items() if value is not None}
    called = next((present[key] for key in _CALL_KEYS if key in present), None)
    if isinstance(called, dict):
        function = {"name": called.get("name"), "arguments": called.get("input", called.get("args")) or {}}
        return "", "", parse_calls({"id": called.get("toolUseId", called.get("id")), "function": function}, field)
    thought = present.get("reasoningContent")
    if isinstance(thought, dict):
        return "", as_text(thought.get("reasoningText"), field), ()
    if isinstance(present.get("text"), str):
        return ("", present["text"], ()) if present.get("thought") is True else (present["text"], "", ())
    if any(word in key.lower() for key in present for word in _MEDIA_KEYS):
        raise RowError(MEDIA, field, ", ".join(present))
    raise RowError(NOT_TEXT, field, part)


def _result(part: JsonObject, field: str) -> Message:
    """A tool's result, with the tool's name or the id of its call."""
    body = next((part[key] for key in _RESULT_KEYS if isinstance(part.get(key), dict)), part)
    content = body.get("content", body.get("response"))
    if isinstance(content, list):
        pieces = [piece.get("text", piece.get("json")) if isinstance(piece, dict) else piece for piece in content]
        content = pieces[0] if len(pieces) == 1 else "".join(_as_json(piece) for piece in pieces)
    called = next((body[key] for key in ("toolUseId", "tool_use_id", "id") if isinstance(body.get(key), str)), None)
    name = body.get("name")
    return Message("tool", _as_json(content), name=name if isinstance(name, str) else None, tool_call_id=called)


def _as_json(value: Any) -> str:
    """A tool's answer as text: text as it stands, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parse_calls(value: Any, field: str) -> tuple[ToolCall, ...]:
    """Tool calls in OpenAI's form, from one call or a list, each as an object or as JSON text."""
    if isinstance(value, str):
        value = _load(value, BROKEN_CALL, field)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(BROKEN_CALL, field, call)
        arguments = _arguments(function.get("arguments", function.get("input")), field)
        parsed = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        calls.append({**parsed, "id": call["id"]} if isinstance(call.get("id"), str) else parsed)
    return tuple(calls)


def _arguments(value: Any, field: str) -> Any:
    """A call's arguments as values, also those written as JSON text, or as JSON text within JSON text."""
    written = ""
    while isinstance(value, str):
        written, value = value, _load(value, BROKEN_CALL, field) if value.strip() else {}
    return Arguments(value, written) if isinstance(value, dict) else value or {}


def parse_tools(value: Any, field: str) -> tuple[Tool, ...]:
    """A row's tools as JSON schemas in OpenAI's form; nothing or an empty text means none."""
    if isinstance(value, str):
        value = _load(value, BROKEN_TOOLS, field) if value.strip() else []
    if isinstance(value, dict):
        value = value.get("tools", [value])
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError(BROKEN_TOOLS, field, value)
    value = without_nulls(value) if has_filled_schema(value) else value
    declarations = [
        declaration
        for tool in value
        for declaration in tool.get("functionDeclarations") or [tool.get("toolSpec") or tool]
    ]
    return tuple(
        tool if "function" in tool else {"type": "function", "function": _schema(tool)} for tool in declarations
    )


def _schema(tool: Tool) -> Tool:
    """A tool with its parameters where OpenAI's form has them."""
    schema = next((tool[key] for key in ("input_schema", "inputSchema") if isinstance(tool.get(key), dict)), None)
    if schema is None or "parameters" in tool:
        return tool
    remaining = {key: value for key, value in tool.items() if key not in ("input_schema", "inputSchema")}
    return {**remaining, "parameters": schema.get("json", schema)}


def parse_history(value: Any, field: str) -> list[Message]:
    """Earlier turns, as a list of [question, answer] pairs or of turns."""
    if isinstance(value, str) and value.strip():
        value = _load(value, NOT_A_LIST, field)
    if not value:
        return []
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return parse_turns(value, field)
    if not isinstance(value, Sequence) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise RowError(NOT_A_LIST, field, value)
    turns = []
    for question, answer in value:
        turns += [Message("user", as_text(question, field)), Message("assistant", as_text(answer, field))]
    _refuse_empty(turns, field)
    return turns


def _load(text: str, reason: str, field: str) -> Any:
    try:
        return read_value(text)
    except ValueError as error:
        raise RowError(WITHOUT_COMMAS if str(error) == WITHOUT_COMMAS else reason, field, text) from None
