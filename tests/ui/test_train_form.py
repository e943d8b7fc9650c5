"""The train tab's recipes, basics, drawer, search and config file, without a page."""

from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import parse, save_preset
from lora_studio.config.sections import Config
from lora_studio.config.settings import settings
from lora_studio.errors import StudioError
from lora_studio.models.hardware import Device
from lora_studio.ui import form
from lora_studio.ui.train import form_state, picker, presets, settings_form
from lora_studio.units import GIB
from lora_studio.workspace import Workspace

CPU = Device("CPU, 4 cores", "cpu", 16 * GIB, 12 * GIB)


def gpu(memory: float) -> Device:
    return Device("A GPU", "cuda", round(memory * GIB), round(memory * GIB))


def typed(**changes: Any) -> list[Any]:
    return form.overlay(form.shown(Config()), {path.replace("__", "."): value for path, value in changes.items()})


def situation(device: Device = CPU, model: str = "demo", *, compared: str = "", fits: bool | None = None) -> Any:
    return picker.Situation(model, compared, device, fits)


def suggested(now: picker.Situation) -> list[str]:
    return [recipe.preset for recipe in picker.recipes(now) if recipe.suggested]


@pytest.mark.parametrize(
    ("now", "preset"),
    [
        (situation(), "demo"),
        (situation(model="my/model"), "cpu"),
        (situation(gpu(24), "my/model", fits=True), "lora"),
        (situation(gpu(24), "my/model"), "lora"),
        (situation(gpu(24), "my/model", fits=False), "gpu-24gb"),
        (situation(gpu(15.7), "my/model", fits=False), "gpu-16gb"),
        (situation(gpu(8), "my/model", fits=False), "gpu-8gb"),
        (situation(compared="preference"), "demo-preference"),
        (situation(gpu(80), "my/model", compared="preference"), "preference"),
        (situation(compared="kto"), "demo-kto"),
        (situation(gpu(80), "my/model", compared="kto"), "kto"),
    ],
)
def test_a_recipe_is_suggested_by_model_data_and_device(now: picker.Situation, preset: str) -> None:
    assert suggested(now) == [preset]


def test_a_recipe_for_a_gpu_is_not_available_without_one() -> None:
    by_title = {recipe.title: recipe for recipe in picker.recipes(situation())}
    assert by_title["QLoRA"].unavailable == "Needs a GPU"
    assert "disabled" in picker.recipe_cards(situation(), None, typed())
    assert not any(recipe.unavailable for recipe in picker.recipes(situation(gpu(24))))
    for kind, words in (("rocm", ""), ("xpu", ""), ("mps", "Not on Apple GPUs")):
        there = situation(Device("A GPU", kind, 24 * GIB, 24 * GIB), "my/model", fits=False)
        assert picker.recipes(there)[2].unavailable == words
        assert suggested(there) == ["lora" if words else "gpu-24gb"]


def test_a_card_says_what_a_click_would_change_and_the_click_changes_just_that() -> None:
    raws = typed(model__name="my/model", data__train_file="technical", lora__r=8)
    qlora = next(recipe for recipe in picker.recipes(situation(gpu(8), "my/model")) if "QLoRA" in recipe.title)
    said = picker.effects(qlora, raws)
    after = form.values(picker.filled(qlora, raws))
    assert "Quantization 4bit" in said
    assert "LoRA rank (r) 16" in said
    assert (after["model.name"], after["data.train_file"], after["lora.r"]) == ("my/model", "technical", 16)
    assert len(said) == sum(old != new for old, new in zip(raws, picker.filled(qlora, raws), strict=True))
    assert picker.effects(qlora, picker.filled(qlora, raws)) == []


def test_a_recipe_in_use_says_when_its_data_or_its_settings_are_others() -> None:
    demo = next(item for item in picker.recipes(situation()) if item.preset == "demo")
    raws = picker.filled(demo, typed())

    def use(**changes: object) -> str:
        values = {path.replace("__", "."): value for path, value in changes.items()}
        return picker.recipe_cards(situation(), "demo", form.overlay(raws, values))

    assert "<em>In use</em>" in use()
    assert "<em>In use, changed</em>" in use(training__learning_rate=0.5)
    assert "<em>In use, other dataset</em>" in use(data__train_file="/w/mine.csv", training__learning_rate=0.5)
    assert "<em>In use" not in picker.recipe_cards(situation(), None, raws)


