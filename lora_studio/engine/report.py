"""From a running training to events.

It also obeys a stop: in training the step is finished and saved, in every other phase the work ends at once.
"""

import time
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from lora_studio.engine.diverged import check_number
from lora_studio.engine.event_log import EventLog
from lora_studio.engine.lengthening import RandomNumbers
from lora_studio.engine.memory import GIB, read_memory
from lora_studio.engine.stopping import Stop
from lora_studio.events import CheckpointSaved, Evaluated, StepLogged
from lora_studio.sensors import Sensors

LEAST_POINTS = 20
# What learning by comparison measures: the trainer's name, and ours. A reward is beta times how much likelier an answer
# is than to the base.
COMPARED = {
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "reward_accuracy",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
}
# What an evaluation measures beside the loss.
MEASURED = {
    "eval_mean_token_accuracy": "token_accuracy",
    "eval_accuracy": "accuracy",
    "eval_f1": "f1",
    "eval_unanswered": "unanswered",
    **{f"eval_{name}": name for name in COMPARED.values()},
}

# What the trainer's log holds that has a place of its own in the event, or none.
PLACED = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy", "num_tokens", "epoch")


def put_trackers_last(trainer: Trainer) -> None:
    """TensorBoard and the like are told after `Report`, which adds its own numbers to what they are told."""
    trackers = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    trainer.callback_handler.callbacks.sort(key=lambda callback: isinstance(callback, trackers))


def logging_interval(asked: int, total_steps: int) -> int:
    """Steps between two points: what was asked, but never so many that a run draws fewer than 20 points.

    0 leaves it to us: at least 50 points where the run has as many steps, and one at least every 10 steps.
    """
    if asked == 0:
        return max(1, min(10, total_steps // 50))
    return max(1, min(asked, total_steps // LEAST_POINTS))


class Report(TrainerCallback):
    """Turns what the trainer does into events. `tokens_before` are those of earlier starts of a resumed run."""

    def __init__(self, log: EventLog, stop: Stop, tokens_before: int = 0, sensors: Sensors | None = None) -> None:
        self.log = log
        self.sensors = sensors or Sensors()
        self.stop = stop
        self.tokens_before = tokens_before
        self.tokens = tokens_before
        self.evaluating = 0
        self.last_evaluation: tuple[int, float] | None = None
        self.saved_step = -1
        self.after_step: RandomNumbers | None = None
        self._mark = self._step_ended = time.monotonic()
        self._pause = 0.0
        self._paused = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.saved_step = state.global_step if state.global_step else -1
        self.log.phase("train", state.max_steps, "steps")
        self.log.progress(state.global_step, state.max_steps)
        self._mark = self._step_ended = time.monotonic()
        self.stop.finish_step_first()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._paused:
            self._pause += time.monotonic() - self._step_ended
            self._paused = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step_ended = time.monotonic()
        if args.gradient_accumulation_steps > 1:
            self.after_step = RandomNumbers()
        self.log.progress(state.global_step, state.max_steps)
        if self.stop.asked:
            control.should_training_stop = True
            control.should_log = True
            control.should_save = True
            control.should_evaluate = False

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.stop.check_long_step()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stop.asked:
            control.should_evaluate = False
            control.should_save = self.saved_step != state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        now = time.monotonic()
        tokens = self.tokens_before + int(logs["num_tokens"])
        memory, device = read_memory(), self.sensors.last
        point = StepLogged(
            time=time.time(),
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=state.epoch or 0.0,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            token_accuracy=logs.get("mean_token_accuracy"),
            tokens=tokens,
            tokens_per_second=(tokens - self.tokens) / max(now - self._mark - self._pause, 1e-6),
            memory_bytes=memory.now,
            entropy=logs.get("entropy"),
            memory_allocated_bytes=memory.allocated,
            memory_peak_bytes=memory.peak,
            memory_available_bytes=memory.available,
            device_load=device.load,
            device_celsius=device.celsius,
            metrics={
                COMPARED.get(name, name): float(value)
                for name, value in logs.items()
                if name not in PLACED and not name.startswith("logits/")  # means over the vocabulary: nobody's question
            },
        )
        self.log.emit(point)
        check_number("training loss", point.loss, point.step)
        logs.update(for_trackers(point))
        self.tokens, self._mark, self._pause = tokens, now, 0.0

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        batches = len(kwargs["eval_dataloader"])
        if self.evaluating == 0:
            self.log.phase("evaluate", batches, "batches")
        self.evaluating += 1
        self.log.progress(self.evaluating, batches)
        self.stop.check()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics is None:
            return
        self.evaluating = 0
        self._paused = True
        self.last_evaluation = (state.global_step, metrics["eval_loss"])
        others = {ours: metrics[theirs] for theirs, ours in MEASURED.items() if theirs in metrics}
        self.log.emit(Evaluated(time.time(), state.global_step, state.epoch or 0.0, metrics["eval_loss"], others))
        check_number("validation loss", metrics["eval_loss"], state.global_step)
        if not control.should_training_stop:
            self.log.phase("train", state.max_steps, "steps")
            self.log.progress(state.global_step, state.max_steps)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._paused = True
        self.saved_step = state.global_step
        measured = self.last_evaluation
        loss = measured[1] if measured and measured[0] == state.global_step else None
        self.log.emit(CheckpointSaved(time.time(), state.global_step, f"checkpoint-{state.global_step}", loss))


def for_trackers(point: StepLogged) -> dict[str, float]:
    """What we measured of a step beyond the trainer's own numbers, by the names that TensorBoard shows."""
    numbers = {
        "tokens_per_second": point.tokens_per_second,
        "memory_gib": point.memory_bytes / GIB,
        "memory_peak_gib": point.memory_peak_bytes / GIB,
        "device_load_percent": point.device_load,
        "device_celsius": point.device_celsius,
    }
    return {name: value for name, value in numbers.items() if value is not None}
