"""Which label the model gives to each validation row, read off the evaluation's own forward pass.

The likeliest token is computed at the positions of the answer alone: no second pass and no logits of the rest. Up to
the first token that differs from the row's answer this is what greedy generation writes; what follows would not be,
and is not looked at. So an answer is right here exactly when greedy generation gives it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lora_studio.data.encode import IGNORED
from lora_studio.engine.evaluate.tasks import label_of, label_scores
from lora_studio.errors import StudioError

AT_ONCE = 1 << 25  # logits that are in memory together
_END_OF_THINKING = "</think>"

Decode = Callable[[list[int]], str]
Batch = dict[str, torch.Tensor]
"""What the model is called with: input_ids, labels, attention_mask, each [rows, tokens]."""


class LabelMeter:
    """Collects expected and given labels over an evaluation. `decode` gives the text of ids without special tokens."""

    def __init__(self, labels: Sequence[str], decode: Decode) -> None:
        self.labels = tuple(labels)
        self.decode = decode
        self.expected: list[str] = []
        self.given: list[str | None] = []
        self._hidden: torch.Tensor | None = None
        self._model: Any = None

    def watch(self, model: Any) -> None:
        """Keeps the last hidden states of every pass of a causal language model that does not learn."""
        self._model = model
        model.base_model.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._hidden = None if torch.is_grad_enabled() else output.last_hidden_state

    def begin(self) -> None:
        """Forgets the evaluation before."""
        self.expected, self.given = [], []

    def add(self, inputs: Batch) -> None:
        """Takes the batch that the last pass was made for."""
        assert self._hidden is not None, "no pass was watched"
        hidden, self._hidden = self._hidden, None
        labels = inputs["labels"].cpu().numpy()
        positions = inputs["position_ids"].cpu().numpy() if "position_ids" in inputs else None
        for row, start, stop in answer_spans(labels, positions):
            answer = labels[row, start:stop].tolist()
            label = label_of(self.decode(answer), self.labels)
            if label is None:
                continue
            thought = thinking_tokens(answer, self.decode)
            likeliest = self._likeliest(hidden[row, start + thought - 1 : stop - 1])
            self.expected.append(label)
            self.given.append(given_label(answer[thought:], likeliest, self.labels, self.decode))

    def _likeliest(self, hidden: torch.Tensor) -> list[int]:
        head = self._model.get_output_embeddings()
        rows = max(1, AT_ONCE // head.weight.shape[0])
        ids = list[int]()
        for piece in hidden.split(rows):
            ids += head(piece.to(head.weight.dtype)).argmax(-1).tolist()
        return ids

    def scores(self) -> dict[str, float]:
        """Accuracy, macro F1 and share of unanswered rows; empty where no row had a label."""
        return label_scores(self.expected, self.given)


def answer_spans(labels: np.ndarray, positions: np.ndarray | None = None) -> Iterator[tuple[int, int, int]]:
    """Batch row, start and stop of each example's last trained stretch, which is its answer. `labels` are [batch,
    sequence]; where examples stand one after the other in one row, `positions` begin anew with each."""
    for row, values in enumerate(labels):
        begins = np.flatnonzero(positions[row] == 0).tolist() if positions is not None else [0]
        for begin, end in zip(begins, [*begins[1:], len(values)], strict=True):
            trained = np.flatnonzero(values[begin:end] != IGNORED)
            if not len(trained):
                continue
            breaks = np.flatnonzero(np.diff(trained) > 1)
            first = trained[breaks[-1] + 1] if len(breaks) else trained[0]
            if begin + first > 0:
                yield row, begin + int(first), begin + int(trained[-1]) + 1


def thinking_tokens(answer: list[int], decode: Decode) -> int:
    """How many of an answer's tokens are its reasoning."""
    if _END_OF_THINKING not in decode(answer):
        return 0
    return next(size for size in range(1, len(answer) + 1) if _END_OF_THINKING in decode(answer[:size]))


def given_label(answer: list[int], likeliest: list[int], labels: Sequence[str], decode: Decode) -> str | None:
    """The label of an answer as far as the likeliest tokens say the same, and of the first one that does not."""
    same = next((at for at, pair in enumerate(zip(answer, likeliest, strict=True)) if pair[0] != pair[1]), len(answer))
    text = decode([*answer[:same], *likeliest[same : same + 1]])
    return label_of(text, labels, whole=same == len(answer))


def labelled_rows(rows: Sequence[Any], labels: Sequence[str], decode: Decode) -> int:
    """How many examples have an answer that gives a label. Raises `StudioError` where none has."""
    labelled, answers = 0, list[str]()
    for example in rows:
        for _, start, stop in answer_spans(np.array([example.labels])):
            answers.append(decode(example.labels[start:stop]))
            labelled += label_of(answers[-1], labels) is not None
    if not labelled:
        examples = "; ".join(f"“{answer.strip()[:60]}”" for answer in dict.fromkeys(answers[:3]))
        raise StudioError(
            f"No answer among the {len(rows):,} validation rows gives one of the labels {', '.join(labels)}.",
            f"Their answers begin so: {examples}. Set evaluation.labels to what the answers say, or leave it empty.",
        )
    return labelled
