"""Words and markup: numbers as people read them, and hostile text that stays text."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from lora_studio.errors import StudioError
from lora_studio.ui import html
from lora_studio.ui.html import TEMPLATES, Html, render

HOSTILE = "${1+1} <script>alert('x')</script> [link](http://e.vil) `code` \u202egnp.exe"


def test_text_is_escaped_for_html_and_for_gradios_templates() -> None:
    safe = html.escape(HOSTILE)
    assert "<" not in safe
    assert "${" not in safe
    assert "`" not in safe
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in safe


def test_marks_that_turn_the_reading_direction_are_spelled_out() -> None:
    assert html.visible("a\u202eb\x00") == "a⟨U+202E⟩b⟨U+0000⟩"


def test_line_feeds_emoji_and_joiners_stay_as_they_are() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    assert html.visible(f"one\n\ttwo {family}") == f"one\n\ttwo {family}"


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        *[(0, 10, "0 %"), (3, 0, "0 %"), (12, 1000, "1.2 %"), (1, 100_000, "< 0.1 %"), (99_999, 100_000, "> 99.9 %")],
        *[(5, 5, "100 %"), (1, 2, "50 %")],
    ],
)
def test_a_share_says_nothing_and_all_only_where_it_is_so(part: int, whole: int, words: str) -> None:
    assert html.percent(part, whole) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0.123, "0.12 s"), (4.14, "4.1 s"), (9.99, "10 s"), (41, "41 s"), (185, "3 min 5 s"), (180, "3 min")],
        *[(7800, "2 h 10 min"), (90_000, "1 d 1 h")],
    ],
)
def test_durations_are_read_in_the_unit_that_matters(seconds: float, words: str) -> None:
    assert html.duration(seconds) == words


def test_sizes_counts_and_numbers_have_units_and_separators() -> None:
    assert [html.size(value) for value in (12, 1500, 10_635_568, 2.5e9)] == ["12 B", "1.5 kB", "11 MB", "2.5 GB"]
    assert html.count(1, "row") == "1 row"
    assert html.count(12345, "row") == "12,345 rows"
    assert html.number(12345.0) == "12,345"
    assert html.number(31.12) == "31.1"


def test_a_long_text_becomes_one_short_line() -> None:
    assert html.shorten("one\n two   three", 20) == "one two three"
    assert html.shorten("one two three", 8) == "one two…"


def test_an_error_is_its_sentence_and_its_hint_and_no_markup() -> None:
    shown = html.problem(StudioError("<b>bad</b>", "Line 1\nLine 2"))
    assert "&lt;b&gt;bad&lt;/b&gt;" in shown
    assert "Line 1<br>Line 2" in shown
    assert 'role="alert"' in shown


def test_progress_tells_its_share_to_screen_readers() -> None:
    assert 'aria-valuenow="25"' in html.progress("Reading", 5, 20)
    assert "Reading: 5 of 20" in html.progress("Reading", 5, 20)
    assert "aria-valuenow" not in html.progress("Starting")


def test_a_table_shows_hostile_cells_as_text() -> None:
    table = html.table(("a", "<i>"), [(HOSTILE, None), (1, "")], "Rows")
    assert "<script" not in table
    assert "&lt;i&gt;" in table
    assert "none" in table
    assert 'tabindex="0"' in table


def test_every_message_is_a_bubble_with_its_role() -> None:
    talk = html.bubbles(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": HOSTILE},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "<x>"}]},
            {"role": "tool", "content": "42"},
        ]
    )
    assert re.findall(r"ls-bubble ls-(\w+)", talk) == ["system", "user", "assistant", "other"]
    assert "<script" not in talk
    assert "&lt;x&gt;" in talk
    assert "empty" in talk


def test_thoughts_are_folded_also_while_they_are_still_coming() -> None:
    assert html.thoughts("<think>\nwell\n</think>\n\nYes.") == ("well", "Yes.")
    assert html.thoughts("<think>we") == ("we", "")
    assert html.thoughts("Use <think> as a tag.") == ("", "Use <think> as a tag.")
    assert "<summary>thoughts</summary>" in html.bubbles([{"role": "assistant", "content": "<think>a</think>b"}])


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of templates in the place of the studio's own."""
    monkeypatch.setattr(TEMPLATES, "loader", type(TEMPLATES.loader)(tmp_path))  # type: ignore[call-arg]
    monkeypatch.setattr(TEMPLATES, "cache", {})
    yield tmp_path
    html._macro.cache_clear()


def test_a_template_escapes_what_is_no_markup_and_takes_markup_as_it_is(templates: Path) -> None:
    (templates / "one.jinja").write_text("{% macro both(a, b) %}<p title='{{ a }}'>{{ b }}</p>{% endmacro %}")
    shown = render("one.both", "<i>${1+1}\u202e", Html("<b>x</b>"))
    assert isinstance(shown, Html)
    assert shown == "<p title='&lt;i&gt;&#36;&#123;1+1}⟨U+202E⟩'><b>x</b></p>"


def test_no_template_goes_around_the_escaping() -> None:
    """Jinja's own escaping, which `~` and these filters use, knows nothing of Gradio's templates."""
    for file in (Path(html.__file__).parent / "templates").iterdir():
        inside = "".join(re.findall(r"{[{%].*?[%}]}", file.read_text(encoding="utf-8"), re.DOTALL))
        assert not re.search(r"~|\|\s*(safe|e|escape|forceescape|join|replace|xmlattr|tojson)\b|autoescape", inside), (
            file
        )


def test_markup_beside_words_is_a_text_again() -> None:
    assert not isinstance(Html("<b>") + "x", Html)
    assert not isinstance("x" + Html("<b>"), Html)
    assert render("text.empty", Html("<b>") + "x") == '<div class="ls-empty"><b>&lt;b&gt;x</b></div>'


def test_a_template_may_be_indented_without_a_blank_in_its_markup(templates: Path) -> None:
    (templates / "one.jinja").write_text(
        '{% macro list(names) %}\n  <ul\n    class="x">\n    {% for name in names %}\n      <li>{{ name }}</li>\n'
        "    {% endfor %}\n    two\n    words\n  </ul>\n{% endmacro %}\n"
    )
    assert render("one.list", ["a\n b", "c"]) == '<ul class="x"><li>a\n b</li><li>c</li>two words</ul>'


def test_a_name_that_a_template_is_not_given_is_an_error(templates: Path) -> None:
    (templates / "one.jinja").write_text("{% macro greet(name) %}{{ name }}{% endmacro %}")
    with pytest.raises(UndefinedError):
        render("one.greet")


def test_every_macro_that_is_named_is_there() -> None:
    files = [file.read_text(encoding="utf-8") for file in Path(html.__file__).parent.rglob("*.py")]
    named = {name for file in files for name in re.findall(r'render\(\s*"(\w+\.\w+)"', file)}
    assert "text.notice" in named
    for name in named:
        file, _, macro = name.partition(".")
        assert hasattr(TEMPLATES.get_template(f"{file}.jinja").module, macro), name
