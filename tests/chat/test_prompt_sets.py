"""Prompts that are kept to be asked again, and the answers to them as files."""

import csv
import io
import json

import pytest

from lora_studio.chat import prompts
from lora_studio.chat.prompts import Answered
from lora_studio.errors import StudioError
from lora_studio.workspace import Workspace

ROWS = [Answered("Why?", ('Yes,\n"so"', "Arr, ünï")), Answered("Who?", ("", "Me"))]


def test_a_set_is_kept_replaced_and_deleted(workspace: Workspace) -> None:
    assert prompts.names(workspace) == []
    assert prompts.save(workspace, "../my set", ["Why?"]) == "my-set"
    prompts.save(workspace, "my-set", ["Why?", "Who?"])
    assert prompts.names(workspace) == ["my-set"]
    assert prompts.read_prompts(workspace, "my-set") == ["Why?", "Who?"]
    prompts.delete(workspace, "../../etc")
    prompts.delete(workspace, "my-set")
    for name in ("my-set", "../workspace"):
        with pytest.raises(StudioError, match="no prompt set"):
            prompts.read_prompts(workspace, name)
    with pytest.raises(StudioError, match="has no name"):
        prompts.save(workspace, " ", [])


def test_prompts_stand_one_a_line() -> None:
    assert prompts.prompts_of(" Why?\n\n Who? ") == ["Why?", "Who?"]
    with pytest.raises(StudioError, match="no prompts"):
        prompts.prompts_of("\n ")
    with pytest.raises(StudioError, match="at most 1,000"):
        prompts.prompts_of("x\n" * 1001)


def test_answers_come_back_out_of_both_files() -> None:
    columns = ["Base: demo", "Pirate"]
    table = list(csv.DictReader(io.StringIO(prompts.as_csv(columns, ROWS), newline="")))
    assert table[0] == {"prompt": "Why?", "Base: demo": 'Yes,\n"so"', "Pirate": "Arr, ünï"}
    lines = [json.loads(line) for line in prompts.answers_as_jsonl(columns, ROWS).splitlines()]
    assert lines[1] == {"prompt": "Who?", "answers": {"Base: demo": "", "Pirate": "Me"}}


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_answer_is_a_formula_in_a_spreadsheet(text: str) -> None:
    table = prompts.as_csv([text], [Answered(text, (text,))])
    rows = list(csv.reader(io.StringIO(table, newline="")))
    assert rows == [["prompt", f"'{text}"], [f"'{text}", f"'{text}"]]
