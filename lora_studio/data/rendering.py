"""Conversations to text, with the character spans that are trained.

With a template that has generation marks, the marks are the spans, less what a generation prompt brings by itself.
Without marks, the text before each answer is rendered with the generation prompt and must be what the whole text begins
with. Nothing here knows tokens' ids.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from lora_studio.data.chat_jinja import MARKS, ChatTemplate
from lora_studio.data.messages import CONTROL, Conversation, RowError
from lora_studio.data.prompt_styles import Template, adds_bos
from lora_studio.errors import StudioError

REFUSED = "the chat template refuses the row"
REWRITES = "the chat template changes earlier turns as the conversation goes on, so they can't be trained"
NO_TOOLS = "the chat template has no place for tool calls and their results"
WEIGHTS = "the row leaves single answers out of training, but the chat template does not mark answer by answer"
NOTHING_MARKED = "the chat template marks nothing of the row as the model's answer"
_TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
_END = re.compile(r"end|eot|eos|/s", re.IGNORECASE)
_THINK = ("<think>", "</think>")


@dataclass(slots=True)
class Rendered:
    """The text of a conversation and its trained character spans, in order and apart."""

    text: str
    spans: list[tuple[int, int]]


class Renderer:
    """Renders conversations with one template; `train_on` is assistant, last_turn or all."""

    def __init__(self, tokenizer: Any, template: Template, train_on: str, enable_thinking: bool | None = None) -> None:
        self._template = template
        self._train_on = train_on
        self._knows_tools = "tool_calls" in template.source
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._jinja = ChatTemplate(template.source, {**tokenizer.special_tokens_map, **thinking})
        self._eos = tokenizer.eos_token or ""
        self._bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
        self._start = _text_start(tokenizer, self._bos)
        added = sorted({*tokenizer.get_added_vocab(), *_THINK}, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(token) for token in added))
        self._added = tuple(token for token in added if token not in _THINK and not token.isspace())
        if not self._eos:
            raise StudioError(
                "The tokenizer has no end-of-text token, so a model could not learn to stop.",
                "Choose a model whose tokenizer names an eos_token.",
            )

    def render(self, conversations: Sequence[Conversation]) -> list[Rendered | RowError]:
        """One result for each conversation, in order."""
        return [self._render(conversation) for conversation in conversations]

    def _render(self, conversation: Conversation) -> Rendered | RowError:
        if conversation.text is not None:
            return self._plain_text(conversation.text)
        if not self._knows_tools and _uses_tools(conversation):
            return RowError(NO_TOOLS, found=self._template.origin)
        return self._render_chat(conversation)

    def _plain_text(self, text: str) -> Rendered:
        whole = self._start + text + self._eos
        return Rendered(whole, [(len(self._bos), len(whole))])

    def _render_chat(self, chat: Conversation) -> Rendered | RowError:
        messages = chat.to_dicts()
        if (chat.tools or _uses_tools(chat)) and MARKS.search(json.dumps([chat.tools, messages], ensure_ascii=False)):
            return RowError(CONTROL, found="U+FDD0 or U+FDD1 in tools or tool calls")
        try:
            text, spans = self._jinja.render(messages, chat.tools)
            by_marks = self._template.has_marks
            spans = self._spans_by_marks(text, spans) if by_marks else self._spans_by_prefix(chat, text)
            return self._select(text, self._without_untrained(chat, spans))
        except RowError as error:
            return error
        except _TEMPLATE_FAULTS as error:
            return RowError(REFUSED, found=str(error))

    @cached_property
    def _cue(self) -> str:
        """What a generation prompt adds to a question; empty for a template that takes no lone question."""
        question = [{"role": "user", "content": "a"}]
        try:
            asked, told = (self._jinja.render(question, prompt=prompt)[0] for prompt in (True, False))
        except _TEMPLATE_FAULTS:
            return ""
        return asked[_common_start(asked, told) :]

    def _spans_by_marks(self, text: str, marks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """The marked spans, those that touch as one, each from the end of its cue where a mark begins within it."""
        spans: list[tuple[int, int]] = []
        for start, stop in marks:
            if start < stop and spans and spans[-1][1] >= start:
                spans[-1] = (spans[-1][0], stop)
            elif start < stop:
                cue = len(self._cue)
                at = text.find(self._cue, max(0, start - cue + 1), start + cue - 1) if cue else -1
                spans.append((start if at < 0 else at + cue, stop))
        return spans

    def _spans_by_prefix(self, chat: Conversation, text: str) -> list[tuple[int, int]]:
        """The answers' spans in the whole text of a conversation, by what is rendered before and after each."""
        messages = chat.to_dicts()
        answers = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
        spans = []
        for position in answers[-1:] if self._train_on == "last_turn" else answers:
            before, _ = self._jinja.render(messages[:position], chat.tools, prompt=True)
            after = text
            if position + 1 < len(messages):
                after, _ = self._jinja.render(messages[: position + 1], chat.tools)
            spans.append((self._common_length(before, text), self._common_length(after, text)))
        return spans

    def _common_length(self, part: str, text: str) -> int:
        """How far `part` goes along with `text`; only closing tokens and white space of `part` may differ."""
        if text.startswith(part):
            return len(part)
        common = _common_start(part, text)
        for match in self._special.finditer(text, max(0, common - 100), common + 100):
            if match.start() < common < match.end():
                common = match.start()
        if self._special.sub("", part[common:]).strip():
            raise RowError(REWRITES, found=part[common : common + 200])
        return common

    def _without_untrained(self, chat: Conversation, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The spans of the answers that the file wants trained."""
        wanted = [message.trained for message in chat.messages if message.role == "assistant"]
        if all(wanted):
            return spans
        if self._train_on == "last_turn":
            return spans[-1:] if wanted[-1] else []
        if len(spans) != len(wanted):
            raise RowError(WEIGHTS, found=f"{len(spans)} marked parts for {len(wanted)} answers")
        return [span for span, keep in zip(spans, wanted, strict=True) if keep]

    def _select(self, text: str, spans: Sequence[tuple[int, int]]) -> Rendered:
        """The trained spans by `train_on`, each with its end-of-turn token and nothing after it."""
        tidy = [(start, stop) for start, stop in spans if start < stop]
        if not tidy:
            raise RowError(NOTHING_MARKED, found=text)
        if self._train_on == "last_turn":
            tidy = tidy[-1:]
        tidy = [(start, self._end_of_turn(text, start, stop)) for start, stop in tidy]
        if not text[tidy[-1][1] :].strip() and not text[: tidy[-1][1]].endswith(self._added):
            text = text[: tidy[-1][1]] + self._eos
            tidy[-1] = (tidy[-1][0], len(text))
        if self._train_on == "all":
            bos = len(self._bos) if self._bos and text.startswith(self._bos) else 0
            tidy = [(bos, tidy[-1][1] if not text[tidy[-1][1] :].strip() else len(text))]
        return Rendered(text, tidy)

    def _end_of_turn(self, text: str, start: int, stop: int) -> int:
        """Where a trained span ends: with its end-of-turn token, though the marks take in more or less."""
        following = self._special.match(text, stop)
        if following and (following.group() == self._eos or _END.search(following.group())):
            return following.end()
        answer = text[start:stop].rstrip()
        return start + len(answer) if answer.endswith(self._added) else stop


def _text_start(tokenizer: Any, bos: str) -> str:
    """What stands before a plain text so that it gets the tokenizer's own ids.

    A tokenizer that writes a space before a text leaves it out behind a token that is written out.
    """
    alone = tokenizer("a")["input_ids"]
    return next(
        (start for start in (bos, bos + " ") if tokenizer(start + "a", add_special_tokens=False)["input_ids"] == alone),
        bos,
    )


def _common_start(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)


def _uses_tools(conversation: Conversation) -> bool:
    return any(message.role == "tool" or message.tool_calls for message in conversation.messages)
