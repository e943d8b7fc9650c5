"""What is said about a file: exact numbers of the cut line, tokens with their marks, bad rows."""

import re
from typing import Any

import pytest

from lora_studio.ui.data import report


@pytest.fixture
def result() -> dict[str, Any]:
    """An inspector's answer for a file of ten rows, one of them bad."""
    curve = [(8, 10, 40, 2), (16, 4, 12, 0), (30, 0, 0, 0), (1024, 0, 0, 0)]
    return {
        "format": "prompt_completion",
        "words": "`question` is the user turn, `<b>` the assistant turn.",
        "assumptions": ["Read as `UTF-8`."],
        "template_origin": "The model's own template.",
        "rows": 10,
        "usable_rows": 10,
        "train_rows": 9,
        "validation_rows": 1,
        "marked_bad_rows": 0,
        "bad_rows": 3,
        "bad_row_list": [{"row": 7, "reason": "the answer is empty", "field": "answer", "found": "<script>"}],
        "bad_rows_by_reason": {"the answer is empty": 3},
        "suggested": {"max_length": 30, "reason": "No row is longer than 30 tokens."},
        "tokens": {"min": 6, "mean": 14.5, "p50": 12, "p90": 28, "p95": 29, "p99": 30, "max": 30},
        "max_length": 1024,
        "truncated_rows": 0,
        "dropped_rows": 0,
        "trained_tokens": 100,
        "lost_trained_tokens": 0,
        "total_tokens": 145,
        "histogram": {"edges": [6, 12, 18, 24, 31], "counts": [5, 3, 0, 2]},
        "cut_curve": [
            {"max_length": at, "rows": rows, "lost_trained_tokens": lost, "dropped_rows": out}
            for at, rows, lost, out in curve
        ],
        "table": {"columns": ["row", "question"], "rows": [[1, "${7*7}"]]},
    }


@pytest.fixture
def preview() -> dict[str, Any]:
    tokens = [
        {"id": 1, "text": "<|im_start|>", "trained": False, "special": True, "kept": True},
        {"id": 5, "text": "Hi\n", "trained": False, "special": False, "kept": True},
        {"id": 9, "text": " ", "trained": True, "special": False, "kept": True},
        {"id": 7, "text": "<b>${1}", "trained": True, "special": False, "kept": True},
        {"id": 8, "text": "", "trained": True, "special": False, "kept": True},
        {"id": 2, "text": "<|im_end|>", "trained": True, "special": True, "kept": True},
    ]
    return {
        "row": 4,
        "split": "train",
        "examples": 1,
        "windows": 1,
        "window": 0,
        "record": {"question": "<script>"},
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<b>${1}"}],
        "text": "",
        "tokens": tokens,
        "full_length": 6,
        "kept_tokens": 6,
        "removed_tokens": 0,
        "removed_after": 0,
        "lost_trained_tokens": 0,
        "left_out": "",
        "trained_tokens": 4,
        "ends_with_eos": True,
    }


def test_the_limit_and_the_suggestion_stand_in_one_sentence_with_exact_numbers(result: dict[str, Any]) -> None:
    said = report.limit_sentence(result, 8)
    assert "At 8 tokens 10 rows (100 %) are cut, 40 trained tokens (40 %) lost, 2 rows dropped; suggested: " in said
    assert "suggested: 30 tokens (fits every row).</span>" in said
    assert "suggested: 24 tokens (95 % of rows have at most 29).</span>" in report.limit_sentence(
        {**result, "suggested": {"max_length": 24, "reason": ""}}, 8
    )
    assert "ls-warning" in said


def test_between_two_counted_lengths_the_nearest_one_is_named(result: dict[str, Any]) -> None:
    assert "At 16 tokens 4 rows (40 %) are cut, 12 trained tokens (12 %) lost" in report.limit_sentence(result, 19)


def test_a_limit_beyond_every_row_says_that_nothing_is_cut(result: dict[str, Any]) -> None:
    said = report.limit_sentence(result, 1024)
    assert "At 1,024 tokens nothing is cut; suggested" in said
    assert "At 30 tokens nothing is cut (max length is 1,024 now)" in report.limit_sentence(result, 30)
    assert "ls-good" in said


