"""Every causal family of the installed transformers has a result, and a sample of them comes to the same again."""

import json
from collections import Counter

import pytest

from benchmarks.families import FAMILIES, KEPT, cell

RESULTS: dict[str, str] = json.loads(KEPT.read_text(encoding="utf-8"))
SAMPLE = (*FAMILIES[::13], "qwen3_moe", "gpt_oss", "deepseek_v3", "falcon_h1", "llama4_text", "qwen3_5_moe")


def test_every_family_that_transformers_maps_has_a_result_and_none_differs_from_peft() -> None:
    assert RESULTS.keys() == set(FAMILIES)
    kinds = Counter(words.partition(":")[0].partition(",")[0] for words in RESULTS.values())
    assert set(kinds) <= {"ok", "refused", "not built"}
    assert kinds["ok"] > 160


@pytest.mark.slow
def test_a_sample_of_the_families_comes_to_what_the_list_says() -> None:
    assert {family: cell(family) for family in SAMPLE} == {family: RESULTS[family] for family in SAMPLE}
