"""Finds duplicates, leaks, contradictions and imbalance in a data set, and splits it: duplicates stay on one side."""

import hashlib
import re
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple, TypedDict

import numpy as np

from lora_studio.data.messages import Conversation, Message
from lora_studio.units import count, percent, shorten

_WORD = re.compile(r"\w+")
_EXAMPLES = 20
_GROUP = 8
_FEW_ANSWERS = 30
_HASHES, _BANDS = 32, 8
_SHINGLE = 4
_NEAR = 0.8
_MAX_CHARACTERS = 4000
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_REPORT_SECONDS = 0.1
_TELL_EVERY = 1000


class Duplicates(TypedDict):
    """Rows that repeat another, in groups of like rows. `examples` are row numbers of some groups."""

    rows: int
    groups: int
    examples: list[list[int]]


class NearDuplicates(Duplicates):
    """`sampled` is how many rows were compared, None for all."""

    sampled: int | None


class SharedRows(TypedDict):
    """Validation rows that are also in training, and those that share a prompt, as pairs of row numbers."""

    rows: int
    examples: list[list[int]]
    prompts: int
    prompt_examples: list[list[int]]


class Contradictions(TypedDict):
    """Prompts with different answers, and the rows that have them."""

    prompts: int
    rows: int
    examples: list[list[int]]


class LabelBalance(TypedDict):
    """How often each of a few answers is given."""

    counts: dict[str, int]
    distinct: int
    largest_share: float


class SpecialTokens(TypedDict):
    """Rows with special tokens in their text; examples are [row, role or "text", token]."""

    rows: int
    counts: dict[str, int]
    examples: list[list[Any]]


class Findings(TypedDict):
    """All that is looked for in a data set."""

    rows: int
    exact_duplicates: Duplicates
    near_duplicates: NearDuplicates
    shared_with_validation: SharedRows
    contradictions: Contradictions
    labels: LabelBalance | None
    special_tokens: SpecialTokens


class DataQuality(Findings):
    """The findings, with sentences for a person."""

    sentences: list[str]


class Finding(NamedTuple):
    """A kind of fault in words, with the rows of some examples."""

    title: str
    words: str
    examples: list[str]


def special_text(conversation: Conversation, specials: Collection[str]) -> list[tuple[str, str]]:
    """Special tokens in the text of a row: (role of the turn or "text", token)."""
    texts = [(message.role, message.content) for message in _messages(conversation)]
    if conversation.text is not None:
        texts.append(("text", conversation.text))
    pattern = _pattern_of(tuple(specials))
    return [(role, token) for role, text in texts for token in dict.fromkeys(pattern.findall(text))] if pattern else []


@lru_cache(maxsize=8)
def _pattern_of(specials: tuple[str, ...]) -> re.Pattern[str] | None:
    alternatives = sorted((re.escape(token) for token in specials if token.strip()), key=len, reverse=True)
    return re.compile("|".join(alternatives)) if alternatives else None


def group_key(conversation: Conversation) -> str:
    """A key equal for rows with the same text, ignoring case and white space; a split keeps them together."""
    return _digest("\x1e".join(f"{role}\x1f{_plain(text)}" for role, text in _turn_texts(conversation)))


def prompt_key(conversation: Conversation) -> str | None:
    """A key equal for rows with the same prompt; None without a prompt."""
    prompt = _prompt_turns(conversation)
    return _digest("\x1e".join(f"{role}\x1f{_plain(text)}" for role, text in prompt)) if prompt else None


