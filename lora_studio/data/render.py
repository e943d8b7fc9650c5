"""Renders conversations with a chat template and finds the character spans that are trained.

Generation marks of a template are the spans. Without marks, each prompt is rendered and matched with the whole text;
`AnswerSpans` handles templates that rewrite earlier turns.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from lora_studio.data.chat_templates import MARKS, ChatTemplate, Template, adds_bos
from lora_studio.data.dialogues import ENDS
from lora_studio.data.messages import (
    BROKEN_TEXT,
    CONTROL,
    EMPTY_ANSWER,
    FORMS,
    ChatMessage,
    Conversation,
    Form,
    RowError,
    Tool,
    is_broken,
)
from lora_studio.errors import StudioError

REWRITES = "the chat template changes earlier turns as the conversation grows, so they cannot be trained"
# Unicode's noncharacters, which no row holds: a mark is the number of its message between two of them.
_OPEN, _CLOSE, _ZERO = "\ufdd2", "\ufdd3", 0xFDD4
_MARK = re.compile(f"{_OPEN}([{chr(_ZERO)}-{chr(_ZERO + 9)}]+){_CLOSE}")
_FOUND = 200
MASKS = ("assistant", "last_turn", "all")
"""The values of `train_on`."""
Render = Callable[[Sequence[ChatMessage], bool], str]


@dataclass(frozen=True, slots=True)
class _Marked:
    """A text without its marks, and where each message's mark stood."""

    text: str
    ends: Mapping[int, int]

    def after(self, message: int) -> str:
        """The text after a message's content. Raises RowError if the template leaves that content out."""
        if message not in self.ends:
            raise RowError(REWRITES, found=self.text[:_FOUND])
        return self.text[self.ends[message] :]


class AnswerSpans:
    """Finds answers in whole texts. `render` gives the text of messages, with a generation prompt or without.

    `special` matches the tokens that may differ between a turn at the end and the same turn in the middle.
    """

    def __init__(self, render: Render, special: re.Pattern[str]) -> None:
        self._render = render
        self._special = special

    def find(self, messages: Sequence[ChatMessage], text: str) -> list[tuple[int, int]]:
        """The character spans of all assistant messages in `text`, in order. Raises RowError."""
        marked = [_with_mark(message, number) for number, message in enumerate(messages)]
        whole = _without_marks(self._render(marked, False))
        if whole.text != text:  # the template decides by the contents' ends
            raise RowError(REWRITES, found=_difference(whole.text, text))
        spans: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                start, stop = self._span(marked, number, whole)
                between = any(start < end <= stop for other, end in whole.ends.items() if other != number)
                if start > stop or between or (spans and start < spans[-1][1]):
                    raise RowError(REWRITES, found=text[start : start + _FOUND])
                spans.append((start, stop))
        return spans

    def _span(self, marked: Sequence[ChatMessage], number: int, whole: _Marked) -> tuple[int, int]:
        """The span of an answer: from the end of its rendered prompt to the end of its turn."""
        if number == 0:
            raise RowError(REWRITES, found=whole.text[:_FOUND])
        question = number - 1
        prompt = _without_marks(self._render(marked[:number], True)).after(question)
        alone = _without_marks(self._render(marked[: number + 1], False))
        begins = whole.ends[question] if question in whole.ends else len(whole.text) - len(whole.after(question))
        start = begins + self._length(prompt, whole.text[begins:])
        own = alone.after(question)
        answer = own[self._length(prompt, own) :]
        if marked[number]["content"]:
            stop = whole.ends.get(number, -1)
            if stop < start:
                raise RowError(REWRITES, found=answer[:_FOUND])
            return start, stop + self._length(alone.after(number), whole.text[stop:])
        if (same := self._common(answer, whole.text[start:])) is not None:
            return start, start + same
        closing = answer[len(self._without_end(answer)) :]
        stop = whole.text.find(closing, start) if closing.strip() else -1
        if stop < 0:
            raise RowError(REWRITES, found=answer[:_FOUND])
        return start, stop + len(closing)

    def _length(self, part: str, text: str) -> int:
        """How far `part` goes along with the beginning of `text`; only special tokens of it may be left over."""
        common = self._common(part, text)
        if common is None:
            raise RowError(REWRITES, found=part[:_FOUND])
        return common

    def _common(self, part: str, text: str) -> int | None:
        common = common_length(part, text, self._special)
        return None if self._special.sub("", part[common:]).strip() else common

    def _without_end(self, answer: str) -> str:
        """An answer less the special tokens and white space that close it."""
        stripped = answer.rstrip()
        while last := next((match for match in self._special.finditer(stripped) if match.end() == len(stripped)), None):
            stripped = stripped[: last.start()].rstrip()
        return stripped


