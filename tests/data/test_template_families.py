"""Built-in prompt styles and the chat templates of common families, held to the tokenizer and to the answers.

Ids are those of `apply_chat_template`; what is trained is compared with the answers' own text and the end token that a
family writes after them, put down here by hand. A template that hides what it trains is refused.
"""

import importlib.util
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lora_studio.data import render
from lora_studio.data.chat_templates import choose_template
from lora_studio.data.dataset import prepare
from lora_studio.data.encode import Encoder
from lora_studio.data.messages import IGNORED, Conversation, Message
from lora_studio.errors import StudioError
from lora_studio.workspace import model_source

CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"place": "Köln", "n": 2}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Where."},
                "n": {"type": "integer", "description": "How many."},
            },
            "required": ["place"],
        },
    },
}
ASKED, CALLED = Message("user", "How warm?"), Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", '{"t": 20}', name="look", tool_call_id="c1")
CHATS = {
    "single": Conversation(1, (Message("user", "What is 1+1?"), Message("assistant", "Two."))),
    "turns": Conversation(
        2,
        (
            Message("user", "Hallo, wie heißt du? 🙂"),
            Message("assistant", " Ich heiße  Jörg 👨‍👩‍👧 "),
            Message("user", "naïve\n\n"),
            Message("assistant", "日本語 ok\n"),
        ),
    ),
    "same": Conversation(3, (Message("user", "Yes"), Message("assistant", "Yes")) * 3),
    "system": Conversation(
        4, (Message("system", "Be kind. ®"), Message("user", "a"), Message("assistant", "<b>\n\n```py\n1\n```"))
    ),
    "tools": Conversation(
        5,
        (ASKED, CALLED, RESULT, Message("assistant", "20 °C."), Message("user", "Fine"), Message("assistant", "Bye.")),
        tools=(TOOL,),
    ),
    "spoken call": Conversation(
        6,
        (ASKED, replace(CALLED, content="Let me look."), RESULT, Message("assistant", "20 °C.")),
        tools=(TOOL,),
    ),
    "reasoning": Conversation(
        7, (Message("user", "2+2?"), Message("assistant", "Four.", reasoning_content="Two and\ntwo."))
    ),
    "more reasoning": Conversation(
        8,
        (
            Message("user", "2+2?"),
            Message("assistant", "Four.", reasoning_content="Two and two."),
            Message("user", "3+3?"),
            Message("assistant", "Six.", reasoning_content="Three twice 🙂."),
        ),
    ),
}
TOOL_CHATS = {"tools", "spoken call"}


@dataclass(frozen=True)
class Family:
    """What a template writes for an answer, by hand: `said(message)` up to the `end` token; `close` ends the last one.

    `refused` names the chats that it can't train and the reason; of those that it rewrites, the last turn can be.
    Without `keeps_thoughts` reasoning stands in the last turn only.
    """

    end: str
    specials: tuple[str, ...]
    said: Callable[[Message], str]
    eos: str = ""
    bos: str | None = None
    close: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    after_call: str | None = None
    keeps_thoughts: bool = True

    def refuses(self, name: str, train_on: str) -> str | None:
        reason = dict(self.refused).get(name)
        return None if reason == render.REWRITES and train_on in ("", "last_turn") else reason

    def trained(self, chat: Conversation) -> list[str]:
        """What each answer of a chat should train."""
        answers = [message for message in chat.messages if message.role == "assistant"]
        if not self.keeps_thoughts:
            answers = [*(replace(answer, reasoning_content=None) for answer in answers[:-1]), answers[-1]]
        ends = [self.end if not answer.tool_calls or self.after_call is None else self.after_call for answer in answers]
        texts = [self.said(answer) + end for answer, end in zip(answers, ends, strict=True)]
        return [*texts[:-1], texts[-1] + self.close]


def _plain(message: Message) -> str:
    return message.content


def _stripped(message: Message) -> str:
    return message.content.strip()


def _after_space(message: Message) -> str:
    return f" {message.content}"


def _qwen(message: Message) -> str:
    """Calls as JSON between marks, after what is said."""
    calls = [
        f'<tool_call>\n{{"name": "look", "arguments": {json.dumps(call["function"]["arguments"], ensure_ascii=False)}}}'
        "\n</tool_call>"
        for call in message.tool_calls
    ]
    return "\n".join([*([message.content] if message.content or not calls else []), *calls])


