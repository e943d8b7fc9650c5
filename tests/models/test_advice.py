"""Advice on settings: what each piece needs to be given, what it changes, and that it is gone after the change."""

from typing import Any

import pytest

from lora_studio.config.parsing import nest, parse, presets, resolve
from lora_studio.config.sections import Config
from lora_studio.config.settings import batch_words, effective_batch
from lora_studio.models.advice import (
    ADVISERS,
    Advice,
    Situation,
    advise,
    desirable_counts,
    label_counts,
    optimizer_steps,
    published_rate,
    situation,
    suggested_weights,
    trained_tokens,
)
from lora_studio.models.memory import with_settings
from lora_studio.models.shape import architecture

MOE = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 1000,
}


def config(**settings: Any) -> Config:
    values = {path.replace("__", "."): value for path, value in settings.items()}
    return parse(nest({"model.name": "an/8b", "data.train_file": "mine.jsonl", **values}))


def advice_on(settings: dict[str, Any], **known: Any) -> dict[str, Advice]:
    return {item.name: item for item in advise(Situation(config(**settings), **known))}


LABELS = {"No": 90, "Yes": 10}
CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("rate", {"training__learning_rate": 2e-3}, {}, {"training.learning_rate": 2e-4}),
    (
        "rate",
        {"training__learning_rate": 3e-3, "model__name": "Qwen/Qwen3-8B"},
        {},
        {"training.learning_rate": 1e-3},
    ),
    (
        "rate",
        {"training__method": "kto", "training__learning_rate": 5e-6},
        {},
        {"training.learning_rate": 1e-6},
    ),
    *(
        (
            "weights",
            {"training__method": "kto", "preference__desirable_weight": weight},
            {"desirable": good, "undesirable": bad},
            {"preference.desirable_weight": up, "preference.undesirable_weight": down},
        )
        for weight, good, bad, up, down in (
            (1.0, 50, 100, 2.0, 1.0),
            (1.0, 400, 100, 1.0, 3.0),
            (2.0, 90, 90, 1.0, 1.0),
        )
    ),
    (
        "rate",
        {"training__method": "dpo", "training__learning_rate": 2e-4},
        {},
        {"training.learning_rate": 5e-6},
    ),
    ("family-rate", {"model__name": "Qwen/Qwen3-4B-Instruct-2507"}, {}, {"training.learning_rate": 1e-3}),
    (
        "family-rate",
        {"model__name": "/models/gpt-oss-20b/", "training__learning_rate": 1e-3},
        {},
        {"training.learning_rate": 1e-4},
    ),
    ("steps", {"training__num_train_epochs": 4}, {"steps": 24}, {"training.num_train_epochs": 17.0}),
    ("steps", {"training__num_train_epochs": 1}, {"steps": 1}, {"training.num_train_epochs": 30.0}),
    ("validation", {"data__validation_fraction": 0}, {}, {"data.validation_fraction": 0.1}),
    (
        "validation",
        {"data__validation_fraction": 0, "evaluation__eval_strategy": "no"},
        {},
        {"data.validation_fraction": 0.1, "evaluation.eval_strategy": "epoch"},
    ),
    ("targets", {"lora__target_modules": "q_v"}, {}, {"lora.target_modules": "all-linear"}),
    ("targets", {"lora__target_modules": "q_proj, v_proj"}, {}, {"lora.target_modules": "all-linear"}),
    (
        "capacity",
        {},
        {"trainable": 1_000_000, "trained_tokens": 1_500_000.0},
        {"lora.r": 32, "lora.lora_alpha": 64},
    ),
    (
        "capacity",
        {},
        {"trainable": 1_000_000, "trained_tokens": 6_000_000.0},
        {"lora.r": 128, "lora.use_rslora": True},
    ),
    (
        "capacity",
        {},
        {"trainable": 1_000_000, "trained_tokens": 1e9},
        {"lora.r": 256, "lora.use_rslora": True},
    ),
    (
        "rslora",
        {"lora__r": 64, "lora__lora_alpha": 128},
        {},
        {"lora.use_rslora": True, "lora.lora_alpha": 64},
    ),
    ("rslora", {"lora__r": 64, "lora__lora_alpha": 16}, {}, {"lora.use_rslora": True}),
    (
        "batch",
        {"training__gradient_accumulation_steps": 16},
        {},
        {"training.gradient_accumulation_steps": 8},
    ),
    (
        "batch",
        {"training__per_device_train_batch_size": 64, "training__gradient_accumulation_steps": 2},
        {},
        {"training.gradient_accumulation_steps": 1, "training.per_device_train_batch_size": 32},
    ),
    ("epochs", {"training__num_train_epochs": 5}, {"rows": 10_000}, {"training.num_train_epochs": 3.0}),
    ("label", {}, {"labels": LABELS}, {"evaluation.labels": "No, Yes"}),
    (
        "label",
        {"evaluation__early_stopping_patience": 2},
        {"labels": LABELS},
        {"evaluation.labels": "No, Yes", "evaluation.metric_for_best_model": "f1"},
    ),
    ("dora", {"lora__use_dora": True}, {}, {"lora.use_dora": False}),
]


