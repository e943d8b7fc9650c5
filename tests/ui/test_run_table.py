"""The table of runs: what is shown in which order, what clicks choose, what a thousand runs cost."""

import json
from dataclasses import replace

import pytest

from lora_studio.config.parsing import to_yaml
from lora_studio.config.sections import Config
from lora_studio.jobs.events import Evaluated, Finished, RunStarted, RunState, StepLogged, to_line
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.runs.checkpoints import Deletion
from lora_studio.runs.summary import Overview, Tags, write_tags
from lora_studio.ui.runs import table as run_deletion
from lora_studio.ui.runs import table as runs_list
from lora_studio.ui.runs.table import ROWS, Row, RunBoard, TableChoice, chosen_rows, listing
from lora_studio.workspace import RunFolder, Workspace
from tests.cpu_time import CpuTime


def row_of(title: str, created: float = 0.0, loss: float | None = None, octets: int | None = None) -> Row:
    run = Overview(title, title, "done", "demo", "pirate", Tags(), created, eval_loss=loss)
    return Row(run, RunState(id=title, title=title, state="done"), octets)


ROWS_OF_FOUR = [row_of("b", 4, 0.5), row_of("a", 3), row_of("d", 2, float("nan")), row_of("c", 1, 0.1)]


def order(choice: TableChoice) -> str:
    return "".join(row.run.title for row in chosen_rows(ROWS_OF_FOUR, choice))


def test_the_newest_is_first_until_a_column_is_chosen() -> None:
    first = TableChoice()
    assert order(first) == "badc"
    by_loss = first.act("sort", "eval_loss", [])
    assert order(by_loss) == "cbad"  # the smallest first; what has no number last
    assert order(by_loss.act("sort", "eval_loss", [])) == "bcad"
    assert order(first.act("sort", "title", [])) == "abcd"
    assert order(first.act("sort", "created", [])) == "cdab"


def test_ticks_are_kept_over_pages_and_all_means_those_in_sight() -> None:
    choice = TableChoice().act("tick", "x", ["x", "y"]).act("page", "1", [])
    assert (choice.ticked, choice.page) == (("x",), 1)
    choice = choice.act("all", "", ["y", "z"])
    assert choice.ticked == ("x", "y", "z")
    assert choice.act("all", "", ["y", "z"]).ticked == ("x",)
    assert choice.act("tick", "y", []).ticked == ("x", "z")


def test_two_ticked_runs_are_compared_at_once_until_one_is_opened() -> None:
    two = TableChoice().act("tick", "x", []).act("tick", "y", [])
    assert two.comparing
    assert not two.act("tick", "y", []).comparing
    opened = two.act("open", "x", [])
    assert (opened.comparing, opened.ticked) == (False, ("x", "y"))
    in_the_table = TableChoice(whole=True).act("tick", "x", []).act("tick", "y", [])
    assert not in_the_table.comparing  # there they may be ticked to be deleted
    assert not in_the_table.act("open", "x", []).whole


def test_an_item_of_the_list_has_two_lines_with_state_rate_and_loss() -> None:
    row = replace(row_of("x", loss=0.5), rate=2e-4)
    markup = listing([row], 1, TableChoice(), "x", 60.0)
    assert 'aria-label="Finished"' in markup
    assert "<small>lr 2e-4 · val loss 0.5</small>" in markup
    assert 'data-shown="x"' in markup
    failed = replace(row, run=replace(row.run, state="failed", eval_loss=None, loss=1.25))
    assert "Failed · lr 2e-4 · loss 1.25" in listing([failed], 1, TableChoice(), "", 0.0)


def test_an_empty_table_says_how_it_is_filled_and_an_empty_search_how_it_is_mended() -> None:
    assert "appear here" in listing([], 0, TableChoice(), "", 0.0)
    assert "Empty the search" in listing([], 3, TableChoice(query="x"), "", 0.0)


def test_what_comes_from_people_is_text_and_never_markup() -> None:
    evil = '<img src=x onerror="x()">${1+1}'
    run = replace(row_of("x").run, title=evil, model=evil, data=evil, labels=Tags((evil,), evil))
    for whole in (False, True):
        markup = listing([Row(run, RunState(id="x"), by=evil)], 1, TableChoice(whole=whole), evil, 0.0)
        assert "<img" not in markup
        assert "${" not in markup


def test_the_chosen_run_the_ticks_and_the_order_are_told_to_every_reader() -> None:
    markup = listing(ROWS_OF_FOUR, 4, TableChoice(sort="eval_loss", down=False, ticked=("a",), whole=True), "b", 0.0)
    assert markup.count('aria-current="true"') == 1
    assert markup.count(" checked") == 1
    assert markup.count('aria-sort="ascending"') == 1
    assert 'aria-label="Choose a" checked' in markup


