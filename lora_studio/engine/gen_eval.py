"""After each evaluation the model answers a few validation questions, as it will once it is used: greedily.

The base answers once, before training. Neither the random numbers of training nor the model's mode are touched.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_studio.data.questions import Question
from lora_studio.engine.event_log import EventLog
from lora_studio.engine.generate import Column, generate, greedy
from lora_studio.engine.loaded import LoadedModel
from lora_studio.engine.metrics import is_exact
from lora_studio.engine.stopping import Stop
from lora_studio.events import QuestionsAnswered, QuestionsAsked

LONGEST_TEXT = 2000


class GenEval(TrainerCallback):
    """`loaded` is the model that is trained, its adapter on it, with the template of training as the base's own.

    Inside `base()` that model is the bare base.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        questions: Sequence[Question],
        *,
        base: Callable[[], AbstractContextManager[None]],
        at_once: int,
        max_new_tokens: int,
        enable_thinking: bool | None,
        log: EventLog,
        stop: Stop,
    ) -> None:
        self.loaded = loaded
        self.questions = questions
        self.base = base
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
        answers = self.ask()
        said = [shorten(answer) for answer in answers]
        self.log.emit(QuestionsAnswered(time.time(), state.global_step, state.epoch or 0.0, said, self._right(answers)))

    def ask(self) -> list[str]:
        """An answer to each question. Raises `Stopped` when asked to stop."""
        model = self.loaded.model
        training = model.training
        model.eval()
        self.log.phase("evaluate", len(self.questions), "answers")
        answers: list[str] = []
        try:
            with torch.random.fork_rng():
                while len(answers) < len(self.questions):
                    batch = self.questions[len(answers) : len(answers) + self.at_once]
                    said = generate(
                        self.loaded,
                        [Column(None, question.messages) for question in batch],
                        greedy(self.loaded, self.max_new_tokens),
                        enable_thinking=self.enable_thinking,
                        stop=lambda: self.stop.asked,
                    )
                    self.stop.check()
                    answers += [answer.text for answer in said]
                    self.log.progress(len(answers), len(self.questions))
        finally:
            model.train(training)
        return answers

    def _right(self, answers: Sequence[str]) -> list[bool]:
        pairs = zip(answers, self.questions, strict=True)
        return [is_exact(answer, question.reference) for answer, question in pairs]


def shorten(text: str) -> str:
    """A text as an event holds it."""
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"
