"""The blind comparison as markup: unnamed answers, the vote or what it revealed, and what came of all votes."""

from collections.abc import Sequence

from lora_studio.chat import prompts
from lora_studio.chat.conversation import BlindTrial
from lora_studio.ui import html
from lora_studio.ui.chat import columns
from lora_studio.ui.html import Html

LETTERS = "ABCD"
COLUMNS = ("Model A", "Model B", "A wins", "B wins", "Ties", "A's win rate")


def board(blind: BlindTrial, votes: Sequence[prompts.Vote]) -> str:
    """The question, its unnamed answers, the vote or what it revealed, and the tally of all votes."""
    return question(blind) + tally(votes)


def question(blind: BlindTrial) -> str:
    """The last question that was asked blindly; "" where none was."""
    if not blind:
        return ""
    best = blind["best"]
    cells = []
    for at, (letter, answer) in enumerate(zip(LETTERS, blind["answers"], strict=False)):
        title = f"Answer {letter}" + (f": {blind['names'][at]}" if best is not None else "")
        cells.append((letter, title, best == at, columns.answer(answer)))
    voting = blind["done"] and best is None
    return html.render("chat.blind", blind["messages"][-1]["content"], cells, voting, prompts.TIE)


def tally(votes: Sequence[prompts.Vote]) -> Html:
    """What came of all votes, as a table."""
    if not votes:
        return html.empty("No votes yet", "Ask a question, then vote for an answer.")
    rows = []
    for pair in prompts.tallies(votes):
        share = "ties only"
        if pair.decided:
            low, high = pair.interval
            share = f"{100 * pair.wins / pair.decided:.0f} % (95 % CI {100 * low:.0f} to {100 * high:.0f} %)"
        rows.append((pair.first, pair.second, pair.wins, pair.losses, pair.ties, share))
    pairs = sum(1 for _ in prompts.pairs(votes))
    button = f"Download {html.count(pairs, 'preference pair')}" if pairs else ""
    return html.render("chat.tally", html.count(len(votes), "vote"), html.table(COLUMNS, rows, "Votes"), button)
