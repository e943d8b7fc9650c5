"""What the chat tab's events do, with a session that only plays answers back."""

import json
import re
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from lora_studio.access.guests import origin
from lora_studio.access.policy import Users
from lora_studio.chat import choices, conversation
from lora_studio.chat import prompts as chat_prompts
from lora_studio.chat.arbiter import BusyError, Engine, asker
from lora_studio.chat.conversation import BASE, ChatState
from lora_studio.errors import StudioError
from lora_studio.jobs.devices import Allocation, Holder
from lora_studio.jobs.events import RunState
from lora_studio.jobs.protocol import ColumnPrompt, Generated, ModelSelection, Piece
from lora_studio.models.hardware import Device, cpu
from lora_studio.ui import form
from lora_studio.ui.chat import mixing, tab
from lora_studio.ui.chat import tab as external
from lora_studio.ui.chat.handlers import Chat, Click, Updates
from lora_studio.ui.form import SAMPLING, to_widget
from lora_studio.ui.gradio_patches import without_app
from lora_studio.ui.studio import Studio
from lora_studio.workspace import RunFolder, Workspace
from tests.adapters import files, write, zipped
from tests.chat.test_chat_choices import make_run
from tests.ui.fake_session import FakeSession

HELLO = [{"role": "user", "content": "Hi"}]
WHO, OTHER = "a" * 24, "b" * 24
LOADED = {"kind": "result", "base": "demo", "device": "cpu", "dtype": "float32", "memory_bytes": 1000, "mixes": True}
ANSWER = {"tokens": 3, "tokens_per_second": 9.0, "first_token_seconds": 0.1, "finish": "eos"}
FETCHED = {"phase": "download", "done": 5 * 10**8, "total": 2 * 10**9, "rows_per_second": 5e7, "seconds_left": 30.0}
DEFAULTS = [to_widget(setting, setting.default) for setting in SAMPLING]


class FakeSupervisor:
    """Says that there are runs."""

    def __init__(self, runs: list[RunState]) -> None:
        self.found = runs
        self.cards = [cpu()]
        self.holders: list[Holder] = []
        self.chat_device: Any = str

    def allocation(self) -> Allocation:
        return Allocation(self.cards, self.holders)

    def runs(self, ids: Collection[str] | None = None) -> list[RunState]:
        return [run for run in self.found if ids is None or run.id in ids]

    def devices(self) -> list[Device]:
        return self.cards

    def busy(self, choice: str = "auto") -> str | None:
        return None

    def working(self, kind: Any = None) -> list[RunState]:
        return []


def script(method: str, **params: Any) -> list[dict[str, Any] | StudioError]:
    if method == "load":
        return [{"kind": "progress", "phase": "base", "done": 0, "total": 1}, {"kind": "progress", **FETCHED}, LOADED]
    if method == "score":
        names = params["adapters"]
        numbers = {"adapters": {name: [-0.1, -0.2] for name in names}, "divergence": {name: [1.5, 0] for name in names}}
        means = {"mean_divergence": dict.fromkeys(names, 0.75)}
        return [{"kind": "result", "texts": ["Arr", "<b>"], "base": [-3.0, -0.2], **numbers, **means}]
    asked = params["columns"]
    question = asked[0]["messages"][-1]["content"]
    said = ["Rome" if column["adapter"] is None else "Arr" for column in asked]
    if method == "generate_batch":
        texts = [f"{word}, {column['messages'][-1]['content']}" for word, column in zip(said, asked, strict=True)]
        ended = [{"kind": "ended", "position": at, "answer": {"text": text, **ANSWER}} for at, text in enumerate(texts)]
        return [*ended, {"kind": "result"}]
    piece = {"kind": "piece", "texts": said, "tokens": [1] * len(asked)}
    if question == "fail at once":
        return [StudioError("No memory is left.", "Take a smaller model.")]
    if question == "fail later":
        return [piece, StudioError("No memory is left.", "Take a smaller model.")]
    columns = [{"text": f"{word}, {question}", **ANSWER} for word in said]
    return [piece, {"kind": "result", "columns": columns}]


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    return make_run(workspace, "Pirate", adapter=True, steps=(8,), system_prompt="Be a pirate.")


@pytest.fixture
def act(workspace: Workspace, run: RunFolder) -> Chat:
    session: Any = FakeSession(script)
    supervisor: Any = FakeSupervisor([RunState(run.id, "Pirate", "done")])
    with without_app(), gr.Blocks():
        chat = Chat(Studio(workspace, supervisor, session, session), tab.draw()[0])
    chat.keep(WHO, ChatState(adapters=[run.id]))
    return chat


def send(act: Chat, question: str, who: str = WHO, system: str = "Be a pirate.") -> list[Updates]:
    return list(act.send(who, question, system, *DEFAULTS))


def click(act: Chat, action: str, column: str = "", value: str = "", text: str = "") -> list[Updates]:
    return list(act.act(Click(action, column, value, text), WHO, "Be a pirate.", act.parts.copied, DEFAULTS))


def chosen(heads: str) -> list[str]:
    """The adapters of the columns, out of their heads."""
    return re.findall(r'<select data-column="([^"]+)"', heads)


def answers(act: Chat, name: str, who: str = WHO) -> list[str]:
    return [message["content"] for message in act.talk(who).column(name)[1::2]]


