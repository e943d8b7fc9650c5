"""The chat as markup: conversation in columns, their heads, toolbar, memory, and the blind comparison. No gradio."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lora_studio.chat import prompts
from lora_studio.chat.arbiter import ConsentError, Status
from lora_studio.chat.choices import MAX_ADAPTERS, Choice, options
from lora_studio.chat.conversation import BlindTrial, ChatState, Message, Turn
from lora_studio.chat.prompts import StarterQuestion
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import ColumnAnswer, Loaded, Scored
from lora_studio.models.mixing import recipe_of, recipe_words
from lora_studio.ui import html
from lora_studio.ui.html import Html, render, shorten, thoughts

EMPTY = "Answers appear here"
# Of a growing chat only the last answers change, thirteen times a second: what stays is not made anew.
_drawn_once = lru_cache(maxsize=1024, typed=True)(render)
FINISH = {"eos": "", "stop_string": "ended by a stop string", "length": "cut at max new tokens", "stopped": "stopped"}


def column_note(answer: ColumnAnswer) -> str:
    """How quick an answer was and how it ended."""
    if not answer.tokens:
        return "Stopped before the first token"
    ended = FINISH[answer.finish]
    words = (
        f"{html.count(answer.tokens, 'token')}, {answer.tokens_per_second:.0f} tokens/s, "
        f"first after {html.duration(answer.first_token_seconds)}"
    )
    return f"{words}, {ended}" if ended else words


@dataclass(frozen=True, slots=True)
class Column:
    """A column as it is shown: who answers, its messages, and a note on its last answer."""

    name: str
    title: str
    messages: Sequence[Message]
    note: str = ""


def board(columns: Sequence[Column], turns: Sequence[Turn], *, marks: bool, busy: bool = False) -> Html:
    """The turns in rows, the base first; `marks` marks words that differ from the base's answer in the same row.

    While the columns are `busy` with an answer, nothing in them can be changed.
    """
    rows = [_row(columns, at, turn, marks, busy, last=at == len(turns) - 1) for at, turn in enumerate(turns)]
    return render("chat.board", len(columns), rows)


def start(columns: int, examples: Sequence[StarterQuestion]) -> Html:
    """What stands where nothing was asked yet, with questions to begin with."""
    chips = [(at, shorten(example.question, 70), example.question) for at, example in enumerate(examples)]
    return render("chat.start", columns, EMPTY, chips)


def _row(columns: Sequence[Column], at: int, turn: Turn, marks: bool, busy: bool, *, last: bool) -> Html:
    draw = render if last and busy else _drawn_once  # a growing answer is never shown twice
    questions = [
        None if place is None else column.messages[2 * place]["content"]
        for column, place in zip(columns, turn, strict=True)
    ]
    present = [question for question in questions if question is not None]
    shared = present[0] if all(question == present[0] for question in present) else None
    base = _answer_of(columns[0], turn[0])
    cells = []
    for number, (column, place, question) in enumerate(zip(columns, turn, questions, strict=True)):
        inside, foot = Html(""), Html("")
        if place is not None:
            content = _answer_of(column, place)
            inside = answer(content, base if marks and number else "")
            if place == len(column.messages) // 2 - 1:
                foot = draw("chat.foot", column.name, column.title, column.note, bool(content) and not busy)
        elif last and not busy:
            inside = draw("chat.unasked", column.name, at)
        own = None if shared is not None or question is None else (question, "" if busy else place)
        cells.append(draw("chat.cell", column.name, column.title, number, own, inside, foot))
    return draw("chat.row", at, shared, tuple(cells), not busy)


def _answer_of(column: Column, place: int | None) -> str:
    return "" if place is None else column.messages[2 * place + 1]["content"]


@lru_cache(maxsize=256)
def answer(content: str, other: str = "") -> Html:
    """An answer, its reasoning folded, words that `other` has not marked; awaited while it is empty."""
    if not content:
        return render("chat.awaited")
    thought, text = thoughts(content)
    return render("chat.answer", thought, marked_words(text, thoughts(other)[1]) if other else text)


def marked_words(content: str, other: str) -> Html:
    """The text with the words marked that are not in the same place of the other text."""
    tokens, other_tokens = re.findall(r"\s+|\w+|[^\w\s]", content), re.findall(r"\s+|\w+|[^\w\s]", other)
    changes = difflib.SequenceMatcher(None, tokens, other_tokens, autojunk=False).get_opcodes()
    parts = [("".join(tokens[begin:end]), kind != "equal") for kind, begin, end, _, _ in changes]
    return render("chat.words", [(words, differs and bool(words.strip())) for words, differs in parts])


MAX_TOKENS = 400
APART = 2.0
"""Nats between base and adapter at which a token's colour is full: 7 times as likely, or a seventh."""
LEGEND = (
    "The last answer of the first adapter, scored by base and adapters. Green: the adapter finds the token likelier; "
    "red: less likely. Dotted underline: KL divergence of 1 nat or more. Point at a token for its probabilities."
)


def tokens(scored: Scored, titles: Mapping[str, str]) -> Html:
    """A forced answer for each adapter: green where it finds a token likelier than the base does, red where less."""
    adapters = []
    for name, values in scored.adapters.items():
        scores = zip(scored.texts[:MAX_TOKENS], scored.base, values, scored.divergence[name], strict=False)
        omitted = len(scored.texts) - MAX_TOKENS
        more = html.count(omitted, "more token") if omitted > 0 else ""
        mean = f"{scored.mean_divergence[name]:.3g}"
        adapters.append((titles[name], mean, [_token(*score) for score in scores], more))
    return render("chat.tokens", LEGEND, adapters)


