"""What a run measures beside its loss, as the settings ask; what can't be measured is refused in a sentence."""

import time
from collections.abc import Sequence
from typing import Any

from lora_studio.config import Config
from lora_studio.data.dataset import Prepared
from lora_studio.data.questions import Question, questions
from lora_studio.engine.best import EarlyStopping, value_of
from lora_studio.engine.event_log import EventLog
from lora_studio.engine.label_metrics import LabelMeter, labelled_rows
from lora_studio.errors import StudioError
from lora_studio.events import Evaluated, Warned


def label_meter(config: Config, prepared: Prepared, tokenizer: Any, log: EventLog) -> LabelMeter | None:
    """Measures accuracy and F1 where labels are named. Raises `StudioError` where no validation row has one."""
    labels, rows = config.evaluation.label_names, prepared.validation.answers
    if not labels:
        return None
    check_rows_to_measure(prepared, "accuracy and F1 of evaluation.labels")

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    found = labelled_rows(rows, labels, decode)
    if found < len(rows):
        words = f"{len(rows) - found:,} of {len(rows):,} validation rows have an answer that is none of the labels"
        log.emit(Warned(time.time(), f"{words} {', '.join(labels)}: accuracy and F1 leave them out."))
    return LabelMeter(labels, decode)


def early_stopping(config: Config, prepared: Prepared, before: Sequence[Evaluated]) -> EarlyStopping | None:
    """The callback that ends a run without gain, where one is asked for. `before`: evaluations of earlier starts."""
    evaluation = config.evaluation
    metric, patience = evaluation.metric_for_best_model, evaluation.early_stopping_patience
    if not patience:
        return None
    check_rows_to_measure(prepared, "a gain (evaluation.early_stopping_patience)")
    values = [value_of(one, metric) for one in before]
    return EarlyStopping(metric, patience, evaluation.early_stopping_threshold, values)


def questions_to_ask(config: Config, prepared: Prepared) -> list[Question]:
    """The validation questions that base and adapter answer; none where none were asked for."""
    count = config.evaluation.gen_eval_samples
    if not count:
        return []
    check_rows_to_measure(prepared, "answers (evaluation.gen_eval_samples)")
    return questions(prepared, count, seed=config.data.split_seed, longest=config.data.max_length)


def check_rows_to_measure(prepared: Prepared, what: str) -> None:
    if not prepared.validation:
        raise StudioError(
            f"No row is left to measure {what} on.", "Raise data.validation_fraction, or name a data.validation_file."
        )