def common_length(part: str, text: str, special: re.Pattern[str]) -> int:
    """How many characters two texts begin with alike, less a special token of either that they only begin alike."""
    common = common_start(part, text)
    for side in (part, text):
        for match in special.finditer(side, max(0, common - 100), common + 100):
            if match.start() < common < match.end():
                common = match.start()
    return common


def common_start(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    low, high = 0, shorter  # they are alike up to `low` and not up to `high`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle)
    return low


def _with_mark(message: ChatMessage, number: int) -> ChatMessage:
    """The message with its mark behind the last letter of its content; white space there may be stripped."""
    content = message["content"]
    if not isinstance(content, str) or not content.strip():
        return {**message, "content": ""} if content == "" else message
    end = len(content.rstrip())
    digits = "".join(chr(_ZERO + int(digit)) for digit in str(number))
    return {**message, "content": content[:end] + _OPEN + digits + _CLOSE + content[end:]}


def _without_marks(marked: str) -> _Marked:
    """Raises RowError where a template writes a content twice."""
    pieces, ends = [], dict[int, int]()
    length = done = 0
    for mark in _MARK.finditer(marked):
        number = int("".join(str(ord(digit) - _ZERO) for digit in mark.group(1)))
        pieces.append(marked[done : mark.start()])
        length += len(pieces[-1])
        if number in ends:
            raise RowError(REWRITES, found=pieces[-1][-_FOUND:])
        ends[number], done = length, mark.end()
    return _Marked("".join([*pieces, marked[done:]]), ends)


def _difference(first: str, second: str) -> str:
    at = common_start(first, second)
    return second[max(0, at - 20) : at + _FOUND]


REFUSED = "the chat template rejects the row"
NO_SYSTEM = "the chat template does not support a system prompt"
NO_TOOLS = "the chat template does not support tool calls and their results"
CALLS_LEFT_OUT = "the chat template omits tool calls of the answers"
WEIGHTS = "the row excludes single answers from training, but the chat template does not mark answers individually"
NOTHING_MARKED = "the chat template marks nothing in the row as an answer"
# RuntimeError: macros that call each other for ever; ArithmeticError: a range or a number that is too large.
TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError)
_END = re.compile(r"end|eot|eos|/s", re.IGNORECASE)
_THINK = ("<think>", "</think>")


@dataclass(slots=True)
class Rendered:
    """The text of a conversation and its trained character spans, in order and apart.

    `rewritten`: the template writes earlier answers otherwise than the last one. `numbered`: its tool calls were given
    ids, as the template takes none without. `masks`: the spans by each value of `train_on`, where all of them come to
    this text; {} elsewhere.
    """

    text: str
    spans: list[tuple[int, int]]
    rewritten: bool = False
    numbered: bool = False
    masks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """All that decides how conversations are rendered, as plain values. `variables` are JSON text.

    `bos` is "" where the tokenizer does not write it by itself; `start` stands before plain text; `added` are the
    tokenizer's added tokens.
    """

    template: Template
    variables: str
    train_on: str
    bos: str
    eos: str
    start: str
    added: tuple[str, ...]


def rules_of(tokenizer: Any, template: Template, train_on: str, enable_thinking: bool | None = None) -> Rules:
    """The rules of a tokenizer and a template; `train_on` is assistant, last_turn or all."""
    if not tokenizer.eos_token:
        raise StudioError(
            "The tokenizer has no end-of-text token, so the model could not learn to stop.",
            "Choose a model whose tokenizer defines an eos_token.",
        )
    bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
    thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    variables = json.dumps({**tokenizer.special_tokens_map, **thinking})
    added = tuple(sorted(tokenizer.get_added_vocab()))
    return Rules(template, variables, train_on, bos, tokenizer.eos_token, _text_start(tokenizer, bos), added)


