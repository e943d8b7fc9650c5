"""The part of Go's template language that Modelfiles are written in, filled in as Ollama does."""

import pytest

from lora_studio.export.ollama import GoTemplateError, fill, text

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One"},
    {"role": "user", "content": "Two"},
    {"role": "assistant", "content": "Three"},
]


def test_messages_of_one_role_in_a_row_are_one_and_system_prompts_are_joined():
    source = "{{ .System }}{{ range $i, $m := .Messages }}|{{ $i }} {{ .Role }} {{ .Content }}{{ end }}"
    later = {"role": "system", "content": "Be kind."}
    assert fill(source, [*CHAT, later]) == (
        "Be brief.\n\nBe kind.|0 system Be brief.|1 user One\n\nTwo|2 assistant Three|3 system Be kind."
    )


@pytest.mark.parametrize(
    ("condition", "result"),
    [
        ("{{ if .System }}yes{{ else }}no{{ end }}", "yes"),
        ("{{ if not .System }}yes{{ else }}no{{ end }}", "no"),
        ('{{ if eq .System "x" }}a{{ else if and .System (eq (len .Messages) 3) }}b{{ else }}c{{ end }}', "b"),
        (
            "{{ range $i, $m := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}{{ .Content }}{{ end }}{{ end }}",
            "Three",
        ),
        ('{{ $name := or "" .System }}{{ $name }}', "Be brief."),
    ],
)
def test_conditions_and_variables(condition, result):
    assert fill(condition, CHAT) == result


@pytest.mark.parametrize(
    "literal",
    [
        "{{ .System }}",
        "a{",
        "{{{",
        'say """so"""',
        "\u00a0\u200b\u2028\r\t x\x07\x00{",
        '\\ "quoted"',
        "}} % ${1}",
        "line\n\nline ",
    ],
)
def test_a_text_yields_itself_and_holds_nothing_that_a_modelfile_would_read_otherwise(literal):
    source = text(literal)
    assert fill(source + "{{ .System }}", CHAT) == literal + "Be brief."
    assert '"""' not in source
    assert all(sign == "\n" or sign.isprintable() for sign in source)


@pytest.mark.parametrize(
    "source",
    [
        "{{- .System }}",
        "{{ .System | trim }}",
        "{{ if .System }}",
        "{{ end }}",
        "{{ .Nothing }}",
        "{{ $x }}",
        "{{ call .System }}",
        "{{ }}",
    ],
)
def test_what_is_not_known_is_refused(source):
    with pytest.raises(GoTemplateError):
        fill(source, CHAT)
