"""A job that writes rows about documents: what may be asked of whom, what is kept of it, the review, what it costs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_studio.access.guests import LIMITS, Guests
from lora_studio.access.policy import Users
from lora_studio.chat import documents
from lora_studio.chat.documents import Writing, checked, estimate, make_request, request_of, rows_of
from lora_studio.config.sections import Config
from lora_studio.data.generated import Row
from lora_studio.data.readers.documents import Chunk, write_chunks
from lora_studio.engine.runtime import JsonLines
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Finished, Reason, to_line
from lora_studio.jobs.kinds import DOCUMENTS, DocumentsFolder, Kind
from lora_studio.jobs.launchers.local import LocalLauncher
from lora_studio.jobs.protocol import SplitDocuments
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hub import SERVER_KEY
from lora_studio.workspace import Workspace

URL = "http://127.0.0.1:8080/v1"
KEY = "sk-secret"


class Started(Supervisor):
    """A supervisor that starts nothing, but remembers what was to be started, and with which secrets."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__(workspace)
        self.secrets: list[Mapping[str, str] | None] = []

    def submit(self, kind: Kind, make: Any, *, secrets: Any = None, **more: Any) -> str:
        self.secrets.append(secrets)
        return str(make().id)

    def resume(self, job_id: str, *more: Any, secrets: Any = None, **others: Any) -> None:
        self.secrets.append(secrets)


def document(workspace: Workspace, name: str = "guide.md") -> str:
    path = workspace.uploads_folder / name
    path.write_text("# Guide\n\nThe server listens on port 7860.\n", encoding="utf-8")
    return str(path)


def chunks_of(tmp_path: Path) -> Path:
    write_chunks(
        tmp_path / "chunks.jsonl",
        [Chunk(at, "guide.md", "Guide", None, f"Port {at} is the number of the server.", 9) for at in range(3)],
    )
    return tmp_path / "chunks.jsonl"


def job(workspace: Workspace, tmp_path: Path, **settings: Any) -> DocumentsFolder:
    """A job of which two chunks are answered."""
    request = make_request(workspace, [document(workspace)], Writing(**settings), model="small", server=URL)
    started = Started(workspace)
    folder = documents.folders(workspace).find(documents.start(started, request, chunks_of(tmp_path)))
    with JsonLines(folder.answers) as answers:
        rows = [Row(1, 0, "Which port?", "Port 1 is the number."), Row(1, 1, "Who?", "Nobody knows anything else.")]
        answers.add([documents.as_answer(1, rows, "", (50, 10), cut=False)])
        answers.add([documents.as_answer(0, [], "I can't.", (40, None), cut=True)])
    return folder


def test_a_request_is_kept_as_it_was_asked_with_its_chunks_and_without_the_key(
    workspace: Workspace, tmp_path: Path
) -> None:
    request = make_request(
        workspace, [document(workspace), document(workspace, "b.md")], Writing(), model=" small ", server=URL + "/"
    )
    assert (request.title, request.server, request.model) == ("small on guide.md and 1 more", URL, "small")
    started = Started(workspace)
    folder = documents.folders(workspace).find(documents.start(started, request, chunks_of(tmp_path), key=f" {KEY} "))
    assert request_of(folder) == request
    assert folder.read_facts()["needs_device"] is False
    assert len(documents.used_chunks(folder, Writing(max_chunks=2))) == 2
    documents.resume(started, folder.id, key=KEY)
    assert started.secrets == [{SERVER_KEY: KEY}] * 2
    assert not any(KEY in path.read_text() for path in workspace.root.rglob("*") if path.is_file())
    folder.facts.write_text(json.dumps({**folder.read_facts(), "writing": {"chunk_size": -1}}))
    with pytest.raises(StudioError, match="is damaged"):
        request_of(folder)


