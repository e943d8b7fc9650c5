"""What the chat tab asks all columns by itself: the blind comparison, and sets of prompts."""

from typing import Any

import gradio as gr
import pytest

from lora_studio.chat import prompts
from lora_studio.chat.conversation import ChatState
from lora_studio.chat.prompts import TIE
from lora_studio.jobs.events import RunState
from lora_studio.ui.chat import tab
from lora_studio.ui.chat import tab as blind
from lora_studio.ui.chat import tab as prompt_sets
from lora_studio.ui.chat.handlers import Chat, Click
from lora_studio.ui.gradio_patches import without_app
from lora_studio.ui.studio import Studio
from lora_studio.workspace import RunFolder, Workspace
from tests.chat.test_chat_choices import make_run
from tests.ui.fake_session import FakeSession
from tests.ui.test_chatting import DEFAULTS, WHO, FakeSupervisor, script

NAMES = ("Base: demo", "Pirate")


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    return make_run(workspace, "Pirate", adapter=True, system_prompt="Be a pirate.")


@pytest.fixture
def act(workspace: Workspace, run: RunFolder) -> Chat:
    session: Any = FakeSession(script)
    supervisor: Any = FakeSupervisor([RunState(run.id, "Pirate", "done")])
    with without_app(), gr.Blocks():
        chat = Chat(Studio(workspace, supervisor, session, session), tab.draw()[0])
    chat.keep(WHO, ChatState(adapters=[run.id]))
    return chat


def ask_blindly(act: Chat) -> list[str]:
    """The panel after each piece."""
    updates = list(blind.ask(act, WHO, "Why?", "Be brief.", DEFAULTS))
    return [update[act.parts.board] for update in updates if act.parts.board in update]


def test_columns_are_shuffled_and_have_no_name_until_the_vote(act: Chat, run: RunFolder) -> None:
    orders = set()
    for _ in range(40):
        panels = ask_blindly(act)
        assert not [name for name in NAMES for panel in panels if name in panel.partition("chat-tally")[0]]
        asked = act.studio.chat.asked[-1][1]["columns"]
        assert [message["content"] for message in asked[0]["messages"]] == ["Be brief.", "Why?"]
        orders.add(tuple(column["adapter"] for column in asked))
        if len(orders) > 1:
            break
    assert orders == {(None, run.id), (run.id, None)}


def test_a_vote_goes_to_whoever_gave_that_answer_and_is_counted_once(act: Chat) -> None:
    for best in (0, 1, 1, TIE):
        last = ask_blindly(act)[-1]
        assert "B is better" in last
        shown = blind.vote(act, WHO, best)
        assert all(name in shown for name in NAMES)
        assert "is better</button>" not in shown
        blind.vote(act, WHO, 1 - max(best, 0))
    kept = prompts.read_votes(act.studio.workspace)
    assert [vote.best for vote in kept] == [0, 1, 1, TIE]
    for vote in kept:
        assert dict(zip(vote.names, vote.answers, strict=True)) == dict(
            zip(NAMES, ("Rome, Why?", "Arr, Why?"), strict=True)
        )
        assert vote.messages[-1]["content"] == "Why?"
    list(act.act(Click("blind"), WHO, "", act.parts.copied, DEFAULTS))
    shown = act.arrive(WHO)[act.parts.board]
    assert "4 votes so far" in shown
    assert "95 % CI" in shown
    assert "Download 3 preference pairs (DPO)" in shown
    assert "Download 6 labelled answers (KTO)" in shown
    for kind, name, rows in (("pairs", "preferences", 3), ("rated", "feedback", 6)):
        assert f"{name}.jsonl" in blind.download(act, kind)
        (written,) = act.studio.workspace.votes.parent.rglob(f"{name}*.jsonl")
        assert len(written.read_text(encoding="utf-8").splitlines()) == rows


def test_prompts_that_were_typed_stay_over_a_reload_in_this_browser_alone(act: Chat) -> None:
    prompt_sets.keep_lines(act, WHO, "One?\nTw")
    assert (prompt_sets.kept_lines(act, WHO), prompt_sets.kept_lines(act, "another")) == ("One?\nTw", "")


def test_a_set_of_prompts_is_read_as_a_table_and_stays_over_a_reload(act: Chat) -> None:
    words, table = list(prompt_sets.asked(act, WHO, ["One?", "<b>"], "", DEFAULTS))[-1]
    assert "2 prompts answered by 2 columns." in words
    for cell in (*NAMES, "One?", "Rome, One?", "Arr, One?", "Arr, &lt;b&gt;"):
        assert cell in table
    assert "Download CSV" in table
    assert prompt_sets.drawn(*prompt_sets.kept_rows(act, WHO)) == table
    (columns,) = [params["columns"] for method, params in act.studio.chat.asked if method == "generate_batch"]
    assert [column["messages"][-1]["content"] for column in columns] == ["One?", "One?", "<b>", "<b>"]
