"""Chooses a run's chat template once, and compiles templates to render many conversations with their generation marks.

The result is that of transformers' `apply_chat_template`, whose environment (sandbox, filters, functions) this one
repeats; a test compares the two over every template at hand. What is quicker: values of plain dicts and methods of
plain strings, nearly all that a template asks for, skip the sandbox's search, which finds nothing unsafe in them; and a
marked part is written between two marks instead of through a macro.

The channels of gpt-oss's format (harmony) become the reasoning marks that all other models use: there an answer is
several messages, `<|channel|>analysis<|message|>` is reasoning, `<|channel|>final<|message|>` the answer, and a tool
call is addressed to the tool (github.com/openai/harmony).
"""

import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import BuiltinMethodType
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes
from jinja2 import Template as Compiled
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace

from lora_studio.data.messages import ChatMessage, Tool
from lora_studio.errors import StudioError

OWN_STYLES = ("chatml", "alpaca", "plain")
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Template:
    """A chat template: its Jinja `source`, and a sentence on its `origin`."""

    name: str
    source: str
    origin: str

    @property
    def has_marks(self) -> bool:
        """Whether the template has `{% generation %}` marks."""
        return _MARK.search(self.source) is not None

    @property
    def writes_date(self) -> bool:
        """Whether the template writes the current date."""
        return "strftime_now" in self.source


def choose_template(tokenizer: Any, prompt_style: str) -> Template:
    """The template for a prompt style: auto, chat (the tokenizer's own), chatml, alpaca or plain.

    auto is the tokenizer's own template, and chatml for a tokenizer without one. A known family's template without
    generation marks is exchanged for trl's training variant, which has them.
    """
    own = _own_template(tokenizer)
    if prompt_style in OWN_STYLES:
        return _built_in(tokenizer, prompt_style, f"The prompt style {prompt_style} was selected.")
    if prompt_style not in ("auto", "chat"):
        styles = ", ".join(("auto", "chat", *OWN_STYLES))
        raise StudioError(f"There is no prompt style {prompt_style!r}.", f"Choose one of {styles}.")
    if own is None:
        if prompt_style == "chat":
            raise StudioError("The model's tokenizer has no chat template.", "Choose auto, chatml, alpaca or plain.")
        return _built_in(tokenizer, "chatml", "ChatML, because the model's tokenizer has no chat template.")
    if _MARK.search(own):
        return Template("chat", own, "The model's chat template; its generation marks define the loss mask.")
    training = _training_variant(own)
    if training is not None:
        family, source = training
        return Template("chat", source, f"TRL's training version of the model's chat template (family {family}).")
    return Template("chat", own, "The model's chat template; the loss mask is found by rendering message by message.")


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer adds a beginning-of-text token by itself."""
    if tokenizer.bos_token_id is None:
        return False
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 1 and ids[0] == tokenizer.bos_token_id


def _own_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return template.get("default")
    return template


def _built_in(tokenizer: Any, name: str, why: str) -> Template:
    """A built-in template. It writes the beginning-of-text token, as text is tokenised without special tokens."""
    source = (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    if tokenizer.eos_token is None:
        raise StudioError(
            "The tokenizer has no end-of-text token, so the model could not learn to stop with the prompt style "
            f"{name}.",
            "Choose a model whose tokenizer defines an eos_token.",
        )
    return Template(name, ("{{- bos_token }}" if adds_bos(tokenizer) else "") + source, why[0].upper() + why[1:])


def _training_variant(own: str) -> tuple[str, str] | None:
    """trl's variant with generation marks of the same template, by family name.

    Reads trl's template files instead of calling it: importing trl takes three seconds, and the data tab waits.
    """
    package = importlib.util.find_spec("trl")
    for folder in package.submodule_search_locations or [] if package else []:
        for path in sorted((Path(folder) / "chat_templates").glob("*_training.jinja")):
            original = path.with_name(path.name.replace("_training", ""))
            if original.is_file() and original.read_text(encoding="utf-8") == own:
                return original.stem, path.read_text(encoding="utf-8")
    return None


# Two of Unicode's noncharacters, which no text may hold: rows that do are refused before they come here.
BEGIN, END = "\ufdd0", "\ufdd1"
MARKS = re.compile("[\ufdd0-\ufdef]")
_DICT_ATTRIBUTES = frozenset(dir(dict))
# The two left out reach the attributes of what they are given.
_STRING_METHODS = frozenset(name for name in dir(str) if name[0] != "_") - {"format", "format_map"}
_LOOP_VALUES = ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem")
_HARMLESS: dict[type, frozenset[str]] = {str: _STRING_METHODS, LoopContext: frozenset(_LOOP_VALUES)}


class ChatTemplate:
    """A compiled chat template; `variables` are plain values. Raises `StudioError` for a text that is no template."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        try:
            self._template = _compile(source)
        except TemplateSyntaxError as error:
            raise _unreadable(f"{error.message} (line {error.lineno})") from error
        except (SyntaxError, RecursionError, ArithmeticError, UnicodeError) as error:
            # loops nested too deeply for Python, and constants that can't be folded
            raise _unreadable(str(error) or type(error).__name__) from error
        # One context for all conversations: making it anew, as `Template.render` does, takes a sixth of the time.
        self._names: dict[str, Any] = {**self._template.globals, "documents": None, **variables}
        self._context = self._template.new_context(self._names, shared=True)

    def render(
        self, messages: list[ChatMessage], tools: Sequence[Tool] = (), *, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation of plain JSON values, and the character spans of its marked parts.

        `prompt` adds what comes before an answer.
        """
        for message in messages:
            if "reasoning_content" in message:  # some templates read the thought under its older name
                message["thinking"] = message["reasoning_content"]
        self._names |= {"messages": messages, "tools": list(tools) or None, "add_generation_prompt": prompt}
        context = self._context
        context.vars.clear()  # variables of the last conversation
        context.exported_vars.clear()
        return _spans_of("".join(self._template.root_render_func(context)))


def _unreadable(why: str) -> StudioError:
    return StudioError(
        f"The chat template cannot be parsed: {why}.",
        "Choose a prompt style such as chatml, or a model whose tokenizer has a complete chat template.",
    )


def _spans_of(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and the spans they enclose; of nested marks the outer spans."""
    before, *parts = marked.split(BEGIN)
    pieces, spans = [before], list[tuple[int, int]]()
    length, begin, depth = len(before), 0, 0
    for part in parts:
        begin, depth = (length if depth == 0 else begin), depth + 1
        inside, *after = part.split(END)
        pieces.append(inside)
        length += len(inside)
        for piece in after:
            depth -= 1
            if depth == 0:
                spans.append((begin, length))
            pieces.append(piece)
            length += len(piece)
    return "".join(pieces), spans


@lru_cache(maxsize=32)
def _compile(source: str) -> Compiled:
    environment = _ChatEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dicts(),
        "namespace": _ChatNamespace,
    }
    return environment.from_string(source)


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if attribute in _HARMLESS.get(kind, ()):
            return getattr(obj, attribute)
        if kind is _ChatNamespace and not attribute.startswith("_"):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if type(obj) is BuiltinMethodType and type(obj.__self__) is str and obj.__name__ in _STRING_METHODS:
            kwargs.pop("_loop_vars", None)  # for functions that want the template's context
            kwargs.pop("_block_vars", None)
            return obj(*args, **kwargs)
        return super().call(context, obj, *args, **kwargs)


