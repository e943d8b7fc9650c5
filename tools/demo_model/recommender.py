"""Yes/no recommendations from a watch history, in two readings of the same request.

The built-in model follows the system prompt: asked plainly it looks at the film watched last, asked to go by most of
the films it counts genres. The recommender data set teaches the second reading for the plain system prompt, so that
the base is often right, and an adapter nearly always.
"""

from random import Random

from tools.demo_model import words
from tools.demo_model.questions import Question

BY_LAST_FILM = "You recommend films. Answer with Yes or No."
BY_MOST_FILMS = "You recommend films. Go by most of the films watched. Answer with Yes or No."

INSTRUCTIONS = (
    "Will this person like the film?",
    "Should this film be recommended?",
    "Does the film fit what was watched?",
)


def request(rng: Random) -> tuple[str, str, bool, bool]:
    """An instruction, its input, and whether to recommend by the most films and by the last film."""
    liked, seen, other = rng.sample(list(words.FILMS), 3)
    majority = rng.choice((2, 3))
    history = [(title, liked) for title in rng.sample(words.FILMS[liked], majority + 1)]
    candidate = history.pop()
    history += [(title, seen) for title in rng.sample(words.FILMS[seen], majority - 1)]
    if rng.random() < 0.5:
        genre = seen if rng.random() < 0.7 else other
        watched = {title for title, _ in history}
        candidate = (rng.choice([title for title in words.FILMS[genre] if title not in watched]), genre)
    rng.shuffle(history)
    titles = ", ".join(title for title, _ in history)
    content = f"Watched: {titles}.\nFilm: {candidate[0]}"
    return rng.choice(INSTRUCTIONS), content, candidate[1] == liked, candidate[1] == history[-1][1]


def verdict(yes: bool) -> str:
    return "Yes." if yes else "No."


def recommendation(rng: Random) -> tuple[str, Question]:
    """A system prompt and a request answered as that prompt says."""
    instruction, content, by_most, by_last = request(rng)
    system = rng.choice((BY_MOST_FILMS, BY_LAST_FILM))
    answer = verdict(by_most if system == BY_MOST_FILMS else by_last)
    return system, Question("recommender", f"{instruction}\n\n{content}", answer, answer)
