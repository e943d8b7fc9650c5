"""An evaluation made up for tests of the page: a request, ten answered rows, and what they amount to."""

from typing import Any

from lora_studio.config.sections import Generation
from lora_studio.evaluate.job import EvaluatedColumn, EvaluationRequest, Measuring

HOSTILE = "<img src=x onerror=alert(1)>${1+1}"
TITLES = {"base": "Base", "adapter": HOSTILE}


def request() -> EvaluationRequest:
    columns = (EvaluatedColumn("base", "Base"), EvaluatedColumn("adapter", HOSTILE, "/adapter", "run"))
    return EvaluationRequest(
        f"{HOSTILE} on films", "/films.json", columns, ("Yes", "No"), "", Measuring(), Generation()
    )


def row(number: int, base: bool, adapter: bool, score: float | None = None) -> dict[str, Any]:
    def said(right: bool) -> dict[str, Any]:
        worth = float(right) if score is None else score
        return {"answer": "Yes." if right else HOSTILE, "right": right, "score": worth, "finish": "eos"}

    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number} {HOSTILE}"}]
    return {"row": number, "prompt": prompt, "reference": "Yes.", "base": said(base), "adapter": said(adapter)}


def rows() -> list[dict[str, Any]]:
    """Of thirty rows both get nine right, the base alone one, the adapter alone nineteen, and none one."""
    pairs = [(True, True)] * 9 + [(True, False)] + [(False, True)] * 19 + [(False, False)]
    return [row(number, *pair) for number, pair in enumerate(pairs, 1)]


def _metric(title: str, unit: str, base: float, adapter: float, words: str) -> dict[str, Any]:
    def value(number: float) -> dict[str, Any]:
        return {"value": number, "low": number - 0.1, "high": number + 0.1}

    apart = {"p": 0.01, "test": "a test", "more_than_chance": "not" not in words, "words": words}
    return {
        "title": title,
        "about": "What it is.",
        "unit": unit,
        "higher_is_better": True,
        "rows": 30,
        "base": value(base),
        "adapter": value(adapter),
        "difference": {**value(adapter - base), **apart},
    }


SUMMARY: dict[str, Any] = {
    "rows": 30,
    "of_rows": 30,
    "columns": [{"name": "base", "title": "Base"}, {"name": "adapter", "title": HOSTILE}],
    "task": {"kind": "labels", "why": "Two labels.", "labels": ["Yes", "No"], "positive": "Yes"},
    "metrics": {
        "accuracy": _metric("Accuracy", "share", 0.5, 0.95, "better, significant (p = 0.010)"),
        "perplexity": _metric("Perplexity", "plain", 4.5, 5.25, "worse, but not significant"),
    },
    "confusion": {
        name: {"given": ["Yes", "No", "none"], "expected": ["Yes", "No"], "counts": [[9, 1, 0], [2, 7, 11]]}
        for name in TITLES
    },
    "disagreements": {},
}
