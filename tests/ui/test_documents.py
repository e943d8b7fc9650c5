"""Make rows from documents on the page: split, start, review, use; what is kept for a reload, and what is not."""

import json
from collections.abc import Callable, Mapping
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from lora_studio.access.guests import LIMITS, Guests
from lora_studio.access.policy import Users
from lora_studio.chat import documents
from lora_studio.data.generated import PROMPT, Row
from lora_studio.data.readers.documents import Chunk, write_chunks
from lora_studio.engine.runtime import JsonLines
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Finished, PhaseStarted, Progress, Reason, RunStarted, to_line
from lora_studio.jobs.kinds import DocumentsFolder, Kind
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hub import SERVER_KEY
from lora_studio.ui.data.choice import sources
from lora_studio.ui.data.documents import FIELDS, SERVER, Documents
from lora_studio.ui.data.row_review import GenerationView
from lora_studio.ui.gradio_patches import without_app
from lora_studio.ui.studio import Studio
from lora_studio.workspace import Workspace
from tests.chat.test_chat_choices import make_run
from tests.ui.fake_session import FakeSession

KEY = "sk-page"


class Started(Supervisor):
    """A supervisor that starts nothing, but remembers with which secrets."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.secrets: list[Mapping[str, str] | None] = []

    def submit(self, kind: Kind, make: Any, *, secrets: Any = None, **more: Any) -> str:
        self.secrets.append(secrets)
        return str(make().id)

    def resume(self, job_id: str, *more: Any, secrets: Any = None, **others: Any) -> None:
        self.secrets.append(secrets)


def splitting(method: str, **params: Any) -> list[Any]:
    """What a reading child answers: progress, and two chunks in the file."""
    assert method == "split"
    if params["chunk_size"] == 99:
        return [StudioError("The request was cancelled: no response for 180 s.", "Check the file.")]
    write_chunks(
        Path(params["path"]),
        [Chunk(0, "guide.md", "A > B", 3, "Port 7860 <b>serves</b>.", 9), Chunk(1, "guide.md", "", None, "Two.", 2)],
    )
    found = {"name": "guide.md", "chunks": 2, "tokens": 11, "notes": ["1 of 3 pages have no text."]}
    locked = ["locked.pdf is encrypted.", "Save a copy without a password."]
    result = {"chunks": 2, "tokens": 11, "prompt_tokens": 100, "documents": [found], "problems": [locked]}
    return [{"kind": "progress", "phase": "pages", "done": 1, "total": 3}, {"kind": "result", **result}]


class Page:
    """The fold of the Data tab with a reading child that answers as written down."""

    def __init__(self, workspace: Workspace) -> None:
        self.session: Any = FakeSession(splitting)
        self.jobs = Started(workspace)
        studio = Studio(workspace, self.jobs, self.session, self.session)
        with without_app(), gr.Blocks(), gr.Tabs(), gr.Tab("Data"):
            self.fold = Documents(studio, gr.State())
            self.fold.wire()
        self.form = dict(zip(FIELDS, self.fold.opening()[1:-2], strict=True))
        self.form |= {name: value.value for name, value in self.form.items() if isinstance(value, gr.blocks.Block)}

    def values(self, **changed: Any) -> list[Any]:
        return list({**self.form, **changed}.values())

    def last(self, steps: Any) -> dict[Any, Any]:
        """All that the steps of an event show in the end."""
        shown: dict[Any, Any] = {}
        for step in steps:
            shown |= step
        return shown


@pytest.fixture
def page(workspace: Workspace) -> Page:
    return Page(workspace)


@pytest.fixture
def upload(workspace: Workspace) -> str:
    path = workspace.uploads_folder / "guide.md"
    path.write_text("# A\n", encoding="utf-8")
    return str(path)


def made(page: Page, workspace: Workspace, upload: str) -> tuple[DocumentsFolder, GenerationView]:
    """A job that was started on the page, with an answered chunk and one that holds no rows."""
    shown = page.last(
        page.fold.begin(
            GenerationView(),
            KEY,
            *page.values(documents=[upload], writer=SERVER, server="http://a/v1", server_model="m"),
        )
    )
    view = shown[page.fold.view]
    folder = documents.folders(workspace).find(view.job)
    with JsonLines(folder.answers) as answers:
        rows = [Row(0, 0, "Which <i>port</i>?", "Port 7860 serves."), Row(0, 1, "Who?", "Somebody else entirely.")]
        answers.add([documents.as_answer(0, rows, "", (50, 10), cut=False)])
        answers.add([documents.as_answer(1, [], "<script>no</script>", (5, 1), cut=True)])
    return folder, view


def test_the_built_in_model_is_said_to_write_no_rows_where_it_is_chosen(page: Page, workspace: Workspace) -> None:
    adapter = make_run(workspace, "Own", adapter=True).id
    assert "write rows like these" in str(page.fold.doubt.value)  # as the form opens
    asked = page.fold.show_doubt
    assert [bool(asked("base", name, None)) for name in ("demo", " demo ", "Qwen/Qwen3-0.6B", "")] == [1, 1, 0, 0]
    assert [bool(asked("adapter", "Qwen/Qwen3-0.6B", name)) for name in (adapter, "gone", None)] == [1, 0, 0]
    assert asked(SERVER, "demo", adapter) == ""


def test_documents_are_split_and_shown_before_anything_is_asked(page: Page, upload: str) -> None:
    shown = page.last(page.fold.split_documents(*page.values(documents=[upload], input_price="2", output_price="8")))
    markup = str(shown[page.fold.chunks])
    preview = unescape(markup)
    assert "guide.md, page 3, A > B, chunk 1" in preview
    assert "Port 7860 &lt;b&gt;serves&lt;/b&gt;." in markup
    assert "locked.pdf is encrypted." in preview
    assert "1 of 3 pages have no text." in preview
    assert "211" in preview  # 11 tokens, and the prompt twice
    assert "$0.0127" in preview  # and at most 2 x 768 tokens of answers
    assert shown[page.fold.stop].visible is False
    page.last(page.fold.split_documents(*page.values(documents=[upload])))
    assert len(page.session.asked) == 1, "prices change no chunk"
    page.last(page.fold.split_documents(*page.values(documents=[upload], chunk_size=64)))
    assert len(page.session.asked) == 2
    turned, number = page.fold.turn(SimpleNamespace(value="1"), 0, *page.values(documents=[upload], chunk_size=64))
    assert "1" in turned
    assert number == 1
    turned, _ = page.fold.turn(SimpleNamespace(value="1"), 0, *page.values(documents=[upload]))
    assert "have changed" in turned


def test_what_can_not_be_done_is_said_and_starts_nothing(page: Page, upload: str) -> None:
    for changed, words in (
        ({"documents": []}, "No document is chosen"),
        ({"writer": "adapter", "adapter": None}, "No adapter is chosen"),
        ({"writer": SERVER}, "No server is named"),
        ({"writer": SERVER, "server": "http://a", "server_model": ""}, "No model of the server is named"),
        ({"base": ""}, "No model is named"),
        ({"chunk_size": None, "temperature": "warm"}, "Temperature must be a number"),
        ({"prompt": "Hello"}, "does not contain {chunk}"),
        ({"chunk_size": 99}, "no response for 180 s"),
    ):
        values = page.values(**{"documents": [upload], **changed})
        for steps in (page.fold.split_documents(*values), page.fold.begin(GenerationView(), "", *values)):
            shown = page.last(steps)
            assert words in unescape(str(shown[page.fold.message]))
            assert shown[page.fold.start].interactive
    assert page.jobs.secrets == []


def test_the_key_reaches_the_worker_and_no_file_and_the_form_outlives_a_reload(
    page: Page, workspace: Workspace, upload: str
) -> None:
    folder, view = made(page, workspace, upload)
    page.fold.keep(*page.values(documents=[upload], writer=SERVER, server="http://a/v1", prompt="Mine {chunk}"))
    page.fold.resume(SimpleNamespace(act="resume"), view, KEY)
    assert page.jobs.secrets == [{SERVER_KEY: KEY}] * 2
    assert not any(KEY in path.read_text() for path in workspace.root.rglob("*") if path.is_file())
    again = Page(workspace)
    assert (again.form["server"], again.form["prompt"], again.form["writer"]) == ("http://a/v1", "Mine {chunk}", SERVER)
    assert again.form["documents"] == [upload]
    assert again.fold.opening()[0] == GenerationView(folder.id)
    assert page.form["prompt"] == PROMPT


def test_rows_are_kept_edited_and_dropped_and_become_the_dataset(page: Page, workspace: Workspace, upload: str) -> None:
    folder, view = made(page, workspace, upload)

    def click(act: str, value: str = "") -> GenerationView:
        found: GenerationView = page.fold.act(SimpleNamespace(act=act, value=value), view)[0]
        return found

    look: Callable[[GenerationView], dict[str, str]] = lambda seen: page.fold.board.look(seen, 0.0)  # noqa: E731
    review = look(view)["review"]
    assert "Which &lt;i&gt;port&lt;/i&gt;?" in review
    assert "&lt;script&gt;no&lt;/script&gt;" in review
    assert "Marked (1)" in review
    assert "1 ungrounded: Less than 50% of the answer&#x27;s words occur in its chunk." in review
    click("drop-marked")
    assert "Dropped (1)" in look(view)["review"]
    assert "Who?" not in look(click("filter", "kept"))["review"]
    click("keep", "0:1")
    assert "Dropped (0)" in look(view)["review"]
    editing = click("edit", "0:1")
    shown, question, answer = page.fold.open_editor(editing)
    assert (shown.visible, question, answer) == (True, "Who?", "Somebody else entirely.")
    kept, error = page.fold.save_row(editing, "Who?", "")
    assert (kept, "The answer is empty" in error) == (editing, True)
    kept, error = page.fold.save_row(editing, "What serves?", "Port 7860 serves.")
    assert (kept.editing, error) == ("", "")
    wish, words = page.fold.use_rows(view, "chat")
    rows = [json.loads(line) for line in Path(wish.data).read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in rows] == ["Which <i>port</i>?", "What serves?"]
    assert "guide-rows.jsonl is the dataset now" in words
    assert f"{folder.id}-rows.jsonl" in page.fold.download_rows(view, "prompt")[0]
    _, words = page.fold.use_rows(GenerationView("gone"), "chat")
    assert "There is no generation" in words


def test_progress_costs_and_the_end_are_told(page: Page, workspace: Workspace, upload: str) -> None:
    folder, view = made(page, workspace, upload)
    request = {**folder.read_facts()}
    request["writing"] |= {"input_price": 2.0}
    folder.facts.write_text(json.dumps(request))
    events = [RunStarted(1.0, 1, "", "", 0, "cpu"), PhaseStarted(1.0, "answer", 2, "chunks"), Progress(3.0, 1, 2)]
    ended = Finished(4.0, "failed", 0, "a refuses the API key (401: expired).", "Check the key.", Reason.REFUSED)
    folder.events.write_text("".join(map(to_line, (*events, ended))))
    head = unescape(page.fold.board.look(view, 5.0)["head"])
    assert "refuses the API key (401: expired)" in head
    assert 'data-act="resume"' in head
    assert "$0.0001" in head
    assert "1 answer ended at max new tokens" in head
    folder.chunks.write_text("broken")
    folder.answers.write_text("")
    assert "lost or damaged" in page.fold.board.look(view, 5.0)["head"]


def test_uploads_that_are_documents_are_chosen_and_offered_as_no_dataset(
    page: Page, workspace: Workspace, tmp_path: Path
) -> None:
    good, bad = tmp_path / "book.pdf", tmp_path / "photo.png"
    for path in (good, bad):
        path.write_bytes(b"%PDF-1.7")
    _, chosen, words = page.fold.take_uploads([str(good)], [])
    assert chosen.value == [str(workspace.uploads_folder / "book.pdf")]
    assert words == ""
    assert page.fold.take_uploads([str(bad)], [])[2] != ""
    assert page.fold.offered() == [("book.pdf", str(workspace.uploads_folder / "book.pdf"))]
    assert "book.pdf" not in [label for label, _ in sources(workspace)]


def test_a_visitor_is_offered_no_server(tmp_path: Path) -> None:
    whole = Workspace(tmp_path / "workspace")
    page = Page(Users(whole, "owner").workspace_for(lambda: "anna"))
    writer = page.fold.opening()[2]
    assert [value for _, value in writer.choices] == ["base", "adapter"]


def test_a_guest_is_offered_answers_as_long_as_they_may_be(tmp_path: Path) -> None:
    whole = Workspace(tmp_path / "workspace")
    guest = Page(Guests(whole, "owner").workspace_for(lambda: "guest-1-a"))
    assert guest.form["max_new_tokens"] == LIMITS.answer_tokens < documents.Writing().max_new_tokens
    assert Page(whole).form["max_new_tokens"] == documents.Writing().max_new_tokens
