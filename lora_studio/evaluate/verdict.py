"""What an evaluation found, in one sentence for each adapter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_studio.evaluate.request import BASE
from lora_studio.units import figure


@dataclass(frozen=True, slots=True)
class Sentence:
    """One adapter's result; `kind` is good, bad, or "" where nothing is shown to differ."""

    kind: str
    words: str


def value(number: float | None, unit: str, *, signed: bool = False) -> str:
    """A metric's value: 95 % for a share, four digits for others. Shares differ by points: 2 % more of 50 % are 51."""
    if number is None:
        return "–"
    sign = "+" if signed and number > 0 else "−" if number < 0 else ""
    if unit == "share":
        return f"{sign}{100 * abs(number):.1f}".removesuffix(".0") + (" points" if signed else " %")
    return f"{sign}{figure(abs(number))}"


def verdict(summary: Mapping[str, Any]) -> list[Sentence]:
    """The most telling metric of each adapter against the first column, with n and p."""
    first, *adapters = summary["columns"]
    if not adapters:
        metric = next(iter(summary["metrics"].values()))
        words = f"{_name(metric)} {value(metric[first['name']]['value'], metric['unit'])}, n = {metric['rows']:,}"
        return [Sentence("", f"{first['title']}: {words}. No base to compare with.")]
    return [
        _compared(leading(summary, number), first, column, number, with_name=len(adapters) > 1)
        for number, column in enumerate(adapters, 1)
    ]


def leading(summary: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The metric that decides on the adapter of that number: the first, unless both columns have none or all of it.

    Free text is rarely answered letter by letter, so 0 % exact match of both says nothing; the next metric in which
    they differ does.
    """
    metrics = list(summary["metrics"].values())
    first, name = metrics[0], difference_name(number)
    compared = (summary["columns"][0], summary["columns"][number])
    saturated = first["unit"] == "share" and {first[column["name"]]["value"] for column in compared} <= {0, 1}
    if first[name]["words"] != "the same" or not saturated:
        return first
    return next((metric for metric in metrics[1:] if metric[name]["words"] != "the same"), first)


def _compared(
    metric: Mapping[str, Any], first: Mapping[str, Any], column: Mapping[str, Any], number: int, *, with_name: bool
) -> Sentence:
    difference = metric[difference_name(number)]
    against = "the base" if first["name"] == BASE else str(first["title"])
    kind, relation = _relation(difference)
    who = f"{column['title']} is {relation}" if with_name or against != "the base" else relation
    before, after = (value(metric[item["name"]]["value"], metric["unit"]) for item in (first, column))
    values = f"{before} both" if before == after else f"{before} → {after}"
    words = f"{who} {against}: {_name(metric)} {values}, n = {metric['rows']:,}"
    return Sentence(kind, f"{words[:1].upper() if not with_name else words[:1]}{words[1:]}{_odds(difference, metric)}")


def difference_name(number: int) -> str:
    """The key under which a summary holds the difference of the adapter of that number, counted from 1."""
    return "difference" + ("" if number == 1 else str(number))


def significance(difference: Mapping[str, Any]) -> str:
    """good, bad, or "" where chance explains the difference."""
    if not difference["more_than_chance"] or difference["words"] == "the same":
        return ""
    return "good" if difference["words"].startswith("better") else "bad"


def _relation(difference: Mapping[str, Any]) -> tuple[str, str]:
    kind = significance(difference)
    if kind:
        return kind, "better than" if kind == "good" else "worse than"
    better = difference["words"].startswith("better")
    return "", "not significantly better than" if better else "no better than"


def _odds(difference: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    if difference["words"] == "the same":
        return ""
    if difference["p"] is not None:
        p = difference["p"]
        return f", p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    if difference["low"] is None:
        return ""
    low, high = (value(difference[end], metric["unit"], signed=True) for end in ("low", "high"))
    return f", 95 % CI of the difference {low.removesuffix(' points')} to {high}"


def elsewhere(summary: Mapping[str, Any]) -> str:
    """The other metrics that differ significantly where the leading one does not; "" where there is none."""
    first, *adapters = summary["columns"]
    metrics = list(summary["metrics"].values())
    parts = []
    for number, column in enumerate(adapters, 1):
        name = difference_name(number)
        leader = leading(summary, number)
        if significance(leader[name]):
            continue
        who = f"{column['title']}: " if len(adapters) > 1 else ""
        for metric in metrics:
            if metric is not leader and (kind := significance(metric[name])):
                before, after = (value(metric[item["name"]]["value"], metric["unit"]) for item in (first, column))
                word = "better" if kind == "good" else "worse"
                parts.append(f"{who}{_name(metric)} is {word} ({before} → {after})")
    return f"Other metrics: {', '.join(parts)}." if parts else ""


def _name(metric: Mapping[str, Any]) -> str:
    """A metric's title inside a sentence: Exact match loses its capital, ROUGE-L keeps its own."""
    title = str(metric["title"])
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]