def test_pairs_of_ones_own_are_kept_by_the_recipe_for_pairs() -> None:
    raws = typed(data__train_file="/mine/pairs.jsonl")
    recipe = next(item for item in picker.recipes(situation(compared="preference")) if item.suggested)
    after = form.values(picker.filled(recipe, raws))
    assert (after["data.train_file"], after["training.method"]) == ("/mine/pairs.jsonl", "dpo")
    demo = next(item for item in picker.recipes(situation()) if item.preset == "demo-preference")
    assert form.values(picker.filled(demo, raws))["data.train_file"] == "preference"


def test_a_field_that_differs_from_the_recipe_is_told_with_the_value_to_reset_to(workspace: Workspace) -> None:
    base = form_state.baseline(workspace, "demo", "sft")
    raws = form.overlay(form.shown(Config()), base)
    assert form_state.changed_from(base, raws) == {}
    edited = form.overlay(raws, {"training.num_train_epochs": 7, "model.name": "my/model", "title": "x"})
    assert form_state.changed_from(base, edited) == {
        "training.num_train_epochs": f"{base['training.num_train_epochs']:g}"
    }
    wrong = form.overlay(raws, {"training.learning_rate": "fast"})
    assert form_state.changed_from(base, wrong) == {"training.learning_rate": "0.001"}
    save_preset(workspace, "mine", parse({"lora": {"r": 4}}))
    assert form_state.baseline(workspace, "mine", "sft")["lora.r"] == 4
    assert form_state.baseline(workspace, "gone", "sft")["lora.r"] == Config().lora.r


def test_every_setting_is_a_basic_or_lies_in_one_of_seven_groups() -> None:
    folded = settings_form.parts()
    assert tuple(folded) == settings_form.GROUPS
    assert len(settings_form.basics()) == 6
    assert set(settings_form.ORDER) == set(settings_form.basics())
    paths = [setting.path for by_part in folded.values() for part in by_part.values() for setting in part]
    assert sorted(paths) == sorted(setting.path for setting in settings() if not setting.basic)


def test_every_field_has_its_hint_and_its_key_in_the_config() -> None:
    tips = settings_form.tooltips()
    assert tips["set-lora-r"][1] == "lora.r"
    assert "Paged variants" in tips["set-training-optim"][0]
    assert len(tips) == len(settings())
    assert all(form.element_id(key) == name for name, (_, key) in tips.items())


def test_fields_without_an_effect_are_hidden_but_for_those_that_are_wrong() -> None:
    values = form.values(typed())
    ids = settings_form.hidden(values, {})
    assert {
        "set-model-bnb_4bit_quant_type",
        "set-preference-beta",
        "part-optimizer-preference-loss-dpo-and-kto",
    } <= set(ids)
    assert "set-preference-beta" not in settings_form.hidden(values, {"preference.beta": "Must be above 0."})
    chosen = form.values(typed(training__method="dpo", model__quantization="4bit"))
    assert not {"set-preference-beta", "part-optimizer-preference-loss-dpo-and-kto"} & set(
        settings_form.hidden(chosen, {})
    )


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("alpha", "lora.lora_alpha"),
        ("cutoff", "data.max_length"),
        ("warmup", "training.warmup_ratio"),
        ("batch", "training.per_device_train_batch_size"),
        ("micro_batch_size", "training.per_device_train_batch_size"),
        ("lora_target", "lora.target_modules"),
        ("packing", "training.packing"),
    ],
)
def test_a_search_leads_to_the_field(query: str, first: str) -> None:
    assert settings_form.matches(query, typed())[0].path == first


def test_a_search_tells_why_a_setting_is_not_there() -> None:
    match = next(item for item in settings_form.matches("beta", typed()) if item.path == "preference.beta")
    assert match.reason == "applies only with method DPO or KTO"
    assert next(
        item.reason == ""
        for item in settings_form.matches("beta", typed(training__method="dpo"))
        if item.id == match.id
    )