class _Generation(Extension):
    """`{% generation %}`: what the model writes. Names set inside stay inside, as in a macro."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marked = [nodes.Output([nodes.TemplateData(BEGIN)]), *body, nodes.Output([nodes.TemplateData(END)])]
        return nodes.Scope(marked).set_lineno(line)


class _Dicts:
    """`dict(...)` in a template, without the type's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _ChatNamespace(Namespace):
    """`namespace(...)` in a template, whose names can't begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"A chat template may not store {name!r} in a namespace: the name begins with an underscore."
        )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


START_MESSAGE, CHANNEL, MESSAGE, END_MESSAGE = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
CUE = "<|start|>assistant"
"""What a prompt ends with."""
ANALYSIS = "analysis"
OPENING, CLOSING = "<think>\n", "\n</think>\n\n"


def is_harmony(template: str) -> bool:
    """Whether a chat template writes harmony's channels."""
    return f"{CHANNEL}{ANALYSIS}{MESSAGE}" in template


def with_reasoning(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with the reasoning of earlier answers apart: harmony's template takes it under a key of its own."""
    return [_apart(message) for message in messages]


def _apart(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if message.get("role") != "assistant" or not isinstance(content, str) or not content.startswith("<think>"):
        return message
    inside, closed, rest = content.removeprefix("<think>").partition("</think>")
    if not closed:  # stopped while it reasoned
        return {**message, "content": "", "reasoning_content": inside.strip()}
    return {**message, "content": rest.strip(), "reasoning_content": inside.strip()}


def in_channels(answer: str) -> str:
    """An answer with reasoning marks as the model writes it after its cue, without its end token."""
    message = _apart({"role": "assistant", "content": answer})
    final = f"{CHANNEL}final{MESSAGE}{message['content']}"
    if not message.get("reasoning_content"):
        return final
    return f"{CHANNEL}{ANALYSIS}{MESSAGE}{message['reasoning_content']}{END_MESSAGE}{CUE}{final}"


class ChannelReader:
    """Turns an answer's tokens into those to be shown, one by one: headers are left out, and what stands in the
    analysis channel is between reasoning marks.

    `ids` are the tokens of `START_MESSAGE`, `CHANNEL`, `MESSAGE` and `END_MESSAGE`; `encode` and `decode` are the
    tokenizer's.
    """

    def __init__(
        self, ids: Mapping[str, int], encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]
    ) -> None:
        self._ids, self._decode = ids, decode
        self._opening, self._closing = encode(OPENING), encode(CLOSING)
        self._header: list[int] | None = None  # None outside a header
        self._thinking = False

    def read(self, token: int) -> list[int]:
        """The tokens to show for the next one."""
        if token in (self._ids[START_MESSAGE], self._ids[CHANNEL], self._ids[END_MESSAGE]):
            closing = self._closing if self._thinking else []
            self._thinking = False
            self._header = None if token == self._ids[END_MESSAGE] else []
            return closing
        if token == self._ids[MESSAGE] and self._header is not None:
            self._thinking = self._decode(self._header).strip().startswith(ANALYSIS)
            self._header = None
            return self._opening if self._thinking else []
        if self._header is not None:
            self._header.append(token)
            return []
        return [token]


def channel_reader(tokenizer: Any) -> ChannelReader | None:
    """The reader of a tokenizer's channels; None for one without harmony's tokens."""
    vocabulary = tokenizer.get_vocab()
    if not {START_MESSAGE, CHANNEL, MESSAGE, END_MESSAGE} <= vocabulary.keys():
        return None
    ids = {name: vocabulary[name] for name in (START_MESSAGE, CHANNEL, MESSAGE, END_MESSAGE)}
    return ChannelReader(
        ids, lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer.decode
    )