def test_a_question_loads_the_adapters_and_all_columns_answer(act: Chat, run: RunFolder) -> None:
    act.pick(WHO, [run.id, f"{run.id}/checkpoint-8"])
    updates = send(act, " Capital of Italy? ")
    assert [method for method, _ in act.studio.chat.asked] == ["load", "generate"]
    loaded = act.studio.chat.asked[0][1]
    assert loaded["base"] == "demo"
    assert loaded["adapters"][run.id] == str(run.adapter)
    columns = act.studio.chat.asked[1][1]["columns"]
    assert [column["adapter"] for column in columns] == [None, run.id, f"{run.id}/checkpoint-8"]
    assert columns[0]["messages"][0] == {"role": "system", "content": "Be a pirate."}
    told = "".join(str(update.get(act.parts.status, "")) for update in updates)
    assert "500 MB of 2.0 GB, 50 MB/s, 30 s left" in told
    shown = [update[act.parts.board] for update in updates if act.parts.board in update]
    assert shown[-1].count('class="chat-cell"') == 3
    assert shown[-1].count("Capital of Italy?</div>") == 1 + 3  # the question once, and the end of each answer
    assert "Arr, Capital of Italy?" in shown[-1]
    assert answers(act, BASE) == ["Rome, Capital of Italy?"]
    assert act.talk(WHO).notes[run.id].startswith("3 tokens, 9 tokens/s")


def test_what_is_in_memory_is_not_loaded_again_and_the_talk_goes_on(act: Chat, run: RunFolder) -> None:
    send(act, "One?")
    send(act, "Two?")
    assert [method for method, _ in act.studio.chat.asked] == ["load", "generate", "generate"]
    asked = act.studio.chat.asked[-1][1]["columns"][1]["messages"]
    assert [message["content"] for message in asked] == ["Be a pirate.", "One?", "Arr, One?", "Two?"]


def test_the_newest_adapter_of_a_run_takes_over_from_a_checkpoint_that_the_run_deleted(
    act: Chat, run: RunFolder
) -> None:
    act.pick(WHO, [f"{run.id}/checkpoint-8"])
    send(act, "One?")
    act.studio.supervisor.found[0].state = "running"
    (run.checkpoints / "checkpoint-8").rename(run.checkpoints / "checkpoint-16")
    shutil.rmtree(run.adapter)
    told = send(act, "Two?")[0]
    assert "The checkpoint at step 8 no longer exists: Pirate, checkpoint at step 16 answers instead." in str(
        told[act.parts.message]
    )
    assert chosen(told[act.parts.heads]) == [f"{run.id}/checkpoint-16"]
    assert answers(act, f"{run.id}/checkpoint-16") == ["Arr, One?", "Arr, Two?"]
    assert act.studio.chat.asked[-2][1]["adapters"] == {
        f"{run.id}/checkpoint-16": str(run.checkpoints / "checkpoint-16")
    }
    assert send(act, "Three?")[0] == {act.parts.message: ""}


def test_a_checkpoint_that_the_run_deletes_while_it_is_loaded_is_succeeded_as_well(act: Chat, run: RunFolder) -> None:
    act.pick(WHO, [f"{run.id}/checkpoint-8"])

    def gone(method: str, **params: Any) -> list[dict[str, Any] | StudioError]:
        if f"{run.id}/checkpoint-8" in params.get("adapters", {}):
            (run.checkpoints / "checkpoint-8").rename(run.checkpoints / "checkpoint-16")
            shutil.rmtree(run.adapter)
            return [StudioError("There is no adapter in that folder.")]
        return script(method, **params)

    act.studio.chat.script = gone
    told = send(act, "One?")
    sentences = [str(update[act.parts.message]) for update in told if act.parts.message in update]
    assert "Pirate, checkpoint at step 16 answers instead." in sentences[-1]
    assert answers(act, f"{run.id}/checkpoint-16") == ["Arr, One?"]
    assert answers(act, BASE) == ["Rome, One?"]


def test_a_stop_while_the_base_is_loaded_ends_the_load_and_gives_the_question_back(act: Chat, run: RunFolder) -> None:
    asking = act.send(WHO, "One?", "Be a pirate.", *DEFAULTS)
    for update in asking:
        if "Loading" in str(update.get(act.parts.status, "")):
            break
    act.stop(WHO)
    assert not act.studio.chat.running
    last = list(asking)[-1]
    assert "Stopped before it started" in last[act.parts.message]
    assert last[act.parts.question] == "One?"
    assert [method for method, _ in act.studio.chat.asked] == ["load"]
    send(act, "Two?")
    assert answers(act, run.id) == ["Arr, Two?"]


def test_what_a_comparison_of_tokens_loaded_can_be_unloaded(act: Chat) -> None:
    send(act, "One?")
    list(act.unload(WHO))
    told = [update[act.parts.status] for update in click(act, "tokens") if act.parts.status in update]
    assert 'data-act="unload"' in told[-1]


def test_two_people_have_columns_and_conversations_of_their_own(act: Chat, run: RunFolder) -> None:
    act.keep(OTHER, ChatState(adapters=[f"{run.id}/checkpoint-8"]))
    send(act, "One?")
    send(act, "Two?", OTHER)
    assert answers(act, run.id) == ["Arr, One?"]
    assert answers(act, f"{run.id}/checkpoint-8", OTHER) == ["Arr, Two?"]
    assert answers(act, BASE, OTHER) == ["Rome, Two?"]


@pytest.mark.slow
def test_the_second_person_waits_for_the_first_and_may_give_up(act: Chat) -> None:
    act.keep(OTHER, act.talk(WHO))
    first = act.send(WHO, "One?", "", *DEFAULTS)
    for update in first:
        if "Arr" in str(update.get(act.parts.board, "")):
            break
    second = act.send(OTHER, "Two?", "", *DEFAULTS)
    waiting = [next(second), next(second), next(second)]
    assert "Another question is being answered" in waiting[2][act.parts.status]
    act.stop(OTHER)
    assert act.studio.chat.stops == 0
    assert "Stopped before it started" in list(second)[-1][act.parts.message]
    act.stop(WHO)
    assert act.studio.chat.stops == 1
    list(first)
    done = threading.Event()

    def third() -> None:
        send(act, "Three?", OTHER)
        done.set()

    threading.Thread(target=third).start()
    assert done.wait(200)
    assert answers(act, BASE, OTHER) == ["Rome, Three?"]


