"""The schema describes itself, and a config's problems are told all at once."""

from pathlib import Path

import pytest
import yaml

from lora_studio.config.parsing import (
    ConfigError,
    merge,
    nest,
    overlay_of,
    parse,
    presets,
    read_yaml,
    resolve,
    save_preset,
    to_yaml,
)
from lora_studio.config.sections import Config, Training
from lora_studio.config.settings import flatten, settings
from lora_studio.errors import StudioError
from lora_studio.workspace import Workspace


def test_an_empty_mapping_is_a_config() -> None:
    assert parse({}) == Config()


def test_every_setting_has_a_title_and_one_plain_sentence() -> None:
    listed = list(settings())
    assert len(listed) > 40
    for setting in listed:
        assert setting.title
        assert setting.description.endswith("."), setting.path


def test_at_most_twelve_settings_stand_in_sight() -> None:
    assert 6 <= sum(setting.basic for setting in settings()) <= 12


def test_a_config_comes_back_from_its_yaml() -> None:
    config = parse({"lora": {"r": 8}, "training": {"learning_rate": "2e-4", "gradient_checkpointing": True}})
    assert parse(yaml.safe_load(to_yaml(config))) == config


def test_flat_values_are_a_config_again() -> None:
    config = parse({"lora": {"r": 8}, "title": "x"})
    assert parse(nest(flatten(config))) == config


def test_all_problems_come_at_once_with_the_nearest_known_name() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"lora": {"rank": 8, "r": "x"}, "learning_rate": 1, "training": {"num_train_epoch": 2, "optim": "adam"}})
    problems = {problem.path: problem for problem in caught.value.problems}
    assert set(problems) == {"lora.rank", "lora.r", "learning_rate", "training.num_train_epoch", "training.optim"}
    assert "`lora.r`" in problems["lora.rank"].message
    assert "`training.learning_rate`" in problems["learning_rate"].message
    assert "`training.num_train_epochs`" in problems["training.num_train_epoch"].message
    assert problems["lora.r"].value == "x"
    assert "adamw_torch" in problems["training.optim"].message


@pytest.mark.parametrize("value", [0, -1, 2000, "many", None, float("nan")])
def test_a_rank_out_of_bounds_is_refused(value: object) -> None:
    with pytest.raises(ConfigError):
        parse({"lora": {"r": value}})


def test_keeping_the_best_without_evaluation_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="load_best_model_at_end"):
        parse({"evaluation": {"load_best_model_at_end": True, "eval_strategy": "no"}})
    with pytest.raises(ConfigError, match="save_strategy is steps"):
        parse({"evaluation": {"load_best_model_at_end": True}, "training": {"save_strategy": "steps"}})


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ({"metric_for_best_model": "f1"}, "labels is empty"),
        ({"early_stopping_patience": 3, "eval_strategy": "no"}, "early_stopping_patience: requires evaluation"),
        ({"labels": "Yes, No", "eval_strategy": "no"}, "labels: requires evaluation"),
        ({"labels": "Yes"}, "at least two different labels"),
        ({"labels": "Yes, yes"}, "at least two different labels"),
        ({"labels": [True, False]}, "YAML reads Yes and No"),
    ],
)
def test_measures_that_are_not_taken_are_refused(evaluation: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse({"evaluation": evaluation})


def test_labels_are_a_text_or_a_list_and_keep_their_order() -> None:
    assert parse({"evaluation": {"labels": ["good ", "bad"]}}).evaluation.label_names == ("good", "bad")
    assert parse({"evaluation": {"labels": "Yes,No"}}).evaluation.label_names == ("Yes", "No")
    assert parse({}).evaluation.label_names == ()


def test_a_list_of_target_modules_is_read_as_names_with_commas() -> None:
    assert parse({"lora": {"target_modules": ["q_proj", "v_proj"]}}).lora.target_modules == "q_proj, v_proj"


def test_a_mapping_may_be_given_as_text_and_anything_else_is_refused() -> None:
    given = '{"user": "q", "assistant": "a"}'
    assert parse({"data": {"mapping": given}}).data.mapping == {"user": "q", "assistant": "a"}
    for wrong in ("just words", "{", 3, ["q"]):
        with pytest.raises(ConfigError, match=r"data\.mapping"):
            parse({"data": {"mapping": wrong}})


LEVELS = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 6)]
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(LEVELS)


@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "{a: " * 5000])
def test_a_few_lines_that_stand_for_very_much_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.mapping"):
        parse({"data": {"mapping": text}})
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(StudioError, match=r"expands to more|too deeply"):
        read_yaml(path)


