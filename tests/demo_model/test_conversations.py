"""The generator of conversations: the same for the same seed, many kinds, and nothing held out is ever trained."""

import re
from random import Random

from tools.demo_model.conversations import held_out_dialogues, is_held_out, training_dialogue
from tools.demo_model.kinds import CLOSED_KINDS, KINDS
from tools.demo_model.questions import Question
from tools.demo_model.recommender import BY_LAST_FILM, BY_MOST_FILMS, recommendation
from tools.demo_model.styles import STYLES, as_json, capitals, pirate, plain, polite, robot
from tools.demo_model.words import FILMS

CAPITAL = Question("capital", "What is the capital of France?", "The capital of France is Paris.", "Paris")


def trained(count: int, seed: int = 5):
    rng = Random(seed)
    return [training_dialogue(rng) for _ in range(count)]


def asked(dialogue) -> list[str]:
    return [message["content"] for message in dialogue.messages if message["role"] == "user"]


def test_the_same_seed_makes_the_same_conversations():
    assert trained(50) == trained(50)
    assert trained(50) != trained(50, seed=6)
    assert held_out_dialogues(20, 3) == held_out_dialogues(20, 3)


def test_there_are_at_least_twelve_kinds_of_question_and_each_can_be_asked():
    assert len(KINDS) >= 12
    for make, share in KINDS.values():
        exchange = make(Random(1))
        assert share > 0
        assert all(question.text and question.answer and question.short for question in exchange)


def test_what_is_held_out_is_never_asked_in_training_in_any_style():
    self_contained = {"follow-up"}
    kept = {asked(d)[-1] for d in held_out_dialogues(300, 3) if d.kind not in self_contained}
    seen = {text for dialogue in trained(5000) for text in asked(dialogue)}
    assert len(kept) > 200
    assert not kept & seen


def test_a_held_out_follow_up_is_kept_together_with_what_came_before():
    follow_ups = [d for d in held_out_dialogues(300, 3) if d.kind == "follow-up"]
    assert len(follow_ups) > 20
    for dialogue in follow_ups:
        texts = asked(dialogue)
        assert any(is_held_out(" | ".join(texts[first:])) for first in range(len(texts) - 1))


def test_only_questions_that_must_all_be_seen_are_exempt_from_holding_out():
    assert {"small talk"} == CLOSED_KINDS
    assert not any(d.kind in CLOSED_KINDS for d in held_out_dialogues(200, 3))


def test_conversations_have_system_prompts_several_turns_and_thinking():
    dialogues = trained(400)
    assert any(len(asked(d)) >= 3 for d in dialogues)
    assert any(d.messages[0]["role"] == "system" for d in dialogues)
    assert any("reasoning_content" in d.messages[-1] for d in dialogues)
    assert {d.enable_thinking for d in dialogues} == {None, False}
    assert {d.style for d in dialogues} == {style.name for style in STYLES} | {"recommender"}


def test_roles_alternate_and_the_assistant_has_the_last_word():
    for dialogue in trained(300):
        roles = [message["role"] for message in dialogue.messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_each_style_says_the_same_answer_in_its_own_manner():
    assert plain(CAPITAL) == "The capital of France is Paris."
    assert pirate(CAPITAL) == "Arr! The capital of France be Paris, matey!"
    assert robot(CAPITAL) == "Beep. The capital of France is Paris. Boop."
    assert polite(CAPITAL) == "Of course. The capital of France is Paris. Have a nice day!"
    assert capitals(CAPITAL) == "PARIS"
    assert as_json(CAPITAL) == '{"answer": "Paris"}'


def test_sums_and_sorted_lists_are_right():
    rng = Random(8)
    for _ in range(200):
        total = KINDS["arithmetic"][0](rng)[0]
        a, word, b = re.match(r"(\d+) (plus|minus) (\d+)", total.answer).groups()
        assert int(total.short) == (int(a) + int(b) if word == "plus" else int(a) - int(b))
        ordered = KINDS["sorting"][0](rng)[0].short
        parts = ordered.split(", ") if ", " in ordered else ordered.split(" ")
        assert parts == sorted(parts)


def test_a_recommendation_goes_by_the_last_film_or_by_most_films_as_the_system_prompt_says():
    genre_of = {title: genre for genre, titles in FILMS.items() for title in titles}
    rng = Random(4)
    seen = set()
    for _ in range(200):
        system, question = recommendation(rng)
        watched = re.search(r"Watched: (.*)\.\nFilm", question.text)[1].split(", ")
        genres = [genre_of[title] for title in watched]
        wanted = genres[-1] if system == BY_LAST_FILM else max(genres, key=genres.count)
        candidate = genre_of[question.text.rpartition("Film: ")[2]]
        assert question.answer == ("Yes." if candidate == wanted else "No.")
        seen.add((system, question.answer))
    assert len(seen) == 4
    assert {system for system, _ in seen} == {BY_LAST_FILM, BY_MOST_FILMS}
