"""The program in a model card runs as it stands, and asks as the adapter was trained."""

import re
from pathlib import Path

import pytest

from lora_studio.export.card import Subject, model_card
from lora_studio.workspace import RunFolder


@pytest.mark.slow
def test_the_program_in_a_card_answers(trained: RunFolder, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = model_card(trained.adapter, trained, Subject("Paint", str(base), repo=str(trained.adapter)))
    found = re.search(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert found is not None
    names: dict[str, object] = {}
    exec(found.group(1).replace("max_new_tokens=256", "max_new_tokens=8"), names)
    asked = names["tokenizer"].decode(names["inputs"]["input_ids"][0])
    assert asked == "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    assert capsys.readouterr().out.strip()
