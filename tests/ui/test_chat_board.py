"""The columns as markup: nothing in an answer is obeyed, reasoning is folded, differences are marked."""

from lora_studio.chat.prompts import StarterQuestion
from lora_studio.ui.chat import columns

ASKED = {"role": "user", "content": "One?"}


def test_markup_in_an_answer_is_shown_as_text() -> None:
    shown = columns.talk(
        "base", [{"role": "user", "content": "${1+1}"}, {"role": "assistant", "content": "<script>x</script> [x](y)"}]
    )
    assert "<script" not in shown
    assert "${" not in shown
    assert "&lt;script&gt;x&lt;/script&gt; [x](y)" in shown


def test_an_answer_that_has_not_begun_is_awaited_not_called_empty() -> None:
    shown = columns.talk("base", [ASKED, {"role": "assistant", "content": ""}])
    assert "One?" in shown
    assert "…" in shown
    assert columns.NOTHING_SAID in columns.talk("base", [])


def test_reasoning_is_folded_also_while_it_is_written() -> None:
    for said in ("<think>\nHm.\n</think>\n\nRome.", "<think>\nHm."):
        shown = columns.answer(said)
        assert "<details><summary>thoughts</summary><pre>Hm.</pre></details>" in shown
        assert "&lt;think&gt;" not in shown


def test_words_that_differ_are_marked_and_nothing_else() -> None:
    assert columns.marked_words("The sky is green.", "The sky is blue.") == "The sky is <mark>green</mark>."
    assert columns.marked_words("<b> same", "<b> same") == "&lt;b&gt; same"
    assert columns.marked_words("", "x") == ""


def test_examples_are_offered_until_something_is_said() -> None:
    begun = columns.board([("base", "Base: demo", [], "")], marks=False, examples=[StarterQuestion("Why?", "")])
    assert 'data-act="example" data-value="0">Why?' in begun
    assert "Regenerate" not in begun
    said = [ASKED, {"role": "assistant", "content": "Yes."}]
    later = columns.board(
        [("base", "Base: demo", said, "3 tokens")], marks=True, examples=[StarterQuestion("Why?", "")]
    )
    assert "Why?" not in later
    assert "Regenerate" in later
    assert 'aria-pressed="true"' in later
