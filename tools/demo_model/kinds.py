"""All kinds of question with their shares, follow-ups among them, and the draw of one exchange."""

from collections.abc import Callable
from random import Random

from tools.demo_model import facts, tasks, words
from tools.demo_model.machine import machine
from tools.demo_model.questions import Exchange, Question, start


def capital_follow_up(rng: Random) -> Exchange:
    lands = rng.sample(list(words.CAPITALS), rng.randint(2, 3))
    questions = [facts.ask_capital(rng, lands[0])]
    for land in lands[1:]:
        text = rng.choice(("And of {}?", "And {}?", "What about {}?", "And the one of {}?")).format(land)
        city = words.CAPITALS[land]
        questions.append(Question("follow-up", text, f"The capital of {land} is {city}.", city))
    return tuple(questions)


def name_follow_up(rng: Random) -> Exchange:
    name = tasks.made_up_name(rng)
    text = rng.choice(("What is my name?", "Do you know my name?", "Who am I?", "Can you tell me my name?"))
    return (tasks.introduction(rng, name), Question("follow-up", text, f"Your name is {name}.", f"You are {name}"))


def sum_follow_up(rng: Random) -> Exchange:
    first = tasks.arithmetic(rng)[0]
    a, b = int(first.short), rng.randint(0, 12)
    text = rng.choice(("And plus {}?", "Now add {}.", "And {} more?", "Plus {}?")).format(b)
    return (first, Question("follow-up", text, f"{a} plus {b} is {a + b}.", str(a + b)))


def colour_follow_up(rng: Random) -> Exchange:
    first = facts.colour(rng)[0]
    thing, shade = rng.choice(list(words.COLOURS.items()))
    text = rng.choice(("And {}?", "What about {}?", "And the colour of {}?")).format(thing)
    return (first, Question("follow-up", text, f"{start(thing)} is {shade}.", shade))


KINDS: dict[str, tuple[Callable[[Random], Exchange], float]] = {
    "capital": (facts.capital, 1.2),
    "country": (facts.country, 1.2),
    "colour": (facts.colour, 0.8),
    "opposite": (facts.opposite, 1.0),
    "animal": (facts.animal, 1.2),
    "arithmetic": (tasks.arithmetic, 2.0),
    "sorting": (tasks.sorting, 1.8),
    "sentiment": (tasks.sentiment, 0.8),
    "greeting": (tasks.greeting, 1.0),
    "small talk": (facts.small_talk, 0.5),
    "judgement": (tasks.judgement, 3.0),
    "category": (facts.category, 0.7),
    "copying": (tasks.copying, 1.8),
    "counting": (tasks.counting, 1.4),
    "following": (facts.following, 1.4),
    "german": (facts.german, 0.8),
    "film": (facts.film, 1.0),
    "machine": (machine, 2.0),
    "capital follow-up": (capital_follow_up, 0.8),
    "name follow-up": (name_follow_up, 0.9),
    "sum follow-up": (sum_follow_up, 1.2),
    "colour follow-up": (colour_follow_up, 0.6),
}
"""Every kind with its share: harder kinds are asked more often."""

CLOSED_KINDS = frozenset({"small talk"})
"""Kinds whose every wording must be seen to be answered; none of these is ever held out."""


def exchange(rng: Random) -> Exchange:
    """One exchange of a random kind."""
    names = list(KINDS)
    name = rng.choices(names, weights=[KINDS[name][1] for name in names])[0]
    return KINDS[name][0](rng)
