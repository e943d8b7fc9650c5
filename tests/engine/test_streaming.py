"""Tokens of several columns become text in whole characters, up to their end."""

import pytest
import torch

from lora_studio.engine.chat.generate import ColumnText, Streamer
from tests.engine.conftest import build_tokenizer


def feed(text: str, at_once: int) -> list[str]:
    """The pieces of a text whose tokens come `at_once` at a time."""
    tokenizer = build_tokenizer()
    column = ColumnText(tokenizer, frozenset({tokenizer.eos_token_id}))
    pieces = []
    for number, token in enumerate(tokenizer.encode(text)):
        column.add(token, float(number))
        if number % at_once == 0:
            pieces.append(column.take())
    return [*pieces, column.take(all_of_it=True)]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_a_character_of_several_tokens_comes_whole(at_once: int) -> None:
    text = "Paint 🎨 the señor's 東京 sky…"
    pieces = feed(text, at_once)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_column_that_ended_takes_no_more_tokens() -> None:
    tokenizer = build_tokenizer()
    heard: list[tuple[list[str], list[int]]] = []
    columns = [ColumnText(tokenizer, frozenset({tokenizer.eos_token_id})) for _ in range(2)]
    streamer = Streamer(columns, lambda texts, tokens: heard.append((texts, list(tokens))), seconds=0)
    streamer.put(torch.zeros((2, 7), dtype=torch.long))
    short, long = tokenizer.encode("sky"), tokenizer.encode("grass is green")
    for step in range(len(long)):
        ended = step >= len(short)
        first = tokenizer.eos_token_id if step == len(short) else tokenizer.pad_token_id if ended else short[step]
        streamer.put(torch.tensor([first, long[step]]))
    streamer.end()
    assert "".join(texts[0] for texts, _ in heard) == "sky"
    assert "".join(texts[1] for texts, _ in heard) == "grass is green"
    assert [len(column.ids) for column in columns] == [len(short) + 1, len(long)]
    assert [column.ended for column in columns] == [True, False]


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_stop_text_ends_the_answer_and_is_left_out(at_once: int) -> None:
    tokenizer = build_tokenizer()
    column = ColumnText(tokenizer, frozenset({tokenizer.eos_token_id}), ["snow rose", "\n###"])
    pieces = []
    for number, token in enumerate(tokenizer.encode("Paint the snow red. The snow rose and fell")):
        column.add(token, float(number))
        if number % at_once == 0:
            pieces.append(column.take())
    pieces.append(column.take(all_of_it=True))
    assert "".join(pieces) == "Paint the snow red. The "
    assert column.finish == "stop_string"
    assert len(column.ids) < len(tokenizer.encode("Paint the snow red. The snow rose and fell"))
    assert not any("snow r" in "".join(pieces[:at])[-6:] for at in range(len(pieces)) if "red" not in pieces[at])


def test_what_might_begin_a_stop_text_is_shown_once_it_does_not() -> None:
    tokenizer = build_tokenizer()
    column = ColumnText(tokenizer, frozenset(), ["green grass"])
    for token in tokenizer.encode("green gr"):
        column.add(token, 0.0)
    assert column.take() == ""
    for token in tokenizer.encode("ey"):
        column.add(token, 0.0)
    assert column.take() == "green grey"


def test_what_the_prompt_wrote_of_the_answer_comes_first() -> None:
    tokenizer = build_tokenizer()
    column = ColumnText(tokenizer, frozenset(), opening="<think>\n")
    column.add(tokenizer.encode("sky")[0], 0.0)
    assert column.take(all_of_it=True).startswith("<think>\ns")
