"""Takes one source from file to tokens: read, detect the format, convert, encode; each step is cached.

It counts what the chat template leaves out of the rows, and refuses a template that prints no answer: it would train a
model on its own marks. `dataset.prepare` combines the training file and the validation file.
"""

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, overload
from weakref import WeakKeyDictionary

import numpy as np

from lora_studio.data.cache import Arrays, ArrayWriter, Cache, Facts, code_version, digest, key_of
from lora_studio.data.convert import convert, describe_both_labels, describe_labels
from lora_studio.data.dialogues import tidy
from lora_studio.data.encode import Encoder, batches
from lora_studio.data.examples import PairStore, RowStore, match_pairs, write_masked, write_rows
from lora_studio.data.format_questions import BY_MAPPING
from lora_studio.data.formats import check_goal, read_as
from lora_studio.data.mapping import Format, MappingValues, ReadingError
from lora_studio.data.messages import BadRow, Conversation, JsonObject, Message, Record, RowError, last_answer, sides
from lora_studio.data.quality import group_of
from lora_studio.data.readers.tables import with_header
from lora_studio.data.render import CALLS_LEFT_OUT, NO_SYSTEM, NO_TOOLS, NOTHING_MARKED, REFUSED, REWRITES, WEIGHTS
from lora_studio.data.sources import Source
from lora_studio.data.store import (
    BadRows,
    BadRowWriter,
    Progress,
    RecordStore,
    write_records,
)
from lora_studio.errors import StudioError

_SAMPLE = 500
_FEW = 50
_REPORT_EVERY = 500
_REPORT_OMITTED = 100
SPLIT_PAIRS = "KTO trains on both answers of each pair: the chosen one as good, the rejected one as bad."
ANSWERS_ONLY = "Preference training compares answers, so only answers can be trained."
_SLOW_SECONDS = 0.5
# The masks whose entry in the cache tells those of the others. In a whole text every answer is found, also one that the
# mask of answers would miss: nothing follows from it.
_SOURCES_OF_MASKS = ("assistant", "last_turn")
NO_SYSTEM_STYLE = "choose another data.prompt_style: chatml supports them."
_KEYS: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()  # see tokenizer_key
Choose = Callable[[np.ndarray], np.ndarray]
MAX_CHECKED_ROWS = 2000
_OTHER_STYLE = "Choose another data.prompt_style: chatml supports every conversation"
ADVICE = {
    REWRITES: f"Set data.train_on to last_turn, which trains only the last answer of each row. Or: {_OTHER_STYLE}.",
    REFUSED: f"{_OTHER_STYLE}. Or change the rows to fit the model's chat template.",
    NOTHING_MARKED: f"{_OTHER_STYLE}.",
    WEIGHTS: f"Set data.train_on to last_turn. Or: {_OTHER_STYLE}.",
    NO_TOOLS: "Choose a model whose chat template supports tool calls, or remove tool calls and their results from "
    "the rows.",
    CALLS_LEFT_OUT: "Choose a model whose chat template supports tool calls, or remove tool calls and their "
    "results from the rows.",
}
"""What helps against reasons that are the template's, not the rows'."""
Omits = Callable[[Conversation, str], bool]


class Conversations(Sequence[Conversation]):
    """The usable rows of a source as conversations, converted on access."""

    def __init__(self, records: RecordStore, positions: np.ndarray, shape: Format, system_prompt: str | None) -> None:
        self._records = records
        self.positions = positions
        self._shape = shape
        self._system_prompt = system_prompt

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...

    @overload
    def __getitem__(self, index: slice) -> list[Conversation]: ...

    def __getitem__(self, index: int | slice) -> Conversation | list[Conversation]:
        if isinstance(index, slice):
            return list(self._convert_at(self.positions[index]))
        (conversation,) = self._convert_at(self.positions[[index]])
        return conversation

    def __iter__(self) -> Iterator[Conversation]:
        return self._convert_at(self.positions)

    def at(self, positions: np.ndarray) -> Iterator[Conversation]:
        """The conversations of the records at these positions."""
        return self._convert_at(positions)

    def _convert_at(self, positions: np.ndarray) -> Iterator[Conversation]:
        for record in self._records.records(positions.tolist()):
            yield convert(record, self._shape, self._system_prompt)


