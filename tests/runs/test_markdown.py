"""How the report writes what comes from people, files and models: as text, never as markup."""

from markdown_it import MarkdownIt

from lora_studio.runs.summary import code, plain, prose, table

EVIL = "a|b `c` *d* _e_ [f](g) <h> ![i](j) # k \\ ~l~ $m$ &amp;"


def read(markdown: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(markdown)


def shown(text: str) -> str:
    """What a reader sees of a line."""
    return read(text).removeprefix("<p>").removesuffix("</p>\n")


def test_plain_text_comes_out_as_it_went_in() -> None:
    assert shown(plain(EVIL)) == EVIL.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def test_code_holds_whatever_signs_there_are() -> None:
    for text in ("plain", "`", "a `` b", "`x`", "<b>", ""):
        assert read(code(text)).count("<code>") == 1
    assert shown(code("a `` b")) == "<code>a `` b</code>"


def test_names_in_a_sentence_are_set_off_and_the_rest_is_text() -> None:
    assert shown(prose("`question` is *asked*, `<b>` answers.")) == (
        "<code>question</code> is *asked*, <code>&lt;b&gt;</code> answers."
    )
    assert shown(prose("one ` alone")) == "one ` alone"


def test_a_cell_ends_where_it_should() -> None:
    lines = table(("setting", "value"), [(code("a|b"), plain("c|d"))])
    markup = read("\n".join(lines))
    assert "<code>a|b</code>" in markup
    assert "<td>c|d</td>" in markup
    assert markup.count("<td>") == 2
