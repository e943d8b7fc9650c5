"""Chat templates for Ollama say what the Jinja templates say, or there are none."""

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lora_studio.data.chat_templates import adds_bos, choose_template
from lora_studio.errors import StudioError
from lora_studio.export.ollama import fill, to_go
from tests.data.test_chat_jinja import TEMPLATES, TOKENS

NO_PLACE = {"idefics3", "smolvlm", "llava_next"}  # for pictures: messages are lists of parts
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A pirate."},
    {"role": "user", "content": "Where?"},
]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_each_template_is_proved_in_many_dialogues_or_refused_with_a_sentence(name):
    if name.removesuffix(".jinja").removesuffix("_training") in NO_PLACE:
        with pytest.raises(StudioError, match="cannot be converted for Ollama"):
            to_go(TEMPLATES[name], TOKENS, bos="<s>")
        return
    made = to_go(TEMPLATES[name], TOKENS, bos="<s>")
    assert made.compared == (48 if made.system else 24)
    assert made.system is (name not in ("gemma.jinja", "gemma_training.jinja"))


def test_a_prompt_of_each_family_reads_as_its_makers_wrote_it():
    def prompt(name: str) -> str:
        return fill(to_go(TEMPLATES[f"{name}.jinja"], TOKENS, bos="<s>").source, CHAT)

    assert prompt("qwen2_5") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n"
        "<|im_start|>assistant\nA pirate.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt("gemma3") == (
        "<start_of_turn>user\nBe brief.\n\nWho are you?<end_of_turn>\n<start_of_turn>model\nA pirate.<end_of_turn>\n"
        "<start_of_turn>user\nWhere?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert prompt("phi3").endswith("<|assistant|>\nA pirate.<|end|>\n<|user|>\nWhere?<|end|>\n<|assistant|>\n")
    assert prompt("alpaca").startswith(
        "Be brief.\n\n### Instruction:\nWho are you?\n\n### Response:\nA pirate.</s>\n\n"
    )


@pytest.mark.parametrize("name", ["chatml", "alpaca", "plain", "qwen2_5", "llama3", "gemma3", "phi3"])
def test_an_answer_that_is_begun_for_the_model_is_left_open(name):
    made = to_go(TEMPLATES[f"{name}.jinja"], TOKENS, bos="<s>")
    begun = [*CHAT, {"role": "assistant", "content": "On the"}]
    assert fill(made.source, begun).endswith("On the")
    assert fill(made.source, begun).startswith(fill(made.source, CHAT))


def test_the_beginning_of_text_is_left_to_the_program_that_writes_it_by_itself():
    template = TEMPLATES["llama3.jinja"]
    assert not fill(to_go(template, TOKENS, bos="<s>").source, CHAT).startswith("<s>")
    assert fill(to_go(template, TOKENS).source, CHAT).startswith("<s>")


def test_thoughts_of_earlier_answers_go_where_the_template_puts_them():
    made = to_go(TEMPLATES["qwen3_training.jinja"], TOKENS)
    thought = [dict(message) for message in CHAT]
    thought[2]["reasoning_content"] = "Who asks?"
    assert "assistant\n<think>\nWho asks?\n</think>\n\nA pirate.<|im_end|>" in fill(made.source, thought)
    assert "assistant\n<think>\n\n</think>\n\nA pirate.<|im_end|>" in fill(made.source, CHAT)
    assert ".Thinking" not in to_go(TEMPLATES["chatml.jinja"], TOKENS).source


def test_the_thinking_switch_of_training_is_kept():
    off = to_go(TEMPLATES["qwen3.jinja"], {**TOKENS, "enable_thinking": False})
    assert fill(off.source, CHAT).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages | reverse %}{{ message.content }}{% endfor %}",
        "{% for message in messages %}{{ loop.index }}: {{ message.content }}\n{% endfor %}",
        "{% for message in messages %}{{ message.content | upper }}{% endfor %}",
        "{% for message in messages %}[{{ message.content | length }}] {{ message.content }}{% endfor %}",
        "{{ messages[-1].content }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_has_no_counterpart_is_refused_with_what_to_do(template):
    with pytest.raises(StudioError, match="cannot be converted for Ollama") as caught:
        to_go(template, TOKENS)
    assert "merged model" in caught.value.hint


def test_what_a_person_should_know_is_said():
    assert any("system prompt" in note for note in to_go(TEMPLATES["gemma.jinja"], TOKENS).notes)
    assert any("white space" in note for note in to_go(TEMPLATES["llama3.jinja"], TOKENS).notes)
    assert any("date" in note for note in to_go(TEMPLATES["llama3_2.jinja"], TOKENS).notes)
    assert to_go(TEMPLATES["qwen2_5.jinja"], TOKENS).notes == ()


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "phi-3-mini", "mistral-7b-instruct-v3", "minimind"])
def test_templates_of_real_tokenizers_are_proved(name):
    folder = Path(os.environ["LORA_STUDIO_REAL"]) / "tokenizers" / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = choose_template(tokenizer, "auto").source
    bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
    assert to_go(template, tokenizer.special_tokens_map, bos=bos).compared == 48