def _token(piece: str, base: float, adapter: float, divergence: float) -> tuple[str, str, str, str, str]:
    """A token's text, class, probabilities, colour and how full it is in percent."""
    gain = max(-1.0, min(1.0, (adapter - base) / APART))
    colour = "var(--good)" if gain > 0 else "var(--bad)"
    title = f"base {_percent(base)}, adapter {_percent(adapter)}, KL divergence {divergence:.2g} nats"
    return piece, " chat-apart" if divergence >= 1 else "", title, colour, f"{abs(gain) * 55:.0f}"


def _percent(log: float) -> str:
    """e to the power of it as a percentage that is never a false 0."""
    share = 100 * 2.718281828459045**log
    return f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"


ONE_BY_ONE = "Adapters that are more than plain LoRA share no batch: those columns answer one after the other."
BLIND = "Blind: columns are shuffled and unnamed until you vote."


def heads(base: str, available: Sequence[Choice], adapters: Sequence[str]) -> Html:
    """The head of each column: the base's name, and for each adapter the list to choose another from."""
    pickers = [(value, options(available, adapters, value)) for value in adapters]
    return render("chat.heads", base, pickers)


def blind_head() -> Html:
    """In the place of the heads, while nobody is to know who answers."""
    return render("chat.blind_head", BLIND)


@dataclass(frozen=True, slots=True)
class Toolbar:
    """What the toolbar depends on."""

    answered: bool = False
    busy: bool = False
    can_add: bool = False
    marks: bool = False
    blinded: bool = False
    scored: bool = False


def tools(talk: ChatState, *, busy: bool = False) -> Html:
    """Toggles, what can be done with the conversation, and the button of the drawer."""
    answered = any(talk.column(name) for name in talk.names)
    bar = Toolbar(answered, busy, len(talk.adapters) < MAX_ADAPTERS, talk.marks, talk.blinded, talk.scored)
    return render("chat.tools", bar)


def status(progress: Status) -> Html:
    """How far the engine is with a request."""
    return html.progress(progress.label, progress.done, progress.total, remark=progress.remark)


def memory_question(error: ConsentError) -> Html:
    """The question before a chat is loaded for which the memory will hardly do."""
    hint = "It may end the chat or slow everything down. Wait, choose a smaller base, or load it anyway."
    return Html(html.notice(error.message, hint, "warning") + render("chat.force"))


def problem(error: StudioError) -> Html:
    """An error, or the question whether to go on."""
    return memory_question(error) if isinstance(error, ConsentError) else html.problem(error)


def memory(loaded: Loaded | None, selected: Sequence[Choice], holders: str, in_memory: str) -> Html:
    """What is in memory as a pill; `in_memory` is the base of other columns that are, "" for none."""
    if loaded is None:
        words = f"{in_memory} in memory for other columns" if in_memory else "Not loaded"
        return render("chat.memory", "", words, f"Loads with the next question. {holders}", bool(in_memory))
    bits = "" if loaded.quantization == "none" else f" ({loaded.quantization})"
    names = " + ".join([f"{loaded.base}{bits}", *(choice.name for choice in selected)])
    words = f"{names} · {html.size(loaded.memory_bytes)}"
    return render("chat.memory", "done", words, f"{words}. {loaded.device}, {loaded.dtype}. {holders}", True)


def memory_notes(loaded: Loaded | None, sharing: str) -> Html:
    """What to know of the models in memory, and who else holds the device."""
    if loaded is None:
        return Html("")
    sentences = [*loaded.notes, *([] if loaded.mixes else [ONE_BY_ONE]), *([sharing] if sharing else [])]
    return Html("".join(html.notice(sentence, kind="warning") for sentence in sentences))


def cards(selected: Sequence[Choice]) -> Html:
    """Base, system prompt, template and thinking of each adapter, and what it was mixed from."""
    rows = []
    for choice in selected:
        card = choice.card()
        thinking = {None: "as in the template", True: "on", False: "off"}[card.enable_thinking]
        rows.append(
            (
                choice.name,
                card.base,
                card.prompt_style,
                card.system_prompt or None,
                thinking if card.thinks else "no switch in the template",
                card.template or "the base's own",
                recipe_words(recipe) if (recipe := recipe_of(card.values)) else "trained",
            )
        )
    columns = ("Adapter", "Base", "Prompt style", "System prompt", "Thinking", "Chat template", "Origin")
    return html.table(columns, rows, "Adapter details")


LETTERS = "ABCD"
COLUMNS = ("Model A", "Model B", "A wins", "B wins", "Ties", "A's win rate")


def blind_board(blind: BlindTrial, votes: Sequence[prompts.Vote]) -> str:
    """The question, its unnamed answers, the vote or what it revealed, and the tally of all votes."""
    return question(blind) + tally(votes)


def question(blind: BlindTrial) -> str:
    """The last question that was asked blindly; "" where none was."""
    if not blind:
        return ""
    best = blind["best"]
    cells = []
    for at, (letter, text) in enumerate(zip(LETTERS, blind["answers"], strict=False)):
        title = f"Answer {letter}" + (f": {blind['names'][at]}" if best is not None else "")
        cells.append((letter, title, best == at, answer(text)))
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
    pairs, answers = (sum(1 for _ in rows_of(votes)) for rows_of in (prompts.pairs, prompts.rated))
    buttons = [
        ("pairs", f"Download {html.count(pairs, 'preference pair')} (DPO)"),
        ("rated", f"Download {html.count(answers, 'labelled answer')} (KTO)"),
    ]
    table = html.table(COLUMNS, rows, "Votes")
    return html.render("chat.tally", html.count(len(votes), "vote"), table, buttons if pairs else [])
