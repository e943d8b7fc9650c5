"""The settings of a run, taken away: they read back to the same, and places of this machine are named."""

from lora_studio.config.parsing import parse, read_yaml
from lora_studio.workspace import RunFolder

from .exporting import last_event, take_away


def test_the_file_is_the_runs_config_and_says_what_only_this_machine_has(trained: RunFolder) -> None:
    folder = take_away(trained, "config")
    (file,) = folder.result.iterdir()
    assert last_event(folder).state == "done"
    assert parse(read_yaml(file)) == parse(read_yaml(trained.config))
    notes = folder.read_result()["notes"]
    assert [note.partition(" ")[0] for note in notes] == ["model.name", "data.train_file"]


def test_the_base_gets_the_name_that_others_know(trained: RunFolder) -> None:
    folder = take_away(trained, "config", base_name="Owner/Tiny")
    (file,) = folder.result.iterdir()
    assert parse(read_yaml(file)).model.name == "Owner/Tiny"
    assert len(folder.read_result()["notes"]) == 1
