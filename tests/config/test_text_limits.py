"""Texts have an end: what a person types too long is refused in a sentence, names that no file can bear as well."""

from pathlib import Path

import pytest

from lora_studio.chat.prompts import prompts_of, save
from lora_studio.cli import main
from lora_studio.config.fields import MAX_CHARACTERS
from lora_studio.config.parsing import ConfigError, parse, read_yaml, save_preset
from lora_studio.config.sections import Config
from lora_studio.errors import LINE, QUESTION, TEST_PROMPT, StudioError, check_length
from lora_studio.workspace import Workspace

LONG_NAME = "a" * 300


def test_a_text_may_be_as_long_as_its_limit_and_no_longer() -> None:
    check_length("The question", "a" * QUESTION, QUESTION)
    with pytest.raises(StudioError, match="The question has 100,001 characters"):
        check_length("The question", "a" * (QUESTION + 1), QUESTION)


def test_prompts_names_and_presets_are_bounded(workspace: Workspace) -> None:
    with pytest.raises(StudioError, match="A prompt has 10,001"):
        prompts_of("short\n" + "a" * (TEST_PROMPT + 1))
    with pytest.raises(StudioError, match=r"name .*has 301"):
        save(workspace, "a" * (LINE + 1), ["Why?"])
    with pytest.raises(StudioError, match="The description of the preset has 301"):
        save_preset(workspace, "mine", Config(), "a" * (LINE + 1))


def test_settings_are_bounded_and_a_refusal_does_not_repeat_all_that_was_typed() -> None:
    assert len(str(parse({"data": {"system_prompt": "a" * 15_000}}).data.system_prompt)) == 15_000
    with pytest.raises(ConfigError) as caught:
        parse({"data": {"system_prompt": "a" * 25_000}, "model": {"name": "a" * 5000}})
    assert "data.system_prompt: must have at most 20,000 characters" in str(caught.value)
    assert "model.name: must have at most 4,000 characters" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_config_of_any_size_is_read_no_further_than_settings_need(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"title: x # {'a' * MAX_CHARACTERS}")
    with pytest.raises(StudioError, match="more than 1,000,000 characters"):
        read_yaml(file)


@pytest.mark.parametrize(
    "words",
    [
        ["chat", LONG_NAME, "--prompt", "x"],
        ["evaluate", LONG_NAME, "pirate"],
        ["export", LONG_NAME, "--to", "zip"],
        ["train", LONG_NAME],
        ["runs", "show", LONG_NAME],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_no_file_can_bear_is_wrong_input(
    words: list[str], workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--workspace", str(workspace.root)]) == 2
    assert "Internal error" not in capsys.readouterr().err
