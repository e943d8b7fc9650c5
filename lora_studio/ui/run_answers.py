"""What base and adapter answer to a few validation questions as the run goes on, on the runs tab."""

from collections.abc import Hashable, Sequence
from typing import Any

import gradio as gr

from lora_studio.events import QuestionsAnswered, QuestionsAsked, RunState
from lora_studio.ui import text
from lora_studio.ui.run_section import Look
from lora_studio.ui.studio import Shared, Studio

SHOWN = 5
HEAD = ("Question", "Expected", "Base", "Adapter")


def build(studio: Studio, shared: Shared) -> dict[str, Any]:
    """A fold with the tables, hidden for a run that asks nothing."""
    with gr.Accordion("Answers as the run goes on", open=True, visible=False, elem_id="run-answers") as fold:
        tables = gr.HTML()
    return {"fold": fold, "tables": tables}


def stamp(look: Look) -> Hashable:
    return look.run.id, look.run.questions is not None, len(look.run.answers), look.run.resumed


def view(look: Look) -> dict[str, Any]:
    return {"fold": look.run.questions is not None, "tables": tables(look.run)}


def tables(run: RunState) -> str:
    """One table for each of the last evaluations, the newest first; only that one is open."""
    asked = run.questions
    if asked is None:
        return ""
    newest = list(reversed(run.answers))[:SHOWN]
    if not newest:
        return text.hint("The adapter answers after the first evaluation.") + _table(asked, None)
    left = len(run.answers) - len(newest)
    older = text.count(left, "earlier evaluation") if left else ""
    return text.render("runs.answers", [(_right(asked, each), _table(asked, each)) for each in newest], older)


def _right(asked: QuestionsAsked, answered: QuestionsAnswered) -> str:
    right, base, of = sum(answered.right), sum(asked.right), len(asked.questions)
    return (
        f"Step {answered.step:,}, epoch {answered.epoch:.2f}: the adapter answers {right:,} of {of:,} exactly as "
        f"expected, the base {base:,}"
    )


def _table(asked: QuestionsAsked, answered: QuestionsAnswered | None) -> str:
    said: Sequence[str | None] = answered.answers if answered else [None] * len(asked.questions)
    right: Sequence[bool] = answered.right if answered else [False] * len(asked.questions)
    rows = [
        (question, reference, _marked(base, exact), _marked(one, same))
        for question, reference, base, exact, one, same in zip(
            asked.questions, asked.references, asked.answers, asked.right, said, right, strict=True
        )
    ]
    label = f"Answers after step {answered.step:,}" if answered else "Answers of the base"
    return text.table(HEAD if answered else HEAD[:3], rows if answered else [row[:3] for row in rows], label)


def _marked(answer: str | None, right: bool) -> str | None:
    """An answer, with a tick where it is the expected one; an empty one is named."""
    if answer is None:
        return None
    return ("✓ " if right else "") + (answer or "(nothing)")
