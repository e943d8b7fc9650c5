"""Modelfiles: what Ollama's own parser would read of them."""

import pytest

from lora_studio.config.sections import Generation
from lora_studio.export.ollama import carried_by_quotes, modelfile, stop_texts

TEMPLATE = '{{ range $i, $m := .Messages }}{{ .Content }}"{{ end }}'


def parsed(text: str) -> list[tuple[str, str]]:
    """The commands of a Modelfile as Ollama's parser reads them: a value ends with its line, or with its quotes."""
    found: list[tuple[str, str]] = []
    rest = text
    while rest:
        if rest[0] in "#\n ":
            rest = rest.partition("\n")[2] if rest[0] == "#" else rest[1:]
            continue
        name, _, rest = rest.partition(" ")
        if name == "PARAMETER":
            name, _, rest = rest.partition(" ")
        value = ""
        while True:
            line, _, rest = rest.partition("\n")
            value += line
            if not value.startswith('"""') or (len(value.strip()) >= 6 and value.strip().endswith('"""')):
                break
            value += "\n"
        quotes = '"""' if value.startswith('"""') else '"' if value.startswith('"') else ""
        found.append((name, value.strip()[len(quotes) : len(value.strip()) - len(quotes)]))
    return found


@pytest.mark.parametrize("system", ["Be brief.", 'Say "hi"', "Two\nlines\n", '"quoted"', "  blanks  "])
def test_each_value_comes_back_as_it_was(system: str) -> None:
    text = modelfile(
        "./model", TEMPLATE, ("<|im_end|>", 'a "b"'), Generation(temperature=0.7), system=system, notes=["One\nTwo"]
    )
    assert parsed(text) == [
        ("FROM", "./model"),
        ("TEMPLATE", TEMPLATE),
        ("SYSTEM", system),
        ("stop", "<|im_end|>"),
        ("stop", 'a "b"'),
        ("temperature", "0.7"),
        ("top_p", "1"),
        ("top_k", "0"),
        ("min_p", "0"),
        ("repeat_penalty", "1"),
        ("seed", "42"),
    ]
    assert text.startswith("# One Two\n")


@pytest.mark.parametrize("system", ['three """ quotes', "zero\u200bwidth", "bell\x07"])
def test_a_system_prompt_that_quotes_do_not_carry_is_left_out(system: str) -> None:
    assert not carried_by_quotes(system)
    assert "SYSTEM" not in modelfile("./model", TEMPLATE, (), Generation(), system=system)


def test_an_adapter_is_named_beside_its_base() -> None:
    text = modelfile("llama3.2", TEMPLATE, (), Generation(), adapter="./adapter")
    assert parsed(text)[:2] == [("FROM", "llama3.2"), ("ADAPTER", "./adapter")]


def test_an_answer_ends_at_its_turns_token_and_at_the_end_of_the_text() -> None:
    tokens = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    assert stop_texts("<|im_end|>\n<|im_start|>user\n", "<|endoftext|>", tokens) == ("<|im_end|>", "<|endoftext|>")
    assert stop_texts("</s>\n\n", "</s>", ["<s>", "</s>"], ["User:"]) == ("</s>", "User:")
    assert stop_texts("<|end|>\n<|user|>", "<|end|>", ["<|", "<|end|>"]) == ("<|end|>",)