def _qwen3(message: Message) -> str:
    return f"<think>\n{message.reasoning_content or ''}\n</think>\n\n{_qwen(message)}"


def _qwen3_5(message: Message) -> str:
    call = "<tool_call>\n<function=look>\n<parameter=place>\nKöln\n</parameter>\n<parameter=n>\n2\n</parameter>\n"
    calls = [f"{call}</function>\n</tool_call>" for _ in message.tool_calls]
    return "\n\n".join([*([message.content.strip()] if message.content else []), *calls])


def _qwen3_5_think(message: Message) -> str:
    """The prompt opens the thoughts, so that a model begins with what it thinks."""
    return f"{message.reasoning_content or ''}\n</think>\n\n{_qwen3_5(message)}"


def _qwen3_5_nothink(message: Message) -> str:
    """The prompt brings empty thoughts; only thoughts that the row brings are trained."""
    thoughts = f"<think>\n{message.reasoning_content}\n</think>\n\n" if message.reasoning_content else ""
    return thoughts + _qwen3_5(message)


def _llama(message: Message) -> str:
    """A call stands alone: what is said with it has no place."""
    if message.tool_calls:
        return '{"name": "look", "parameters": {"place": "Köln", "n": 2}}'
    return message.content.strip()


def _gemma4(message: Message) -> str:
    calls = ['<|tool_call>call:look{n:2,place:<|"|>Köln<|"|>}<tool_call|>' for _ in message.tool_calls]
    return "".join(calls) + message.content.strip()


def _gemma4_thinking(message: Message) -> str:
    thoughts = f"<|channel>thought\n{message.reasoning_content}\n<channel|>" if message.reasoning_content else ""
    return thoughts + _gemma4(message)