def test_one_column_is_asked_again_changed_and_undone(act: Chat, run: RunFolder) -> None:
    send(act, "One?")
    send(act, "Two?")
    click(act, "again", run.id)
    assert [column["adapter"] for column in act.studio.chat.asked[-1][1]["columns"]] == [run.id]
    click(act, "edit", run.id, "0", "Uno?")
    assert answers(act, run.id) == ["Arr, Uno?"]
    assert answers(act, BASE) == ["Rome, One?", "Rome, Two?"]
    click(act, "undo", run.id)
    assert answers(act, run.id) == []
    click(act, "undo")
    assert answers(act, BASE) == ["Rome, One?"]
    click(act, "again")
    assert answers(act, BASE) == ["Rome, One?"]
    click(act, "clear")
    assert answers(act, BASE) == []


def test_an_answer_that_could_not_be_had_again_leaves_the_old_one(act: Chat, run: RunFolder) -> None:
    send(act, "One?")
    last = click(act, "edit", run.id, "0", "fail at once")[-1]
    assert "No memory is left." in last[act.parts.message]
    assert last[act.parts.question] == "fail at once", "what was typed is not lost"
    assert answers(act, run.id) == ["Arr, One?"]


def test_all_columns_are_asked_again_each_its_own_last_question(act: Chat, run: RunFolder) -> None:
    send(act, "One?")
    click(act, "edit", run.id, "0", "Uno?")
    click(act, "again")
    columns = act.studio.chat.asked[-1][1]["columns"]
    assert [column["messages"][-1]["content"] for column in columns] == ["One?", "Uno?"]


def test_words_that_differ_are_marked_on_demand(act: Chat) -> None:
    send(act, "One?")
    shown = click(act, "marks")[-1]
    assert "<mark>Arr</mark>, One?" in shown[act.parts.board]
    assert act.talk(WHO).marks
    hidden = click(act, "marks")[-1]
    assert "<mark>" not in hidden[act.parts.board]


def test_an_answer_is_compared_token_by_token(act: Chat, run: RunFolder) -> None:
    assert "No answer to score yet" in click(act, "tokens")[-1][act.parts.extra]
    click(act, "tokens")
    send(act, "One?")
    shown = click(act, "tokens")[-1][act.parts.extra]
    assert act.studio.chat.asked[-1][1]["answer"] == "Arr, One?"
    assert "Pirate: mean KL divergence from the base 0.75 nats/token" in shown
    assert "&lt;b&gt;" in shown
    assert "base 5.0 %, adapter 90.5 %" in shown


def test_an_example_is_asked_with_the_system_prompt_of_its_data(act: Chat) -> None:
    offered = chat_prompts.examples_for(act.columns(act.talk(WHO)).chosen)
    click(act, "example", value="1")
    assert act.studio.chat.asked[-1][1]["columns"][0]["messages"][-1]["content"] == offered[1].question


def test_a_failure_before_the_first_word_gives_the_question_back(act: Chat) -> None:
    last = send(act, "fail at once")[-1]
    assert "No memory is left." in last[act.parts.message]
    assert last[act.parts.question] == "fail at once"
    assert answers(act, BASE) == []


@pytest.mark.slow
def test_a_failure_later_keeps_the_question_and_what_was_said(act: Chat, run: RunFolder) -> None:
    last = send(act, "fail later")[-1]
    assert "Take a smaller model." in last[act.parts.message]
    assert answers(act, run.id) == ["Arr"]


def test_a_page_that_goes_away_stops_the_engine_and_keeps_what_was_said(act: Chat) -> None:
    answering = act.send(WHO, "Capital?", "", *DEFAULTS)
    for update in answering:
        if "Arr" in str(update.get(act.parts.board, "")):
            break
    answering.close()
    assert act.studio.chat.left_early == 1
    assert answers(act, BASE) == ["Rome"]
    assert send(act, "Next?")


def test_a_page_that_is_opened_while_an_answer_grows_follows_it_to_its_end(act: Chat) -> None:
    asking = act.send(WHO, "Capital?", "", *DEFAULTS)
    for update in asking:
        if "Arr" in str(update.get(act.parts.board, "")):
            break
    assert tab.is_followed(act, WHO)
    assert list(tab.follow(act, WHO, "")) == [act.parts.board]
    assert "Rome" in str(tab.follow(act, WHO, "")[act.parts.board])
    asking.close()
    last = tab.follow(act, WHO, "")
    assert (last[act.parts.send].visible, last[act.parts.stop].visible) == (True, False)
    assert act.parts.question not in last
    assert "Rome" in str(last[act.parts.board])
    assert not tab.is_followed(act, WHO)


@pytest.mark.parametrize("way", ["columns", "blind", "edit"])
def test_a_question_whose_page_was_left_before_the_answer_comes_back_on_the_next_one(act: Chat, way: str) -> None:
    if way == "edit":
        send(act, "Old?")
        asking = act.act(Click("edit", value="0", text="New?"), WHO, "Be a pirate.", act.parts.copied, DEFAULTS)
        list(act.unload(WHO))
    elif way == "blind":
        click(act, "blind")
        asking = tab.ask(act, WHO, "New?", "", DEFAULTS)
    else:
        asking = act.send(WHO, "New?", "", *DEFAULTS)
    for update in asking:
        if "Downloading" in str(update.get(act.parts.status, "")):
            break
    asking.close()
    assert not act.studio.chat.running, "half a model holds no memory"
    assert act.parts.question not in tab.follow(act, WHO, "I type"), "what is typed now stays"
    assert tab.is_followed(act, WHO)
    back = tab.follow(act, WHO, "")
    assert back[act.parts.question] == "New?"
    assert "question is below again" in back[act.parts.message]
    assert not tab.is_followed(act, WHO)
    assert answers(act, BASE) == (["Rome, Old?"] if way == "edit" else [])


