"""Trainer callbacks: events, progress, stop, early stopping, sample generations, and the check for NaN.

A stop finishes and saves the current step. Sample generations are greedy and change neither the random state of
training nor the model's mode.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypedDict

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks

from lora_studio.config.sections import Config
from lora_studio.data.dataset import Prepared
from lora_studio.data.preview import Question
from lora_studio.engine import ranks
from lora_studio.engine.accelerator import Memory, RandomNumbers, device_kind, device_uuid, read_memory
from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.evaluate.tasks import is_exact
from lora_studio.engine.models.multi_adapter import LoadedModel
from lora_studio.engine.runtime import EventLog, StopSignal, repeating
from lora_studio.engine.train.rows import check_rows_to_measure
from lora_studio.engine.train.settings import RISING
from lora_studio.jobs.events import CheckpointSaved, Evaluated, QuestionsAnswered, QuestionsAsked, StepLogged
from lora_studio.models.hardware import SensorReading, device_reading
from lora_studio.runs.rate_search import has_diverged
from lora_studio.units import GIB

WORDS = {
    "loss": "the validation loss has not decreased",
    "accuracy": "accuracy has not increased",
    "f1": "F1 has not increased",
    "reward_accuracy": "reward accuracy has not increased",
    "reward_margin": "the reward margin has not increased",
}


def value_of(evaluation: Evaluated, metric: str) -> float:
    """The value of a `metric_for_best_model`."""
    return evaluation.loss if metric == "loss" else evaluation.metrics[metric]


def evaluations_without_gain(values: Sequence[float], *, rising: bool, threshold: float) -> int:
    """The number of evaluations since the last improvement by more than `threshold`."""
    best: float | None = None
    waited = 0
    for value in values if rising else [-value for value in values]:
        waited = 0 if best is None or value - best > threshold else waited + 1
        best = value if best is None else max(best, value)
    return waited


class EarlyStopping(TrainerCallback):
    """Stops after `patience` evaluations without improvement; `before` are the values of earlier starts."""

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
        """Why the run stopped early; "" if it did not."""
        if self.ended_at is None:
            return ""
        times = "1 evaluation" if self.patience == 1 else f"{self.patience} evaluations"
        by = f" by more than {self.threshold:g}" if self.threshold else ""
        return f"Stopped early at step {self.ended_at:,}: {WORDS[self.metric]}{by} for {times}."


MAX_TEXT = 2000


class GenEval(TrainerCallback):
    """Sample generations after each evaluation. `loaded` is the model in training, with the training template as the
    base's.

    Inside `base()` the model is the bare base, and inside `autocast()` it computes in the precision of training: a bias
    that is trained is float32, and does not fit into its 16-bit module otherwise. Of several processes the first asks;
    all of them have this callback, and wait for it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        questions: Sequence[Question],
        *,
        base: Callable[[], AbstractContextManager[None]],
        autocast: Callable[[], AbstractContextManager[Any]],
        at_once: int,
        max_new_tokens: int,
        enable_thinking: bool | None,
        log: EventLog,
        stop: StopSignal,
    ) -> None:
        self.answers = ranks.world().is_first
        self.loaded = loaded
        self.questions = questions
        self.base, self.autocast = base, autocast
        self.at_once = at_once
        self.max_new_tokens = max_new_tokens
        self.enable_thinking = enable_thinking
        self.log = log
        self.stop = stop

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self.log.state().questions is not None:
            return  # an earlier start of the run asked the base
        with ranks.together(self.stop):
            if self.answers:
                self._ask_the_base()

    def _ask_the_base(self) -> None:
        with self.base():
            answers = self.ask()
        self.log.emit(
            QuestionsAsked(
                time.time(),
                [shorten(str(question.messages[-1]["content"])) for question in self.questions],
                [shorten(question.reference) for question in self.questions],
                [shorten(answer) for answer in answers],
                self._right(answers),
            )
        )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        with ranks.together(self.stop):
            if not self.answers:
                return
            answers = self.ask()
            texts = [shorten(answer) for answer in answers]
            self.log.emit(
                QuestionsAnswered(time.time(), state.global_step, state.epoch or 0.0, texts, self._right(answers))
            )

    def ask(self) -> list[str]:
        """The answers to all questions. Raises `Stopped` on a stop."""
        model = self.loaded.model
        training = model.training
        model.eval()
        self.log.phase("evaluate", len(self.questions), "answers")
        answers: list[str] = []
        try:
            with torch.random.fork_rng(), self.autocast():
                while len(answers) < len(self.questions):
                    batch = self.questions[len(answers) : len(answers) + self.at_once]
                    generated = generate(
                        self.loaded,
                        [Column(None, question.messages) for question in batch],
                        greedy(self.loaded, self.max_new_tokens),
                        enable_thinking=self.enable_thinking,
                        stop=lambda: self.stop.heard,
                    )
                    self.stop.check()
                    answers += [answer.text for answer in generated]
                    self.log.progress(len(answers), len(self.questions))
        finally:
            model.train(training)
        return answers

    def _right(self, answers: Sequence[str]) -> list[bool]:
        pairs = zip(answers, self.questions, strict=True)
        return [is_exact(answer, question.reference) for answer, question in pairs]


