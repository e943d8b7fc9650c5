"""The conversation as markup: questions once, nothing in an answer is obeyed, differences are marked."""

from typing import Any

from lora_studio.chat.choices import Choice
from lora_studio.chat.conversation import ChatState
from lora_studio.chat.prompts import StarterQuestion
from lora_studio.ui.chat import markup
from lora_studio.ui.chat.markup import Column


def asked(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def board(*messages: list[dict[str, str]], **options: Any) -> str:
    """The board of columns with these messages, the base first."""
    names = ["base", "a", "b", "c"][: len(messages)]
    talk = ChatState(adapters=names[1:], columns=dict(zip(names, messages, strict=True)))
    shown = [Column(name, f"Column {name}", talk.column(name), "3 tokens") for name in names]
    return markup.board(shown, talk.turns(names), **{"marks": False, **options})


def test_markup_in_a_question_or_an_answer_is_shown_as_text() -> None:
    shown = board(asked("${1+1}", "<script>x</script> [x](y)"))
    assert "<script" not in shown
    assert "${" not in shown
    assert "&lt;script&gt;x&lt;/script&gt; [x](y)" in shown


def test_an_answer_that_has_not_begun_is_awaited_not_called_empty() -> None:
    shown = board(asked("One?", ""))
    assert "One?" in shown
    assert "…" in shown
    assert "Regenerate" not in shown


def test_reasoning_is_folded_also_while_it_is_written() -> None:
    for text in ("<think>\nHm.\n</think>\n\nRome.", "<think>\nHm."):
        shown = markup.answer(text)
        assert "<details><summary>Reasoning</summary><pre>Hm.</pre></details>" in shown
        assert "&lt;think&gt;" not in shown


def test_words_that_differ_are_marked_and_nothing_else() -> None:
    assert markup.marked_words("The sky is green.", "The sky is blue.") == "The sky is <mark>green</mark>."
    assert markup.marked_words("<b> same", "<b> same") == "&lt;b&gt; same"
    assert markup.marked_words("", "x") == ""
    answers = [asked("One?", "The sky is blue."), asked("One?", "The sky is green.")]
    assert "<mark>green</mark>" in board(*answers, marks=True)
    assert "<mark>" not in board(*answers)


def test_a_question_stands_once_above_the_answers_of_all_columns() -> None:
    shown = board(asked("One?", "Yes.") + asked("Two?", "No."), asked("One?", "Aye.") + asked("Two?", "Nay."))
    assert shown.count("One?") == shown.count("Two?") == 1
    assert [shown.index(text) for text in ("One?", "Yes.", "Aye.", "Two?", "No.", "Nay.")] == sorted(
        shown.index(text) for text in ("One?", "Yes.", "Aye.", "Two?", "No.", "Nay.")
    )
    assert shown.count("Regenerate</button>") == 2  # below the last answers


def test_a_column_that_was_asked_something_else_shows_its_own_question() -> None:
    shown = board(asked("One?", "Yes."), asked("Uno?", "Si."))
    assert shown.count('class="chat-row"') == 1
    assert 'data-act="edit" data-column="a" data-value="0"' in shown
    assert "Uno?" in shown


def test_a_column_that_came_later_can_be_asked_the_last_question() -> None:
    shown = board(asked("One?", "Yes.") + asked("Two?", "No."), [])
    assert shown.count("Ask here") == 1
    assert 'data-act="ask" data-column="a" data-value="1"' in shown
    later = board(asked("One?", "Yes.") + asked("Two?", "No."), asked("Two?", "Nay."))
    assert later.count('class="chat-row"') == 2
    assert "Ask here" not in later
    assert later.index("Two?") < later.index("Nay.")


def test_while_an_answer_grows_nothing_in_the_columns_can_be_changed() -> None:
    shown = board(asked("One?", "Ye"), asked("One?", ""), busy=True)
    assert "<button" not in shown
    assert "3 tokens" in shown


def test_questions_to_begin_with_are_offered_until_something_is_asked() -> None:
    begun = markup.start(2, [StarterQuestion("Why?", "")])
    assert markup.EMPTY in begun
    assert 'data-act="example" data-column="" data-value="0" title="Why?">Why?' in begun


def test_the_toolbar_offers_what_can_be_done_now() -> None:
    empty = markup.tools(ChatState(adapters=["a"]))
    assert "Regenerate all" not in empty
    assert "Add column" in empty
    talk = ChatState(adapters=["a", "b", "c"], columns={"base": asked("One?", "Yes.")}, marks=True)
    shown = markup.tools(talk)
    assert 'data-act="add" data-column="" data-value="" disabled>' in shown
    assert 'data-act="marks" data-column="" data-value="" aria-pressed="true">' in shown
    for words in ("Regenerate all", "Undo", "Clear", "Share", "Download JSON", "Settings"):
        assert words in shown
    assert shown.count("disabled") == 1
    assert markup.tools(talk, busy=True).count("disabled") == 6
    assert "Highlight differences" not in markup.tools(ChatState(adapters=["a"], blinded=True))


def test_a_name_that_looks_like_markup_is_only_text_in_a_columns_list(tmp_path: Any) -> None:
    choice = Choice("x", "<b>", "<b>", tmp_path, group='"><script>', short="${x}", best=True)
    shown = markup.heads("Base: <i>", [choice], ["x"])
    assert "<script" not in shown
    assert "<i>" not in shown
    assert "${" not in shown
    assert "★ best" in shown
