"""What counts as the same answer."""

import pytest

from lora_studio.engine.metrics import is_exact, share, without_thinking


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("Arr! Paris, matey!", True),
        ("  Arr!\n Paris,  matey! ", True),
        ("<think>\nHm. Paris?\n</think>\n\nArr! Paris, matey!", True),
        ("arr! paris, matey!", False),
        ("Arr! Paris, matey", False),
        ("", False),
    ],
)
def test_an_answer_is_exact_letter_by_letter(answer: str, same: bool) -> None:
    assert is_exact(answer, "Arr! Paris, matey!") is same


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert is_exact("cafe\u0301", "caf\u00e9")


def test_reasoning_that_never_ends_leaves_no_answer() -> None:
    assert without_thinking("<think>on and on") == ""


def test_shares_are_between_nothing_and_everything() -> None:
    assert share([]) == 0
    assert share([True, False, True, True]) == 0.75