@dataclass
class EncodedSource:
    """A source read and encoded. `conversations` are its usable rows; `key` is its place in the cache.

    `rows` are those of the usable rows that were wanted. `all_positions` and `all_groups` are of all rows that could
    be converted, also those that could not be rendered: the split goes by them. `unpaired`: answers labelled bad are
    rows like the others, and each answer of a pair is an example of its own.
    """

    name: str
    key: str
    digests: list[str]
    records: RecordStore
    format: Format
    conversations: Conversations
    all_positions: np.ndarray
    all_groups: np.ndarray
    rows: RowStore | PairStore
    bad_rows: BadRows
    facts: Facts
    unpaired: bool = False

    @property
    def marked_bad(self) -> int:
        """Number of rows excluded for a bad label."""
        return int(self.facts["marked_bad"])

    @property
    def omissions(self) -> list[str]:
        """Sentences on what the chat template leaves out of the rows."""
        return sentences(self.facts["omitted"])

    @property
    def marks(self) -> str:
        """A sentence on rows with good/bad labels; "" without labels."""
        if isinstance(self.rows, PairStore):
            return SPLIT_PAIRS if self.unpaired else ""
        if self.format.name != "kto":
            return ""
        if not self.unpaired:
            return describe_labels(len(self.conversations), self.marked_bad)
        bad = len(self.rows) - int(np.count_nonzero(self.rows.desirable))
        return describe_both_labels(len(self.rows) - bad, bad)


