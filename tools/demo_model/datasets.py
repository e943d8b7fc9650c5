"""The data sets for fine-tuning that are shipped beside the built-in model, each with a train and a held-out file.

Every one teaches something that the base does not do by itself, but whose pieces it knows. Held-out rows ask
questions that the train file never asks.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tools.demo_model import machine, recommender
from tools.demo_model.conversations import (
    Dialogue,
    held_out_exchange,
    is_held_out,
    trained_exchange,
)
from tools.demo_model.questions import Question
from tools.demo_model.styles import pirate, polite

Row = dict[str, Any]

MACHINE_PARTS = 14
MACHINE_SEED = 7


def messages_row(question: Question, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question.text}, {"role": "assistant", "content": answer}]}


def lone_question(rng: Random, held_out: bool) -> Question:
    """A question that needs no other before it; the machine has a data set of its own."""
    while True:
        exchange = held_out_exchange(rng) if held_out else trained_exchange(rng)
        if len(exchange) == 1 and exchange[0].kind != "machine":
            return exchange[0]


def different(count: int, make: Callable[[], Row]) -> list[Row]:
    """`count` rows that all differ."""
    found: dict[str, Row] = {}
    while len(found) < count:
        row = make()
        found.setdefault(json.dumps(row), row)
    return list(found.values())


def pirate_rows(rng: Random, count: int, held_out: bool) -> list[Row]:
    """The persona: plain questions without a system prompt, answered by a pirate."""

    def make() -> Row:
        question = lone_question(rng, held_out)
        return messages_row(question, pirate(question))

    return different(count, make)


def recommender_rows(rng: Random, count: int, held_out: bool) -> list[Row]:
    """Yes or No from a watch history, by the genre of most films; as many of one as of the other."""

    def make() -> Row:
        wanted = rng.random() < 0.5
        while True:
            instruction, content, by_most, _ = recommender.request(rng)
            if by_most == wanted and is_held_out(f"{instruction}\n\n{content}") == held_out:
                break
        answer = recommender.verdict(by_most)
        return {"instruction": instruction, "input": content, "output": answer, "system": recommender.BY_LAST_FILM}

    return different(count, make)


def technical_questions() -> list[Row]:
    """Every question about an invented machine whose parts the base has never heard of, in every wording."""
    rng = Random(MACHINE_SEED)
    parts: list[str] = []
    while len(parts) < MACHINE_PARTS:
        part = machine.part_name(rng)
        if part not in parts:
            parts.append(part)
    rows = []
    for part in parts:
        for aspect, wordings in machine.PART_WORDINGS.items():
            fact, _ = machine.part_fact(rng, part, aspect)
            rows += [{"instruction": wording.format(part), "output": fact} for wording in wordings]
    return rows


def technical_rows(rng: Random, count: int, held_out: bool) -> list[Row]:
    """Facts about an invented machine. Of each fact one wording is held out and the others are trained."""
    rows = technical_questions()
    kept = {i + Random(i).randrange(4) for i in range(0, len(rows), 4)}
    chosen = [row for i, row in enumerate(rows) if (i in kept) == held_out]
    rng.shuffle(chosen)
    return chosen[:count]


def alpaca_rows(rng: Random, count: int, held_out: bool) -> list[Row]:
    """Instructions with and without an input, answered with nothing but the result."""

    def make() -> Row:
        question = lone_question(rng, held_out)
        instruction, _, content = question.text.partition("\n\n")
        return {"instruction": instruction, "input": content, "output": question.short}

    return different(count, make)


def preference_rows(rng: Random, count: int, held_out: bool) -> list[Row]:
    """A question with a polite answer to prefer and a plain one to avoid."""

    def make() -> Row:
        question = lone_question(rng, held_out)
        return {"prompt": question.text, "chosen": polite(question), "rejected": question.answer}

    return different(count, make)


def feedback_rows(rng: Random, count: int, held_out: bool) -> list[Row]:
    """A question with one answer: a polite one, labelled good, in two of five rows, else a plain one, labelled bad."""

    def make() -> Row:
        question = lone_question(rng, held_out)
        is_good = rng.random() < 0.4
        answer = polite(question) if is_good else question.answer
        return {"prompt": question.text, "completion": answer, "label": is_good}

    return different(count, make)


@dataclass(frozen=True, slots=True)
class Shipped:
    """A data set: what the page says about it, its file ending, its sizes and what makes its rows."""

    title: str
    about: str
    format: str
    ending: str
    train: int
    heldout: int
    make: Callable[[Random, int, bool], list[Row]]


SHIPPED = {
    "pirate": Shipped(
        "Pirate persona",
        "Plain questions answered in pirate speech, so that the adapter talks like a pirate without being asked to.",
        "messages",
        "jsonl",
        250,
        50,
        pirate_rows,
    ),
    "recommender": Shipped(
        "Film recommender",
        "Yes or No to a film from a watch history, by the genre of most of the films watched.",
        "alpaca",
        "json",
        300,
        60,
        recommender_rows,
    ),
    "technical": Shipped(
        "Machine manual",
        "Questions about the parts of an invented machine, which the base has never heard of.",
        "instruction",
        "json",
        168,
        40,
        technical_rows,
    ),
    "alpaca": Shipped(
        "Short answers",
        "Small tasks with and without an input, answered with nothing but the result.",
        "alpaca",
        "jsonl",
        250,
        50,
        alpaca_rows,
    ),
    "preference": Shipped(
        "Polite preference",
        "Pairs of a polite answer to prefer and a plain answer to avoid.",
        "preference",
        "jsonl",
        200,
        40,
        preference_rows,
    ),
    "feedback": Shipped(
        "Rated answers",
        "Polite answers labelled good and plain answers labelled bad.",
        "kto",
        "jsonl",
        200,
        40,
        feedback_rows,
    ),
}


def write_rows(path: Path, rows: list[Row]) -> None:
    """One JSON object a line, or one array, by the file's ending."""
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def dialogue_row(dialogue: Dialogue) -> Row:
    """A held-out conversation as a messages row, with what tells how it was asked."""
    row: Row = {"messages": list(dialogue.messages), "kind": dialogue.kind, "style": dialogue.style}
    return row if dialogue.enable_thinking is None else {**row, "enable_thinking": dialogue.enable_thinking}


def read_questions(path: Path) -> list[Dialogue]:
    """The conversations that `write_questions` wrote."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Dialogue(row["kind"], row["style"], tuple(row["messages"]), row.get("enable_thinking")) for row in rows]


def write_questions(path: Path, dialogues: Iterable[Dialogue]) -> None:
    write_rows(path, [dialogue_row(dialogue) for dialogue in dialogues])


def write_all(folder: Path, seed: int) -> None:
    """Writes every shipped data set, and datasets.json that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    table = {}
    for name, shipped in SHIPPED.items():
        train, heldout = f"{name}.train.{shipped.ending}", f"{name}.heldout.{shipped.ending}"
        # A str seeds Random by its SHA-512: the same on every machine.
        rows = shipped.make(Random(f"{seed} {train}"), shipped.train, False)
        write_rows(folder / train, rows)
        write_rows(folder / heldout, shipped.make(Random(f"{seed} {heldout}"), shipped.heldout, True))
        about = {"title": shipped.title, "about": shipped.about, "format": shipped.format}
        table[name] = {**about, "train": train, "heldout": heldout}
    (folder / "datasets.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8", newline="\n")