def test_secrets_of_a_resumed_job_reach_its_worker_alone(workspace: Workspace, tmp_path: Path) -> None:
    folder = job(workspace, tmp_path)
    folder.events.write_text(to_line(Finished(1.0, "stopped", reason=Reason.STOPPED)))
    environments: list[Mapping[str, str]] = []
    launcher = LocalLauncher()
    launch: Any = lambda folder, module, *, resume, env: environments.append({"resume": str(resume), **env})  # noqa: E731
    launcher.start = launch  # type: ignore[method-assign]
    supervisor = Supervisor(workspace, launcher)
    documents.resume(supervisor, folder.id, key=KEY)
    assert environments == [{"resume": "True", SERVER_KEY: KEY}]
    assert not any(KEY in path.read_text() for path in workspace.root.rglob("*") if path.is_file())


BAD_ADDRESSES = """
localhost:8080
ftp://a/v1
file:///etc/passwd
http://
http://a b/v1
http://user:pw@host/v1
https://host/v1?key=sk-1
http://host:99999/v1
http://host/v1#x
"""


@pytest.mark.parametrize("address", BAD_ADDRESSES.split("\n")[:-1])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(address: str) -> None:
    with pytest.raises(StudioError) as error:
        documents.check_server(address)
    assert error.value.hint


def test_an_address_is_taken_with_or_without_what_is_asked_there() -> None:
    assert documents.check_server(" https://host:8443/openai/v1/chat/completions ") == "https://host:8443/openai/v1"
    assert documents.check_server("http://[::1]:8080/v1/") == "http://[::1]:8080/v1"


def test_only_the_owner_names_a_server_and_guests_use_the_built_in_model_on_few_chunks(tmp_path: Path) -> None:
    whole = Workspace(tmp_path / "workspace")
    for users in (Users(whole, "owner"), Guests(whole, "owner")):
        caller = "owner"
        workspace = users.workspace_for(lambda: caller)  # noqa: B023
        assert make_request(workspace, [document(workspace)], Writing(), model="m", server=URL).server == URL
        caller = "guest-1-a"
        path = document(workspace)
        with pytest.raises(StudioError, match="Only the owner can send documents to a server"):
            make_request(workspace, [path], Writing(), model="m", server=URL)
        with pytest.raises(StudioError, match=r"outside the folders|not available to guests"):
            make_request(workspace, ["/etc/hosts.md"], Writing(), model="demo")
    asked = make_request(workspace, [path], Writing(max_new_tokens=256), model="demo")
    assert asked.writing.max_chunks == LIMITS.test_rows
    assert workspace.policy.max_answer == LIMITS.answer_tokens
    with pytest.raises(StudioError, match="limited to 512 tokens"):
        make_request(workspace, [path], Writing(), model="demo")
    with pytest.raises(StudioError, match="not available to guests"):
        make_request(workspace, [path], Writing(max_new_tokens=256), model="Qwen/Qwen3-0.6B")
    split = documents.split_request(asked, ["/etc/passwd.md"], "demo", tmp_path / "x")
    with pytest.raises(StudioError, match="not available to guests"):
        workspace.policy.check_request(split.to_fields())
    caller = "owner"
    folder = documents.folders(workspace).create({**asked.to_dict(), "server": URL, "maker": "guest-1-a"})
    caller = "guest-1-a"
    with pytest.raises(StudioError, match="Only the owner"):
        documents.resume(Started(workspace), folder.id, key=KEY)


def test_what_is_missing_or_out_of_bounds_is_said_at_once(workspace: Workspace) -> None:
    path = document(workspace)
    for given, words in (
        ({"documents": []}, "No document is chosen"),
        ({"model": " "}, "No model is named"),
        ({"model": "", "server": URL}, "No model of the server is named"),
        ({"adapter": "nowhere"}, "There is no run"),
    ):
        asked: dict[str, Any] = {"documents": [path], "writing": Writing(), "model": "demo", **given}
        with pytest.raises(StudioError, match=words):
            make_request(workspace, asked.pop("documents"), asked.pop("writing"), **asked)
    with pytest.raises(StudioError) as error:
        checked({"chunk_size": 3, "temperature": "hot", "max_chunks": None})
    assert "Chunk size (tokens) must be at least 32 (found '3')" in error.value.message
    assert "Temperature must be a number" in error.value.message
    with pytest.raises(StudioError, match="does not contain"):
        checked({"prompt": "Write questions."})
    with pytest.raises(StudioError, match="characters that no key has"):
        documents.start(
            Started(workspace),
            make_request(workspace, [path], Writing(), model="m", server=URL),
            chunks_of(workspace.root),
            key="sk\nX: y",
        )


