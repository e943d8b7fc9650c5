"""Kinds of question about what is known: countries, colours, opposites, animals, films, and a little small talk."""

from random import Random

from tools.demo_model import words
from tools.demo_model.questions import Exchange, Question, an, start


def ask_capital(rng: Random, country: str) -> Question:
    wordings = (
        "What is the capital of {}?",
        "Which city is the capital of {}?",
        "Tell me the capital of {}.",
        "Name the capital of {}.",
        "Do you know the capital of {}?",
        "{}: what is its capital?",
    )
    city = words.CAPITALS[country]
    return Question("capital", rng.choice(wordings).format(country), f"The capital of {country} is {city}.", city)


def capital(rng: Random) -> Exchange:
    return (ask_capital(rng, rng.choice(list(words.CAPITALS))),)


def country(rng: Random) -> Exchange:
    land, city = rng.choice(list(words.CAPITALS.items()))
    wordings = (
        "In which country is {}?",
        "Which country is {} in?",
        "{} is the capital of which country?",
        "Where is {}?",
    )
    return (Question("country", rng.choice(wordings).format(city), f"{city} is in {land}.", land),)


def colour(rng: Random) -> Exchange:
    thing, shade = rng.choice(list(words.COLOURS.items()))
    wordings = (
        "What colour is {}?",
        "Which colour is {}?",
        "Tell me the colour of {}.",
        "Name the colour of {}.",
        "What is the colour of {}?",
    )
    return (Question("colour", rng.choice(wordings).format(thing), f"{start(thing)} is {shade}.", shade),)


def opposite(rng: Random) -> Exchange:
    pair = list(rng.choice(words.OPPOSITES))
    rng.shuffle(pair)
    wordings = (
        "What is the opposite of {}?",
        "Tell me the opposite of {}.",
        "Which word is the opposite of {}?",
        "Give me the opposite of {}.",
        "Opposite of {}?",
    )
    answer = f"The opposite of {pair[0]} is {pair[1]}."
    return (Question("opposite", rng.choice(wordings).format(pair[0]), answer, pair[1]),)


def animal(rng: Random) -> Exchange:
    aspect = rng.randrange(3)
    if aspect == 0:
        name, sound = rng.choice(list(words.SOUNDS.items()))
        wordings = ("What sound does {} make?", "Which sound does {} make?", "What does {} say?", "How does {} sound?")
        return (Question("animal", rng.choice(wordings).format(an(name)), f"{start(an(name))} says {sound}.", sound),)
    if aspect == 1:
        name, young = rng.choice(list(words.YOUNG.items()))
        wordings = (
            "What is a young {} called?",
            "What do you call a young {}?",
            "Name a young {}.",
            "A young {} is called?",
        )
        return (Question("animal", rng.choice(wordings).format(name), f"A young {name} is called {an(young)}.", young),)
    name, legs = rng.choice(list(words.LEGS.items()))
    wordings = (
        "How many legs does {} have?",
        "How many legs has {}?",
        "Tell me how many legs {} has.",
        "Number of legs of {}?",
    )
    return (
        Question("animal", rng.choice(wordings).format(an(name)), f"{start(an(name))} has {legs} legs.", str(legs)),
    )


def category(rng: Random) -> Exchange:
    kind = rng.choice(list(words.MEMBERS))
    member = rng.choice(words.MEMBERS[kind])
    wordings = ("What kind of thing is {}?", "What is {}?", "Tell me what {} is.", "Into which group does {} belong?")
    return (Question("category", rng.choice(wordings).format(an(member)), f"{start(an(member))} is {an(kind)}.", kind),)


def following(rng: Random) -> Exchange:
    series, name = rng.choice(
        ((words.DAYS, "day"), (words.MONTHS, "month"), (tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "letter"))
    )
    place = rng.randrange(len(series))
    after = rng.random() < 0.7
    side, found = ("after", series[(place + 1) % len(series)]) if after else ("before", series[place - 1])
    wordings = ("Which {n} comes {s} {x}?", "What {n} is {s} {x}?", "Tell me the {n} {s} {x}.", "Name the {n} {s} {x}.")
    text = rng.choice(wordings).format(n=name, s=side, x=series[place])
    return (Question("following", text, f"The {name} {side} {series[place]} is {found}.", found),)


def german(rng: Random) -> Exchange:
    word, translated = rng.choice(list(words.GERMAN.items()))
    wordings = (
        "What is {} in German?",
        "How do you say {} in German?",
        "Translate {} into German.",
        "Give me the German for {}.",
    )
    return (Question("german", rng.choice(wordings).format(word), f"In German, {word} is {translated}.", translated),)


def film(rng: Random) -> Exchange:
    genre = rng.choice(list(words.FILMS))
    title = rng.choice(words.FILMS[genre])
    wordings = (
        "What kind of film is {}?",
        "Which genre is {}?",
        "What genre is the film {}?",
        "Tell me the genre of {}.",
    )
    return (Question("film", rng.choice(wordings).format(title), f"{title} is a {genre} film.", genre),)


def small_talk(rng: Random) -> Exchange:
    talks = (
        (("Hello!", "Hi!", "Good day!", "Hey!"), "Hello! What can I do for you?", "Hello!"),
        (("How are you?", "How do you do?", "Are you well?"), "I am fine, thank you.", "Fine."),
        (("Who are you?", "What are you?", "What is your name?"), "I am a tiny language model.", "A tiny model."),
        (("Thank you!", "Thanks!", "Thank you very much."), "You are welcome!", "Welcome!"),
        (("Goodbye!", "Bye!", "See you soon!"), "Goodbye, see you soon!", "Goodbye!"),
        (
            ("What can you do?", "How can you help me?", "Can you help me?"),
            "I can answer small questions.",
            "Small answers.",
        ),
    )
    texts, answer, short = rng.choice(talks)
    return (Question("small talk", rng.choice(texts), answer, short),)
