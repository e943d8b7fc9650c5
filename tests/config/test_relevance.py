"""Settings without an effect under the values of others are known, with the reason."""

from typing import Any

import pytest

from lora_studio.config.parsing import CONDITIONS, irrelevant, nest, parse, unmet
from lora_studio.config.sections import Config
from lora_studio.config.settings import flatten, settings

DEFAULTS = flatten(Config())


def gone(**changes: Any) -> set[str]:
    return set(irrelevant({**DEFAULTS, **{path.replace("__", "."): value for path, value in changes.items()}}))


def test_only_settings_that_there_are_have_conditions() -> None:
    assert set(CONDITIONS) < {setting.path for setting in settings()}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"model__quantization": "4bit"}, "model.bnb_4bit_quant_type"),
        ({"training__method": "dpo"}, "preference.beta"),
        ({"training__lr_scheduler_type": "cosine_with_restarts"}, "training.num_cycles"),
        ({"training__lr_scheduler_type": "warmup_stable_decay"}, "training.decay_ratio"),
        ({"training__save_strategy": "steps"}, "training.save_steps"),
        ({"evaluation__eval_strategy": "steps"}, "evaluation.eval_steps"),
        ({"evaluation__early_stopping_patience": 3}, "evaluation.early_stopping_threshold"),
        ({"generation__temperature": 0.7}, "generation.top_p"),
    ],
)
def test_a_setting_appears_with_what_it_depends_on(changes: dict[str, Any], path: str) -> None:
    assert path in gone()
    assert path not in gone(**changes)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"training__method": "dpo"}, "training.packing"),
        ({"training__method": "dpo"}, "evaluation.labels"),
        ({"training__warmup_steps": 10}, "training.warmup_ratio"),
        ({"training__lr_scheduler_type": "constant"}, "training.warmup_steps"),
        ({"data__validation_file": "more.jsonl"}, "data.validation_fraction"),
        ({"data__validation_fraction": 0.0}, "evaluation.per_device_eval_batch_size"),
        ({"evaluation__eval_strategy": "no"}, "evaluation.gen_eval_samples"),
        ({"training__optim": "sgd"}, "training.adam_beta1"),
        ({"training__optim": "lion_8bit"}, "training.adam_epsilon"),
    ],
)
def test_a_setting_goes_with_what_it_depends_on(changes: dict[str, Any], path: str) -> None:
    assert path not in gone()
    assert path in gone(**changes)


def test_the_reason_is_told() -> None:
    assert unmet("model.bnb_4bit_quant_type", DEFAULTS) == "applies only with 4-bit quantization"
    assert unmet("lora.r", DEFAULTS) == ""


def test_values_that_are_wrong_or_missing_hide_no_basic_setting_and_raise_nothing() -> None:
    basic = {setting.path for setting in settings() if setting.basic}
    assert not basic & set(irrelevant({}))
    assert not basic & set(irrelevant(dict.fromkeys(DEFAULTS, "nonsense")))
    assert parse(nest({})) == Config()
