"""What a file, a model or a run names reaches a terminal as text, and never as a command to it."""

import json

import pytest

from lora_studio import cli
from lora_studio.cli.output import plain, plain_output, print_json, say

EVIL = "\x1b]0;PWNED\x07\x1b[2Jred\x9b31m\x08\r over \u202egpj.exe"


def test_nothing_printed_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_output():
        print(EVIL)
        say(EVIL)
        print_json({"name": EVIL})
    out, err = capsys.readouterr()
    for written in (out, err):
        assert not set(written) & set("\x1b\x07\x9b\x08\r\u202e")
        assert "\\x1b]0;PWNED\\x07" in written or "\\u001b]0;PWNED" in written
    assert json.loads(out.splitlines()[-1]) == {"name": EVIL}


def test_what_is_harmless_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with plain_output():
        print("a\tb\r\nfür 日本語 🙂 “x”")
    assert capsys.readouterr().out == "a\tb\r\nfür 日本語 🙂 “x”\n"
    assert plain("") == ""


def test_a_command_names_a_file_with_codes_in_its_name_without_running_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "no\x1b[2J such.yaml"]) == cli.WRONG_INPUT
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "no\\x1b[2J such.yaml" in err