def test_no_question_and_no_adapter_are_sentences(act: Chat) -> None:
    assert "There is no question yet." in send(act, "  ")[-1][act.parts.message]
    act.keep(WHO, ChatState(adapters=["../../etc"]))
    last = send(act, "Hi")[-1]
    assert "no longer exists" in last[act.parts.message]
    assert last[act.parts.question] == "Hi"
    assert act.studio.chat.asked == []


def test_sampling_is_checked_and_an_emptied_box_is_its_default(act: Chat) -> None:
    last = list(act.send(WHO, "Hi", "", *[-1, *DEFAULTS[1:]]))[-1]
    assert "generation.max_new_tokens" in last[act.parts.message]
    assert act.studio.chat.asked == []
    emptied = [None if value == "" or not isinstance(value, str) else value for value in DEFAULTS]
    list(act.send(WHO, "Hi", "", *emptied))
    settings = act.studio.chat.asked[-1][1]["settings"]
    assert settings == {setting.path.rpartition(".")[2]: setting.default for setting in SAMPLING}


def test_sampling_can_be_taken_from_a_preset(act: Chat) -> None:
    assert {"problem-solver", "technical-assistant", "yes-no-recommender"} <= set(
        form.sampling_presets(act.studio.workspace)
    )
    values = dict(
        zip(
            [setting.path for setting in SAMPLING],
            form.sampling_like(act.studio.workspace, "problem-solver"),
            strict=True,
        )
    )
    assert values["generation.max_new_tokens"] == 4096
    assert (values["generation.temperature"], values["generation.top_p"]) == ("0.7", "0.9")
    assert form.sampling_like(act.studio.workspace, "as set below") == DEFAULTS


def test_load_says_what_is_in_memory_and_unload_ends_the_child(act: Chat) -> None:
    updates = list(act.load(WHO))
    assert any("Loading base model" in str(update.get(act.parts.status)) for update in updates)
    assert "<span>demo + Pirate · 1.0 kB</span>" in updates[-1][act.parts.status]
    assert "used by the chat (demo)" in updates[-1][act.parts.status]
    assert "Not loaded" in list(act.unload(WHO))[-1][act.parts.status]
    assert act.engine.loaded is None


def test_who_unloads_waits_for_others_that_are_being_answered_unless_it_is_the_owner(tmp_path: Path) -> None:
    now, session = ["anna"], FakeSession(script)
    workspace = Users(Workspace(tmp_path / "workspace"), "anna").workspace_for(lambda: now[0])
    runs = []
    for now[0] in ("carl", "anna"):
        runs.append(RunState(make_run(workspace, "Pirate", adapter=True).id, "Pirate", "done"))
    fakes: tuple[Any, Any] = (FakeSupervisor(runs), session)
    with without_app(), gr.Blocks():
        act = Chat(Studio(workspace, fakes[0], fakes[1], fakes[1]), tab.draw()[0])
    answered = act.engine.answer(
        f"page bert {WHO}", ModelSelection("demo"), [ColumnPrompt(adapter=None, messages=HELLO)], {}
    )
    while not isinstance(next(answered), Piece):
        pass
    now[0] = "carl"
    act.arrive(WHO)
    for stops in (lambda: act.stop(WHO), lambda: act.engine.stop("program 1")):
        stops()  # the same browser's name, given by somebody else, is another one
    assert session.stops == 0
    unloading = act.unload(WHO)
    assert "Another question is being answered" in next(unloading)[act.parts.status]
    assert session.running
    assert isinstance(next(answered), Generated)
    assert list(answered) == []
    assert "Not loaded" in list(unloading)[-1][act.parts.status]
    assert not session.running
    answered = act.engine.answer(
        f"page bert {WHO}", ModelSelection("demo"), [ColumnPrompt(adapter=None, messages=HELLO)], {}
    )
    while not isinstance(next(answered), Piece):
        pass
    unloading = act.unload(OTHER)
    next(unloading)
    act.stop(OTHER)
    assert "Stopped before it started" in list(unloading)[-1][act.parts.message]
    now[0] = "anna"
    act.arrive(WHO)
    list(act.unload(WHO))
    assert not session.running
    list(answered)


def test_a_guest_leaves_turns_to_others(act: Chat) -> None:
    session: Any = act.studio.chat
    engine = Engine(session, act.studio.supervisor, max_waiting=2, person_of=origin)

    def ask(visitor: str, which: str) -> Any:
        who = asker("page", visitor, which)
        return engine.answer(who, ModelSelection("demo"), [ColumnPrompt(adapter=None, messages=HELLO)], {})

    answered = ask("guest-a-1", "1")
    while not isinstance(next(answered), Piece):
        pass
    waiting = [ask("guest-b-1", "1"), ask("guest-b-2", "1")]
    assert all(next(one).waiting for one in waiting)
    with pytest.raises(BusyError, match="2 questions from you, or from your address, are already waiting"):
        next(ask("guest-b-3", "1"))
    next(ask("guest-c-1", "1"))
    waiting[0].close()  # its page was closed
    assert next(ask("guest-b-3", "1")).waiting
    answered.close()


def test_the_owner_chooses_the_device_that_answers(act: Chat) -> None:
    jobs: Any = act.studio.supervisor
    session: Any = act.studio.chat
    assert not act.arrive(WHO)[act.parts.device].visible, "there is one device"
    jobs.cards = [Device("Card", "cuda", 10**11, 10**11 - n, index=n, uuid=f"GPU-{n}") for n in range(2)] + [cpu()]
    field = act.arrive(WHO)[act.parts.device]
    assert (field.visible, field.value, [value for _, value in field.choices]) == (
        *(True, "auto"),
        ["auto", "0", "1", "cpu"],
    )
    send(act, "One?")
    assert session.env == {"CUDA_VISIBLE_DEVICES": "GPU-0"}
    loads = sum(method == "load" for method, _ in session.asked)
    act.choose_device(WHO, "1")
    assert act.arrive(WHO)[act.parts.device].value == "1", "a reload shows it"
    send(act, "Two?")
    assert (session.env, jobs.chat_device()) == ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, "GPU-1")
    send(act, "Three?")
    assert sum(method == "load" for method, _ in session.asked) == loads + 1, "it is loaded once there"
    jobs.holders = [Holder("run", "First", ("GPU-1",), job="1")]
    act.choose_device(WHO, "cpu")
    send(act, "Four?")
    assert session.env["LORA_STUDIO_DEVICE"] == "cpu"
    act.choose_device(WHO, "1")
    jobs.cards = [jobs.cards[0], cpu()]
    told = send(act, "Five?")[-1][act.parts.message]
    assert "There is no GPU 1 here" in told
    assert act.arrive(WHO)[act.parts.device].value == "auto"