def test_long_lists_come_in_pages_and_the_last_page_is_never_empty() -> None:
    rows = [row_of(str(number)) for number in range(2 * ROWS + 1)]
    last = listing(rows, len(rows), TableChoice(page=9), "", 0.0)
    assert last.count("data-open=") == 1
    assert f"{2 * ROWS + 1} to {2 * ROWS + 1} of {2 * ROWS + 1} runs" in last
    assert '" disabled>Next page' in last


def make(workspace: Workspace, number: int) -> RunFolder:
    run = workspace.create_run(f"run {number}", to_yaml(Config()), {"model": "demo", "data": "pirate", "created": 1.0})
    steps = [StepLogged(1.0, step, 5, 1.0, loss=1.0 / step, learning_rate=1e-3) for step in range(1, 6)]
    measured = Evaluated(2.0, 5, 1.0, number / 1000)
    events = [RunStarted(1.0, 1, "cpu", "float32"), *steps, measured, Finished(3.0, "done", 5)]
    run.events.write_text("".join(map(to_line, events)))
    return run


@pytest.mark.slow
def test_a_thousand_runs_cost_a_glance_a_second(workspace: Workspace) -> None:
    text = to_yaml(Config())
    for number in range(1000):
        folder = RunFolder(workspace.runs_folder / f"run-{number:04}")
        folder.path.mkdir()
        folder.config.write_text(text)
        folder.facts.write_text(f'{{"title": "run {number}", "created": {number}, "model": "demo", "data": "pirate"}}')
        folder.events.write_text(to_line(Evaluated(2.0, 5, 1.0, number / 1000)) + to_line(Finished(3.0, "done", 5)))
    supervisor, board, choice = Supervisor(workspace), RunBoard(workspace), TableChoice(sort="eval_loss", down=False)
    first = runs_list.view(board, supervisor.runs(), choice, "", 0.0)
    assert first["list"].count("data-open=") == ROWS
    assert "run 0<" in first["list"]
    assert "1,000 runs" in first["list"]
    assert len(first["list"]) < 50_000
    states = supervisor.runs()
    taken = []
    for _ in range(5):
        with CpuTime() as spent:
            assert runs_list.view(board, states, choice, "", 0.0) == first
        taken.append(spent.seconds)
    assert min(taken) < 0.1
    searched = runs_list.view(board, states, TableChoice(query="run 77"), "", 0.0)
    assert "19 of 1,000 runs" in searched["list"]


def test_labels_written_elsewhere_show_at_the_next_look(workspace: Workspace) -> None:
    run = make(workspace, 1)
    supervisor, board = Supervisor(workspace), RunBoard(workspace)
    assert "later" not in runs_list.view(board, supervisor.runs(), TableChoice(), "", 0.0)["list"]
    write_tags(run, Tags(("later",)))
    assert "later" in runs_list.view(board, supervisor.runs(), TableChoice(), "", 0.0)["list"]


def test_who_sees_the_runs_of_several_visitors_is_told_whose_each_is(workspace: Workspace) -> None:
    make(workspace, 1)
    facts = (theirs := make(workspace, 2)).read_facts()
    theirs.facts.write_text(json.dumps(facts | {"maker": "ada"}))
    supervisor, board = Supervisor(workspace), RunBoard(workspace)
    alone = runs_list.view(board, supervisor.runs(), TableChoice(), "", 0.0)["list"]
    assert "by ada" not in alone
    assert "yours" not in alone
    shown = runs_list.view(board, supervisor.runs(), TableChoice(), "", 0.0, "owner")["list"]
    assert (shown.count("by ada · "), shown.count("yours · ")) == (1, 1)
    searched = runs_list.view(board, supervisor.runs(), TableChoice(query="ada"), "", 0.0, "owner")["list"]
    assert searched.count("data-open=") == 1


def test_ticked_runs_offer_what_can_be_done_with_them(workspace: Workspace) -> None:
    runs = [make(workspace, number) for number in range(2)]
    supervisor, board = Supervisor(workspace), RunBoard(workspace)
    shown = runs_list.view(board, supervisor.runs(), TableChoice(ticked=(runs[0].id,)), "", 0.0)
    assert (shown["compare"]["visible"], shown["delete"]["visible"]) == (False, True)
    shown = runs_list.view(board, supervisor.runs(), TableChoice(ticked=(runs[0].id, runs[1].id, "gone")), "", 0.0)
    assert (shown["compare"]["value"], shown["compare"]["visible"]) == ("Compare 2 runs", True)


def test_the_question_before_a_deletion_tells_size_and_what_stays() -> None:
    one = run_deletion.deletion_words([Deletion("a", "first", 1_500_000, ("second",))])
    assert "“first” with its adapter and checkpoints, 1.5 MB" in one
    assert "“second” began with" in one
    both = run_deletion.deletion_words(
        [Deletion("a", "first", 1000, ()), Deletion("b", "live", 5, (), "It is running.")]
    )
    assert "“live” stays. It is running." in both
    assert "None of these" in run_deletion.deletion_words([Deletion("b", "live", 5, (), "It is running.")])