@pytest.mark.parametrize(("name", "settings", "known", "change"), CASES)
def test_what_is_advised_is_a_change_after_which_nothing_is(
    name: str, settings: dict[str, Any], known: dict[str, Any], change: dict[str, Any]
) -> None:
    advised = advice_on(settings, **known)
    assert list(advised) == [name]
    assert advised[name].settings == change
    after = parse(with_settings(config(**settings), change).model_dump())  # also the schema takes it
    steps = {"steps": 100} if known.get("steps") else {}
    rank = after.lora.r / config(**settings).lora.r
    grown = {"trainable": round(known["trainable"] * rank)} if "trainable" in known else {}
    left = [item.name for item in advise(Situation(after, **{**known, **steps, **grown}))]
    assert left == []


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ({}, {}),
        ({"training__learning_rate": 1.9e-3}, {}),
        ({"training__method": "dpo"}, {}),
        ({"training__method": "dpo", "training__learning_rate": 4.9e-5}, {}),
        ({"model__name": "meta-llama/Meta-Llama-3.1-8B-Instruct"}, {}),
        ({"model__name": "Qwen/Qwen3-4B", "training__learning_rate": 5e-4}, {}),
        ({"model__name": "Qwen/Qwen3-4B", "training__method": "dpo"}, {}),
        ({}, {"steps": 100}),
        ({"training__max_steps": 24}, {"steps": 24}),
        ({"data__train_file": "pirate"}, {"steps": 24}),
        ({"data__validation_fraction": 0, "data__validation_file": "other.jsonl"}, {}),
        ({"lora__target_modules": "q_proj, down_proj"}, {}),
        ({"lora__target_modules": "q_v"}, {"fits": False}),
        ({"lora__target_modules": "q_v", "lora__r": 64, "model__adapter_name_or_path": "before"}, {}),
        ({}, {"trainable": 1000, "trained_tokens": 1000.0}),
        ({}, {"trainable": 1000, "trained_tokens": 9000.0, "fits": False}),
        ({"training__method": "dpo"}, {"trainable": 1000, "trained_tokens": 9000.0}),
        ({"lora__r": 64, "lora__use_rslora": True}, {}),
        ({"training__gradient_accumulation_steps": 8}, {}),
        ({}, {"rows": 10_000}),
        ({"training__num_train_epochs": 5}, {"rows": 9_999}),
        ({}, {"labels": {"No": 79, "Yes": 21}}),
        ({}, {"labels": {"No": 90}}),
        ({}, {"labels": {"No, thanks": 90, "Yes": 10}}),
        ({"evaluation__labels": "Yes, No"}, {"labels": LABELS}),
        ({"evaluation__eval_strategy": "no"}, {"labels": LABELS}),  # the schema would refuse the change
        ({"training__method": "dpo"}, {"labels": LABELS}),
        ({"training__method": "kto"}, {"desirable": 120, "undesirable": 100}),
        ({"training__method": "kto"}, {"desirable": 0, "undesirable": 0}),
        ({"training__method": "kto", "preference__desirable_weight": 2}, {"desirable": 50, "undesirable": 90}),
    ],
)
def test_good_settings_get_no_advice(settings: dict[str, Any], known: dict[str, Any]) -> None:
    assert advice_on(settings, **known) == {}


def test_the_most_important_advice_comes_first_and_no_setting_twice() -> None:
    settings = {"training__learning_rate": 5e-3, "model__name": "Qwen/Qwen3-8B", "lora__use_dora": True, "lora__r": 64}
    assert list(advice_on(settings, trainable=1000, trained_tokens=3000.0)) == ["rate", "capacity", "dora"]


