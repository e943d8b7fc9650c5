"""What is asked in the chat: kept sets of prompts, votes of a blind comparison, and questions to begin with.

Each set of prompts is a file of the workspace; votes are kept one a line.
"""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from lora_studio.chat.choices import Choice
from lora_studio.data.convert import convert
from lora_studio.data.formats import detect_format
from lora_studio.data.messages import Record, RowError
from lora_studio.data.sources import open_source
from lora_studio.errors import LINE, TEST_PROMPT, StudioError, check_length
from lora_studio.jobs.events import read_state
from lora_studio.runs.summary import cell
from lora_studio.workspace import RunFolder, Workspace, safe_name, shipped_data, write_atomically

MAX_PROMPTS = 1000
EXAMPLES = 4


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with what each column said to it, in the columns' order."""

    prompt: str
    answers: tuple[str, ...]


def prompts_of(lines: str) -> list[str]:
    """The prompts of a text, one a line."""
    prompts = [line.strip() for line in lines.splitlines() if line.strip()]
    if not prompts:
        raise StudioError("There are no prompts.", "Write one prompt per line.")
    if len(prompts) > MAX_PROMPTS:
        raise StudioError(
            f"{len(prompts):,} prompts are too many; a set has at most {MAX_PROMPTS:,}.",
            "Use the Evaluate tab instead.",
        )
    for prompt in prompts:
        check_length("A prompt", prompt, TEST_PROMPT)
    return prompts


def names(workspace: Workspace) -> list[str]:
    """The sets there are."""
    return sorted(path.stem for path in workspace.prompt_sets_folder.glob("*.json"))


def save(workspace: Workspace, name: str, prompts: Sequence[str]) -> str:
    """Keeps a set under a name, in place of one of that name; gives the name it got."""
    if not name.strip():
        raise StudioError("The prompt set has no name.", "Enter a short name.")
    check_length("The name of the prompt set", name, LINE)
    lines = safe_name(name.strip(), "prompts")
    text = json.dumps(list(prompts), ensure_ascii=False)
    workspace.policy.check_growth(len(text))
    write_atomically(workspace.prompt_sets_folder / f"{lines}.json", text)
    return lines


def read_prompts(workspace: Workspace, name: str) -> list[str]:
    """The prompts of a set. Raises `StudioError` where there is none of that name."""
    if name not in names(workspace):
        raise StudioError(f"There is no prompt set named {name!r}.", "Choose another one.")
    path: list[str] = json.loads((workspace.prompt_sets_folder / f"{name}.json").read_text(encoding="utf-8"))
    return path


def delete(workspace: Workspace, name: str) -> None:
    """Removes a set; nothing where there is none."""
    if name in names(workspace):
        (workspace.prompt_sets_folder / f"{name}.json").unlink()


def as_csv(columns: Sequence[str], rows: Sequence[Answered]) -> str:
    """A table with a column for the prompt and one for each who answered; no text in it is taken for a formula."""
    target = io.StringIO()
    writer = csv.writer(target)
    writer.writerow(["prompt", *map(cell, columns)])
    writer.writerows(map(cell, [row.prompt, *row.answers]) for row in rows)
    return target.getvalue()


def answers_as_jsonl(columns: Sequence[str], rows: Sequence[Answered]) -> str:
    """One JSON object a prompt, with the answers by who gave them."""
    lines = [{"prompt": row.prompt, "answers": dict(zip(columns, row.answers, strict=False))} for row in rows]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


TIE = NO_BASE = -1
Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Vote:
    """Answers to one prompt in the order in which they were shown, and the better one's place; `TIE` for none.

    `names` says who gave each answer, `messages` what was asked. `base_at` is the base's place, `NO_BASE` for none.
    """

    time: float
    base: str
    messages: list[dict[str, str]]
    names: list[str]
    answers: list[str]
    best: int
    base_at: int | None = None

    def __post_init__(self) -> None:
        if self.base_at is None:  # kept by an earlier version, which told the base by its name alone
            place = (at for at, name in enumerate(self.names) if str(name).startswith("Base"))
            object.__setattr__(self, "base_at", next(place, NO_BASE))