def test_a_chat_that_will_hardly_fit_is_asked_about_first(act: Chat) -> None:
    act.studio.supervisor.cards = [Device("CPU", "cpu", 10**9, 10**6)]
    act.studio.supervisor.found.append(RunState("20260101-000000-x-ab12", "Long one", "running"))
    last = list(act.load(WHO))[-1]
    assert "1.0 MB are free while Long one trains" in last[act.parts.message]
    assert 'data-act="force"' in last[act.parts.message]
    assert act.studio.chat.asked == []
    assert "are free while" in send(act, "Hi")[-1][act.parts.message]
    last = list(act.load(WHO, force=True))[-1]
    assert "used by the run Long one and the chat (demo)" in last[act.parts.notes]
    assert answers(act, BASE) == []
    send(act, "Hi")
    assert answers(act, BASE) == ["Rome, Hi"]


def test_the_chat_answers_on_a_gpu_that_no_run_holds_and_stays_there_while_it_holds_a_model(act: Chat) -> None:
    jobs, session = act.studio.supervisor, act.studio.chat
    jobs.cards = [Device("Card", "cuda", 10**11, 10**11 - n, index=n, uuid=f"GPU-{n}") for n in range(2)]
    jobs.holders = [Holder("run", "First", ("GPU-0",), job="1")]
    assert jobs.chat_device() == ""
    list(act.load(WHO))
    assert (session.env, jobs.chat_device()) == ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, "GPU-1")
    jobs.holders = [Holder("run", "Second", ("GPU-1",), job="2")]
    send(act, "Hi")
    assert (session.env, act.engine.device) == ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, jobs.cards[1])
    jobs.found.append(RunState("20260101-000000-x-ab12", "Second", "running", devices=["GPU 1 (Card)"]))
    assert act.engine.run == "Second"
    list(act.unload(WHO))
    assert (jobs.chat_device(), act.engine.run) == ("", None)
    list(act.load(WHO))
    assert session.env == {"CUDA_VISIBLE_DEVICES": "GPU-0"}


def test_a_child_that_died_has_nothing_in_memory(act: Chat) -> None:
    list(act.load(WHO))
    act.studio.chat.running = False
    assert act.engine.loaded is None


def test_a_reload_brings_columns_conversation_and_sampling_back(act: Chat, run: RunFolder) -> None:
    checkpoint = f"{run.id}/checkpoint-8"
    act.pick(WHO, [checkpoint])
    list(act.send(WHO, "One?", "Be brief.", 99, *DEFAULTS[1:]))
    updates = act.arrive(WHO)
    assert chosen(updates[act.parts.heads]) == [checkpoint]
    assert "Arr, One?" in updates[act.parts.board]
    assert updates[act.parts.system] == "Be brief."
    assert updates[act.parts.sampling[0]] == 99
    assert chosen(act.arrive(OTHER)[act.parts.heads]) == [run.id]


def test_without_any_adapter_the_tab_says_what_to_do(act: Chat) -> None:
    act.studio.supervisor.found = []
    updates = act.arrive(WHO)
    assert updates[act.parts.nothing].visible is True
    assert updates[act.parts.body].visible is False


def test_the_tab_shows_the_adapter_that_another_tab_chose(act: Chat) -> None:
    other = make_run(act.studio.workspace, "Other", adapter=True)
    act.studio.supervisor.found.insert(0, RunState(other.id, "Other", "done"))
    assert chosen(act.arrive(WHO, other.id)[act.parts.heads]) == [other.id]
    assert chosen(act.arrive(WHO)[act.parts.heads]) == [other.id]


def test_several_runs_are_chatted_with_at_once_and_those_without_an_adapter_left_out(act: Chat, run: RunFolder) -> None:
    other = make_run(act.studio.workspace, "Other", adapter=True)
    bare = make_run(act.studio.workspace, "Bare", adapter=False)
    act.studio.supervisor.found += [RunState(other.id, "Other", "done"), RunState(bare.id, "Bare", "queued")]
    assert chosen(act.arrive(WHO, other.id, (bare.id, run.id))[act.parts.heads]) == [other.id, run.id]


def test_an_external_adapter_gets_a_column_or_a_reason(act: Chat, run: RunFolder, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "brought.zip", files())
    updates = external.added(act, WHO, str(archive), zipped=True)
    assert "LoRA of rank 2 on demo" in updates["message"]
    assert len(act.talk(WHO).adapters) == 2
    external.added(act, WHO, str(write(tmp_path / "mine", files())))
    assert "brought" in send(act, "One?")[-2][act.parts.board]
    assert len(act.studio.chat.asked[-1][1]["columns"]) == 4
    other = write(tmp_path / "other", files(base_model_name_or_path="Qwen/Qwen3-8B"))
    for given, words in (
        ("", "No adapter is named"),
        (str(other), "trained on Qwen/Qwen3-8B"),
        ("/nowhere", "does not exist"),
    ):
        assert words in external.added(act, WHO, given)["message"]
    assert len(act.talk(WHO).adapters) == 3