def test_every_piece_names_its_source_and_its_change() -> None:
    for adviser in ADVISERS:
        assert any(str(year) in str(adviser.__doc__) for year in range(1990, 2027)) or any(
            source in str(adviser.__doc__) for source in ("tinker-cookbook", "Tinker", "peft method_comparison")
        )
    item = advice_on({}, labels=LABELS)["label"]
    assert item.words.endswith("Measure accuracy and F1: --evaluation.labels 'No, Yes'")
    assert "--lora.use_dora false" in advice_on({"lora__use_dora": True})["dora"].words


@pytest.mark.parametrize("name", sorted(presets()))
def test_no_preset_has_a_learning_rate_that_is_warned_of(name: str) -> None:
    assert "rate" not in [item.name for item in advise(situation(resolve(name)))]


def test_the_tiny_built_in_model_may_take_a_high_rate() -> None:
    high = {"training.learning_rate": 5e-3}
    assert advise(situation(resolve("demo", high))) == ()
    assert [item.name for item in advise(Situation(resolve("demo", high)))] == ["rate"]  # a model that is not known


def test_all_linear_on_stacked_experts_also_turns_dropout_off() -> None:
    settings = {"lora__target_modules": "attention", "lora__lora_dropout": 0.1}
    change = advice_on(settings, model=architecture(MOE))["targets"].settings
    assert change == {"lora.target_modules": "all-linear", "lora.lora_dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", 1e-3),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", 1e-3),
        ("Qwen/Qwen3.5-4B", 3e-4),
        ("Qwen/Qwen3-40B", None),
        ("demo", None),
    ],
)
def test_a_published_rate_is_that_of_the_very_size(name: str, rate: float | None) -> None:
    assert published_rate(name) == rate


def test_steps_tokens_and_labels_are_read_off_what_is_known() -> None:
    assert optimizer_steps(config(training__num_train_epochs=2), 50) == 8
    report = {
        "train_rows": 90,
        "validation_rows": 10,
        "trained_tokens": 1000,
        "hygiene": {"labels": {"counts": LABELS}},
    }
    assert (trained_tokens(report), label_counts(report)) == (900, LABELS)
    assert (trained_tokens({}), label_counts({"hygiene": None})) == (0, {})


def test_processes_count_in_steps_and_in_the_effective_batch() -> None:
    several = config(compute__processes=2, training__num_train_epochs=3)
    rows = several.training.per_device_train_batch_size * several.training.gradient_accumulation_steps
    assert effective_batch(several) == 2 * rows
    assert batch_words(several).endswith(" × 2")
    assert optimizer_steps(several, 4 * rows) == 6
    assert optimizer_steps(several, 4 * rows + 1) == 9
    large = {"training__per_device_train_batch_size": 8, "training__gradient_accumulation_steps": 4}
    assert "batch" not in advice_on(large)
    advice = advice_on({**large, "compute__processes": 2})["batch"]
    assert advice.settings == {"training.gradient_accumulation_steps": 2}
    assert advice.title == "Set the effective batch to 32"


@pytest.mark.parametrize(("good", "bad"), [(1, 10), (7, 9), (399, 400), (401, 300), (1000, 7), (3, 2)])
def test_the_weights_suggested_for_kto_are_in_the_range_of_its_paper(good: int, bad: int) -> None:
    weights = suggested_weights(good, bad, 1.0, 1.0)
    up, down = weights.values() if weights else (1.0, 1.0)
    assert 1 <= good * up / (bad * down) <= 4 / 3
    assert 1.0 in (up, down)


def test_the_numbers_of_good_and_bad_rows_are_read_off_labels_and_off_pairs() -> None:
    labelled = {"format": "kto", "train_rows": 30, "desirable_rows": 10, "undesirable_rows": 20}
    pairs = {"format": "preference", "train_rows": 30, "desirable_rows": 0, "undesirable_rows": 0}
    assert desirable_counts(labelled, "kto") == (10, 20)
    assert desirable_counts(pairs, "kto") == (30, 30)
    assert desirable_counts({**pairs, "train_rows": 60, "desirable_rows": 30, "undesirable_rows": 30}, "kto") == (
        30,
        30,
    )
    assert desirable_counts(labelled, "sft") == desirable_counts({}, "kto") == (0, 0)