def data_quality(
    train: Sequence[Conversation],
    validation: Sequence[Conversation] = (),
    *,
    seconds: float = 5.0,
    specials: Collection[str] = (),
    repeated: Duplicates | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> DataQuality:
    """All findings about a data set, with sentences. `seconds` limits the search for near duplicates.

    `specials` are the tokenizer's special tokens, which should not stand written out in the rows. `repeated` are exact
    duplicates counted elsewhere. `report` is told how many rows of how many are done; what it raises ends the work.
    """
    total, done, last_report = 3 * len(train) + 2 * len(validation), 0, time.monotonic()

    def step(rows: int = 1) -> None:
        nonlocal done, last_report
        done += rows
        if time.monotonic() - last_report > _REPORT_SECONDS:
            last_report = time.monotonic()
            report(min(done, total), total)

    report(0, total)
    ours, theirs = ([_row_keys(chat, step) for chat in rows] for rows in (train, validation))
    findings: Findings = {
        "rows": len(train),
        "exact_duplicates": repeated if repeated is not None else exact_duplicates(ours),
        "near_duplicates": near_duplicates(train, seconds=seconds, keys=[row.key for row in ours], step=step),
        "shared_with_validation": shared_rows(ours, theirs),
        "contradictions": contradictions(ours),
        "labels": label_balance(train),
        "special_tokens": special_tokens(chain(train, validation), specials, step),
    }
    report(total, total)
    lines = [f"{finding.words} For example {finding.examples[0]}." for finding in in_words(findings)]
    labels = findings["labels"]
    return {**findings, "sentences": [*lines, *([label_words(labels)] if labels else [])]}


@dataclass(slots=True)
class RowKeys:
    """Keys of a row to compare it with others: whole text, prompt and answer."""

    row: int
    key: str
    prompt: str | None
    answer: str | None


def _row_keys(chat: Conversation, step: Callable[[], None]) -> RowKeys:
    step()
    answer = _answer(chat)
    return RowKeys(chat.row, group_key(chat), prompt_key(chat), None if answer is None else _digest(_plain(answer)))


def exact_duplicates(rows: Sequence[RowKeys]) -> Duplicates:
    """Rows that repeat an earlier row, ignoring case and white space."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.key].append(row.row)
    return grouped([group for group in groups.values() if len(group) > 1])


def shared_rows(train: Sequence[RowKeys], validation: Sequence[RowKeys]) -> SharedRows:
    """Validation rows that are also in training, and those that share only a prompt."""
    keys = {row.key: row.row for row in reversed(train)}
    prompts = {row.prompt: row.row for row in reversed(train) if row.prompt}
    same = [[keys[row.key], row.row] for row in validation if row.key in keys]
    same_prompt = [
        [prompts[row.prompt], row.row] for row in validation if row.key not in keys and row.prompt in prompts
    ]
    return {
        "rows": len(same),
        "examples": same[:_EXAMPLES],
        "prompts": len(same_prompt),
        "prompt_examples": same_prompt[:_EXAMPLES],
    }


def contradictions(rows: Sequence[RowKeys]) -> Contradictions:
    """Repeated prompts with different answers."""
    answers: dict[str, dict[str, int]] = defaultdict(dict)
    times: Counter[str] = Counter()
    for row in rows:
        if row.prompt and row.answer is not None:
            answers[row.prompt].setdefault(row.answer, row.row)
            times[row.prompt] += 1
    unlike = {
        prompt: sorted(rows_by_answer.values()) for prompt, rows_by_answer in answers.items() if len(rows_by_answer) > 1
    }
    examples = [group[:_GROUP] for group in list(unlike.values())[:_EXAMPLES]]
    return {"prompts": len(unlike), "rows": sum(times[prompt] for prompt in unlike), "examples": examples}


def label_balance(rows: Sequence[Conversation]) -> LabelBalance | None:
    """Counts of answers for classification data (few short answers); None for other data."""
    counts: Counter[str] = Counter()
    for chat in rows:
        answer = _answer(chat)
        if answer is None or len(answer) > 80:
            return None
        counts[answer.strip()] += 1
        if len(counts) > _FEW_ANSWERS:
            return None
    if len(rows) < 10 or not 1 <= len(counts) <= max(2, len(rows) // 5):
        return None
    most = counts.most_common(1)[0][1]
    return {"counts": dict(counts.most_common()), "distinct": len(counts), "largest_share": most / len(rows)}


def special_tokens(
    rows: Iterable[Conversation], specials: Collection[str], step: Callable[[], None] = lambda: None
) -> SpecialTokens:
    """Rows with special tokens in their text, counts by token, and examples: [row, role or "text", token]."""
    counts: Counter[str] = Counter()
    places: list[list[Any]] = []
    touched = 0
    for chat in rows:
        step()
        tokens = special_text(chat, specials)
        touched += bool(tokens)
        counts.update(token for _, token in tokens)
        places += [[chat.row, role, token] for role, token in tokens] if len(places) < _EXAMPLES else []
    return {"rows": touched, "counts": dict(counts.most_common()), "examples": places[:_EXAMPLES]}


def near_duplicates(
    rows: Sequence[Conversation],
    *,
    seconds: float = 5.0,
    keys: Sequence[str] = (),
    step: Callable[[int], None] = lambda rows: None,
) -> NearDuplicates:
    """Rows that share most 4-word shingles with an earlier row, by MinHash; exact duplicates are not counted.

    `sampled` says how many rows were compared, None for all; see `near_groups` for the arguments.
    """
    groups, compared = near_groups(rows, seconds, keys, step)
    return {**grouped(groups), "sampled": compared if compared < len(rows) else None}


def near_groups(
    rows: Sequence[Conversation], seconds: float, keys: Sequence[str] = (), step: Callable[[int], None] = lambda _: None
) -> tuple[list[list[int]], int]:
    """Groups of numbers of nearly the same rows, and how many rows, evenly chosen, were compared within `seconds`.

    `keys` are the rows' group keys, where they are known; `step` is called now and then with the rows done since.
    """
    end = time.monotonic() + seconds
    numbers = np.random.default_rng(0).integers(1, 1 << 63, size=_HASHES, dtype=np.uint64) | np.uint64(1)
    earlier_keys: set[str] = set()
    sketches: list[np.ndarray] = []
    row_numbers: list[int] = []
    looked_at = 0
    for position in _evenly(len(rows)):
        if time.monotonic() > end:
            break
        step(1)
        looked_at += 1
        key = keys[position] if keys else group_key(rows[position])
        sketch = None if key in earlier_keys else _sketch(rows[position], numbers)
        earlier_keys.add(key)
        if sketch is not None:
            sketches.append(sketch)
            row_numbers.append(rows[position].row)
    return _alike(np.array(sketches), row_numbers, lambda: step(0)) if sketches else [], looked_at


def _evenly(count: int) -> list[int]:
    """Positions in an order whose every prefix is spread over the whole."""
    step = next((step for step in (64, 16, 4) if count > 1000 * step), 1)
    return [position for start in range(step) for position in range(start, count, step)]


def _sketch(chat: Conversation, numbers: np.ndarray) -> np.ndarray | None:
    """The MinHash sketch of a row's word shingles; None for a row that is too short.

    Arithmetic is modulo 2 ** 64, so a hash's upper half is the good one.
    """
    text = " ".join(text for _, text in _turn_texts(chat))[:_MAX_CHARACTERS].casefold()
    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text)], dtype=np.uint64)
    if len(words) < 2 * _SHINGLE:
        return None
    runs = np.zeros(len(words) - _SHINGLE + 1, dtype=np.uint64)
    for offset in range(_SHINGLE):
        runs = (runs + words[offset : offset + len(runs)]) * _FACTOR
    runs ^= runs >> np.uint64(32)
    least: np.ndarray = ((runs[:, None] * numbers) >> np.uint64(32)).min(axis=0)
    return least


def _alike(sketches: np.ndarray, rows: list[int], tell: Callable[[], None]) -> list[list[int]]:
    """Groups of rows whose sketches agree in a band and in most values."""
    leader = list(range(len(rows)))

    def head(position: int) -> int:
        while leader[position] != position:
            leader[position] = leader[leader[position]]
            position = leader[position]
        return position

    width = _HASHES // _BANDS
    for band in range(_BANDS):
        first: dict[bytes, int] = {}
        part = np.ascontiguousarray(sketches[:, band * width : (band + 1) * width])
        for position in range(len(rows)):
            if position % _TELL_EVERY == 0:
                tell()
            other = first.setdefault(part[position].tobytes(), position)
            if other != position and (sketches[position] == sketches[other]).mean() >= _NEAR:
                leader[head(position)] = head(other)
    groups = defaultdict(list)
    for position, row in enumerate(rows):
        groups[head(position)].append(row)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def grouped(groups: list[list[int]]) -> Duplicates:
    """How many rows repeat another, with some of the groups of like rows."""
    groups = sorted(groups)
    return {
        "rows": sum(len(group) - 1 for group in groups),
        "groups": len(groups),
        "examples": [group[:_GROUP] for group in groups[:_EXAMPLES]],
    }


def _messages(chat: Conversation) -> tuple[Message, ...]:
    return (*chat.messages, *chat.chosen, *chat.rejected)


def _turn_texts(chat: Conversation) -> list[tuple[str, str]]:
    """The text of a row, turn by turn."""
    if chat.text is not None:
        return [("text", chat.text)]
    if chat.input_ids is not None:
        return [("ids", str(chat.input_ids))]
    return [(message.role, _text_of(message)) for message in _messages(chat)]


def _text_of(message: Message) -> str:
    if not (message.reasoning_content or message.tool_calls):
        return message.content
    calls = str(message.tool_calls) if message.tool_calls else ""
    return "\n".join(part for part in (message.reasoning_content, message.content, calls) if part)


def _prompt_turns(chat: Conversation) -> list[tuple[str, str]]:
    """The turns before the last answer."""
    turns = chat.messages if chat.chosen else chat.messages[:-1]
    return [(message.role, _text_of(message)) for message in turns]


def _answer(chat: Conversation) -> str | None:
    """The last answer of a row; None for rows that have none, or two to compare."""
    last = chat.messages[-1] if chat.messages and not chat.chosen else None
    return last.content or str(last.tool_calls) if last is not None and last.role == "assistant" else None


def _plain(text: str) -> str:
    """A text without case and with single spaces. Punctuation stays: 3 + 4 and 3 - 4 are not the same question."""
    return " ".join(text.casefold().split())


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def in_words(findings: Findings) -> list[Finding]:
    """What is doubtful in a data set, in words for a person; [] if nothing is."""
    return [*_repeats(findings), *_leaks(findings), *_contradicted(findings["contradictions"]), *_special(findings)]


def _repeats(findings: Findings) -> Iterator[Finding]:
    exact, near = findings["exact_duplicates"], findings["near_duplicates"]
    if exact["rows"]:
        verb = "repeats" if exact["rows"] == 1 else "repeat"
        words = f"{count(exact['rows'], 'row')} {verb} an earlier row, in {count(exact['groups'], 'group')}."
        yield Finding("Duplicates", words, _groups(exact["examples"]))
    if near["rows"]:
        verb = "is nearly the same as" if near["rows"] == 1 else "are nearly the same as"
        among = f" Checked {near['sampled']:,} rows." if near["sampled"] else ""
        words = f"{count(near['rows'], 'row')} {verb} an earlier row.{among}"
        yield Finding("Near-duplicates", words, _groups(near["examples"]))


def _leaks(findings: Findings) -> Iterator[Finding]:
    shared = findings["shared_with_validation"]
    if shared["rows"]:
        verb = "is" if shared["rows"] == 1 else "are"
        rows = count(shared["rows"], "validation row")
        words = f"{rows} {verb} also in training: the validation loss looks better than it is."
        yield Finding("Leaked rows", words, _pairs(shared["examples"]))
    if shared["prompts"]:
        verb = "has" if shared["prompts"] == 1 else "have"
        rows = count(shared["prompts"], "validation row")
        words = f"{rows} {verb} the prompt of a training row with another answer."
        yield Finding("Leaked prompts", words, _pairs(shared["prompt_examples"]))


def _contradicted(unlike: Contradictions) -> Iterator[Finding]:
    if unlike["prompts"]:
        verb = "has" if unlike["prompts"] == 1 else "have"
        words = f"{count(unlike['prompts'], 'prompt')} {verb} different answers, in {count(unlike['rows'], 'row')}."
        yield Finding("Contradicting answers", words, _groups(unlike["examples"]))


def _special(findings: Findings) -> Iterator[Finding]:
    hidden = findings["special_tokens"]
    if hidden["rows"]:
        verb = "contains" if hidden["rows"] == 1 else "contain"
        tokens = shorten(", ".join(hidden["counts"]), 120)
        words = (
            f"{count(hidden['rows'], 'row')} {verb} {tokens} as text, read as the real token. Inside a "
            "text it teaches the model to stop or change roles there. Remove it unless it is meant, as an end mark is."
        )
        places = [f"row {row:,} ({role}): {token}" for row, role, token in hidden["examples"]]
        yield Finding("Special tokens in the text", words, places)


def _groups(examples: Sequence[Sequence[int]]) -> list[str]:
    return ["rows " + ", ".join(f"{row:,}" for row in group) for group in examples]


def _pairs(examples: Sequence[Sequence[int]]) -> list[str]:
    return [f"row {train:,} and validation row {validation:,}" for train, validation in examples]


def label_words(labels: LabelBalance) -> str:
    """How the answers are spread, where there are only a few."""
    most, times = next(iter(labels["counts"].items()))
    return (
        f"{count(labels['distinct'], 'distinct answer')}; most frequent: “{shorten(most, 40)}”, "
        f"{times:,} times ({percent(times, sum(labels['counts'].values()))})."
    )


def group_of(conversation: Conversation) -> int:
    """The same number for rows that say the same."""
    return int.from_bytes(hashlib.blake2b(group_key(conversation).encode(), digest_size=8).digest(), "little")


def split(
    groups: np.ndarray, fraction: float, seed: int, max_samples: int | None = None, max_eval_samples: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation rows, each rising; decided by groups, fraction and seed alone.

    At least one row is kept back where a fraction is asked for and a group can be spared; groups too large for the
    share that is left stay in training.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))  # groups in order of appearance
    member = rank[member]
    sizes = np.bincount(member)
    order = np.random.default_rng(seed).permutation(len(sizes))
    share = 0 if fraction <= 0 else min(max(round(len(groups) * fraction), 1), len(groups) - 1)
    validation = _fill(order, sizes, share)
    if share and not len(validation) and len(sizes) > 1:
        validation = order[[int(np.argmin(sizes[order]))]]
    ranked = np.concatenate([validation, order[~np.isin(order, validation)]])
    place = np.empty(len(ranked), np.int64)
    place[ranked] = np.arange(len(ranked))
    rows = np.argsort(place[member], kind="stable")
    share = int(sizes[validation].sum())
    return np.sort(rows[share:][:max_samples]), np.sort(rows[:share][:max_eval_samples])


def sample_rows(count: int, seed: int, most: int | None) -> np.ndarray:
    """At most `most` of that many rows, by the seed."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def _fill(order: np.ndarray, sizes: np.ndarray, share: int) -> np.ndarray:
    """Groups, in order, that together have at most `share` rows."""
    selected, room = [], share
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if room <= 0:
            break
        if size <= room:
            selected.append(group)
            room -= size
    return np.array(selected, np.int64)