def shorten(text: str) -> str:
    """A text shortened for an event."""
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def early_stopping(config: Config, prepared: Prepared, before: Sequence[Evaluated]) -> EarlyStopping | None:
    """The early-stopping callback, if configured. `before`: evaluations of earlier starts."""
    evaluation = config.evaluation
    metric, patience = evaluation.metric_for_best_model, evaluation.early_stopping_patience
    if not patience:
        return None
    check_rows_to_measure(prepared, "early stopping (evaluation.early_stopping_patience)")
    values = [value_of(measured, metric) for measured in before]
    return EarlyStopping(metric, patience, evaluation.early_stopping_threshold, values)


class DivergedError(ArithmeticError):
    """The training loss, the validation loss (`what`) or the adapter's weights are not finite."""

    def __init__(self, what: str, value: float, step: int) -> None:
        self.what, self.value, self.step = what, value, step
        state = "infinite" if math.isinf(value) else "not a number (NaN)"
        super().__init__(f"The {what} is {state} at step {step:,}.")


def check_number(what: str, value: float, step: int) -> None:
    """Raises `DivergedError` for a value that is not finite."""
    if not math.isfinite(value):
        raise DivergedError(what, value, step)


def check_weights(model: Any, step: int) -> None:
    """Raises `DivergedError` if a trained weight is not finite."""
    for parameter in model.parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise DivergedError("adapter", math.nan, step)


class RateSearchEnding(TrainerCallback):
    """Ends a learning-rate search as soon as higher rates are of no use."""

    def __init__(self, log: EventLog) -> None:
        self.log = log

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if has_diverged([point.loss for point in self.log.state().steps]):
            control.should_training_stop = True


class Explanation(TypedDict):
    """The entries of complete.json for a training that diverged."""

    message: str
    hint: str


def explain(error: DivergedError, config: Config, dtype: str) -> Explanation:
    """The message and hint of complete.json for a training that diverged."""
    half = dtype == "float16"
    why = "float16 overflowed" if half else "the learning rate was too high"
    if error.step <= 1 and error.what == "training loss":
        why = f"the base model itself computes NaN in {dtype}" if half else "the base model itself computes NaN"
    rate = float(f"{config.training.learning_rate / 3:.2g}")
    cures = ["set model.dtype to float32 (or auto, if the GPU supports bfloat16)"] if half else []
    cures.append(f"lower training.learning_rate to {rate:g}")
    if config.training.max_grad_norm > 1:
        cures.append(f"lower training.max_grad_norm to 1 (it is {config.training.max_grad_norm:g})")
    return {
        "message": f"{error} The likely cause: {why}. Training stopped because nothing useful can be learned after "
        "that.",
        "hint": f"Start a new run: {', or '.join(cures)}. Earlier checkpoints can still be used.",
    }


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
    **{f"eval_{name}": name for name in (*COMPARED.values(), "kl")},
}
# What the trainer's log holds that has a place of its own in the event, or none.
PLACED = ("loss", "learning_rate", "grad_norm", "mean_token_accuracy", "entropy", "num_tokens", "epoch")


