"""The trial of an export can fail: what asks or computes otherwise than base and adapter is no result."""

from dataclasses import replace

import pytest
import torch

from lora_studio.engine.export_trial import EXACT, Spoken, verdict
from lora_studio.errors import StudioError

OWN = Spoken((1, 2, 3), torch.tensor([0.1, 2.0, -1.0]), "Arr")


def moved(by: float, text: str = "Arr") -> Spoken:
    return replace(OWN, scores=OWN.scores + torch.tensor([0.0, by, 0.0]), text=text)


def test_a_result_that_asks_with_other_tokens_is_none() -> None:
    for exact in (True, False):
        with pytest.raises(StudioError, match="the prompt has other tokens"):
            verdict(OWN, replace(OWN, prompt=(1, 2, 4)), exact=exact)


@pytest.mark.parametrize("by", [10 * EXACT, float("nan"), float("inf")])
def test_a_result_that_computes_something_else_is_none_though_it_says_the_same(by: float) -> None:
    with pytest.raises(StudioError, match="does not compute what base and adapter compute"):
        verdict(OWN, moved(by), exact=True)


def test_rounding_is_told_and_may_change_words_only_where_the_precision_is_another() -> None:
    assert verdict(OWN, OWN, exact=True) == (
        "Loaded and asked: it gives the same answer as base and adapter, the very same logits.",
        True,
    )
    assert verdict(OWN, moved(EXACT / 2), exact=True)[1]
    words, same = verdict(OWN, moved(0.1, "Aye"), exact=False)
    assert (same, "differ from those of base and adapter by rounding" in words) == (False, True)