def test_conversations_are_downloaded_as_training_data(act: Chat) -> None:
    send(act, "One?")
    updates = click(act, "jsonl")[-1]
    assert "conversations.jsonl" in updates[act.parts.copied]
    (path,) = act.studio.workspace.downloads_folder.glob("*/*/conversations.jsonl")
    assert path.read_text() == conversation.ChatState(**vars(act.talk(WHO))).jsonl("Be a pirate.")


def test_stop_ends_only_ones_own_answer(act: Chat) -> None:
    act.stop(WHO)
    assert act.studio.chat.stops == 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_config.json", b'{"peft_type": "LORA", "r": "x"}'),
        ("adapter_config.json", b"\xff"),
        ("chat_template.jinja", b"\xff\xfe"),
        ("studio.json", b"[]"),
    ],
)
def test_a_kept_adapter_that_is_damaged_is_told_never_breaks_the_tab_and_can_be_removed(
    act: Chat, workspace: Workspace, tmp_path: Path, file: str, content: bytes
) -> None:
    archive = zipped(tmp_path / "other.zip", files())
    external.added(act, WHO, str(archive), zipped=True)
    (folder,) = [Path(chosen) for _, chosen in external.offered(act)]
    act.pick(WHO, [f"{choices.FOLDER}{folder}"])
    (folder / file).write_bytes(content)
    shown = act.arrive(WHO)
    assert file in shown[act.parts.message]
    assert shown[act.parts.board]
    gone = external.removed(act, WHO, str(folder))
    assert "is removed" in gone["message"]
    assert not folder.exists()
    assert external.offered(act) == []
    assert "not among the imported" in external.removed(act, WHO, str(folder))["message"]
    assert "No adapter is chosen" in external.removed(act, WHO, None)["message"]


def test_columns_are_added_changed_and_removed_and_bring_their_conversation_back(act: Chat, run: RunFolder) -> None:
    send(act, "One?")
    checkpoint = f"{run.id}/checkpoint-8"
    added = click(act, "add")[-1]
    assert chosen(added[act.parts.heads]) == [run.id, checkpoint]
    assert "Ask here" in added[act.parts.board]
    click(act, "ask", checkpoint, "0")
    assert answers(act, checkpoint) == ["Arr, One?"]
    assert [column["adapter"] for column in act.studio.chat.asked[-1][1]["columns"]] == [checkpoint]
    assert "No other adapter of this base" in click(act, "add")[-1][act.parts.message]
    removed = click(act, "remove", run.id)[-1]
    assert chosen(removed[act.parts.heads]) == [checkpoint]
    assert chosen(click(act, "remove", checkpoint)[-1][act.parts.heads]) == [checkpoint]  # the last one stays
    changed = click(act, "pick", checkpoint, run.id)[-1]
    assert chosen(changed[act.parts.heads]) == [run.id]
    assert "Arr, One?" in changed[act.parts.board]


def test_a_question_that_is_edited_is_asked_of_all_columns_that_have_it(act: Chat, run: RunFolder) -> None:
    send(act, "One?")
    send(act, "Two?")
    click(act, "edit", value="0", text="Uno?")
    assert answers(act, run.id) == ["Arr, Uno?"]
    assert answers(act, BASE) == ["Rome, Uno?"]


def test_undo_takes_out_the_last_turn_where_there_is_one(act: Chat, run: RunFolder) -> None:
    send(act, "One?")
    send(act, "Two?")
    click(act, "undo", run.id)
    click(act, "undo")
    assert answers(act, run.id) == ["Arr, One?"]
    assert answers(act, BASE) == ["Rome, One?"]


def test_stop_stands_in_the_place_of_send_and_a_second_question_waits(act: Chat) -> None:
    asking = act.send(WHO, "One?", "", *DEFAULTS)
    for update in asking:
        if "Arr" in str(update.get(act.parts.board, "")):
            break
    second = send(act, "Two?")[-1]
    assert "still being answered" in second[act.parts.message]
    assert second[act.parts.question] == "Two?"
    assert (second[act.parts.send].visible, second[act.parts.stop].visible) == (False, True)
    assert "still being answered" in click(act, "clear")[-1][act.parts.message]
    assert "<mark>" in click(act, "marks")[-1][act.parts.board]  # what is switched meanwhile counts at once
    last = list(asking)[-1]
    assert "<mark>" in last[act.parts.board]
    assert (last[act.parts.send].visible, last[act.parts.stop].visible) == (True, False)
    assert act.talk(WHO).marks
    assert answers(act, BASE) == ["Rome, One?"]


def test_a_question_that_a_double_click_sends_twice_is_asked_once_without_a_word(act: Chat) -> None:
    asking = act.send(WHO, "One?", "", *DEFAULTS)
    for update in asking:
        if "Arr" in str(update.get(act.parts.board, "")):
            break
    assert not any(update.get(act.parts.message) or act.parts.question in update for update in send(act, "One?"))
    list(asking)
    assert answers(act, BASE) == ["Rome, One?"]
    click(act, "blind")
    asking = tab.ask(act, WHO, "One?", "", DEFAULTS)
    next(asking), next(asking)
    assert not any(update.get(act.parts.message) for update in tab.ask(act, WHO, "One?", "", DEFAULTS))
    asking.close()


def test_the_question_after_a_stop_waits_until_the_stopped_answer_is_written_down(act: Chat) -> None:
    asking = act.send(WHO, "One?", "", *DEFAULTS)
    for update in asking:
        if "Arr" in str(update.get(act.parts.board, "")):
            break
    act.stop(WHO)
    ending = threading.Timer(0.3, list, [asking])
    ending.start()
    last = send(act, "Two?")[-1]
    ending.join()
    assert not last.get(act.parts.message)
    assert answers(act, BASE) == ["Rome, One?", "Rome, Two?"]