def test_the_config_file_holds_what_differs_from_the_defaults_and_reads_back_the_same() -> None:
    assert form_state.as_yaml(typed(), Config()) == ""
    config = parse({"lora": {"r": 8}, "data": {"mapping": {"user": "q", "assistant": "a"}}})
    text = form_state.as_yaml(form.shown(config), config)
    assert text == "data:\n  mapping:\n    user: q\n    assistant: a\nlora:\n  r: 8\n"
    assert form.read(form_state.from_text(text)) == config
    assert form.read(form_state.from_text("")) == Config()
    assert "learning_rate: 2e-" in form_state.as_yaml(typed(training__learning_rate="2e-"), None)


def test_an_edited_config_with_mistakes_is_not_taken_and_all_of_them_are_told() -> None:
    with pytest.raises(StudioError) as caught:
        form_state.from_text("lora:\n  rank: 8\ntraining:\n  num_train_epochs: -1\n")
    assert "2 settings are not valid" in caught.value.message
    assert "lora.r" in caught.value.hint
    assert "num_train_epochs" in caught.value.hint
    for text in ("lora: [", "- a\n- b\n"):
        with pytest.raises(StudioError):
            form_state.from_text(text)


def test_a_config_file_from_elsewhere_fills_what_it_has_and_tells_the_rest(
    tmp_path: Path, workspace: Workspace
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lora:\n  r: 8\n  rank: 3\ntraining:\n  num_train_epochs: -1\n", encoding="utf-8")
    opened = form_state.open_files([file], typed(), workspace)
    assert form.values(opened.raws)["lora.r"] == 8
    assert set(opened.by_field) == {"training.num_train_epochs"}
    assert len(opened.general) == 1
    assert (opened.origin, opened.lists) == ("Config file run.yaml", ())


def test_a_file_of_another_trainer_fills_the_form_and_tells_of_every_key(tmp_path: Path, workspace: Workspace) -> None:
    file, info = tmp_path / "sft.yaml", tmp_path / "dataset_info.json"
    file.write_text("stage: sft\nlora_rank: 8\ncutoff_len: 512\ndataset: pets\ndeepspeed: z3.json\nlearning_rate: 2\n")
    info.write_text('{"pets": {"file_name": "pets.json"}}')
    upload = workspace.uploads_folder / "pets.json"
    upload.parent.mkdir(parents=True, exist_ok=True)
    upload.write_text("[]")
    before = typed(model__name="my/model", training__weight_decay=0.5)
    opened = form_state.open_files([file, info], before, workspace)
    values = form.values(opened.raws)
    assert opened.origin == "LLaMA-Factory file sft.yaml"
    assert (values["model.name"], values["training.weight_decay"]) == ("my/model", 0.0)
    assert (values["lora.r"], values["lora.lora_alpha"], values["data.train_file"]) == (8, 16, str(upload))
    assert set(opened.by_field) == {"training.learning_rate"}
    lists = dict(opened.lists)
    text, remark = lists["Different here"][0]
    assert text == "cutoff_len: 512 → Max length (tokens): 512"
    assert remark.startswith("There prompt and answer are both shortened")
    assert [text for text, _ in lists["No counterpart"]] == ["deepspeed: z3.json"]
    assert ("LR scheduler: linear", "") in lists["Defaults of LLaMA-Factory"]
    shown = presets.listed(opened.origin, presets.changes(before, opened.raws), opened.lists)
    assert "<summary>No counterpart (1)</summary>" in shown
    assert "LoRA rank (r): 16 → <b>8</b>" in shown


def test_an_adapters_config_fills_the_adapters_settings_alone(tmp_path: Path, workspace: Workspace) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text('{"peft_type": "LORA", "base_model_name_or_path": null, "r": 4, "target_modules": ["q_proj"]}')
    values = form.values(form_state.open_files([file], typed(training__weight_decay=0.5), workspace).raws)
    assert (values["lora.r"], values["lora.lora_alpha"], values["lora.target_modules"]) == (4, 8, "q_proj")
    assert values["training.weight_decay"] == 0.5


def test_two_configs_at_once_and_a_method_that_is_not_there_are_refused(tmp_path: Path, workspace: Workspace) -> None:
    one, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    for file in (one, other):
        file.write_text("stage: ppo\ncutoff_len: 5\n")
    with pytest.raises(StudioError, match="not one config file"):
        form_state.open_files([one, other], typed(), workspace)
    with pytest.raises(StudioError, match="stage: ppo"):
        form_state.open_files([one], typed(), workspace)
