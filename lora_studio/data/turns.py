"""Lists of turns as files write them (OpenAI, ShareGPT, pairs) to messages. What a column means is told by formats."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_studio.data.messages import Message, RowError

NOT_A_LIST = "the conversation is not a list of messages"
NOT_A_MESSAGE = "a message is not an object with a role and content"
UNKNOWN_ROLE = "a message has an unknown role"
NOT_TEXT = "the value is not text"
MISSING = "the row lacks a needed field"
MEDIA = "images, audio and video can't be trained on here"
BROKEN_CALL = "a tool call is not an object with a name and arguments"
BROKEN_TOOLS = "the list of tools can't be read"

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
_WEIGHT_KEYS = ("weight", "loss", "loss_weight")
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")


def as_text(value: Any, field: str) -> str:
    """A cell as text: numbers as they are written, None as empty; anything else is a RowError."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise RowError(NOT_TEXT, field, value)


def parse_turns(value: Any, field: str, roles: Mapping[str, str] = ROLES) -> list[Message]:
    """The messages of a list of turns, or of a JSON text that holds one; `roles` says what role names mean."""
    if isinstance(value, str):
        value = _load(value, NOT_A_LIST, field)
    if not isinstance(value, list) or not value:
        raise RowError(MISSING if value is None else NOT_A_LIST, field, "" if value is None else value)
    messages: list[Message] = []
    for item in value:
        if not isinstance(item, dict):
            raise RowError(NOT_A_MESSAGE, field, item)
        _append(messages, parse_item(item, field, roles))
    return messages


def role_of(written: Any) -> str | None:
    """What a role name of a file means by itself; None for a name that is not known."""
    return (ROLES.get(written) or ROLES.get(written.strip().lower())) if isinstance(written, str) else None


def role_names(value: Any) -> list[str]:
    """The role names that a list of turns (or the JSON text of one) bears; none for other values."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else None
        except (ValueError, RecursionError):
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


def parse_item(item: dict[str, Any], field: str, roles: Mapping[str, str] = ROLES) -> list[Message]:
    """The message, or the question and answer, that one element of a list of turns holds."""
    if "role" in item or "from" in item:
        return [_parse_message(item, field, roles)]
    pairs = [(roles[key], as_text(value, f"{field}.{key}")) for key, value in item.items() if roles.get(key) in _SPOKEN]
    if not pairs:
        raise RowError(NOT_A_MESSAGE, field, item)
    return [Message(role, text) for role, text in pairs]


_SPOKEN = ("system", "user", "assistant")


def _parse_message(item: dict[str, Any], field: str, roles: Mapping[str, str]) -> Message:
    written = item["role"] if "role" in item else item["from"]
    role = (roles.get(written) or roles.get(written.strip().lower())) if isinstance(written, str) else None
    if role is None:
        raise RowError(UNKNOWN_ROLE, f"{field}.{'role' if 'role' in item else 'from'}", written)
    key = next((key for key in ("content", "value", "text") if key in item), "content")
    content = item.get(key)
    if role == "call":
        return Message("assistant", "", tool_calls=parse_calls(content, f"{field}.{key}"))
    text, thought, calls = _parse_content(content, f"{field}.{key}")
    thought = next((item[name] for name in _THOUGHT_KEYS if isinstance(item.get(name), str)), thought)
    if item.get("tool_calls"):
        calls += parse_calls(item["tool_calls"], f"{field}.tool_calls")
    elif item.get("function_call"):
        calls += parse_calls(item["function_call"], f"{field}.function_call")
    name, answered = item.get("name"), item.get("tool_call_id")
    trained = all(item.get(key, 1) not in (0, False) for key in _WEIGHT_KEYS)
    return Message(
        role,
        text,
        thought or None,
        calls,
        name if isinstance(name, str) else None,
        tool_call_id=answered if isinstance(answered, str) else None,
        trained=trained,
    )


def _parse_content(content: Any, field: str) -> tuple[str, str, tuple[dict[str, Any], ...]]:
    """Text, reasoning and tool calls of a message's content, which is a string or a list of typed parts."""
    if not isinstance(content, list):
        return as_text(content, field), "", ()
    texts, thoughts = list[str](), list[str]()
    calls: tuple[dict[str, Any], ...] = ()
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXT_PARTS:
            texts.append(as_text(part.get("text", part.get("value")), field))
        elif kind in _THOUGHT_PARTS:
            thoughts.append(as_text(part.get(kind, part.get("text", part.get("value"))), field))
        elif kind in _CALL_PARTS:
            calls += parse_calls(part.get("value", part.get(kind, part)), field)
        elif isinstance(kind, str) and any(word in kind for word in ("image", "audio", "video", "file")):
            raise RowError(MEDIA, field, kind)
        else:
            raise RowError(NOT_TEXT, field, part)
    return "".join(texts), "".join(thoughts), calls


def parse_calls(value: Any, field: str) -> tuple[dict[str, Any], ...]:
    """Tool calls in OpenAI's form, from one call or a list, each as an object or as JSON text."""
    if isinstance(value, str):
        value = _load(value, BROKEN_CALL, field)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(BROKEN_CALL, field, call)
        arguments = function.get("arguments", function.get("input"))
        if isinstance(arguments, str):
            arguments = _load(arguments, BROKEN_CALL, field) if arguments.strip() else {}
        parsed = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
        calls.append({**parsed, "id": call["id"]} if isinstance(call.get("id"), str) else parsed)
    return tuple(calls)


def parse_tools(value: Any, field: str) -> tuple[dict[str, Any], ...]:
    """A row's tools as JSON schemas in OpenAI's form; nothing or an empty text means none."""
    if isinstance(value, str):
        value = _load(value, BROKEN_TOOLS, field) if value.strip() else []
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError(BROKEN_TOOLS, field, value)
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in value)


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
    for asked, answered in value:
        turns += [Message("user", as_text(asked, field)), Message("assistant", as_text(answered, field))]
    return turns


def _load(text: str, reason: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowError(reason, field, text) from None