def test_lost_tokens_are_a_share_of_all_that_could_be_trained(result: dict[str, Any]) -> None:
    cut = {**result, "trained_tokens": 88, "lost_trained_tokens": 12}
    assert "12 trained tokens (12 %) lost" in report.limit_sentence(cut, 16)


def test_the_cut_line_moves_between_the_shortest_and_the_longest_row(result: dict[str, Any]) -> None:
    assert report.cut_bounds(result) == (8, 30)


def test_from_the_longest_row_on_the_line_stands_at_the_longest_row(result: dict[str, Any]) -> None:
    assert [report.cut_place(result, at) for at in (1024, 31, 29, 15, 3)] == [30, 30, 30, 16, 8]


def test_the_summary_says_the_shape_in_words_and_shows_column_names_as_text(result: dict[str, Any]) -> None:
    said = report.summary(result)
    assert "<code>question</code> is the user turn, <code>&lt;b&gt;</code>" in said
    notes = report.notes(result)
    assert "Read as <code>UTF-8</code>." in notes
    assert "The model&#x27;s own template." in notes
    assert report.notes({**result, "assumptions": [], "template_origin": ""}) == ""


def test_the_result_is_one_line_of_format_rows_tokens_and_trained_share(result: dict[str, Any]) -> None:
    line = report.summary(result).partition('<p class="ls-words">')[0]
    assert " ".join(re.sub("<[^>]*>", " ", line).split()) == (
        "Prompt and completion 10 valid rows 3 invalid rows 145 tokens 69 % trained"
    )
    assert "9 training rows, 1 validation rows" in line
    assert "14.5 per row on average&#34;" in line or '14.5 per row on average"' in line
    assert "14.5 per row on average, before truncation" in report.summary({**result, "truncated_rows": 2})
    assert "</b> invalid row<" in report.summary({**result, "bad_rows": 1})


def test_figures_of_other_settings_are_outdated_and_the_settings_are_named() -> None:
    titles = {"model.name": "Base model", "data.max_length": "Max length (tokens)", "data.train_file": "Dataset"}
    analyzed = {"model.name": "demo", "data.max_length": 64, "data.train_file": "pirate"}
    assert report.outdated(analyzed, {**analyzed, "data.bad_rows": "stop"}, titles) == ""
    changed = report.outdated(analyzed, {**analyzed, "model.name": "other", "data.max_length": 32}, titles)
    assert "Outdated: Base model and Max length (tokens) changed since this analysis." in changed


def test_bad_rows_are_counted_by_reason_and_the_first_are_listed(result: dict[str, Any]) -> None:
    assert "3 invalid rows are skipped." in report.bad_rows_line(result, stop=False)
    table = report.bad_rows_table(result)
    assert "&lt;script&gt;" in table
    assert "The first 1; the download has all." in table
    assert ">Row<" in table
    assert ">File<" not in table
    several = {**result, "bad_row_list": [{**result["bad_row_list"][0], "file": "b.csv"}], "bad_rows": 1}
    assert "<div>b.csv</div>" in report.bad_rows_table(several)
    assert "The first" not in report.bad_rows_table(several)


def test_a_file_without_faults_says_so(result: dict[str, Any]) -> None:
    assert "No invalid rows." in report.bad_rows_line({**result, "bad_rows": 0, "refusal": None}, stop=True)
    assert report.bad_rows_table({**result, "bad_row_list": []}) == ""


def test_rows_marked_bad_can_be_read_and_count_where_all_rows_are_shown(result: dict[str, Any]) -> None:
    marked = {**result, "bad_rows": 0, "refusal": None, "usable_rows": 1, "marked_bad_rows": 1}
    assert "No invalid rows." in report.bad_rows_line(marked, stop=False)
    two = {**marked, "table": {"columns": ["row", "a"], "rows": [[1, "x"], [2, "y"]]}}
    assert "All rows" in report.rows_table(two)
    assert "The first 2 rows of the file" in report.rows_table({**two, "marked_bad_rows": 2})


