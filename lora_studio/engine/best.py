"""Which evaluation is the best, when to end for want of a gain, and the sentence that says so."""

from collections.abc import Sequence

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_studio.events import Evaluated

RISING = ("accuracy", "f1", "reward_accuracy", "reward_margin")
WORDS = {
    "loss": "the validation loss has not fallen",
    "accuracy": "accuracy has not risen",
    "f1": "F1 has not risen",
    "reward_accuracy": "the share of pairs told apart has not risen",
    "reward_margin": "the reward margin has not risen",
}


def value_of(evaluation: Evaluated, metric: str) -> float:
    """The number that a `metric_for_best_model` names."""
    return evaluation.loss if metric == "loss" else evaluation.metrics[metric]


def evaluations_without_gain(values: Sequence[float], *, rising: bool, threshold: float) -> int:
    """How many evaluations at the end were not better than the best before them by more than `threshold`."""
    best: float | None = None
    waited = 0
    for value in values if rising else [-value for value in values]:
        waited = 0 if best is None or value - best > threshold else waited + 1
        best = value if best is None else max(best, value)
    return waited


class EarlyStopping(TrainerCallback):
    """Ends the training after `patience` evaluations without a gain; `before` are the values of earlier starts."""

    def __init__(self, metric: str, patience: int, threshold: float, before: Sequence[float]) -> None:
        self.metric = metric
        self.patience = patience
        self.threshold = threshold
        self.values = list(before)
        self.ended_at: int | None = None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if metrics is None:
            return
        self.values.append(metrics[f"eval_{self.metric}"])
        waited = evaluations_without_gain(self.values, rising=self.metric in RISING, threshold=self.threshold)
        if waited >= self.patience and state.global_step < state.max_steps:
            control.should_training_stop = True
            self.ended_at = state.global_step

    @property
    def words(self) -> str:
        """Why the run ended early; empty where it did not."""
        if self.ended_at is None:
            return ""
        times = "1 evaluation" if self.patience == 1 else f"{self.patience} evaluations"
        by = f" by more than {self.threshold:g}" if self.threshold else ""
        return f"Ended early at step {self.ended_at:,}: {WORDS[self.metric]}{by} for {times}."
