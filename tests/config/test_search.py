"""A search finds a setting by its title, its key, its hint and the names that other programs use."""

import pytest

from lora_studio.config.settings import AS_VALUES, OTHER_NAMES, aliases, search, settings


def paths(query: str) -> list[str]:
    return [setting.path for setting in search(query)]


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("alpha", "lora.lora_alpha"),
        ("cutoff", "data.max_length"),
        ("cutoff_len", "data.max_length"),
        ("sequence_len", "data.max_length"),
        ("max_seq_length", "data.max_length"),
        ("micro_batch_size", "training.per_device_train_batch_size"),
        ("warmup", "training.warmup_ratio"),
        ("warmup steps", "training.warmup_steps"),
        ("batch", "training.per_device_train_batch_size"),
        ("batch size", "training.per_device_train_batch_size"),
        ("eval batch", "evaluation.per_device_eval_batch_size"),
        ("rank", "lora.r"),
        ("lr", "training.learning_rate"),
        ("learning rate", "training.learning_rate"),
        ("epochs", "training.num_train_epochs"),
        ("load_in_4bit", "model.quantization"),
        ("qlora", "model.quantization"),
        ("train_on_inputs", "data.train_on"),
        ("loss mask", "data.train_on"),
        ("random_state", "training.seed"),
        ("use_gradient_checkpointing", "training.gradient_checkpointing"),
        ("lora.r", "lora.r"),
        ("LoRA+", "lora.loraplus_lr_ratio"),
        ("early stopping", "evaluation.early_stopping_patience"),
        ("sample_packing", "training.packing"),
        ("slurm", "compute.target"),
        ("hf-jobs", "compute.target"),
        ("cluster", "compute.target"),
    ],
)
def test_the_setting_that_is_meant_comes_first(query: str, first: str) -> None:
    assert paths(query)[0] == first


@pytest.mark.parametrize(
    ("query", "also"),
    [
        ("alpha", "training.neftune_noise_alpha"),
        ("batch", "training.gradient_accumulation_steps"),
        ("batch", "training.train_sampling_strategy"),
        ("warmup", "training.warmup_steps"),
        ("4bit", "model.quantization"),
        ("cosine", "training.lr_scheduler_type"),
    ],
)
def test_other_settings_of_the_same_word_are_found_too(query: str, also: str) -> None:
    assert also in paths(query)


def test_the_key_and_the_title_of_every_setting_find_it() -> None:
    for setting in settings():
        assert setting.path in paths(setting.path), setting.path
        assert setting.path in paths(setting.title), setting.title
        assert paths(setting.path)[0] == setting.path


def test_every_name_of_another_program_finds_the_setting_first() -> None:
    for name, path in {**OTHER_NAMES, **{name: meaning[0] for name, meaning in AS_VALUES.items()}}.items():
        own = [setting.path for setting in settings() if setting.key == name]
        assert paths(name)[0] in {path, *own, *(other for other, names in aliases().items() if name in names)}, name


@pytest.mark.parametrize(("slip", "meant"), [("learnign", "training.learning_rate"), ("droput", "lora.lora_dropout")])
def test_a_typing_error_finds_the_word_that_is_close(slip: str, meant: str) -> None:
    assert meant in paths(slip)


def test_nothing_is_found_for_nothing_and_for_what_is_nowhere() -> None:
    assert search("") == search("   ") == search("zzzzqqq") == []


def test_all_words_have_to_match() -> None:
    assert set(paths("warmup ratio")) < set(paths("warmup"))
    assert search("warmup zzzzqqq") == []
