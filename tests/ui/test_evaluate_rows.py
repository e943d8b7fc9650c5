"""The table of answered rows: filters, orders, search, pages, and text that stays text."""

import pytest

from lora_studio.ui.evaluate.results import ROWS, RowChoice, chosen_rows, table

from .evaluated import HOSTILE, TITLES, row, rows

COLUMNS = list(TITLES)


@pytest.mark.parametrize(
    ("name", "count"), [("all", 30), ("lost", 1), ("gained", 19), ("wrong", 1), ("right", 9), ("no filter", 30)]
)
def test_a_filter_leaves_the_rows_that_it_names(name: str, count: int) -> None:
    assert len(chosen_rows(rows(), COLUMNS, RowChoice().act("filter", name))) == count


def test_the_search_finds_words_of_prompt_and_answers() -> None:
    assert [one["row"] for one in chosen_rows(rows(), COLUMNS, RowChoice().act("query", "QUESTION 17"))] == [17]
    assert chosen_rows(rows(), COLUMNS, RowChoice(query="nowhere")) == []


def test_rows_are_ordered_by_the_file_by_worth_or_by_gain() -> None:
    found = [row(1, True, True, 0.5), row(2, True, False, 0.1), row(3, False, True, 0.9)]
    found[0]["base"]["score"], found[1]["base"]["score"], found[2]["base"]["score"] = 0.5, 0.9, 0.1
    order = {
        name: [one["row"] for one in chosen_rows(found, COLUMNS, RowChoice().act("order", name))]
        for name in ("row", "worst", "best", "gained", "lost")
    }
    assert order == {
        "row": [1, 2, 3],
        "worst": [2, 1, 3],
        "best": [3, 1, 2],
        "gained": [3, 1, 2],
        "lost": [2, 1, 3],
    }


def test_pages_hold_twenty_rows_and_end_at_the_last() -> None:
    first = table(rows(), TITLES, RowChoice())
    assert first.count("<tr>") == ROWS + 1
    assert "1 to 20 of 30 rows" in first
    last = table(rows(), TITLES, RowChoice(page=7))
    assert "21 to 30 of 30 rows" in last
    assert RowChoice(page=2).act("filter", "wrong").page == 0
    assert RowChoice().act("page", "-1").page == 0


def test_the_buttons_say_how_many_rows_they_leave() -> None:
    shown = table(rows(), TITLES, RowChoice(filter="gained"))
    assert 'data-value="gained" aria-pressed="true"' in shown
    assert "(19)" in shown
    assert "19 of 30 rows" in shown


def test_a_single_column_is_right_or_wrong() -> None:
    shown = table(rows(), {"adapter": "Adapter"}, RowChoice())
    assert "Wrong (2)" in shown
    assert "Right (28)" in shown
    assert "gained" not in shown


def test_with_several_adapters_one_is_chosen_to_be_compared() -> None:
    several = [{**one, "adapter2": one["base"]} for one in rows()]
    titles = {**TITLES, "adapter2": "Second"}
    assert 'data-change="other"' in table(several, titles, RowChoice())
    assert len(chosen_rows(several, list(titles), RowChoice(filter="gained").act("other", "adapter2"))) == 0


def test_what_stands_in_a_row_is_shown_and_never_run() -> None:
    shown = table(rows(), TITLES, RowChoice(query=HOSTILE))
    assert "<img" not in shown
    assert "${" not in shown


def test_an_empty_table_says_how_it_fills() -> None:
    assert "batch by batch" in table([], TITLES, RowChoice())
    assert "clear the search" in table(rows(), TITLES, RowChoice(query="nowhere"))


def test_rows_that_ask_nothing_show_their_text_and_how_surprising_it_was() -> None:
    read = [{**row(1, False, False, 0.125), "prompt": [], "reference": f"A text {HOSTILE}"}]
    read[0]["base"] |= {"loss": 41.588, "expected_tokens": 20}
    read[0]["adapter"] |= {"loss": None, "expected_tokens": None}
    shown = table(read, TITLES, RowChoice())
    assert "perplexity 8<" in shown
    assert "Expected" not in shown
    assert "not scored" in shown
    assert "wrong" not in shown
    assert "All rows (1)" in shown
    assert "<img" not in shown