class Renderer:
    """Renders conversations by fixed rules. Raises StudioError for a text that is no template."""

    def __init__(self, rules: Rules) -> None:
        self._template = rules.template
        self._train_on = rules.train_on
        self._knows_tools = "tool_calls" in rules.template.source
        self._jinja = ChatTemplate(rules.template.source, json.loads(rules.variables))
        self._eos, self._bos, self._start = rules.eos, rules.bos, rules.start
        added = sorted({*rules.added, *_THINK}, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(token) for token in added))
        # Tokens that end an answer; an end token already in the text is not repeated.
        self._ends = tuple(token for token in added if token == self._eos or token in ENDS)
        self._added = tuple(token for token in added if token not in _THINK and not token.isspace())

    def render(self, conversation: Conversation) -> Rendered | RowError:
        """The text of a conversation with its trained spans, or why it can't be rendered."""
        if conversation.text is not None:
            return self._plain_text(conversation.text)
        if not self._knows_tools and _uses_tools(conversation):
            return RowError(NO_TOOLS, found=self._template.origin)
        return self._render_chat(conversation)

    def _plain_text(self, text: str) -> Rendered:
        """Plain text with begin and end tokens, unless it already has them."""
        begun = bool(self._bos) and text.startswith(self._bos)
        ended = any(text.rstrip().endswith(token) for token in self._ends)
        whole = ("" if begun else self._start) + text + ("" if ended else self._eos)
        spans = [(len(self._bos), len(whole))]
        return Rendered(whole, spans, masks=dict.fromkeys(MASKS, spans))

    def _render_chat(self, chat: Conversation) -> Rendered | RowError:
        uses_tools = _uses_tools(chat)
        if (chat.tools or uses_tools) and MARKS.search(json.dumps([chat.tools, chat.to_dicts()], ensure_ascii=False)):
            return RowError(CONTROL, found="U+FDD0 to U+FDEF in tools or tool calls")
        faults: list[RowError] = []
        for form in FORMS if any(message.tool_calls for message in chat.messages) else FORMS[:1]:
            try:
                return self._in_form(chat, form)
            except RowError as error:
                faults.append(error)
            except TEMPLATE_FAULTS as error:
                faults.append(RowError(REFUSED, found=str(error)))
        # A fault of one form explains more than a refusal; the first refusal more than that of generated ids.
        fault = next((candidate for candidate in faults if candidate.reason != REFUSED), faults[0])
        return self._naming_system(chat, fault) if fault.reason == REFUSED else fault

    def _in_form(self, chat: Conversation, form: Form) -> Rendered:
        """Renders the row with tool calls in one form. Raises RowError and TEMPLATE_FAULTS."""
        messages = [self._without_end(message) for message in chat.to_dicts(form)]
        text, marks = self._jinja.render(messages, chat.tools)
        if is_broken(text):
            raise RowError(BROKEN_TEXT, found=text)
        rewritten = False
        if self._template.has_marks:
            spans = self._spans_by_marks(text, marks)
        else:
            try:
                spans = self._spans_by_prefix(messages, chat.tools, text)
            except RowError:
                spans, rewritten = self._spans_in_whole(messages, chat.tools, text), True
        if any(message.tool_calls for message in chat.messages):
            self._check_calls(chat, form, text, spans)
        rendered = self._select(text, self._without_untrained(chat, spans))
        rendered.rewritten, rendered.numbered = rewritten, form.numbered
        if not (self._template.has_marks and trains_all_answers(chat)):
            rendered.masks = {}  # another mask looks at other turns, and may refuse the row or accept it
        return rendered

    def _without_end(self, message: ChatMessage) -> ChatMessage:
        """An answer less the end token that the file has written into it, for the template writes it."""
        content = message["content"]
        if message["role"] != "assistant" or not content or not content.rstrip().endswith(self._ends or "\0"):
            return message
        content = content.rstrip()
        while content.endswith(self._ends):
            content = content[: -len(next(token for token in self._ends if content.endswith(token)))]
        if not content.strip() and "tool_calls" not in message:
            raise RowError(EMPTY_ANSWER, found=message["content"])
        return {**message, "content": content}

    def _check_calls(self, chat: Conversation, form: Form, text: str, spans: Sequence[tuple[int, int]]) -> None:
        """Raises RowError if a tool call's name or an argument is missing in its answer, or not written as JSON."""
        answers = [message for message in chat.messages if message.role == "assistant"]
        if self._template.has_marks:
            parts = [" ".join(text[start:stop] for start, stop in spans)] * len(answers)
        elif len(spans) == len(answers):
            parts = [text[start:stop] for start, stop in spans]
        else:  # only the last answer has a span: the others are somewhere before it
            parts = [*[text[: spans[-1][0]]] * (len(answers) - 1), text[spans[-1][0] : spans[-1][1]]]
        for message, part in zip(answers, parts, strict=True):
            names = Counter(call["function"]["name"] for call in message.tool_calls)
            missing = [name for name, calls in names.items() if part.count(name) < calls]
            for call in message.tool_calls:
                arguments = call["function"]["arguments"]
                keys = arguments if isinstance(arguments, dict) else {}
                missing += [key for key in keys if not _shows(part, str(key))]
                if not form.text_arguments and _is_python(arguments, part):
                    raise RowError(REFUSED, found=f"it renders tool-call arguments in Python syntax: {arguments}")
            if missing:
                raise RowError(CALLS_LEFT_OUT, found=", ".join(missing))

    def _naming_system(self, chat: Conversation, fault: RowError) -> RowError:
        """The fault, or NO_SYSTEM if the row renders without its system prompt."""
        if chat.messages[0].role != "system":
            return fault
        unprompted = self._render_chat(replace(chat, messages=chat.messages[1:]))
        return RowError(NO_SYSTEM, found=fault.found) if isinstance(unprompted, Rendered) else fault

    @cached_property
    def _cue(self) -> str:
        """The text that a generation prompt adds; "" for a template that refuses a single question."""
        question = [{"role": "user", "content": "a"}]
        try:
            with_cue, without_cue = (self._jinja.render(question, prompt=prompt)[0] for prompt in (True, False))
        except TEMPLATE_FAULTS:
            return ""
        return with_cue[common_start(with_cue, without_cue) :]

    def _spans_by_marks(self, text: str, marks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The marked spans, those that touch as one, each from the end of its cue where that is near a mark's begin."""
        spans: list[tuple[int, int]] = []
        for start, stop in marks:
            if start < stop and spans and spans[-1][1] >= start:
                spans[-1] = (spans[-1][0], stop)
            elif start < stop:
                spans.append((self._after_cue(text, start, stop), stop))
        return spans

    def _after_cue(self, text: str, start: int, stop: int) -> int:
        """Where an answer begins whose mark begins at `start`, in its cue or with it; white space may come first."""
        if not (cue := self._cue):
            return start
        blank = len(text[start:stop]) - len(text[start:stop].lstrip())
        at = text.find(cue, max(0, start - len(cue) + 1), min(start + blank + len(cue), stop))
        if at >= 0:
            return at + len(cue)
        begin = start + blank - (len(cue) - len(cue.lstrip()))
        common = common_length(cue, text[max(begin, 0) : stop], self._special)
        whole = common and begin >= 0 and not self._special.sub("", cue[common:]).strip()
        return begin + common if whole else start  # the cue opens reasoning that the turn does not have

    def _spans_by_prefix(self, messages: list[ChatMessage], tools: Sequence[Tool], text: str) -> list[tuple[int, int]]:
        """The answers' spans in the whole text of a conversation, by what is rendered before and after each.

        Raises RowError where the text does not begin with that.
        """
        answers = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
        spans = []
        for position in answers[-1:] if self._train_on == "last_turn" else answers:
            before, _ = self._jinja.render(messages[:position], tools, prompt=True)
            after = text
            if position + 1 < len(messages):
                after, _ = self._jinja.render(messages[: position + 1], tools)
            spans.append((self._common_length(before, text), self._common_length(after, text)))
        return spans

    def _spans_in_whole(self, messages: list[ChatMessage], tools: Sequence[Tool], text: str) -> list[tuple[int, int]]:
        """The answers' spans in a text that does not begin with what is rendered before each. Raises RowError."""

        def render(part: Sequence[ChatMessage], prompt: bool) -> str:
            return self._jinja.render(list(part), tools, prompt=prompt)[0]

        return AnswerSpans(render, self._special).find(messages, text)

    def _common_length(self, part: str, text: str) -> int:
        """How far `part` goes along with `text`; only closing tokens and white space of `part` may differ."""
        if text.startswith(part):
            return len(part)
        common = common_length(part, text, self._special)
        if self._special.sub("", part[common:]).strip():
            raise RowError(REWRITES, found=part[common : common + 200])
        return common

    def _without_untrained(self, chat: Conversation, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The spans without answers that the file marks as untrained."""
        trained = [message.trained for message in chat.messages if message.role == "assistant"]
        if all(trained):
            return spans
        if self._train_on == "last_turn":
            return spans[-1:] if trained[-1] else []
        if len(spans) != len(trained):
            raise RowError(WEIGHTS, found=f"{len(spans)} marked parts for {len(trained)} answers")
        return [span for span, keep in zip(spans, trained, strict=True) if keep]

    def _select(self, text: str, spans: Sequence[tuple[int, int]]) -> Rendered:
        """The trained spans by `train_on`, each with its end-of-turn token and nothing after it."""
        tidy = [(start, stop) for start, stop in spans if start < stop]
        if not tidy:
            raise RowError(NOTHING_MARKED, found=text)
        tidy = [(start, self._end_of_turn(text, start, stop)) for start, stop in tidy]
        if not text[tidy[-1][1] :].strip() and not text[: tidy[-1][1]].endswith(self._added):
            text = text[: tidy[-1][1]] + self._eos
            tidy[-1] = (tidy[-1][0], len(text))
        bos = len(self._bos) if self._bos and text.startswith(self._bos) else 0
        whole = [(bos, tidy[-1][1] if not text[tidy[-1][1] :].strip() else len(text))]
        masks = dict(zip(MASKS, (tidy, tidy[-1:], whole), strict=True))
        return Rendered(text, masks[self._train_on], masks=masks)

    def _end_of_turn(self, text: str, start: int, stop: int) -> int:
        """Where a trained span ends: with its end-of-turn token, though the marks take in more or less."""
        following = self._special.match(text, stop)
        if following and (following.group() == self._eos or _END.search(following.group())):
            return following.end()
        answer = text[start:stop].rstrip()
        return start + len(answer) if answer.endswith(self._added) else stop


def _text_start(tokenizer: Any, bos: str) -> str:
    """The text before plain text that yields the tokenizer's own ids.

    A tokenizer that writes a space before a text leaves it out behind a token that is written out.
    """
    alone = tokenizer("a")["input_ids"]
    return next(
        (start for start in (bos, bos + " ") if tokenizer(start + "a", add_special_tokens=False)["input_ids"] == alone),
        bos,
    )


def _shows(part: str, word: str) -> bool:
    """Whether a word stands in a text, by itself or as JSON writes it."""
    return word in part or json.dumps(word)[1:-1] in part or json.dumps(word, ensure_ascii=False)[1:-1] in part


def _is_python(arguments: Any, part: str) -> bool:
    """Whether a text holds arguments as Python prints them, where JSON writes them otherwise."""
    printed = str(arguments)
    return isinstance(arguments, dict) and printed != json.dumps(arguments, ensure_ascii=False) and printed in part


def trains_all_answers(conversation: Conversation) -> bool:
    """Whether the file excludes no answer of a conversation from training."""
    return all(message.trained for message in conversation.messages if message.role == "assistant")


def _uses_tools(conversation: Conversation) -> bool:
    return any(message.role == "tool" or message.tool_calls for message in conversation.messages)