class TensorBoard(TensorBoardCallback):
    """transformers' callback, with the numbers of a training step in one record instead of one for each.

    It also waits for the disk at every call. Here the writer's own thread flushes within `FLUSH_SECONDS`; other logs
    and the end of the training still wait.
    """

    FLUSH_SECONDS = 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.tb_writer is None:
            self.tb_writer = SummaryWriter(self.logging_dir, flush_secs=self.FLUSH_SECONDS)
        super().on_train_begin(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.tb_writer is None or logs is None or "loss" not in logs:
            super().on_log(args, state, control, logs=logs, **kwargs)
            return
        numbers = [Summary.Value(tag=f"train/{name}", simple_value=value) for name, value in logs.items()]
        self.tb_writer.file_writer.add_summary(Summary(value=numbers), state.global_step)


def put_trackers_last(trainer: Trainer) -> None:
    """Calls TensorBoard and other trackers after `ReportCallback`, which adds its own numbers to the logs."""
    if trainer.pop_callback(TensorBoardCallback) is not None:
        trainer.add_callback(TensorBoard)
    trackers = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    trainer.callback_handler.callbacks.sort(key=lambda callback: isinstance(callback, trackers))


MEMORY_SECONDS, SENSOR_SECONDS = 0.5, 5.0
"""Between two readings of memory, and of load and temperature."""


class ReportCallback(TrainerCallback):
    """Converts the trainer's callbacks to events. `tokens_before` is the count of earlier starts of a resumed run.

    What the device tells is read in threads of their own (`watching`): the driver may take its time to answer.
    """

    def __init__(
        self, log: EventLog, stop: StopSignal, tokens_before: int, read_sensors: Callable[[], SensorReading]
    ) -> None:
        self.log = log
        self.stop = stop
        self._read_sensors, self._sensors = read_sensors, SensorReading()
        self._memory: Memory | None = None
        self.tokens_before = tokens_before
        self.tokens = tokens_before
        self.evaluating = 0
        self.last_evaluation: tuple[int, float] | None = None
        self.saved_step = -1
        self.after_step: RandomNumbers | None = None
        self._kind = device_kind()
        self._mark = self._step_ended = time.monotonic()
        self._pause = 0.0
        self._paused = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, memory, load and temperature are read again and again."""
        self._read_sensors()  # the first call begins the count of the CPU's load
        with repeating(self._look_at_memory, MEMORY_SECONDS), repeating(self._look_at_sensors, SENSOR_SECONDS):
            yield

    def _look_at_memory(self) -> None:
        self._memory = read_memory()

    def _look_at_sensors(self) -> None:
        self._sensors = self._read_sensors()

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
            self.after_step = RandomNumbers(self._kind)
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
        memory, device = self._memory or read_memory(), self._sensors
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
            metrics={COMPARED.get(name, name): float(value) for name, value in logs.items() if name not in PLACED},
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
        extra = {ours: metrics[theirs] for theirs, ours in MEASURED.items() if theirs in metrics}
        self.log.emit(Evaluated(time.time(), state.global_step, state.epoch or 0.0, metrics["eval_loss"], extra))
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
    """Additional measurements of a step, by the names that TensorBoard shows."""
    numbers = {
        "tokens_per_second": point.tokens_per_second,
        "memory_gib": point.memory_bytes / GIB,
        "memory_peak_gib": point.memory_peak_bytes / GIB,
        "device_load_percent": point.device_load,
        "device_celsius": point.device_celsius,
    }
    return {name: value for name, value in numbers.items() if value is not None}


def report_callback(log: EventLog, stop: StopSignal) -> ReportCallback:
    """The callback with this device's sensors; a resumed run continues its count of tokens."""
    steps = log.state().steps
    sensors = partial(device_reading, device_kind(), device_uuid())
    return ReportCallback(log, stop, steps[-1].tokens if steps else 0, sensors)
