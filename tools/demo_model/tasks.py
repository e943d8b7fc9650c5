"""Kinds of question whose answer is worked out from the question: sums, sorting, copying and counting."""

from random import Random

from tools.demo_model import words
from tools.demo_model.questions import Exchange, Question, an, start, task


def arithmetic(rng: Random) -> Exchange:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    add = rng.random() < 0.6
    if not add:
        a, b = max(a, b), min(a, b)
    result = a + b if add else a - b
    word, sign = ("plus", "+") if add else ("minus", "-")
    wordings = (
        "What is {a} {word} {b}?",
        "How much is {a} {word} {b}?",
        "{a} {sign} {b} = ?",
        "Calculate {a} {sign} {b}.",
    )
    text = rng.choice(wordings).format(a=a, b=b, word=word, sign=sign)
    return (Question("arithmetic", text, f"{a} {word} {b} is {result}.", str(result)),)


def sorting(rng: Random) -> Exchange:
    if rng.random() < 0.4:
        numbers = rng.sample(range(10), rng.randint(3, 4))
        done = " ".join(map(str, sorted(numbers)))
        given = " ".join(map(str, numbers))
        instruction = rng.choice(("Sort these numbers", "Put these numbers in order", "Order the numbers"))
    else:
        pool = words.MEMBERS["fruit"] + words.MEMBERS["animal"]
        chosen = rng.sample(pool, 3)
        done, given = ", ".join(sorted(chosen)), ", ".join(chosen)
        instruction = rng.choice(("Sort these words", "Put these words in order", "Sort from A to Z"))
    return (Question("sorting", task(rng, instruction, given), f"In order: {done}.", done),)


def sentiment(rng: Random) -> Exchange:
    good = rng.random() < 0.5
    first, second = rng.sample(words.GOOD if good else words.BAD, 2)
    thing = rng.choice(words.REVIEWED)
    review = rng.choice(
        (f"The {thing} was {first}.", f"What {an(first)} {thing}!", f"The {thing} was {first} and {second}.")
    )
    verdict = "positive" if good else "negative"
    instruction = rng.choice(("Is this review positive or negative", "How does this review sound", "Judge this review"))
    return (Question("sentiment", task(rng, instruction, review), f"The review is {verdict}.", verdict),)


def made_up_name(rng: Random) -> str:
    """A name from the table, or one made of syllables so that unknown names are copied rather than recalled."""
    if rng.random() < 0.4:
        return rng.choice(words.NAMES)
    return start("".join(rng.choice(words.SYLLABLES) for _ in range(rng.randint(2, 3))))


def introduction(rng: Random, name: str) -> Question:
    wordings = (
        "Hello, I am {}.",
        "Hi, my name is {}.",
        "Good morning, I am {}.",
        "My name is {}.",
        "I am {}.",
        "Hello! {} here.",
    )
    return Question("greeting", rng.choice(wordings).format(name), f"Hello {name}, nice to meet you!", f"Hello {name}")


def greeting(rng: Random) -> Exchange:
    return (introduction(rng, made_up_name(rng)),)


def judgement(rng: Random) -> Exchange:
    if rng.random() < 0.4:
        a, b = rng.sample(range(20), 2)
        yes = a > b
        text = rng.choice(("Is {} bigger than {}?", "Is {} more than {}?", "Is {} larger than {}?")).format(a, b)
        answer = f"Yes, {a} is bigger than {b}." if yes else f"No, {a} is smaller than {b}."
    else:
        kind = rng.choice(list(words.MEMBERS))
        member = rng.choice(words.MEMBERS[kind])
        asked = kind if rng.random() < 0.5 else rng.choice([other for other in words.MEMBERS if other != kind])
        yes = asked == kind
        text = rng.choice(("Is {} {}?", "Would you say {} is {}?", "True or not: {} is {}?")).format(
            an(member), an(asked)
        )
        answer = f"{'Yes' if yes else 'No'}, {an(member)} is {an(kind)}."
    return (Question("judgement", text, answer, "Yes" if yes else "No"),)


def repeat(rng: Random, said: str) -> Exchange:
    instruction = rng.choice(("Repeat", "Say this again", "Copy this", "Say"))
    return (Question("copying", task(rng, instruction, said), said, said),)


def copying(rng: Random) -> Exchange:
    """A known word, then known words and random letters; these always follow a blank, as their tokens hold it."""
    parts = [rng.choice(words.COPIED_WORDS)]
    for _ in range(rng.randint(0, 3)):
        if rng.random() < 0.4:
            parts.append(rng.choice(words.COPIED_WORDS))
        else:
            parts.append("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 4))))
    return repeat(rng, " ".join(parts))


def long_copying(rng: Random) -> Exchange:
    """Many different words to repeat, which teaches a new model where to look: see pretrain.py."""
    return repeat(rng, " ".join(rng.sample(words.every_word(), rng.randint(6, 16))))


def counting(rng: Random) -> Exchange:
    if rng.random() < 0.5:
        first = rng.randint(0, 9)
        last = first + rng.randint(2, 5)
        numbers = ", ".join(str(n) for n in range(first, last + 1))
        text = rng.choice(("Count from {} to {}.", "Count up from {} to {}.", "Please count from {} to {}."))
        return (Question("counting", text.format(first, last), f"{numbers}.", numbers),)
    chosen = [rng.choice(words.COPIED_WORDS) for _ in range(rng.randint(1, 6))]
    instruction = rng.choice(("How many words are in this", "Count these words", "How many words do you see"))
    number = len(chosen)
    answer = f"There is {number} word." if number == 1 else f"There are {number} words."
    return (Question("counting", task(rng, instruction, " ".join(chosen)), answer, str(number)),)