NO_TOOLS = tuple((name, render.NO_TOOLS) for name in TOOL_CHATS)
QWEN = Family("<|im_end|>", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), _qwen, eos="<|im_end|>")
LLAMA = Family(
    "<|eot_id|>",
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
    _llama,
    eos="<|eot_id|>",
    bos="<|begin_of_text|>",
)
GEMMA = Family(
    "<end_of_turn>",
    ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    _stripped,
    eos="<eos>",
    bos="<bos>",
    refused=NO_TOOLS,
)
GEMMA4 = Family(
    "<turn|>",
    (
        *("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", '<|"|>', "<|tool>"),
        *("<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
    ),
    _gemma4,
    eos="<eos>",
    bos="<bos>",
    refused=(("spoken call", render.REWRITES),),  # what is said with a call moves behind the call's result
    after_call="<|tool_response>",
)
PHI = Family(
    "<|end|>",
    ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
    _plain,
    eos="<|endoftext|>",
    close="\n<|endoftext|>",
    refused=NO_TOOLS,
)
FAMILIES = {
    "qwen2_5": QWEN,
    "qwen2_5_vl": replace(QWEN, said=_plain, refused=NO_TOOLS),
    "qwen3": replace(QWEN, said=_qwen3),
    "qwen3_instruct_2507": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_5_nothink": replace(QWEN, said=_qwen3_5_nothink),
    "qwen3_5_think": replace(QWEN, said=_qwen3_5_think),
    "qwen3_6": replace(QWEN, said=_qwen3_5_think),
    "qwen3_8": replace(QWEN, said=_qwen3_5_think),
    "llama3": replace(LLAMA, refused=NO_TOOLS),
    "llama3_1": LLAMA,
    "llama3_2": LLAMA,
    "gemma": replace(GEMMA, refused=(*NO_TOOLS, ("system", render.NO_SYSTEM))),
    "gemma3": GEMMA,
    "gemma4": GEMMA4,
    "gemma4_v2": replace(GEMMA4, refused=(), after_call=None),
    "gemma4_v3": GEMMA4,
    "gemma4_v4": GEMMA4,
    "gemma4_v5": replace(GEMMA4, said=_gemma4_thinking, keeps_thoughts=False),
    "phi3": PHI,
    "phi3_5": PHI,
    # trl ships none of Mistral's; written in its manner, without marks
    "mistral": Family("</s>", ("<s>", "</s>", "[INST]", "[/INST]"), _after_space, "</s>", "<s>", refused=NO_TOOLS),
}
MISTRAL = (
    "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{{- ' ' + message.content + eos_token }}{%- else %}{%- if message.role == 'user' %}"
    "{{- '[INST] ' + (messages[0].content + '\\n\\n' if loop.index0 == 1 and messages[0].role == 'system' else '') }}"
    "{{- message.content + ' [/INST]' }}{%- endif %}{%- endif %}{%- endfor %}"
)


@cache
def _loaded() -> Any:
    return AutoTokenizer.from_pretrained(model_source("demo"))


def _demo() -> Any:
    """The demo's tokenizer, to change at will."""
    return deepcopy(_loaded())


@cache
def _folder() -> Path:
    package = importlib.util.find_spec("trl")
    assert package
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "chat_templates"


def _template_names() -> list[str]:
    """Every template of the families, and the variants for training."""
    shipped = [path.stem for path in sorted(_folder().glob("*.jinja"))]
    return [*(name for name in shipped if name.startswith(("qwen2_5", "qwen3", "llama3", "gemma", "phi3"))), "mistral"]


def _tokenizer(name: str) -> Any:
    """The demo's tokenizer with a family's special tokens and one of its templates."""
    family = FAMILIES[name.removesuffix("_training")]
    tokenizer = _demo()
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.specials)})
    tokenizer.eos_token, tokenizer.bos_token = family.eos, family.bos
    source = MISTRAL if name == "mistral" else (_folder() / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer.chat_template = source
    return tokenizer


def _encoder(tokenizer: Any, style: str = "auto", train_on: str = "assistant", **more: Any) -> Encoder:
    template = choose_template(tokenizer, style)
    return Encoder(tokenizer, template, max_length=1 << 20, truncation="drop", train_on=train_on, **more)


def _ids(tokenizer: Any, chat: Conversation, source: str, **more: Any) -> list[int]:
    """The chat's ids by the tokenizer alone."""
    ids: list[int] = tokenizer.apply_chat_template(
        chat.to_dicts(), tools=list(chat.tools) or None, chat_template=source, tokenize=True, return_dict=False, **more
    )
    return ids


def _trained(tokenizer: Any, labels: list[int]) -> list[str]:
    """The text of each run of trained tokens."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def _checked(tokenizer: Any, family: Family, style: str) -> int:
    """All chats, in every way to train: as expected, or refused as the family says. Returns how many gave examples."""
    checked = 0
    source = choose_template(tokenizer, style).source
    starts = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    ids = {chat.row: _ids(tokenizer, chat, source) for name, chat in CHATS.items() if not family.refuses(name, "")}
    for train_on in ("assistant", "last_turn", "all"):
        examples, bad_rows = _encoder(tokenizer, style, train_on).encode(list(CHATS.values()))
        reasons = {bad.row: bad.reason for bad in bad_rows}
        assert reasons == {
            chat.row: reason for name, chat in CHATS.items() if (reason := family.refuses(name, train_on))
        }
        chats = {chat.row: chat for chat in CHATS.values()}
        for example in examples:
            checked += 1
            assert example.input_ids == ids[example.row]
            trained = _trained(tokenizer, example.labels)
            if train_on == "all":
                text = tokenizer.decode(example.input_ids).rstrip()
                assert trained == [text.removeprefix(tokenizer.bos_token if starts else "")]
            else:
                assert trained == family.trained(chats[example.row])[-1 if train_on == "last_turn" else 0 :]
    return checked


def test_no_template_of_the_families_is_left_out():
    assert {name.removesuffix("_training") for name in _template_names()} == set(FAMILIES)


@pytest.mark.parametrize("name", _template_names())
def test_a_familys_template_gives_the_tokenizers_ids_and_trains_the_answers(name):
    assert _checked(_tokenizer(name), FAMILIES[name.removesuffix("_training")], "auto") >= len(CHATS)


@pytest.mark.parametrize("name", [name for name in _template_names() if not name.endswith("_training")])
def test_answers_of_weight_nothing_stay_context_with_every_familys_template(name):
    tokenizer, family = _tokenizer(name), FAMILIES[name]
    turns = CHATS["same"].messages
    chat = Conversation(1, (*turns[:1], replace(turns[1], trained=False), *turns[2:]))
    examples, bad_rows = _encoder(tokenizer).encode([chat])
    assert not bad_rows
    assert _trained(tokenizer, examples[0].labels) == family.trained(chat)[1:]


@pytest.mark.parametrize("name", [name for name in _template_names() if name.endswith("_training")])
def test_a_known_familys_template_is_trained_with_its_variant_for_training(name):
    chosen = choose_template(_tokenizer(name.removesuffix("_training")), "auto")
    assert chosen.source == (_folder() / f"{name}.jinja").read_text(encoding="utf-8")
    assert name.removesuffix("_training") in chosen.origin


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_5_nothink", "gemma4_v5"])
@pytest.mark.parametrize("enable_thinking", [True, False])
def test_what_the_prompt_brings_by_itself_is_not_trained(name, enable_thinking):
    tokenizer, chat = _tokenizer(name), CHATS["single"]
    source = choose_template(tokenizer, "auto").source
    ((example,), _) = _encoder(tokenizer, enable_thinking=enable_thinking).encode([chat])
    assert example.input_ids == _ids(tokenizer, chat, source, enable_thinking=enable_thinking)
    prompt = tokenizer.apply_chat_template(
        chat.to_dicts()[:1],
        chat_template=source,
        add_generation_prompt=True,
        return_dict=False,
        enable_thinking=enable_thinking,
    )
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert example.labels[len(prompt)] == example.input_ids[len(prompt)]


@pytest.mark.parametrize("style", ["chatml", "alpaca", "plain", "chat"])
@pytest.mark.parametrize("bos", [None, "<s>"])
def test_a_built_in_style_gives_the_tokenizers_ids_and_trains_the_answers(style, bos):
    from tokenizers.processors import TemplateProcessing

    tokenizer = _demo()
    end = tokenizer.eos_token
    if bos:
        tokenizer.add_special_tokens({"bos_token": bos})
        first = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = first

    def said(message: Message) -> str:
        thoughts = message.reasoning_content
        return (f"<think>\n{thoughts}\n</think>\n\n" if thoughts else "") + message.content

    assert _checked(tokenizer, Family(end, (), said, refused=NO_TOOLS), style) >= 2 * len(CHATS)


def test_an_end_token_outside_the_marks_is_trained_even_after_another_special_token():
    tokenizer = _demo()
    tokenizer.add_tokens(["</tool_call>"])
    tokenizer.chat_template = (
        "{%- for message in messages %}{{- message.role + ': ' }}{%- if message.role == 'assistant' %}"
        "{%- generation %}{{- message.content }}{%- endgeneration %}{%- else %}{{- message.content }}{%- endif %}"
        "{{- eos_token + '\\n' }}{%- endfor %}"
    )
    chat = Conversation(1, (Message("user", "a"), Message("assistant", "<tool_call>b</tool_call>")))
    ((example,), _) = _encoder(tokenizer).encode([chat])
    assert _trained(tokenizer, example.labels) == [f"<tool_call>b</tool_call>{tokenizer.eos_token}"]


SHOUT = "{%- for message in messages %}{{- message.role + ': ' + message.content + eos_token }}{%- endfor %}"
UNTRAINABLE = {
    "newest turn first": SHOUT.replace("in messages", "in messages[::-1]"),
    "earlier answers left out": SHOUT.replace("+ message.content", "+ (message.content if loop.last else '')"),
    "marks around nothing": SHOUT + "{%- if false %}{%- generation %}a{%- endgeneration %}{%- endif %}",
    "images alone": SHOUT.replace("message.content", "message.content[0]['text']"),
    "no such function": "{{- nonsense() }}" + SHOUT,
    "no Jinja at all": "{%- for message in messages %}{{- message.content }}",
}


def test_a_template_that_counts_the_turns_on_top_trains_every_answer_of_the_whole_text():
    tokenizer = _demo()
    tokenizer.chat_template = "{{- messages|length ~ ' turns' }}" + SHOUT
    ((example,), _) = _encoder(tokenizer).encode([CHATS["same"]])
    assert example.input_ids == _ids(tokenizer, CHATS["same"], tokenizer.chat_template)
    # It has no generation prompt, so that a model writes the header as well.
    assert _trained(tokenizer, example.labels) == ["assistant: Yes" + tokenizer.eos_token] * 3


@pytest.mark.parametrize("template", UNTRAINABLE.values(), ids=UNTRAINABLE)
def test_a_template_that_hides_what_it_trains_is_refused_with_its_reason(template, write):
    tokenizer = _demo()
    tokenizer.chat_template = template
    file = write("chats.jsonl", [{"messages": chat.to_dicts()} for chat in (CHATS["turns"], CHATS["same"])])
    with pytest.raises(StudioError) as error:
        prepare(str(file), tokenizer, validation_fraction=0)
    assert "template" in error.value.message
    assert error.value.hint