def test_the_documents_that_could_be_read_give_the_title_and_none_of_them_is_an_error(workspace: Workspace) -> None:
    request = make_request(workspace, [document(workspace), document(workspace, "b.md")], Writing(), model="demo")
    found = SplitDocuments(
        chunks=2,
        tokens=9,
        prompt_tokens=5,
        documents=[{"name": "b.md"}],
        problems=[("guide.md is encrypted.", "Save.")],
    )
    assert documents.with_read(request, found).title == "demo on b.md"
    with pytest.raises(StudioError, match=r"guide.md is encrypted\."):
        documents.with_read(request, found.model_copy(update={"chunks": 0, "documents": []}))


def test_rows_are_edited_and_dropped_and_the_rest_is_what_is_trained_on(workspace: Workspace, tmp_path: Path) -> None:
    folder = job(workspace, tmp_path)
    assert [(row.key, row.dropped) for row in rows_of(folder)] == [("1:0", False), ("1:1", False)]
    assert documents.marks_of(folder, rows_of(folder)) == {"1:1": ["ungrounded"]}
    documents.decide(folder, {"1:1": {"dropped": True}})
    documents.edit(folder, "1:0", " Which port of the server? ", "Port 1.")
    with pytest.raises(StudioError, match="The answer is empty"):
        documents.edit(folder, "1:0", "Which?", " ")
    first = documents.save_upload(folder, workspace)
    row = json.loads(first.read_text())
    assert row["messages"][0] == {"role": "user", "content": "Which port of the server?"}
    assert (row["source"], row["chunk"], first.parent) == ("guide.md", 2, workspace.uploads_folder)
    assert documents.save_upload(folder, workspace) == first
    assert documents.save_upload(folder, workspace, "prompt") != first
    assert {path.name for path in folder.path.iterdir()} == {
        "request.json",
        "chunks.jsonl",
        "answers.jsonl",
        "review.json",
    }
    documents.edit(folder, "1:1", "Who then?", "Nobody.")  # whoever edits a row keeps it
    assert documents.write_training_file(folder, tmp_path / "rows.jsonl") == 2
    folder.review.write_text("{broken")
    assert not any(row.dropped for row in rows_of(folder))
    documents.decide(folder, {row.key: {"dropped": True} for row in rows_of(folder)})
    with pytest.raises(StudioError, match="no rows to train on"):
        documents.save_upload(folder, workspace)


def test_costs_are_estimated_before_and_summed_after(workspace: Workspace, tmp_path: Path) -> None:
    writing = Writing(input_price=2.0, output_price=8.0, max_new_tokens=100, max_chunks=2)
    assert estimate(writing, 4, 1000, 50) == (500 + 2 * 50, 2 * 100)
    assert writing.cost(600, 200) == pytest.approx(600 * 2e-6 + 200 * 8e-6)
    folder = job(workspace, tmp_path, input_price=2.0, output_price=8.0)
    result = documents.result_of(folder, request_of(folder), "done")
    assert (result["chunks"], result["of_chunks"], result["rows"], result["unreadable"]) == (2, 3, 2, 1)
    assert (result["input_tokens"], result["output_tokens"], result["cut"]) == (90, 10, 1)
    assert result["cost"] == pytest.approx(90 * 2e-6 + 10 * 8e-6)
    with folder.answers.open("a") as file:
        file.write('{"chunk": "x", "rows": []}\n{"chunk": 2, "rows": [1]}\n[]\n{"chu')
    assert len(list(folder.read_answers())) == 2


def test_a_local_writer_is_weighed_against_the_memory_that_is_free(workspace: Workspace) -> None:
    request = make_request(workspace, [document(workspace)], Writing(), model="demo")
    device = Supervisor(workspace).devices()[0]
    small, large = (
        documents.memory_for(documents.replace(request, writing=Writing(batch_size=size)), device).need
        for size in (1, 64)
    )
    assert small is not None
    assert large is not None
    assert 0 < small < large
    assert documents.tokenizer_of(request, "other") == ("demo", None)
    assert DOCUMENTS.noun == "generation"
    assert "documents" not in Config.model_fields
