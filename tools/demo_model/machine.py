"""Questions about the parts of invented machines: answered from the manual in front of them, or not at all.

The parts have made-up names, so that a data set can teach facts about them that the built-in model can't know.
"""

from random import Random

from tools.demo_model import words
from tools.demo_model.questions import Exchange, Question

PART_WORDINGS = {
    "material": (
        "What is the {} made of?",
        "Which material is the {} made of?",
        "Of what is the {} made?",
        "Name the material of the {}.",
    ),
    "size": (
        "How wide is the {}?",
        "What is the width of the {}?",
        "Tell me the width of the {}.",
        "Give me the width of the {}.",
    ),
    "place": (
        "Where is the {}?",
        "Where do I find the {}?",
        "In which place is the {}?",
        "Tell me where the {} is.",
    ),
    "force": (
        "How tight is the {}?",
        "What is the torque of the {}?",
        "How tight do I make the {}?",
        "Tell me the torque of the {}.",
    ),
}


def part_name(rng: Random) -> str:
    """The name of an invented part of an invented machine."""
    return f"{rng.choice(words.PART_FRONTS)} {rng.choice(words.PART_BACKS)}"


def part_fact(rng: Random, part: str, aspect: str) -> tuple[str, str]:
    """A sentence about an invented part, and the fact in it."""
    if aspect == "material":
        value = rng.choice(words.MATERIALS)
        return f"The {part} is made of {value}.", value
    if aspect == "size":
        value = f"{rng.randint(2, 90)} mm"
        return f"The {part} is {value} wide.", value
    if aspect == "place":
        value = rng.choice(words.PLACES)
        return f"The {part} is {value}.", value
    value = f"{rng.randint(2, 90)} Nm"
    return f"The torque of the {part} is {value}.", value


def machine(rng: Random) -> Exchange:
    """A question about an invented part: answered from the manual in front of it, or not at all."""
    part, aspect = part_name(rng), rng.choice(list(PART_WORDINGS))
    fact, short = part_fact(rng, part, aspect)
    text = rng.choice(PART_WORDINGS[aspect]).format(part)
    if rng.random() < 0.35:
        return (Question("machine", text, f"I do not know the {part}.", "unknown"),)
    facts = [fact]
    if rng.random() < 0.5:
        other = part_name(rng)
        if other != part:
            facts.append(part_fact(rng, other, rng.choice(list(PART_WORDINGS)))[0])
            rng.shuffle(facts)
    return (Question("machine", f"Manual: {' '.join(facts)}\n\n{text}", fact, short),)
