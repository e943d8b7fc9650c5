"""The label that the model predicts for each validation row, from the evaluation's own forward pass.

Top-1 tokens are computed only at the answer's positions: no second pass, and no logits elsewhere. Up to the first token
that differs from the row's answer they equal greedy generation; later ones are ignored. So an answer counts as correct
exactly when greedy generation produces it.
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
"""The model's inputs: input_ids, labels, attention_mask, each [rows, tokens]."""


class LabelMeter:
    """Collects expected and predicted labels over an evaluation. `decode` decodes ids without special tokens."""

    def __init__(self, labels: Sequence[str], decode: Decode) -> None:
        self.labels = tuple(labels)
        self.decode = decode
        self.expected: list[str] = []
        self.given: list[str | None] = []
        self._hidden: torch.Tensor | None = None
        self._model: Any = None

    def watch(self, model: Any) -> None:
        """Keeps the last hidden states of every forward pass of a causal language model in evaluation."""
        self._model = model
        model.base_model.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._hidden = None if torch.is_grad_enabled() else output.last_hidden_state

    def begin(self) -> None:
        """Clears the previous evaluation."""
        self.expected, self.given = [], []

    def add(self, inputs: Batch) -> None:
        """Adds the batch of the last forward pass."""
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
        """Accuracy, macro F1 and the share of unanswered rows; empty if no row had a label."""
        return label_scores(self.expected, self.given)


def answer_spans(labels: np.ndarray, positions: np.ndarray | None = None) -> Iterator[tuple[int, int, int]]:
    """Batch row, start and stop of each example's last trained span, which is its answer. `labels` are [batch,
    sequence]; in packed rows, `positions` restart with each example."""
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
    """The number of reasoning tokens in an answer."""
    if _END_OF_THINKING not in decode(answer):
        return 0
    return next(size for size in range(1, len(answer) + 1) if _END_OF_THINKING in decode(answer[:size]))


def given_label(answer: list[int], likeliest: list[int], labels: Sequence[str], decode: Decode) -> str | None:
    """The label of an answer up to and including the first token that the model would not have generated."""
    same = next((at for at, pair in enumerate(zip(answer, likeliest, strict=True)) if pair[0] != pair[1]), len(answer))
    text = decode([*answer[:same], *likeliest[same : same + 1]])
    return label_of(text, labels, whole=same == len(answer))


def labelled_rows(rows: Sequence[Any], labels: Sequence[str], decode: Decode) -> int:
    """The number of examples whose answer gives a label. Raises `StudioError` if there are none."""
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
