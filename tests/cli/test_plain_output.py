"""What a file, a model or a run names reaches a terminal as text, and never as a command to it."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from lora_studio import cli
from lora_studio.cli.output import plain, plain_output, print_json, program_of, say

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


def test_a_printed_command_can_be_pasted_where_the_program_was_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "a folder"
    monkeypatch.setattr(sys, "orig_argv", [".venv/bin/python", "-m", "lora_studio", "runs"])
    assert cli.main(["runs", "show", "none", "--workspace", str(place)]) == cli.WRONG_INPUT
    listed = f"`.venv/bin/python -m lora_studio runs list --workspace '{place}'` shows all ids."
    assert listed in capsys.readouterr().err
    assert cli.main(["runs", "show", "none", "--workspace", str(place), "--json"]) == cli.WRONG_INPUT
    told = capsys.readouterr()
    assert listed in told.err
    assert json.loads(told.out)["hint"] == "`python -m lora_studio runs list` shows all ids."


def test_the_program_is_called_as_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_of(["/usr/bin/python3", "-m", "lora_studio", "train"]) == "/usr/bin/python3 -m lora_studio"
    assert program_of(["python", "-m", "pytest"]) == ""
    monkeypatch.setattr(shutil, "which", {"lora-studio": "/on/path/lora-studio"}.get)
    assert program_of(["python", "/on/path/lora-studio", "train"]) == "lora-studio"
    assert program_of(["python", "/my venv/lora-studio", "train"]) == "'/my venv/lora-studio'"