def test_the_first_rows_are_shown_as_text(result: dict[str, Any]) -> None:
    assert "&#36;&#123;7*7}" in report.rows_table(result)


def test_trained_and_special_tokens_are_marked_and_carry_their_ids(preview: dict[str, Any]) -> None:
    drawn = report.tokens(preview).partition('class="ls-tokens"')[2]
    spans = re.findall(r'<span class="([^"]+)" data-id="\d+" title="([^"]+)">', drawn)
    assert [classes for classes, _ in spans] == [
        "ls-tok ls-s",
        "ls-tok",
        *["ls-tok ls-t"] * 3,
        "ls-tok ls-t ls-s",
    ]
    assert spans[3][1] == "id 7, trained"
    assert "&lt;|im_start|&gt;" in drawn
    assert "&lt;b&gt;&#36;&#123;1}" in drawn
    assert "Hi<i>↵</i>\n" in drawn
    assert "part of a character beside it" in spans[4][1]


def test_a_row_that_does_not_end_its_turn_is_a_warning(preview: dict[str, Any]) -> None:
    assert "learns to stop" in report.token_line(preview)
    line = report.token_line({**preview, "ends_with_eos": False})
    assert "not taught to stop" in line


def test_tokens_that_are_cut_off_stand_struck_through_in_their_place_and_are_named(preview: dict[str, Any]) -> None:
    tokens = [{**token, "kept": at not in (1, 4)} for at, token in enumerate(preview["tokens"])]
    cut = {**preview, "tokens": tokens, "kept_tokens": 4, "removed_tokens": 2, "removed_after": 1}
    drawn = report.tokens({**cut, "trained_tokens": 3, "lost_trained_tokens": 1})
    classes = re.findall(r'<span class="([^"]+)" data-id', drawn)
    assert [at for at, name in enumerate(classes) if "ls-x" in name] == [1, 4]
    assert classes[4] == "ls-tok ls-x"
    assert "1 token before and 1 after what is kept are cut off" in drawn
    assert "1 of them would have been trained" in drawn
    assert 'title="id 8, cut off, would have been trained' in drawn
    assert "cut off</b>" in report.LEGEND


def test_a_row_that_is_left_out_says_so_and_why(preview: dict[str, Any]) -> None:
    line = report.token_line({**preview, "kept_tokens": 0, "trained_tokens": 0, "left_out": "too long"})
    assert "Dropped: no token of this row is trained (6 tokens)." in line
    assert "Too long." in line


def test_the_place_of_a_row_says_what_becomes_of_it_and_which_part_is_shown(preview: dict[str, Any]) -> None:
    assert "Example 3 of 9 (row 4 of the file), training row</p>" in report.position(preview, 2, 9)
    long = {**preview, "split": "validation", "windows": 4, "window": 1}
    assert "validation row; part 2 of 4" in report.position(long, 2, 9)
    assert "training row, labelled bad</p>" in report.position({**preview, "desirable": False}, 2, 9)


def test_a_conversation_shows_bubbles_and_the_row_as_it_stands_in_the_file(preview: dict[str, Any]) -> None:
    drawn = report.conversation(preview)
    assert "ls-bubble ls-assistant" in drawn
    assert "&lt;script&gt;" in drawn
    assert "<script" not in drawn


def test_plain_text_without_messages_is_shown_as_it_is(preview: dict[str, Any]) -> None:
    assert "<pre>once &lt;upon&gt;</pre>" in report.conversation({**preview, "messages": [], "text": "once <upon>"})


def test_two_thousand_tokens_make_a_page_that_stays_light(preview: dict[str, Any]) -> None:
    tokens = [{"id": 1, "text": " word", "trained": True, "special": False, "kept": True}] * 2000
    drawn = report.tokens({**preview, "tokens": tokens, "trained_tokens": 2000})
    assert drawn.count("<span") < 2020
    assert len(drawn) < 200_000