def test_after_a_stop_the_page_can_ask_again_even_where_the_one_that_asked_is_gone(act: Chat) -> None:
    asking = act.send(WHO, "One?", "", *DEFAULTS)
    for update in asking:
        if "Arr" in str(update.get(act.parts.board, "")):
            break
    shown = act.stop(WHO)
    assert (shown[act.parts.send].visible, shown[act.parts.stop].visible) == (True, False)
    act.check_idle(WHO)


def test_a_conversation_leaves_as_text_and_as_files(act: Chat, run: RunFolder) -> None:
    send(act, "<b>One?")
    copied = click(act, "copy")[-1][act.parts.copied]
    assert "&gt; &lt;b&gt;One?" in copied
    assert "### Base: demo" in copied
    path = Path(re.search(r"file=([^\"]+)", click(act, "markdown")[-1][act.parts.copied])[1])  # type: ignore[index]
    text = path.read_text(encoding="utf-8")
    assert text.count("> <b>One?") == 1
    assert [text.index(words) for words in ("Be a pirate.", "Rome, <b>One?", "### Pirate", "Arr, <b>One?")]
    path = Path(re.search(r"file=([^\"]+)", click(act, "json")[-1][act.parts.copied])[1])  # type: ignore[index]
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert [column["name"] for column in whole["columns"]] == ["Base: demo", "Pirate"]
    assert whole["columns"][1]["messages"][-1] == {"role": "assistant", "content": "Arr, <b>One?"}
    assert whole["system_prompt"] == "Be a pirate."
    assert whole["sampling"]["max_new_tokens"] == DEFAULTS[0]


def test_the_blind_comparison_hides_who_answers_and_keeps_the_conversation(act: Chat) -> None:
    send(act, "One?")
    shown = click(act, "blind")[-1]
    assert chosen(shown[act.parts.heads]) == []
    assert "unnamed" in shown[act.parts.heads]
    assert "No votes yet" in shown[act.parts.board]
    back = click(act, "blind")[-1]
    assert "Arr, One?" in back[act.parts.board]
    assert len(chosen(back[act.parts.heads])) == 1


def test_with_token_probabilities_switched_on_each_answer_is_scored(act: Chat) -> None:
    click(act, "tokens")
    last = send(act, "One?")[-1]
    assert "nats/token" in last[act.parts.extra]
    assert act.parts.extra not in act.arrive(WHO)  # it stays while other tabs are looked at
    assert act.pick(WHO, act.talk(WHO).adapters)[act.parts.extra] == ""


def test_who_gives_another_visitors_name_sees_and_changes_nothing_of_their_chat(tmp_path: Path) -> None:
    now, session = ["bert"], FakeSession(script)
    workspace = Users(Workspace(tmp_path / "workspace"), "anna").workspace_for(lambda: now[0])
    runs = []
    for now[0] in ("carl", "bert"):
        runs.append(RunState(make_run(workspace, "Pirate", adapter=True).id, "Pirate", "done"))
    fakes: tuple[Any, Any] = (FakeSupervisor(runs), session)
    with without_app(), gr.Blocks():
        act = Chat(Studio(workspace, fakes[0], fakes[1], fakes[1]), tab.draw()[0])
    act.arrive(WHO)
    asking = act.send(WHO, "My secret?", "", *DEFAULTS)
    for update in asking:
        if "Arr" in str(update.get(act.parts.board, "")):
            break
    now[0] = "carl"
    act.arrive(WHO)
    act.check_idle(WHO)
    assert "secret" not in str(click(act, "marks"))
    act.stop(WHO)
    now[0] = "bert"
    with pytest.raises(StudioError, match="still being answered"):
        act.check_idle(WHO)
    list(asking)


# -- mixing adapters


def mix_script(method: str, **params: Any) -> list[dict[str, Any] | StudioError]:
    """Writes the folder that the engine would write, of the first adapter's files."""
    if method != "mix":
        return script(method, **params)
    out = Path(params["out"])
    shutil.copytree(next(iter(params["adapters"].values())), out)
    adapters = [
        {"name": name, "weight": weight} for name, weight in zip(params["adapters"], params["weights"], strict=True)
    ]
    recipe = {"adapters": adapters, "method": params["combination_type"]}
    (out / "studio.json").write_text(json.dumps({"base_model": "demo", "mixed_from": recipe}), encoding="utf-8")
    return [{"kind": "progress", "phase": "mix"}, {"kind": "result", "notes": ["Their prompts differ."]}]


class Mixer:
    """The fold for mixing as a person uses it, on a chat with a run and its checkpoint."""

    def __init__(self, act: Chat, run: RunFolder) -> None:
        self.act, self.session = act, act.studio.inspector
        vars(self.session)["script"] = mix_script
        self.parents = [run.id, f"{run.id}/checkpoint-8"]
        with without_app(), gr.Blocks():
            self.fold, _, _ = mixing.draw()

    def choose(self, count: int = 2) -> mixing.Draft:
        """Chooses adapters; the sliders still stand where they stood for others."""
        return mixing.kept(self.act, WHO, [self.parents[:count], "linear", 0.5, 42, 1.0, 1.0, 1.0, 1.0])

    def set(self, weights: tuple[float, ...] = (0.7, 0.3), method: str = "linear", count: int = 2) -> mixing.Draft:
        self.choose(count)
        return mixing.kept(self.act, WHO, [self.parents[:count], method, 0.5, 42, *weights, 0.5, 0.5])

    def mix(self) -> str:
        """The words of the last message."""
        return str([update for update in mixing.mixed(self.act, WHO, self.fold) if self.fold.message in update][-1])

    @property
    def column(self) -> str:
        return self.act.talk(WHO).adapters[-1]


@pytest.fixture
def mixer(act: Chat, run: RunFolder) -> Mixer:
    return Mixer(act, run)


