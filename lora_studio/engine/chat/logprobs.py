"""Log-likelihoods of given answers under base and adapters, per token and summed over rows.

Nothing is generated (teacher forcing). All columns read the same tokens as training.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import torch

from lora_studio.data.chat_templates import in_channels, is_harmony
from lora_studio.data.encode import Example
from lora_studio.data.messages import IGNORED
from lora_studio.engine.chat.generate import Column, end_ids, prompt_ids
from lora_studio.engine.models.multi_adapter import LoadedModel
from lora_studio.engine.runtime import EventLog
from lora_studio.errors import StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.events import Warned

MAX_TOKENS = 2048
POSITIONS = 256
"""Positions whose logits are in memory at once."""


class TokenScores(TypedDict):
    """An answer's tokens: texts, log-probabilities (nats) under base and adapters, and KL(adapter || base)."""

    texts: list[str]
    base: list[float]
    adapters: dict[str, list[float]]
    divergence: dict[str, list[float]]
    mean_divergence: dict[str, float]


def score(
    loaded: LoadedModel, adapters: Sequence[str], messages: Sequence[Mapping[str, Any]], answer: str
) -> TokenScores:
    """Scores an answer token by token under base and adapters, including its end token."""
    unknown = [name for name in adapters if name not in loaded.adapters]
    if unknown or not adapters:
        raise StudioError("Choose an adapter that is in memory.", "The base is the reference of the comparison.")
    prompt = prompt_ids(loaded, Column(adapters[0], messages), None)
    tokenizer = loaded.tokenizer_of(adapters[0])
    spoken = in_channels(answer) if is_harmony(loaded.template(adapters[0])) else answer
    ids: list[int] = tokenizer.encode(spoken, add_special_tokens=False)
    if not ids:
        raise StudioError("There is no text to score.", "Ask something first.")
    room = min(MAX_TOKENS, (loaded.longest_text or math.inf) - len(prompt))
    ids = [*ids, *sorted(end_ids(loaded, adapters[0]) & {tokenizer.eos_token_id})]
    if len(ids) > room:
        raise StudioError(f"The answer has {len(ids):,} tokens; at most {room:,} can be scored.")
    vocabulary = min(loaded.rows(name) for name in (None, *adapters))
    if max((*prompt, *ids)) >= vocabulary:
        raise StudioError(
            f"{adapters[0]} is prompted with tokens that not all columns have: they have embeddings for "
            f"{vocabulary:,}.",
            "Compare their answers. Token probabilities can only be compared for adapters with the base's vocabulary.",
        )
    rows: dict[str | None, list[torch.Tensor]] = {name: [] for name in (None, *adapters)}
    divergence: dict[str, list[torch.Tensor]] = {name: [] for name in adapters}
    for begin in range(0, len(ids), POSITIONS):
        part = ids[begin : begin + POSITIONS]
        context = [*prompt, *ids[: begin + len(part) - 1]]
        base = _scores(loaded, None, context, len(part))
        rows[None].append(_chosen(base, part))
        for name in adapters:
            scores = _scores(loaded, name, context, len(part))
            rows[name].append(_chosen(scores, part))
            divergence[name].append((scores.exp() * (scores - base)).sum(-1).clamp(min=0))
    joined = {name: torch.cat(parts).tolist() for name, parts in divergence.items()}
    return {
        "texts": [str(tokenizer.decode([token])) for token in ids],
        "base": torch.cat(rows[None]).tolist(),
        "adapters": {name: torch.cat(rows[name]).tolist() for name in adapters},
        "divergence": joined,
        "mean_divergence": {name: sum(values) / len(values) for name, values in joined.items()},
    }


