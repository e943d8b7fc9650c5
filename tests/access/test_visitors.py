"""What visitors with logins of their own see of a workspace, and which files they can name."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio.access.policy import MAX_QUEUED, Users
from lora_studio.chat import prompts
from lora_studio.config.parsing import own_presets, parse, save_preset, to_yaml
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as evaluations
from lora_studio.evaluate.job import make_request
from lora_studio.export import job as exports
from lora_studio.files import bytes_in
from lora_studio.jobs.kinds import EVALUATE, EvaluationFolder, ending_words, remove
from lora_studio.jobs.launchers.local import LocalLauncher, kill
from lora_studio.jobs.queue import QueueEntry, check_room, lock, write_queue
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.adapters import adapter_folder
from lora_studio.ui import job_views
from lora_studio.workspace import RunFolder, Workspace
from tests.adapters import files, write
from tests.jobs.conftest import fake_command, wait_until


class Visit:
    """A workspace with visitors, of whom one is answered at a time."""

    def __init__(self, root: Path) -> None:
        self.now = ""
        self.plain = Workspace(root / "workspace")
        self.shared = root / "shared"
        self.shared.mkdir()
        self.workspace = Users(self.plain, "anna", [self.shared]).workspace_for(lambda: self.now)

    def by(self, name: str) -> Workspace:
        self.now = name
        return self.workspace

    def run(self, name: str, title: str = "run") -> RunFolder:
        return self.by(name).create_run(title, to_yaml(Config()), {"model": "demo", "data": "pirate"})


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path)


def upload(visit: Visit, name: str, tmp_path: Path, text: str = "{}") -> Path:
    source = tmp_path / f"{name}.jsonl"
    source.write_text(text)
    return visit.by(name).save_upload(source)


def test_visitors_see_their_own_runs_and_the_owner_sees_all(visit: Visit) -> None:
    runs = {name: visit.run(name) for name in ("anna", "bert", "carl")}
    assert {run.id for run in visit.by("anna").runs()} == {run.id for run in runs.values()}
    for name in ("bert", "carl"):
        assert [run.id for run in visit.by(name).runs()] == [runs[name].id]
        assert visit.by(name).run("last").id == runs[name].id
    assert visit.by("").runs() == visit.by("dora").runs() == []
    for wanted in (runs["carl"].id, runs["carl"].id[:-2], runs["anna"].id):
        with pytest.raises(StudioError, match="There is no run"):
            visit.by("bert").run(wanted)
    with pytest.raises(StudioError, match="There is no run"):
        remove(visit.by("bert").run(runs["carl"].id))
    assert runs["carl"].path.is_dir()


def test_runs_from_before_there_were_visitors_are_the_owners(visit: Visit) -> None:
    old = visit.plain.create_run("old", to_yaml(Config()), {})
    assert [run.id for run in visit.by("anna").runs()] == [old.id]
    assert visit.by("bert").runs() == visit.by("").runs() == []


def test_no_act_reaches_another_visitors_run_by_its_id(visit: Visit) -> None:
    mine, others = visit.run("bert"), visit.run("carl")
    supervisor = Supervisor(visit.workspace)
    visit.by("bert")
    assert [state.id for state in supervisor.runs()] == [mine.id]
    assert supervisor.state(mine.id).id == mine.id
    for act in (
        supervisor.state,
        supervisor.log,
        supervisor.exit_code,
        supervisor.stop,
        supervisor.cancel,
        supervisor.resume,
        supervisor.delete,
        lambda run_id: supervisor.move(run_id, 1),
        lambda run_id: adapter_folder(visit.workspace, run_id),
        lambda run_id: adapter_folder(visit.workspace, f"{run_id}/checkpoint-1"),
        lambda run_id: adapter_folder(visit.workspace, str(others.adapter)),
        lambda run_id: adapter_folder(visit.workspace, str(others.path)),
    ):
        with pytest.raises(StudioError):
            act(others.id)
    assert others.path.is_dir()
    visit.by("anna")
    assert len(supervisor.runs()) == 2
    supervisor.delete(others.id)
    assert not others.path.exists()


def test_the_queue_is_everybodys_but_nobody_passes_others(visit: Visit) -> None:
    mine, others = visit.run("bert"), visit.run("carl")
    with lock(visit.plain):
        write_queue(visit.plain, [QueueEntry(others.id), QueueEntry(mine.id)])
    supervisor = Supervisor(visit.workspace)
    visit.by("bert")
    with pytest.raises(StudioError, match="belongs to another visitor"):
        supervisor.move(mine.id, -1)
    visit.by("anna")
    supervisor.move(mine.id, -1)
    assert supervisor.queue() == [mine.id, others.id]


def test_a_visitor_has_a_few_runs_in_the_queue_and_the_owner_any_number(visit: Visit) -> None:
    runs = [visit.run("bert") for _ in range(MAX_QUEUED)]
    waiting = [QueueEntry(run.id) for run in runs]
    with pytest.raises(StudioError, match="10 of your jobs are already queued"):
        check_room(visit.by("bert"), waiting)
    check_room(visit.by("bert"), waiting[1:])
    check_room(visit.by("carl"), waiting)
    check_room(visit.by("anna"), waiting)


def test_uploads_drafts_presets_prompts_and_votes_are_ones_own(visit: Visit, tmp_path: Path) -> None:
    files = {name: upload(visit, name, tmp_path) for name in ("anna", "bert", "carl")}
    for name in files:
        own = visit.by(name)
        own.write_draft("form", name)
        prompts.save(own, f"set-{name}", ["Why?"])
        save_preset(own, f"preset-{name}", parse({"lora": {"r": 4}}))
        prompts.keep(own, prompts.Vote(1.0, "demo", [], [name, "x"], ["a", "b"], 0))
    for name in files:
        own = visit.by(name)
        assert own.read_draft("form") == name
        assert prompts.names(own) == [f"set-{name}"]
        assert list(own_presets(own)) == [f"preset-{name}"]
        assert [vote.names[0] for vote in prompts.read_votes(own)] == [name]
    assert visit.by("bert").uploads() == [files["bert"]]
    assert set(visit.by("anna").uploads()) == set(files.values())
    assert visit.by("").uploads() == []
    assert visit.by("").read_draft("form") is None
    assert visit.plain.read_draft("form") == "anna"


def test_what_is_kept_after_an_answer_is_kept_for_whoever_asked(visit: Visit) -> None:
    later = visit.by("bert").bound()
    visit.by("carl").write_draft("chat", "carl's")
    later.write_draft("chat", "bert's")
    assert visit.by("bert").read_draft("chat") == "bert's"
    assert visit.by("carl").read_draft("chat") == "carl's"


def test_evaluations_are_their_makers_and_the_device_is_everybodys(visit: Visit, tmp_path: Path) -> None:
    write(visit.run("bert").adapter, files())
    run = visit.by("bert").runs()[0]
    request = make_request(visit.by("bert"), [run.id], "pirate")
    folder = evaluations.create(visit.by("bert"), request)
    jobs = Supervisor(visit.workspace)
    for name, seen in (("bert", 1), ("carl", 0), ("anna", 1), ("", 0)):
        visit.by(name)
        assert len(jobs.jobs(EVALUATE)) == len(evaluations.evaluations(visit.workspace)) == seen
    visit.by("carl")
    for act in (jobs.state, jobs.stop, jobs.resume, jobs.delete):
        with pytest.raises(StudioError, match="There is no run"):
            act(folder.id)
    with pytest.raises(StudioError, match="There is no run"):
        make_request(visit.workspace, [run.id], "pirate")
    assert EvaluationFolder(folder.path).facts.is_file()


def test_an_uploaded_adapter_can_not_name_a_base_that_its_visitor_may_not(visit: Visit, tmp_path: Path) -> None:
    given = files(base_model_name_or_path=str(tmp_path / "secret"))
    folder = write(visit.by("bert").adapters_folder / "mine", given)
    with pytest.raises(StudioError, match="outside"):
        make_request(visit.by("bert"), [str(folder)], "pirate")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "/etc",
        "../../../etc/passwd",
        "~/.ssh/id_rsa",
        "~root",
        "pirate/../../x",
        "{own}/../carl/uploads/x",
        "{own}/uploads/../../../queue.json",
        "{own}/link",
        "{own}/linked/passwd",
        "{own}/loop",
        "{own}/link*",
        "{shared}/link",
        "{root}/queue.json",
        "{root}/runs",
        "{root}/logs",
        "{others}/adapter",
        "{shared}2/x",
        "{shared}\0",
        "x\0y",
        "C:\\Windows",
        "c:/x",
        "\\\\server\\share",
        "file:///etc/passwd",
        "http://evil.org/x.jsonl",
        "hub:../etc",
        "hub:owner/name?revision=../../x",
        "workspace",
        "hub:workspace/runs",
        "hub:workspace",
        "workspace/votes?jsonl",
        "note?.jsonl",
        "runs*",
        "/proc/self/environ",
        "/etc/passwd?sheet=A",
        "{own}/x?sheet=/../../../../../../../../../../etc/passwd",
    ],
)
def test_no_path_leaves_what_a_visitor_may_use(
    visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    others, own = visit.run("carl"), visit.by("bert").user_folder
    others.adapter.mkdir()
    (own / "link").symlink_to("/etc/passwd")
    (visit.shared / "link").symlink_to("/etc/passwd")
    (own / "linked").symlink_to("/etc")
    (own / "loop").symlink_to(own / "loop")
    given = name.format(own=own, shared=visit.shared, root=visit.plain.root, others=others.path)
    for request in ({"train_file": given}, {"validation_file": given}, {"model": given}, {"base": given}):
        with pytest.raises(StudioError, match="outside"):
            visit.workspace.policy.check_request(request)
    for nested in ({"adapters": {"a": given}}, {"of": {"train_file": given}}):
        with pytest.raises(StudioError, match="outside"):
            visit.workspace.policy.check_request(nested)


@pytest.mark.parametrize(
    "name",
    [
        "pirate",
        "demo",
        "Qwen/Qwen3-0.6B",
        "gpt2",
        "hub:owner/name?split=train&config=a",
        "",
        "{own}/uploads/x.jsonl",
        "{own}/uploads/*.jsonl",
        "{own}/uploads/book.xlsx?sheet=Answers",
        "{shared}/models/llama",
        "{shared}",
        "{mine}/adapter",
        "last",
        "x/checkpoint-4",
    ],
)
def test_what_a_visitor_may_name_passes(
    visit: Visit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    mine = visit.run("bert").path
    (visit.workspace.uploads_folder / "x.jsonl").write_text("{}")
    given = name.format(own=visit.workspace.user_folder, shared=visit.shared, mine=mine)
    visit.workspace.policy.check_request(
        {"train_file": given, "model": given, "adapters": {"a": given}, "revision": "main"}
    )


@pytest.mark.parametrize("revision", ["../../x", "a/../b", "/etc", "a b", "-x\n"])
def test_a_revision_is_no_path(visit: Visit, revision: str) -> None:
    with pytest.raises(StudioError, match="not a valid revision"):
        visit.by("bert").policy.check_request({"model": "owner/name", "revision": revision})


def test_the_owner_reaches_the_whole_workspace_and_no_more(visit: Visit, tmp_path: Path) -> None:
    file = upload(visit, "bert", tmp_path)
    visit.by("anna").policy.check_path(str(file))
    with pytest.raises(StudioError, match="outside"):
        visit.by("anna").policy.check_path("/etc/passwd")


def test_a_run_is_refused_before_it_is_made_where_its_files_are_others(visit: Visit, tmp_path: Path) -> None:
    theirs = upload(visit, "carl", tmp_path)
    supervisor = Supervisor(visit.workspace)
    visit.by("bert")
    for given in ({"data": {"train_file": str(theirs)}}, {"model": {"name": "/etc"}}):
        with pytest.raises(StudioError, match="outside"):
            supervisor.launch(parse(given))
    assert os.listdir(visit.plain.runs_folder) == []


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "x" * 65, "a\0b"])
def test_a_name_that_is_no_folders_name_gets_none(visit: Visit, name: str) -> None:
    with pytest.raises(StudioError, match="valid user name"):
        visit.by(name).uploads()


def test_visitors_have_room_for_so_much_on_the_disk_and_the_owner_for_all(tmp_path: Path) -> None:
    now = ["bert"]
    plain = Workspace(tmp_path / "workspace")
    workspace = Users(plain, "anna", quota=5_000_000).workspace_for(lambda: now[0])
    big = tmp_path / "big.jsonl"
    big.write_bytes(b"x" * 3_000_000)
    workspace.save_upload(big)
    run = workspace.create_run("run", to_yaml(Config()), {"model": "demo", "data": "pirate"})
    for refused in (lambda: workspace.save_upload(big, "again.jsonl"), lambda: workspace.save_uploads([big, big])):
        with pytest.raises(StudioError, match=r"3.0 MB of the available 5 MB.*add 3.0 MB.*\nDelete runs|add 6.0 MB"):
            refused()
    (run.path / "worker.log").write_bytes(b"x" * 2_000_000)
    for start in (
        lambda: workspace.create_run("run", to_yaml(Config()), {}),
        lambda: evaluations.folders(workspace).create({}),
        lambda: exports.folders(workspace).create({}),
    ):
        with pytest.raises(StudioError, match=r"5\.0 MB of the available 5 MB"):
            start()
    assert [made.id for made in workspace.runs()] == [run.id]
    for now[0] in ("carl", "anna"):
        workspace.save_upload(big)
    for _ in range(2):
        workspace.create_run("run", to_yaml(Config()), {})
        workspace.save_uploads([big, big])
    now[0] = "bert"
    remove(run)
    workspace.create_run("run", to_yaml(Config()), {})


def test_work_that_fills_more_than_its_makers_room_is_ended_while_it_grows(tmp_path: Path) -> None:
    now = ["bert"]
    workspace = Users(Workspace(tmp_path / "workspace"), "anna", quota=1_000_000).workspace_for(lambda: now[0])
    supervisor = Supervisor(workspace, LocalLauncher(fake_command("greedy")))

    def ended() -> bool:
        supervisor.tick()
        return supervisor.state(run).final

    run = supervisor.launch(Config())
    wait_until(ended)
    state = supervisor.state(run)
    assert state.state == "failed"
    assert state.message.startswith("The job was ended because its owner's disk quota was exceeded: 1.")
    assert "Delete it" in ending_words(state)[1]
    folder = workspace.run(run)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "checkpoint-1",
        "checkpoint-2",
    ]  # the torn one is gone
    now[0] = "bert"
    (workspace.uploads_folder / "data.csv").write_bytes(b"x" * 300_000)
    remove(workspace.run(run))
    run = supervisor.launch(Config())
    wait_until(ended)
    assert sorted(path.name for path in workspace.run(run).checkpoints.iterdir()) == ["checkpoint-1"]
    workspace.policy.check_room()
    now[0] = "anna"  # whose room is the disk
    run = supervisor.launch(Config())
    wait_until(lambda: (workspace.run(run).checkpoints / "checkpoint-3" / "optimizer.pt").exists())
    supervisor.tick()
    assert not supervisor.state(run).final
    kill(workspace.run(run))


def _draft(workspace: Workspace, text: str) -> None:
    workspace.write_draft(text[:3], text)


def _prompts(workspace: Workspace, text: str) -> None:
    prompts.save(workspace, text[:3], [text])


def _preset(workspace: Workspace, text: str) -> None:
    save_preset(workspace, text[:3], parse({"data": {"system_prompt": text}}))


@pytest.mark.parametrize("write", [_draft, _prompts, _preset])
def test_what_is_typed_counts_as_well(tmp_path: Path, write: Callable[[Workspace, str], None]) -> None:
    workspace = Users(Workspace(tmp_path / "workspace"), "anna", quota=150_000).workspace_for(lambda: "bert")

    def write_much() -> None:
        for number in range(100):
            write(workspace, f"{number:03}" + "x" * 9_000)

    with pytest.raises(StudioError, match=r"use .* MB of the"):
        write_much()
    assert bytes_in(workspace.user_folder) <= 270_000  # it is measured after every tenth of a megabyte


def test_a_draft_that_shrinks_needs_no_room(tmp_path: Path) -> None:
    workspace = Users(Workspace(tmp_path / "workspace"), "anna", quota=500_000).workspace_for(lambda: "bert")
    workspace.write_draft("form", "x" * 400_000)
    (workspace.uploads_folder / "data.csv").write_bytes(b"x" * 200_000)
    with pytest.raises(StudioError):
        workspace.write_draft("chat", "x" * 200_000)
    workspace.write_draft("form", "x" * 1000)
    assert workspace.read_draft("form") == "x" * 1000


def test_downloads_count_as_well(tmp_path: Path) -> None:
    users = Users(Workspace(tmp_path / "workspace"), "anna", quota=1000)
    workspace = users.workspace_for(lambda: "bert")
    job_views.new_file(workspace, "run.zip").write_bytes(b"x" * 1001)
    with pytest.raises(StudioError, match="uploads and runs use"):
        job_views.new_file(workspace, "run.zip")
    users.policy("carl").check_room(1000)
