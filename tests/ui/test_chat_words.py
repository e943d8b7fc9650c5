"""The chat's state in words: memory, who holds the device, what adapters bring, and what a chat needs."""

from pathlib import Path
from typing import Any

import pytest

from lora_studio.chat import arbiter
from lora_studio.chat.choices import Choice, select_models
from lora_studio.jobs import queue
from lora_studio.jobs.protocol import ColumnAnswer, Loaded, Scored
from lora_studio.models.hardware import cpu
from lora_studio.ui.chat import markup
from tests.adapters import files, write

LOADED = Loaded(base="demo", device="cpu", dtype="float32", memory_bytes=11_000_000, mixes=True)


@pytest.fixture
def choice(tmp_path: Path) -> Choice:
    folder = write(tmp_path / "a", files() | {"chat_template.jinja": b"{{ enable_thinking }}<b>"})
    return Choice("a", "A (finished)", "A", folder)


def test_the_page_says_what_is_in_memory_and_who_holds_the_device(choice: Choice) -> None:
    holders = queue.holders("Long one", "the chat (demo)")
    shown = markup.memory(LOADED, [choice], holders, "demo")
    assert "<span>demo + A · 11 MB</span>" in shown
    assert "cpu, float32" in shown
    assert "used by the run Long one and the chat (demo): they share its memory and speed." in shown
    assert 'data-act="unload"' in shown
    assert 'data-act="load"' not in shown
    unloaded = markup.memory(None, [choice], queue.holders(None, None), "")
    assert "Not loaded" in unloaded
    assert 'data-act="load"' in unloaded
    assert 'data-act="unload"' not in unloaded
    others = markup.memory(None, [choice], "", "qwen")
    assert "qwen in memory for other columns" in others
    assert 'data-act="unload"' in others
    assert queue.holders(None, None) == "No job uses the device."
    assert queue.holders(None, None, exporting=True) == "The device is used by an export."
    apart = markup.memory_notes(LOADED.model_copy(update={"mixes": False}), holders)
    assert "those columns answer one after the other" in apart
    assert "Long one" in apart
    assert markup.memory_notes(LOADED, "") == ""


def test_what_an_adapter_brings_is_shown_as_text(choice: Choice) -> None:
    shown = markup.cards([choice])
    assert "as in the template" in shown
    assert "enable_thinking }}&lt;b&gt;" in shown


def test_a_chat_needs_base_cache_and_each_adapter(choice: Choice, tmp_path: Path) -> None:
    one, two = (
        arbiter.chat_bytes(select_models([choice]), "cpu"),
        arbiter.chat_bytes(select_models([choice, choice]), "cpu"),
    )
    assert one is not None
    assert two is not None
    assert 0 < two - one < one
    unknown = write(tmp_path / "b", files(base_model_name_or_path="owner/never-fetched"))
    elsewhere = Choice("b", "B", "B", unknown)
    assert arbiter.chat_bytes(select_models([elsewhere]), "cuda") is None
    assert arbiter.chat_verdict(select_models([elsewhere]), cpu()).fits


def test_tokens_that_training_made_likelier_are_green() -> None:
    numbers: Any = {"adapters": {"a": [-0.1, -3.0]}, "divergence": {"a": [2.0, 0.1]}, "mean_divergence": {"a": 1.05}}
    shown = markup.tokens(Scored(texts=["Arr", "${x}"], base=[-5.0, -0.1], **numbers), {"a": "<A>"})
    assert "&lt;A&gt;: mean KL divergence from the base 1.05 nats/token" in shown
    assert "var(--good)" in shown.split("Arr")[0]
    assert "var(--bad)" in shown.split("Arr")[1]
    assert "${" not in shown
    assert shown.count("chat-apart") == 1


def test_what_could_not_be_taken_as_it_is_stands_beside_what_is_in_memory() -> None:
    choice = Choice("one", "One", "One", Path("one"))
    notes = ["One lacks <b>half</b> of its weights."]
    loaded = LOADED.model_copy(update={"quantization": "4bit", "notes": notes})
    assert "demo (4bit) + One" in markup.memory(loaded, [choice], "", "demo")
    assert "One lacks &lt;b&gt;half&lt;/b&gt; of its weights." in markup.memory_notes(loaded, "")


def test_speed_and_end_of_an_answer_are_told() -> None:
    answer = ColumnAnswer(text="", tokens=23, first_token_seconds=0.118, tokens_per_second=41.4, finish="length")
    assert markup.column_note(answer) == "23 tokens, 41 tokens/s, first after 0.12 s, cut at max new tokens"
    assert markup.column_note(answer.model_copy(update={"finish": "eos"})).endswith("first after 0.12 s")
    assert markup.column_note(answer.model_copy(update={"tokens": 0})) == "Stopped before the first token"