def test_merging_keeps_what_the_overlay_does_not_name() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "\x00", "just words"])
def test_a_file_that_holds_no_settings_is_a_plain_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(StudioError):
        read_yaml(path)


def test_every_shipped_preset_is_a_config() -> None:
    shipped = presets()
    checked = [resolve(name) for name in shipped]
    assert len(checked) == len(list((Path(__file__).parent.parent.parent / "presets").glob("*.yaml"))) > 0
    assert all(preset.about for preset in shipped.values())


def test_a_preset_holds_only_what_differs_from_the_defaults() -> None:
    default = flatten(Config())
    for name, preset in presets().items():
        changed = flatten(resolve(name))
        given = {
            f"{section}.{leaf}" if isinstance(values, dict) else section
            for section, values in preset.values().items()
            for leaf in (values if isinstance(values, dict) else [section])
        }
        same = {path for path in given if changed[path] == default[path]} - {"model.name", "data.train_file"}
        assert not same, f"{name} repeats defaults"


def test_a_saved_preset_brings_the_same_config_back(workspace: Workspace) -> None:
    config = parse({"lora": {"r": 4}, "training": {"learning_rate": 1e-3}})
    save_preset(workspace, "my ../own preset", config, "small\nand fast")
    saved = [preset for name, preset in presets(workspace).items() if name not in presets()]
    assert len(saved) == 1
    assert saved[0].path.parent == workspace.presets_folder
    assert resolve(saved[0].name, workspace=workspace) == config


def test_an_unknown_preset_names_those_that_there_are() -> None:
    with pytest.raises(StudioError, match="demo"):
        resolve("demmo")


@pytest.mark.parametrize("path", ["training.seed", "generation.seed", "data.split_seed"])
def test_a_seed_that_no_library_takes_is_refused(path: str) -> None:
    assert parse(nest({path: 2**32 - 1}))
    with pytest.raises(ConfigError, match="must be at most"):
        parse(nest({path: 2**32}))


def test_the_learning_rate_is_that_of_the_method_unless_it_is_set(workspace: Workspace) -> None:
    rates = [parse({"training": {"method": method}}).training.learning_rate for method in ("sft", "dpo", "kto")]
    assert rates == [2e-4, 5e-6, 1e-6]
    assert (Config().training.learning_rate, Training(method="dpo").learning_rate) == (2e-4, 5e-6)
    assert resolve("gpu-8gb", {"training.method": "dpo"}).training.learning_rate == 5e-6
    assert resolve("demo", {"training.method": "dpo"}).training.learning_rate == 1e-3  # the preset's
    assert resolve("demo", {"training.learning_rate": "2e-4"}).training.learning_rate == 2e-4
    for rate in (5e-6, 2e-4):  # a preset keeps what its method does not come with
        config = parse({"training": {"method": "dpo", "learning_rate": rate}})
        assert overlay_of(config)["training"].get("learning_rate") == (None if rate == 5e-6 else rate)
        save_preset(workspace, "mine", config, replace=True)
        assert resolve("mine", workspace=workspace) == config
        assert parse(yaml.safe_load(to_yaml(config))) == config
    with pytest.raises(ConfigError, match=r"training\.method: must be 'sft', 'dpo' or 'kto'"):
        parse({"training": {"method": ["dpo"]}})


def test_a_default_of_a_method_is_told_with_it() -> None:
    by_path = {setting.path: setting.defaults for setting in settings()}
    assert by_path["training.learning_rate"] == ((2e-4, "sft"), (5e-6, "dpo"), (1e-6, "kto"))
    assert by_path["lora.lora_dropout"] == ((0.0, ""),)
    assert by_path["title"] == ()


@pytest.mark.parametrize(
    ("written", "read"), [("auto", "auto"), ("CPU", "cpu"), (1, "1"), ([0, 2], "0,2"), (" 2, 0 ", "2,0"), ("007", "7")]
)
def test_a_device_is_auto_the_cpu_or_the_numbers_of_gpus(written: object, read: str) -> None:
    assert parse({"compute": {"device": written}}).compute.device == read


@pytest.mark.parametrize(
    "written", ["gpu", "cuda:0", "0,,1", "", None, True, -1, 1.5, [], [0, 0], "0,1,0", ["0", None]]
)
def test_a_device_that_is_none_is_refused(written: object) -> None:
    with pytest.raises(ConfigError, match=r"compute\.device: must"):
        parse({"compute": {"device": written}})
