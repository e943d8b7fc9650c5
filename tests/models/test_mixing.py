"""Which mixes are none, said before any weight is read."""

import math
from pathlib import Path
from typing import Any

import pytest

from lora_studio.errors import StudioError
from lora_studio.models.mixing import Parent, check_parents, checked_mix
from tests.adapters import files, write

A, B = Parent("A", Path("a"), 0.5), Parent("B", Path("b"), 0.5)


@pytest.mark.parametrize(
    ("parents", "settings", "words"),
    [
        ([A], {}, "A mix needs at least two adapters."),
        ([A, A], {}, "A is in the mix twice."),
        ([A, Parent("B", Path("b"), 0)], {}, "The weight of B is 0."),
        ([A, Parent("B", Path("b"), math.nan)], {}, "The weight of B is nan."),
        ([A, Parent("B", Path("b"), 11)], {}, "The weight of B is 11."),
        ([A, B], {"method": "slerp"}, "There is no method 'slerp'."),
        ([A, B], {"method": "ties", "density": 0.0}, "The density is 0."),
        ([A, B], {"method": "ties", "density": 1.1}, "The density is 1.1."),
        ([A, B], {"method": "ties", "density": math.nan}, "The density is nan."),
        ([A, B], {"method": "cat", "density": 0.5}, "The method cat has no density."),
        ([A, B], {"method": "ties", "seed": 1}, "The method ties draws no random numbers, so it has no seed."),
        ([A, B], {"method": "dare_ties", "seed": -1}, "The seed is -1."),
    ],
)
def test_numbers_that_make_no_mix_are_refused(parents: list[Parent], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(StudioError) as caught:
        checked_mix(parents, **settings)
    assert caught.value.message == words
    assert caught.value.hint


def test_a_method_takes_only_the_settings_that_it_uses() -> None:
    assert checked_mix([A, B]).title == "0.5 A + 0.5 B (linear)"
    dare = checked_mix([A, B], "dare_ties")
    assert (dare.density, dare.seed) == (0.5, 42)
    ties = checked_mix([A, B], "ties", 0.2)
    assert (ties.density, ties.seed) == (0.2, None)


def test_other_bases_and_other_kinds_are_refused(tmp_path: Path) -> None:
    plain = write(tmp_path / "adapter", files())
    elsewhere = write(tmp_path / "elsewhere", files(base_model_name_or_path="Qwen/Qwen3-8B"))
    ia3 = write(tmp_path / "ia3", files(peft_type="IA3"))

    def words(folder: Path) -> str:
        with pytest.raises(StudioError) as caught:
            check_parents(checked_mix([Parent("Mine", plain, 1), Parent("Other", folder, 1)]))
        return f"{caught.value.message} {caught.value.hint}"

    assert "Other was trained on Qwen/Qwen3-8B, and Mine on demo" in words(elsewhere)
    assert words(ia3) == "Other is (IA)³. Only LoRA adapters can be mixed."


def test_prompts_that_differ_are_told(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, files() | {"chat_template.jinja": name.encode()}) for name in ("one", "two")]
    mix = checked_mix([Parent(folder.name, folder, 1) for folder in folders])
    assert check_parents(mix) == ["two was trained with another chat template than one, which the mix uses."]
