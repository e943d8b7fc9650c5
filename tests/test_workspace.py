"""The workspace keeps names inside it, files whole and runs listed."""

import errno
import os
from pathlib import Path

import pytest

from lora_studio.access.serving import readable_by
from lora_studio.errors import StudioError
from lora_studio.jobs.kinds import remove
from lora_studio.workspace import Workspace, model_source, safe_name, usual_place, write_atomically


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "a/b\\c.txt", "..", "", "  ", "\x00", "x" * 300 + ".jsonl", "naïve file (1).json", ".hidden"],
)
def test_a_safe_name_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    plain = safe_name(name)
    assert plain
    assert len(plain) <= 100
    assert (tmp_path / plain).resolve().parent == tmp_path.resolve()
    assert not plain.startswith(".")


def test_a_long_name_keeps_its_ending() -> None:
    assert safe_name("x" * 300 + ".jsonl").endswith(".jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["file.json"]


def test_an_upload_never_overwrites_another_of_the_same_name(workspace: Workspace, tmp_path: Path) -> None:
    first, second = tmp_path / "one.json", tmp_path / "two.json"
    first.write_text("1")
    second.write_text("2")
    saved = [workspace.save_upload(source, "data.json") for source in (first, second, first)]
    assert [path.read_text() for path in saved] == ["1", "2", "1"]
    assert saved[0] == saved[2] != saved[1]


def test_runs_are_listed_newest_first_and_found_by_their_beginning(workspace: Workspace) -> None:
    runs = [workspace.create_run(f"Run {number}", "{}", {}) for number in range(3)]
    assert [run.id for run in workspace.runs()] == [run.id for run in reversed(runs)]
    assert workspace.run(runs[1].id).path == runs[1].path
    assert workspace.run("last").id == workspace.runs()[0].id
    with pytest.raises(StudioError, match="several"):
        workspace.run("2")
    with pytest.raises(StudioError, match="There is no run"):
        workspace.run("../uploads")


def test_a_half_deleted_run_is_not_listed(workspace: Workspace) -> None:
    run = workspace.create_run("x", "{}", {})
    run.path.rename(run.path.with_name(f".deleted-{run.id}"))
    assert workspace.runs() == []


def test_a_deleted_run_is_gone_from_list_and_disk(workspace: Workspace) -> None:
    run = workspace.create_run("x", "{}", {})
    remove(run)
    assert workspace.runs() == []
    assert list(workspace.runs_folder.iterdir()) == []


def test_a_draft_comes_back_and_a_torn_one_is_as_none(workspace: Workspace) -> None:
    workspace.write_draft("form", {"lora.r": 8})
    assert workspace.read_draft("form") == {"lora.r": 8}
    (workspace.drafts_folder / "form.json").write_text('{"lora')
    assert workspace.read_draft("form") is None
    assert workspace.read_draft("never") is None


def test_a_checkpoint_counts_only_when_it_is_whole(workspace: Workspace) -> None:
    run = workspace.create_run("x", "{}", {})
    for number in (5, 20, 100):
        (run.checkpoints / f"checkpoint-{number}").mkdir(parents=True)
    for number in (100, 5):
        (run.checkpoints / f"checkpoint-{number}" / "trainer_state.json").write_text("{}")
    assert [path.name for path in run.checkpoint_folders()] == ["checkpoint-5", "checkpoint-100"]


def test_demo_names_the_built_in_model_and_other_names_stay() -> None:
    assert Path(model_source("demo")).name == "model"
    assert model_source("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize("name", ["\0", "x" * 5000])
def test_a_name_that_no_folder_can_bear_is_no_run(workspace: Workspace, name: str) -> None:
    with pytest.raises(StudioError, match="There is no run"):
        workspace.run(name)


def test_a_slash_in_a_title_leaves_the_rest_of_the_title_in_the_id(workspace: Workspace) -> None:
    run = workspace.create_run("Second <b>run</b>", "{}", {})
    assert "second-b-run-b" in run.id
    assert run.path.parent == workspace.runs_folder


def test_a_workspace_that_can_not_be_made_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudioError, match=r"can't be created: Not a directory.*\n.*--workspace"):
        Workspace.find(str(tmp_path / "file" / "workspace"))
    with pytest.raises(StudioError, match=r"file can't be created: File exists\."):
        Workspace.find(str(tmp_path / "file"))


def test_a_workspace_that_is_read_only_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StudioError, match=r"can't be written: Read-only file system\."):
        Workspace.find(str(tmp_path))


def test_a_space_keeps_things_where_it_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space, writable = {"SPACE_ID": "anna/studio"}, {str(tmp_path)}
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) in writable)
    assert usual_place({}) == Path()
    assert usual_place(space, tmp_path) == Path.home()
    writable.add(".")
    assert usual_place(space, tmp_path) == Path()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    assert usual_place(space, tmp_path) == tmp_path


@pytest.mark.skipif(os.name != "posix", reason="rights of files are those of POSIX")
def test_a_new_workspace_is_its_owners_alone_and_a_wider_one_is_told(tmp_path: Path) -> None:
    made = Workspace(tmp_path / "a" / "workspace")
    assert made.root.stat().st_mode & 0o777 == 0o700
    assert readable_by(made.root) == ""
    for mode, who in ((0o755, "everybody"), (0o750, "its group")):
        made.root.chmod(mode)
        assert readable_by(Workspace(made.root).root) == who
    assert made.root.stat().st_mode & 0o777 == 0o750  # what is there is not changed