@torch.inference_mode()
def _scores(loaded: LoadedModel, name: str | None, ids: Sequence[int], last: int) -> torch.Tensor:
    """Log-probabilities of the token after each of the last positions, [last, vocabulary]."""
    input_ids = torch.tensor([list(ids)], device=loaded.model.device)
    with loaded.use_adapter(name) as model:
        logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=last).logits[0, -last:]
    scores: torch.Tensor = logits.float().log_softmax(dim=-1)
    return scores


def _chosen(scores: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    return scores.gather(1, torch.tensor(ids, device=scores.device)[:, None])[:, 0].cpu()


MAX_ROWS, MAX_SECONDS, ROWS_AT_ONCE = 200, 20.0, 8
MAX_SCORES = 1 << 26
"""Logits (positions x vocabulary) in memory at once, for base and adapter each: 256 MiB in float32."""
NOTHING, HARDLY = 1e-4, 1e-2
"""Nats a token below which base and adapter say the same, and below which hardly anything differs. Rounding of half
precision moves scores that a zero adapter leaves alone by nothing at all: adding zero is exact."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Means over the trained tokens of `rows` rows, out of `asked` requested.

    Losses in nats per token; `divergence` is KL(adapter || base) in nats per token. The accuracies, and
    `changed_tokens`, the share of positions whose top-1 token differs from the base's, are between 0 and 1.
    """

    rows: int
    asked: int
    tokens: int
    base_loss: float
    adapter_loss: float
    base_token_accuracy: float
    adapter_token_accuracy: float
    divergence: float
    changed_tokens: float
    seconds: float

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (self.base_loss, self.adapter_loss, self.divergence)))

    @property
    def moves(self) -> bool:
        """Whether the adapter changes the model's predictions."""
        return self.finite and (self.divergence >= HARDLY or self.changed_tokens >= HARDLY)

    def sentence(self) -> str:
        """What the adapter changes, in words and numbers."""
        if not self.finite:
            return "The logits of base or adapter are not finite: this adapter cannot be used."
        losses = f"Loss: base {self.base_loss:.4g}, adapter {self.adapter_loss:.4g}."
        divergence = f"KL {self.divergence:.2g} nats/token"
        if self.divergence < NOTHING and self.changed_tokens == 0:
            return f"The adapter has no effect: it answers like the base ({divergence}). {losses}"
        changed = f"{100 * self.changed_tokens:.1f} % of top-1 tokens differ from the base"
        if not self.moves:
            return f"The adapter has almost no effect: {changed} ({divergence}). {losses}"
        worse = " It predicts these answers worse than the base." if self.adapter_loss > self.base_loss else ""
        return f"{changed} ({divergence}). {losses}{worse}"

    def to_dict(self, rows: str) -> JsonObject:
        """The values for complete.json; `rows` says which rows were measured. Non-finite numbers become None."""
        numbers = {
            name: None if value != value or abs(value) == math.inf else value for name, value in asdict(self).items()
        }
        return {**numbers, "moves": self.moves, "sentence": self.sentence(), "rows_sentence": rows}


def against_base(
    model: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    log: EventLog,
    check: Callable[[], None],
    base: Callable[[], AbstractContextManager[Any]],
) -> JsonObject | None:
    """Compares a trained model with its base, as complete.json holds it; None if memory is too small.

    Uses the validation rows, else a sample of the training rows. Inside `base()` the model is the bare base.
    """
    rows = spread(validation or train)
    log.phase("compare", len(rows), "rows")
    try:
        comparison = difference(model, rows, base=base, on_progress=log.progress, check=check)
    except torch.OutOfMemoryError:
        log.emit(Warned(time.time(), "Base and adapter are not compared: there is too little memory for both."))
        return None
    of = (
        f"{comparison.rows:,} of {len(validation or train):,}"
        if comparison.rows < len(validation or train)
        else f"all {comparison.rows:,}"
    )
    where = "validation rows" if validation else "training rows, as there are no validation rows"
    return comparison.to_dict(f"Measured on {comparison.tokens:,} trained tokens of {of} {where}.")