@dataclass
class Preparation:
    """How the sources of a data set are prepared. `before_slow` is called before work that takes long.

    `most`: only the first rows are read, for a first look. `goal`: see `formats.detect_format`.
    """

    encoder: Encoder
    encoder_key: list[Any]
    system_prompt: str | None
    mapping: MappingValues | None
    cache: Cache
    report: Progress
    before_slow: Callable[[], None] = lambda: None
    most: int | None = None
    goal: str = "answers"
    began: float = field(default_factory=time.monotonic)

    def first_rows(self, most: int) -> "Preparation":
        """The same for the first rows only, without a cache, reported as one phase."""
        return replace(
            self,
            cache=Cache(None),
            report=lambda *_: self.report("first", 0, 0),
            before_slow=lambda: None,
            most=most,
        )

    def part(self, source: Source, choose: Choose | None, choice: Any) -> EncodedSource:
        """Reads, recognises and encodes a source. `choose` picks from the groups of all usable rows the indices of
        those to encode, None all of them; `choice` is that in a JSON-able form."""
        digests = [
            digest(path, self.cache, self._tell) + sheet
            for path, sheet in (zip(source.files, source.sheets, strict=True) if self.most is None else ())
        ]
        names = (
            [path.name for path in source.files] if len(source.files) > 1 else [path.suffix for path in source.files]
        )
        cache = self.cache if source.files or "revision=" in source.name else Cache(None)
        read_key = key_of("records", code_version(), names, digests or source.name, source.encoding)
        records = RecordStore(cache.get(read_key, lambda writer: self._read(writer, source), self._tell))
        sample = records.spread(_SAMPLE)
        try:
            shape = read_as(sample, self.mapping, self.goal)
        except ReadingError as error:
            raise with_header(error, records.assumptions) from None
        check_goal(shape, self.goal)
        if self.encoder.train_on == "all" and (shape.name == "preference" or self.goal == "unpaired"):
            raise StudioError(ANSWERS_ONLY, "Set data.train_on to assistant or last_turn.")
        labelled = ["unpaired"] if self._is_unpaired(shape) and shape.name == "kto" else []

        def key_with(train_on: str) -> str:
            tokenizer, template, _, thinking = self.encoder_key
            made_of = [tokenizer, template, train_on, thinking]
            return key_of("rows", read_key, shape.to_dict(), self.system_prompt, made_of, choice, *labelled)

        def build(writer: ArrayWriter) -> Facts:
            for other in _SOURCES_OF_MASKS:
                arrays = cache.find(key_with(other), self._tell) if cache.has(key_with(other)) else None
                if arrays and arrays.facts["masks"]:
                    return write_masked(writer, arrays, self.encoder.train_on)
            return self._encode(writer, records, shape, sample, choose)

        key = key_with(self.encoder.train_on)
        arrays = cache.get(key, build, self._tell)
        return self._loaded(source, key, digests, records, shape, arrays)

    def _is_unpaired(self, shape: Format) -> bool:
        """Whether good and bad answers are learned from one by one: labelled ones, or those of pairs for KTO."""
        return self.goal == "unpaired" or (self.goal == "any" and shape.name == "kto")

    def _tell(self) -> None:
        """Reports progress during a cache lookup, which takes seconds for large files."""
        if time.monotonic() - self.began > _SLOW_SECONDS:
            self.before_slow()
        self.report("lookup", 0, 0)

    def _loaded(
        self, source: Source, key: str, digests: list[str], records: RecordStore, shape: Format, arrays: Arrays
    ) -> EncodedSource:
        rows = PairStore(arrays) if shape.name == "preference" else RowStore(arrays)
        positions, groups = np.asarray(arrays["usable"]), np.asarray(arrays["group"])
        usable = positions[~np.isin(positions, arrays["refused"])]
        bad_rows = BadRows(records.arrays, arrays)
        if not len(positions) and arrays.facts["marked_bad"]:
            raise nothing_good(source.name, shape, arrays.facts["marked_bad"], len(bad_rows))
        if not len(usable) or not len(rows):
            raise nothing_to_train(source.name, shape, bad_rows[0], self._advice(records, shape, bad_rows[0]))
        chats = Conversations(records, usable, shape, self.system_prompt)
        return EncodedSource(
            source.name,
            key,
            digests,
            records,
            shape,
            chats,
            positions,
            groups,
            rows,
            bad_rows,
            arrays.facts,
            self._is_unpaired(shape),
        )

    def _advice(self, records: RecordStore, shape: Format, first: BadRow) -> str:
        """Advice against the first bad row of a file, which names the setting to change."""
        if not refuses_system(first):
            return ADVICE.get(first.reason, f"Fix the rows. Or, if the column mapping is wrong, {BY_MAPPING}.")
        record = next(records.records(np.searchsorted(records.row, [first.row]).tolist()))
        unprompted = replace(shape, mapping=replace(shape.mapping, system_prompt=None) if shape.mapping else None)
        if any(message.role == "system" for message in convert(record, unprompted).messages):
            return f"The rows contain system prompts. Remove them, or {NO_SYSTEM_STYLE}"
        setting = "data.mapping.system_prompt" if self.system_prompt is None else "data.system_prompt"
        return f"Leave {setting} empty, or {NO_SYSTEM_STYLE}"

    def _read(self, writer: ArrayWriter, source: Source) -> Facts:
        self.before_slow()
        return write_records(writer, source, self.report, self.most)

    def _encode(
        self,
        writer: ArrayWriter,
        records: RecordStore,
        shape: Format,
        sample: Sequence[Record],
        choose: Choose | None,
    ) -> Facts:
        self.before_slow()
        bad_rows = BadRowWriter(writer)
        converted = Converted(bad_rows.add)
        few = list(self._convert(sample[:: max(1, len(sample) // _FEW)], shape, Converted(lambda bad: None)))
        compared = shape.name == "preference"
        if compared:
            few = [side for chat in few for side in sides(chat)]
        answers = changed_answers(few, self.encoder, self.encoder.template.origin)
        conversations: Iterable[Conversation] = self._convert(records.records(range(len(records))), shape, converted)
        total = len(records)
        if choose is not None:
            for done, _ in enumerate(conversations):
                if done % _REPORT_EVERY == 0:
                    self.report("convert", done, total)
            self.report("convert", total, total)
            selected = choose(converted.groups())
            conversations = Conversations(records, converted.usable()[selected], shape, self.system_prompt)
            total = len(selected)
        write_rows(writer, [], [])
        writer.add("refused", np.empty(0, np.int64))
        done = 0
        self.report("encode", 0, total)
        if compared:
            conversations = (side for chat in conversations for side in sides(chat))
        elif self._is_unpaired(shape):
            conversations = map(last_answer, conversations)
        rewritten, numbered, unknown = self.encoder.rewritten, self.encoder.numbered, self.encoder.unknown_masks
        encoded = self.encoder.encode_batches(batches(conversations))
        for rows, bad in match_pairs(encoded) if compared else encoded:
            write_rows(writer, rows, np.searchsorted(records.row, [row.row for row in rows]))
            for row in bad:
                bad_rows.add(row)
            writer.add("refused", np.searchsorted(records.row, np.array([row.row for row in bad], np.int64)))
            done += len(rows) // (2 if compared else 1) + len(bad)
            self.report("encode", done, total)
        self.report("encode", total, total)
        writer.add("usable", converted.usable())
        writer.add("group", converted.groups())
        whole = Conversations(records, converted.usable(), shape, self.system_prompt)
        omitted = {
            "thoughts": self._omitted(whole, converted.thoughtful, omits_reasoning),
            "beside": self._omitted(whole, converted.spoken_calls, omits_beside_calls),
            "answers": answers,
            "rewritten": (self.encoder.rewritten - rewritten) // (2 if compared else 1),
            "numbered": (self.encoder.numbered - numbered) // (2 if compared else 1),
        }
        has_masks = self.encoder.template.has_marks and not answers["rows"] and self.encoder.unknown_masks == unknown
        facts = {"resting": converted.resting, "marked_bad": converted.marked_bad, "omitted": omitted}
        facts["masks"] = has_masks
        return {**facts, "bad_reasons": bad_rows.finish()}

    def _omitted(self, conversations: Conversations, positions: Sequence[int], omits: Omits) -> dict[str, int]:
        """Number of these rows with omissions, from a sample of at most MAX_CHECKED_ROWS."""
        selected = np.array(positions, np.int64)
        if len(selected) > MAX_CHECKED_ROWS:
            selected = selected[np.linspace(0, len(selected) - 1, MAX_CHECKED_ROWS).astype(int)]
        rows = count_omissions(self._alive(conversations.at(selected)), self.encoder, omits)
        return {"rows": rows, "looked_at": len(selected), "of_rows": len(positions)}

    def _alive(self, rows: Iterable[Conversation]) -> Iterator[Conversation]:
        """The same rows, with a sign of life now and then."""
        for done, row in enumerate(rows):
            if done % _REPORT_OMITTED == 0:
                self.report("encode", 0, 0)
            yield row

    def _convert(self, records: Iterable[Record], shape: Format, converted: "Converted") -> Iterator[Conversation]:
        """Yields the usable rows and records positions, groups and faults in `converted`.

        Rows whose answer is marked bad are good rows, but only a comparison learns from them.
        """
        unpaired = self._is_unpaired(shape)
        for position, record in enumerate(records):
            try:
                chat = convert(record, shape, self.system_prompt)
            except RowError as error:
                converted.refuse(error.at(record.row))
            else:
                if chat.label is False and not unpaired:
                    converted.marked_bad += 1
                    continue
                converted.add(position, chat)
                yield chat


class Converted:
    """Positions and groups of the usable rows of a source. `refuse` receives the bad rows."""

    def __init__(self, refuse: Callable[[BadRow], None]) -> None:
        self.refuse = refuse
        self._usable, self._groups = array("q"), array("Q")
        self.thoughtful, self.spoken_calls = array("q"), array("q")
        self.resting = self.marked_bad = 0

    def add(self, position: int, chat: Conversation) -> None:
        self._usable.append(position)
        self._groups.append(group_of(chat))
        turns = (*chat.messages, *chat.chosen, *chat.rejected)
        if any(message.reasoning_content for message in turns):
            self.thoughtful.append(position)
        if any(map(speaks_beside_call, turns)):
            self.spoken_calls.append(position)
        self.resting += not all(message.trained for message in chat.messages)

    def usable(self) -> np.ndarray:
        """Places among the records, rising."""
        return np.array(self._usable, np.int64)

    def groups(self) -> np.ndarray:
        """A group number for each usable row, equal for rows with the same text."""
        return np.array(self._groups, np.uint64)


def nothing_to_train(name: str, shape: Format, first: BadRow, advice: str) -> ReadingError:
    """The error for a file without a trainable row; `first` is its first bad row."""
    where = f" ({first.field})" if first.field else ""
    value = f"; found: {first.found[:120].strip().rstrip('.')}" if first.found else ""
    return ReadingError(
        f"No row of {Path(name).name} can be used for training. The columns were mapped as follows: {shape.words} "
        f"Row {first.row}: {first.reason.rstrip('.')}{where}{value}.",
        advice,
    )


def nothing_good(name: str, shape: Format, marked_bad: int, unusable: int) -> ReadingError:
    """The error for a labelled file without a good answer."""
    label = shape.columns["label"]
    more = f", {unusable:,} invalid" if unusable else ""
    return ReadingError(
        f"No answer in {Path(name).name} is labelled good (column `{label}`): {marked_bad:,} are labelled bad{more}.",
        f"Label good answers true. If `{label}` means something else, ignore that column to use every row.",
    )


def tokenizer_key(tokenizer: Any) -> str:
    """A fingerprint of a tokenizer: vocabulary, merges and special tokens.

    Writing out a vocabulary takes a tenth of a second, so it is done once for a tokenizer, and again when tokens were
    added to it or changed.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    added = json.dumps([tokenizer.special_tokens_map, str(tokenizer.added_tokens_decoder)], sort_keys=True, default=str)
    cached = _KEYS.get(tokenizer)
    if cached is None or cached[0] != added:
        whole = hashlib.sha256((backend.to_str() + added).encode("utf-8", "surrogatepass")).hexdigest()
        cached = _KEYS[tokenizer] = (added, whole)
    return cached[1]


class ChangedAnswers(TypedDict):
    """Rows whose last answer is not trained verbatim, of the rows checked."""

    rows: int
    looked_at: int


def omits_reasoning(chat: Conversation, text: str) -> bool:
    """Whether a thought of the row is not in its text."""
    return any((message.reasoning_content or "").strip() not in text for message in chat.messages)


def omits_beside_calls(chat: Conversation, text: str) -> bool:
    """Whether the rendered text lacks the content beside a tool call."""
    return any(speaks_beside_call(message) and message.content.strip() not in text for message in chat.messages)


def speaks_beside_call(message: Message) -> bool:
    return bool(message.tool_calls and message.content.strip())


def refuses_system(bad: BadRow) -> bool:
    """Whether the chat template takes the row but for its system prompt."""
    return bad.reason == NO_SYSTEM


def count_omissions(chats: Iterable[Conversation], encoder: Encoder, omits: Omits) -> int:
    """How many of the rows miss something in their text, pairs on either side of theirs.

    Rows that can't be rendered are faults of another kind.
    """
    count = 0
    for chat in chats:
        try:
            count += any(omits(side, encoder.render(side)) for side in (sides(chat) if chat.chosen else (chat,)))
        except RowError:
            continue
    return count


def changed_answers(chats: Sequence[Conversation], encoder: Encoder, template: str) -> ChangedAnswers:
    """How many rows do not train their last answer word by word: `rows` of `looked_at`.

    Raises StudioError where no row does: what would be learned is then not what the file teaches.
    """
    changed = looked_at = 0
    for chat in chats:
        last = next((message for message in reversed(chat.messages) if message.role == "assistant"), None)
        if last is None or not last.trained or not last.content.strip():
            continue
        try:
            encoded, pieces, _ = encoder.tokens(chat)
        except RowError:
            continue
        looked_at += 1
        trained = ["".join(pieces[begin:end]) for begin, end in encoded.spans]
        answer = tidy(last.content)  # an end token that the file has written out is not written twice
        changed += not any(answer in part for part in trained)
    if looked_at and changed == looked_at:
        raise StudioError(
            f"The trained tokens contain none of the answers ({looked_at} rows checked). {template}",
            "Choose another prompt style (chatml supports every answer), or fix the model's chat template.",
        )
    return {"rows": changed, "looked_at": looked_at}


def sentences(facts: JsonObject) -> list[str]:
    """Sentences on omissions; [] if nothing is left out."""
    notes = []
    for name, description in (
        ("thoughts", "contain reasoning that the chat template omits, fully or partly"),
        ("beside", "contain text beside a tool call that the chat template omits"),
    ):
        counts = facts[name]
        among = f" of the {counts['looked_at']:,} checked" if counts["looked_at"] < counts["of_rows"] else ""
        if counts["rows"]:
            notes.append(f"{counts['rows']:,} rows{among} {description}.")
    if facts["rewritten"]:
        notes.append(
            f"In {facts['rewritten']:,} rows the chat template renders earlier answers differently from the last. "
            "Each is trained as rendered in the whole conversation."
        )
    if facts["numbered"]:
        notes.append(
            f"In {facts['numbered']:,} rows the tool calls get ids (call00001 and so on): the chat template "
            "requires ids, and the rows have none."
        )
    changed = facts["answers"]
    if changed["rows"]:
        notes.append(
            f"In {changed['rows']} of {changed['looked_at']} rows checked, the chat template changes the last answer."
        )
    return notes
