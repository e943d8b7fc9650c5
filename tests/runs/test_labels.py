"""Tags and notes that a person gives a run."""

import pytest

from lora_studio.errors import StudioError
from lora_studio.runs.summary import Tags, read_tags, tags_of, write_tags
from lora_studio.workspace import Workspace


def test_labels_come_back_as_they_were_written_and_the_config_stays_untouched(workspace: Workspace) -> None:
    run = workspace.create_run("one", "title: one\n", {})
    assert read_tags(run) == Tags()
    write_tags(run, Tags(("good", "für später"), "Längere Antworten.\n=1+1"))
    assert read_tags(run) == Tags(("good", "für später"), "Längere Antworten.\n=1+1")
    assert run.config.read_text(encoding="utf-8") == "title: one\n"


def test_typed_tags_are_split_at_commas_and_kept_once() -> None:
    assert tags_of(" good,  very   good ,,good, ") == ("good", "very good")
    assert tags_of("") == ()


@pytest.mark.parametrize("labels", [Tags(("x" * 41,)), Tags(tuple(map(str, range(21)))), Tags((), "n" * 10_001)])
def test_what_is_too_much_is_refused_and_the_old_labels_stay(workspace: Workspace, labels: Tags) -> None:
    run = workspace.create_run("one", "title: one\n", {})
    write_tags(run, Tags(("kept",)))
    with pytest.raises(StudioError):
        write_tags(run, labels)
    assert read_tags(run) == Tags(("kept",))


def test_a_file_that_was_damaged_by_hand_is_named(workspace: Workspace) -> None:
    run = workspace.create_run("one", "title: one\n", {})
    run.labels.write_text("{")
    with pytest.raises(StudioError, match=r"labels\.json"):
        read_tags(run)