@dataclass(frozen=True, slots=True)
class VoteTally:
    """How often `first` was better than `second`, and the reverse, in votes in which both answered."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int

    @property
    def decided(self) -> int:
        return self.wins + self.losses

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share of decided votes that `first` won."""
        return wilson(self.wins, self.decided)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of 95 % for a share (Wilson 1927, J. Am. Stat. Assoc. 22, 209); 0 to 1 for no trials."""
    if trials == 0:
        return 0.0, 1.0
    share, weight = successes / trials, Z95**2 / trials
    centre = share + weight / 2
    spread = Z95 * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max(0.0, (centre - spread) / (1 + weight)), min(1.0, (centre + spread) / (1 + weight))


def keep(workspace: Workspace, vote: Vote) -> None:
    """Adds a vote to those of the workspace."""
    line = json.dumps(asdict(vote), ensure_ascii=False) + "\n"
    workspace.policy.check_growth(len(line))
    with workspace.votes.open("a", encoding="utf-8") as file:
        file.write(line)


def read_votes(workspace: Workspace) -> list[Vote]:
    """All votes, oldest first; a torn last line is left out."""
    votes = []
    try:
        lines = workspace.votes.read_text(encoding="utf-8").split("\n")  # a vote's words may hold other line ends
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            votes.append(Vote(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return votes


def tallies(votes: Sequence[Vote]) -> list[VoteTally]:
    """Every pair that was compared, in the order of its names; an adapter comes before the base."""
    counts: dict[tuple[str, str], list[int]] = {}
    for vote in votes:
        for one, other in itertools.combinations(range(len(vote.names)), 2):
            first, second = sorted((one, other), key=lambda at: (at == vote.base_at, vote.names[at]))
            if vote.best in (TIE, first, second):  # two that both lost to a third were not compared
                place = counts.setdefault((vote.names[first], vote.names[second]), [0, 0, 0])
                place[2 if vote.best == TIE else 0 if vote.best == first else 1] += 1
    return [VoteTally(first, second, *result) for (first, second), result in sorted(counts.items())]


class PreferencePair(TypedDict):
    """A row for DPO, and which columns wrote its answers."""

    prompt: list[dict[str, str]]
    chosen: list[dict[str, str]]
    rejected: list[dict[str, str]]
    chosen_by: str
    rejected_by: str


def pairs(votes: Sequence[Vote]) -> Iterator[PreferencePair]:
    """Preference pairs for DPO: the better answer against each other one; ties and equal answers teach nothing."""
    for vote in votes:
        if vote.best == TIE:
            continue
        for at, answer in enumerate(vote.answers):
            if at != vote.best and answer != vote.answers[vote.best]:
                yield {
                    "prompt": vote.messages,
                    "chosen": [{"role": "assistant", "content": vote.answers[vote.best]}],
                    "rejected": [{"role": "assistant", "content": answer}],
                    "chosen_by": vote.names[vote.best],
                    "rejected_by": vote.names[at],
                }


class RatedAnswer(TypedDict):
    """A row for KTO, and which column wrote its answer."""

    prompt: list[dict[str, str]]
    completion: list[dict[str, str]]
    label: bool
    written_by: str


def rated(votes: Sequence[Vote]) -> Iterator[RatedAnswer]:
    """Answers labelled good or bad for KTO: the better one of a vote is good, each other one bad.

    Ties and equal answers teach nothing.
    """
    for vote in votes:
        if vote.best == TIE:
            continue
        best = vote.answers[vote.best]
        if all(answer == best for answer in vote.answers):
            continue
        for at, answer in enumerate(vote.answers):
            if at == vote.best or answer != best:
                yield {
                    "prompt": vote.messages,
                    "completion": [{"role": "assistant", "content": answer}],
                    "label": at == vote.best,
                    "written_by": vote.names[at],
                }


def rated_as_jsonl(votes: Sequence[Vote]) -> str:
    """The labelled answers as a file that the data tab reads."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rated(votes))


def votes_as_jsonl(votes: Sequence[Vote]) -> str:
    """The preference pairs as a file that the data tab reads."""
    return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs(votes))


@dataclass(frozen=True, slots=True)
class StarterQuestion:
    """A question that the training did not see, with the system prompt that it was asked with in the data."""

    question: str
    system: str


def suggestions(choice: Choice) -> list[StarterQuestion]:
    """Questions to begin with: of a run, those of its validation rows; for shipped data, of its held-out file."""
    if choice.run is None:
        return []
    config = choice.config()
    shipped = shipped_data().get(config.data.train_file) if config else None
    if shipped and config:
        return list(_heldout(shipped.heldout, config.data.system_prompt))
    return _of_run(choice.run)


def _of_run(run: RunFolder) -> list[StarterQuestion]:
    """Validation questions that the training program kept; for runs of earlier versions those that it asked."""
    try:
        rows = json.loads(run.questions.read_text(encoding="utf-8"))
        examples = [StarterQuestion(str(row["question"]), str(row["system"])) for row in rows]
    except FileNotFoundError:
        recorded = read_state(run.events).questions
        examples = [StarterQuestion(question, "") for question in recorded.questions] if recorded else []
    except (ValueError, KeyError, TypeError):
        return []  # the file is damaged, and no question is needed
    return list(dict.fromkeys(example for example in examples if example.question.strip()))[:EXAMPLES]


@lru_cache(64)  # the file comes with the studio and does not change
def _heldout(path: Path, system_prompt: str | None) -> tuple[StarterQuestion, ...]:
    records = [row for row in open_source(path).rows() if isinstance(row, Record)]
    shape = detect_format(records)
    by_question: dict[str, StarterQuestion] = {}
    for record in records[:: max(1, len(records) // (3 * EXAMPLES))]:
        try:
            messages = convert(record, shape, system_prompt).messages
        except RowError:
            continue  # a bad row makes no question
        by_role = {message.role: message.content for message in reversed(messages)}
        if "user" in by_role:
            by_question.setdefault(by_role["user"], StarterQuestion(by_role["user"], by_role.get("system", "")))
    return tuple(by_question.values())[:EXAMPLES]


def examples_for(choices: Sequence[Choice]) -> list[StarterQuestion]:
    """Questions to begin with, out of the data of the first choice that has some."""
    for choice in choices:
        try:
            if examples := suggestions(choice):
                return examples
        except StudioError:
            continue  # the run's config is of another version: it can answer all the same
    return []
