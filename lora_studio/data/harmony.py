"""The channels of gpt-oss's chat format (harmony), and the reasoning marks that all others read: <think> and </think>.

In harmony an answer is several messages: `<|channel|>analysis<|message|>` is reasoning, `<|channel|>final<|message|>`
the answer, and a tool call is addressed to the tool. Chat, evaluation and API get it as one text with reasoning marks
(OpenAI's harmony format, github.com/openai/harmony).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
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
    return f"{CHANNEL}{ANALYSIS}{MESSAGE}{message['reasoning_content']}{END}{CUE}{final}"


class ChannelReader:
    """Turns an answer's tokens into those to be shown, one by one: headers are left out, and what stands in the
    analysis channel is between reasoning marks.

    `ids` are the tokens of `START`, `CHANNEL`, `MESSAGE` and `END`; `encode` and `decode` are the tokenizer's.
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
        if token in (self._ids[START], self._ids[CHANNEL], self._ids[END]):
            closing = self._closing if self._thinking else []
            self._thinking = False
            self._header = None if token == self._ids[END] else []
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
    if not {START, CHANNEL, MESSAGE, END} <= vocabulary.keys():
        return None
    ids = {name: vocabulary[name] for name in (START, CHANNEL, MESSAGE, END)}
    return ChannelReader(
        ids, lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer.decode
    )
