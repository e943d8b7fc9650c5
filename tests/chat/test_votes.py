"""Votes of the blind comparison: kept, counted with their uncertainty, and ready as data for DPO and KTO."""

from pathlib import Path

import pytest
from scipy.stats import binomtest

from lora_studio.chat import prompts
from lora_studio.chat.prompts import TIE, Vote
from lora_studio.data.convert import convert
from lora_studio.data.formats import detect_format
from lora_studio.workspace import Workspace
from tests.data.reading import read_records

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def vote(best: int, names: tuple[str, ...] = ("Base: demo", "Pirate"), same: bool = False) -> Vote:
    said = ["Yes." if same else f"{name} says so." for name in names]
    return Vote(1.0, "demo", ASKED, list(names), said, best)


@pytest.mark.parametrize(("wins", "trials"), [(0, 5), (5, 5), (7, 10), (1, 300)])
def test_the_interval_is_wilsons(wins: int, trials: int) -> None:
    known = binomtest(wins, trials).proportion_ci(0.95, method="wilson")
    assert prompts.wilson(wins, trials) == pytest.approx((known.low, known.high), abs=1e-9)
    assert prompts.wilson(0, 0) == (0.0, 1.0)


def test_votes_are_kept_and_a_torn_line_is_left_out(workspace: Workspace) -> None:
    assert prompts.read_votes(workspace) == []
    given = [vote(1), vote(TIE), vote(1, ("Base: demo", "A name\u2028in two lines"))]
    for each in given:
        prompts.keep(workspace, each)
    with workspace.votes.open("a") as file:
        file.write('{"time": 1')
    assert prompts.read_votes(workspace) == given


def test_every_pair_that_was_compared_is_counted() -> None:
    three = ("Late", "Base: demo", "Early")
    found = prompts.tallies([vote(1), vote(0), vote(TIE), vote(0, three), vote(TIE, three)])
    counted = {(pair.first, pair.second): (pair.wins, pair.losses, pair.ties) for pair in found}
    assert counted == {
        ("Pirate", "Base: demo"): (1, 1, 1),
        ("Late", "Base: demo"): (1, 0, 1),
        ("Early", "Late"): (0, 1, 1),
        ("Early", "Base: demo"): (0, 0, 1),
    }


def test_votes_leave_as_preference_pairs_that_the_data_tab_reads(tmp_path: Path) -> None:
    path = tmp_path / "preferences.jsonl"
    path.write_text(prompts.votes_as_jsonl([vote(1), vote(TIE), vote(0, same=True), vote(0)]), encoding="utf-8")
    records = read_records(path).records
    shape = detect_format(records, "preference")
    pairs = [convert(record, shape, None) for record in records]
    assert len(pairs) == 2
    assert [message.content for message in pairs[0].messages] == ["Be brief.", "Why?"]
    assert pairs[0].chosen[0].content == "Pirate says so."
    assert pairs[0].rejected[0].content == "Base: demo says so."
    assert pairs[1].chosen[0].content == "Base: demo says so."


def test_votes_leave_as_answers_labelled_good_or_bad_that_the_data_tab_reads(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    three = vote(0, ("Late", "Base: demo", "Early"))
    path.write_text(prompts.rated_as_jsonl([vote(1), vote(TIE), vote(0, same=True), three]), encoding="utf-8")
    records = read_records(path).records
    shape = detect_format(records, "unpaired")
    assert shape.name == "kto"
    rows = [convert(record, shape, None) for record in records]
    assert [(row.messages[-1].content, row.label) for row in rows] == [
        ("Base: demo says so.", False),
        ("Pirate says so.", True),
        ("Late says so.", True),
        ("Base: demo says so.", False),
        ("Early says so.", False),
    ]
    assert [message.content for message in rows[0].messages[:-1]] == ["Be brief.", "Why?"]