def spread(rows: Sequence[Example], most: int = MAX_ROWS) -> list[Example]:
    """At most `most` rows, evenly spaced over all of them."""
    return [rows[index * len(rows) // min(most, len(rows))] for index in range(min(most, len(rows)))]


@torch.no_grad()
def difference(
    model: Any,
    rows: Sequence[Example],
    *,
    base: Callable[[], AbstractContextManager[Any]],
    most_seconds: float = MAX_SECONDS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[], None] = lambda: None,
) -> Difference:
    """Measures rows in order until the time is up, at least one batch.

    Inside `base()` the model is the bare base, outside it base and adapter. `check` may raise to stop.
    """
    began, was_training = time.monotonic(), model.training
    vocabulary = model.config.get_text_config().vocab_size
    sums = torch.zeros(6, dtype=torch.float64)
    measured = tokens = 0
    model.eval()
    try:
        for group in groups_of(rows, vocabulary):
            check()
            for sums_of_batch in _measure(model, group, base, max(1, MAX_SCORES // vocabulary)):
                sums += sums_of_batch[1]
                tokens += sums_of_batch[0]
            measured += len(group)
            on_progress(measured, len(rows))
            if time.monotonic() - began > most_seconds:
                break
    finally:
        model.train(was_training)
    base_loss, loss, base_right, right, divergence, changed = (sums / max(tokens, 1)).tolist()
    seconds = time.monotonic() - began
    return Difference(measured, len(rows), tokens, base_loss, loss, base_right, right, divergence, changed, seconds)


def groups_of(rows: Sequence[Example], vocabulary: int) -> Iterator[list[Example]]:
    """Groups of rows measured together, small enough for their scores to fit in memory."""
    group: list[Example] = []
    for row in rows:
        longest = max(len(example.input_ids) for example in [*group, row])
        if group and (len(group) == ROWS_AT_ONCE or (len(group) + 1) * longest * vocabulary > MAX_SCORES):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _measure(
    model: Any, group: Sequence[Example], base: Callable[[], AbstractContextManager[Any]], most: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Number of trained tokens, and sums over them, for at most `most` positions at a time."""
    ids, labels, mask = tensors_of(group)
    places = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    for some in places.split(max(1, most // len(group))):
        end = int(some[-1]) + 1  # what comes after can't be seen from here: it is left out
        targets = labels[:, some + 1]
        inputs = {"input_ids": ids[:, :end], "attention_mask": mask[:, :end]}
        with base():
            before = log_probabilities(model, inputs, some)
        after = log_probabilities(model, inputs, some)
        trained = (targets != IGNORED).to(after.device)
        yield int(trained.sum()), _sums(before[trained], after[trained], targets.to(after.device)[trained])


def tensors_of(group: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and attention mask of rows padded on the right, [rows, tokens] each."""
    longest = max(len(row.input_ids) for row in group)
    ids = torch.tensor([[*row.input_ids, *[0] * (longest - len(row.input_ids))] for row in group])
    labels = torch.tensor([[*row.labels, *[IGNORED] * (longest - len(row.labels))] for row in group])
    mask = torch.tensor([[1] * len(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in group])
    return ids, labels, mask


def log_probabilities(model: Any, inputs: dict[str, torch.Tensor], places: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token at the given positions, [rows, positions, vocabulary]."""
    tensors = {name: value.to(model.device) for name, value in inputs.items()}
    logits = model(**tensors, logits_to_keep=places.to(model.device), use_cache=False).logits
    if logits.shape[1] != len(places):  # a few architectures do not know the argument
        logits = logits[:, places]
    return logits.float().log_softmax(dim=-1)


def _sums(before: torch.Tensor, after: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sums over tokens in the order of `Difference`: losses, correct tokens, divergence, changed tokens."""
    place = targets[:, None]
    base_choice, adapter_choice = before.argmax(dim=-1), after.argmax(dim=-1)
    return torch.stack(
        [
            -before.gather(1, place).double().sum(),
            -after.gather(1, place).double().sum(),
            (base_choice == targets).double().sum(),
            (adapter_choice == targets).double().sum(),
            (after.exp() * (after - before)).double().sum().clamp(min=0),
            (base_choice != adapter_choice).double().sum(),
        ]
    ).cpu()


@dataclass(frozen=True, slots=True)
class Loglikelihood:
    """A row's loss in nats, and how many tokens of its answer are the model's top-1 token."""

    loss: float
    right_tokens: int
    expected_tokens: int


@torch.no_grad()
def loglikelihoods(loaded: LoadedModel, column: str | None, rows: Sequence[Example]) -> list[Loglikelihood]:
    """The log-likelihood of each row under one column (None is the base)."""
    vocabulary = loaded.model.config.get_text_config().vocab_size
    results: list[Loglikelihood] = []
    before = loaded.non_lora[column].scores_before if column in loaded.non_lora else 0
    with loaded.use_adapter(column) as model:
        for group in groups_of(rows, vocabulary):
            sums = torch.zeros(len(group), 3, dtype=torch.float64)
            for part in _measure_given(model, group, max(1, MAX_SCORES // vocabulary), before):
                sums += part
            results += [Loglikelihood(loss, int(right), int(tokens)) for loss, right, tokens in sums.tolist()]
    return results


def _measure_given(model: Any, group: Sequence[Example], most: int, before: int) -> Iterator[torch.Tensor]:
    """Loss, correct tokens and tokens of each row, [rows, 3], in chunks of positions that fit in memory."""
    for scores, targets in _scores_of(model, group, most, before):
        trained = targets != IGNORED
        target_scores = scores.gather(2, targets.clamp(min=0)[..., None])[..., 0].double()
        losses = torch.where(trained, -target_scores, 0.0).sum(dim=1)
        right = (trained & (scores.argmax(dim=-1) == targets)).sum(dim=1).double()
        yield torch.stack([losses, right, trained.sum(dim=1).double()], dim=1).cpu()


def _scores_of(
    model: Any, group: Sequence[Example], most: int, before: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities [rows, positions, vocabulary] and the tokens that follow [rows, positions], for at most `most`
    positions of all rows at a time. The model's scores begin with those of `before` virtual tokens."""
    ids, labels, mask = tensors_of(group)
    places = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    for some in places.split(max(1, most // len(group))):
        end = int(some[-1]) + 1  # what comes after can't be seen from here: it is left out
        scores = log_probabilities(model, {"input_ids": ids[:, :end], "attention_mask": mask[:, :end]}, some + before)
        yield scores, labels[:, some + 1].to(scores.device)


@dataclass(frozen=True, slots=True)
class Shortfall:
    """How far a token is behind the model's top-1 token `top`, in nats; 0 for the top-1 token itself."""

    nats: float
    top: int


@torch.no_grad()
def shortfalls(loaded: LoadedModel, column: str | None, rows: Sequence[Example]) -> list[list[Shortfall]]:
    """Those of each row's trained tokens under one column (None is the base), in one pass over the rows."""
    vocabulary = loaded.model.config.get_text_config().vocab_size
    results: list[list[Shortfall]] = []
    with loaded.use_adapter(column) as model:
        for group in groups_of(rows, vocabulary):
            of_group: list[list[Shortfall]] = [[] for _ in group]
            for scores, targets in _scores_of(model, group, max(1, MAX_SCORES // vocabulary), 0):
                best, top = scores.max(dim=-1)
                behind = best - scores.gather(2, targets.clamp(min=0)[..., None])[..., 0]
                for own, *values in zip(of_group, behind.tolist(), top.tolist(), targets.tolist(), strict=True):
                    triples = zip(*values, strict=True)
                    own += [Shortfall(nats, token) for nats, token, target in triples if target != IGNORED]
            results += of_group
    return results