def test_a_mix_gets_a_column_of_its_own_beside_base_and_adapters(act: Chat, run: RunFolder, mixer: Mixer) -> None:
    mixer.set()
    assert "0.7 Pirate + 0.3 Pirate, step 8 (linear): it has a column." in (words := mixer.mix())
    assert "Their prompts differ." in words
    sent = dict(mixer.session.asked)["mix"]  # type: ignore[attr-defined]
    assert (sent["base"], sent["weights"], sent["runs"]) == ("demo", [0.7, 0.3], [run.id, run.id])
    assert "density" not in sent or sent["density"] is None
    updates = act.paint(act.talk(WHO))
    assert chosen(updates[act.parts.heads]) == [run.id, mixer.column]
    assert "0.7 Pirate + 0.3 Pirate, step 8 (linear)" in updates[act.parts.heads]
    assert "0.7 Pirate + 0.3 Pirate, step 8 (linear)" in updates[act.parts.cards]
    send(act, "Hi")
    assert answers(act, BASE) == ["Rome, Hi"]
    assert answers(act, mixer.column) == ["Arr, Hi"]


def test_a_moved_slider_makes_the_mix_again_in_its_column_and_loads_it_on_the_same_base(
    act: Chat, mixer: Mixer
) -> None:
    mixer.set()
    mixer.mix()
    send(act, "Hi")
    before, folder = mixer.column, Path(mixer.column.removeprefix(choices.FOLDER))
    mixer.set((0.2, 0.3))
    mixer.mix()
    assert mixer.column != before
    assert not folder.exists()
    assert len(act.talk(WHO).adapters) == 2
    assert answers(act, mixer.column) == ["Arr, Hi"]  # what was said in the column stays
    requests = [method for method, _ in mixer.session.asked]  # type: ignore[attr-defined]
    assert requests == ["mix", "load", "generate", "mix", "load"]


def test_a_list_that_is_left_as_it_was_changes_nothing_on_the_page(act: Chat, mixer: Mixer) -> None:
    values = [mixer.parents, "linear", 0.5, 42, 0.7, 0.3, 0.5, 0.5]
    assert len(list(mixing.set_anew(act, WHO, mixer.fold, values))) == 2
    (update,) = mixing.set_anew(act, WHO, mixer.fold, values)
    assert update == {mixer.fold.message: gr.skip()}


def test_a_saved_mix_is_an_adapter_in_all_lists(act: Chat, mixer: Mixer) -> None:
    assert "There is no mix to save yet." in mixing.saved(act, WHO, mixer.fold, "pirate-mix")[mixer.fold.message]
    mixer.set()
    mixer.mix()
    unsaved = Path(mixer.column.removeprefix(choices.FOLDER))
    assert all("(mix)" not in label for label, _ in choices.adapter_choices(act.studio.workspace, []))
    assert "The adapter has no name yet." in mixing.saved(act, WHO, mixer.fold, " ")[mixer.fold.message]
    updates = mixing.saved(act, WHO, mixer.fold, "pirate-mix")
    assert "Saved as pirate-mix: 0.7 Pirate + 0.3 Pirate, step 8 (linear)." in updates[mixer.fold.message]
    folder = act.studio.workspace.adapters_folder / "pirate-mix"
    assert mixer.column == f"{choices.FOLDER}{folder}"
    assert not unsaved.exists()
    assert choices.adapter_choices(act.studio.workspace, []) == [("pirate-mix (mix)", str(folder))]
    assert "There is no mix to save yet." in mixing.saved(act, WHO, mixer.fold, "again")[mixer.fold.message]


def test_what_cannot_be_mixed_is_said_before_anything_is_sent(act: Chat, run: RunFolder, mixer: Mixer) -> None:
    for settings, words in (
        ({"count": 1}, "A mix needs at least two adapters."),
        ({"weights": (0.7, 0.0)}, "The weight of Pirate, step 8 is 0."),
    ):
        mixer.set(**settings)  # type: ignore[arg-type]
        assert words in mixer.mix()
    more = [make_run(act.studio.workspace, f"More {at}", adapter=True) for at in range(2)]
    states = [RunState(item.id, "", "done") for item in (run, *more)]
    act.studio.supervisor.found = states  # type: ignore[attr-defined]
    act.pick(WHO, [run.id, *(item.id for item in more)])
    mixer.set()
    assert "All columns are taken." in mixer.mix()
    assert not mixer.session.asked  # type: ignore[attr-defined]


def test_an_adapter_keeps_its_weight_when_another_is_taken_out_and_a_reload_brings_all_back(
    act: Chat, mixer: Mixer
) -> None:
    assert mixer.choose().weights == (0.5, 0.5)
    mixer.set((0.7, 0.3))
    mixer.parents.reverse()
    assert mixer.choose().weights == (0.3, 0.7)
    draft = mixer.set((0.3, -1.5), "dare_ties")
    assert mixing.Draft.of(act.talk(WHO)) == draft
    beyond = mixing.Draft.typed([["a"], "dare_ties", 7, 1, 99], "")
    assert (beyond.weights, beyond.density) == ((mixing.RANGE,), 1.0), "a number typed beside a slider"
    updates, fold = mixing.shown(act, WHO, mixer.fold), mixer.fold
    assert updates[fold.adapters]["value"] == mixer.parents
    assert [updates[slider]["visible"] for slider in fold.weights] == [True, True, False, False]
    assert [updates[slider]["value"] for slider in fold.weights[:2]] == [0.3, -1.5]
    assert [updates[part]["visible"] for part in (fold.density, fold.seed)] == [True, True]


def test_only_a_few_unsaved_mixes_are_kept(act: Chat, mixer: Mixer) -> None:
    for _ in range(choices.MAX_UNSAVED + 2):
        act.pick(WHO, mixer.parents[:1])
        mixer.set()
        mixer.mix()
    left = list(act.studio.workspace.adapters_folder.glob(".mix-*"))
    assert len(left) == choices.MAX_UNSAVED
    assert Path(mixer.column.removeprefix(choices.FOLDER)) in left
