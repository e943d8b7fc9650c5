"""The quick rendering of chat templates: text and marked parts are transformers' own, and the sandbox holds."""

import importlib.util
from pathlib import Path

import pytest
from jinja2 import TemplateError, UndefinedError
from jinja2.sandbox import SecurityError
from transformers.utils.chat_template_utils import render_jinja_template

from lora_studio.data import chat_templates
from lora_studio.data.chat_templates import ChatTemplate
from lora_studio.data.messages import CONTROL, Conversation, Message, RowError, check_text
from lora_studio.data.render import Renderer, rules_of

FOLDERS = [
    Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates",
    Path(chat_templates.__file__).parent / "templates",
]
TEMPLATES = {path.name: path.read_text(encoding="utf-8") for folder in FOLDERS for path in folder.glob("*.jinja")}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}


def _chats() -> list[list[dict]]:
    asked, said = {"role": "user", "content": "Hi 🙂\n"}, {"role": "assistant", "content": "  Hello, <b>you</b> "}
    system = {"role": "system", "content": "Be {{ brief }}."}
    thought = {"role": "assistant", "content": "42", "reasoning_content": "Let me see.\n"}
    inline = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes"}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    found = {"role": "tool", "content": "sunny", "name": "weather"}
    alpaca = {"role": "user", "content": "Sum up\n\nA text", "instruction": "Sum up", "input": "A text"}
    return [
        [asked, said],
        [system, asked, said, asked, said],
        [asked, thought],
        [asked, inline, asked, said],
        [alpaca, said],
        [asked, called, found, said],
        [asked],
    ]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_text_and_marked_parts_are_those_of_transformers(name):
    source, compared = TEMPLATES[name], 0
    marked = chat_templates.Template(name, source, "").has_marks
    template = ChatTemplate(source, TOKENS)
    for chat in _chats():
        for tools in ([], [WEATHER]):
            for prompt in (False, True):
                try:
                    texts, spans = render_jinja_template(
                        [chat],
                        tools=tools or None,
                        chat_template=source,
                        return_assistant_tokens_mask=marked,
                        add_generation_prompt=prompt,
                        **TOKENS,
                    )
                except (TemplateError, TypeError, ValueError, KeyError) as error:
                    with pytest.raises(type(error)):
                        template.render([dict(message) for message in chat], tools, prompt=prompt)
                    continue
                ours = template.render([dict(message) for message in chat], tools, prompt=prompt)
                assert ours == (texts[0], spans[0] if marked else [])
                compared += 1
    assert compared >= 4


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__",
        "messages.__class__",
        "messages.append(1)",
        "messages[0].update({'a': 1})",
        "'{0.__class__}'.format(messages)",
        "'{a.__class__}'.format_map({'a': messages})",
        "namespace(_x=1)",
        "namespace().__class__",
        "dict.__init__.__globals__",
        "cycler.__init__.__globals__",
        "messages[0]['role'].startswith.__self__.__class__",
    ],
)
def test_a_template_reaches_nothing_but_its_values(expression):
    try:
        text, _ = ChatTemplate("{{ " + expression + " }}", {}).render([{"role": "user", "content": "x"}])
    except (SecurityError, UndefinedError):
        return
    assert text == ""


def test_what_is_set_inside_a_marked_part_stays_inside():
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert ChatTemplate(source, {}).render([]) == ("21", [(0, 1)])


def test_the_words_of_a_refusal_reach_the_user():
    with pytest.raises(TemplateError, match="no system role"):
        ChatTemplate("{{ raise_exception('no system role') }}", {}).render([])


def test_a_row_cannot_smuggle_a_marked_part_in(tokenizer):
    source = "{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% generation %}x{% endgeneration %}{% endfor %}"
    call = {"type": "function", "function": {"name": "\ufdd0evil\ufdd1", "arguments": {}}}
    chat = Conversation(1, (Message("user", "Hi"), Message("assistant", "", tool_calls=(call,))))
    result = Renderer(rules_of(tokenizer, chat_templates.Template("chat", source, ""), "assistant")).render(chat)
    assert isinstance(result, RowError)
    assert result.reason == CONTROL
    with pytest.raises(RowError, match=CONTROL):
        check_text("a \ufdd0 b")
