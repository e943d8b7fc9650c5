"""Presets, drafts, checks and the start of a run, without a page."""

import errno
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from lora_studio import workspace as workspaces
from lora_studio.config import settings
from lora_studio.config.parsing import ConfigError, parse, presets
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.devices import CHAT, Allocation, Holder
from lora_studio.jobs.session import count_rows
from lora_studio.models.hardware import Device
from lora_studio.ui import form, job_views
from lora_studio.ui import form as form_draft
from lora_studio.ui.components import Shared, Starter, Wish
from lora_studio.ui.gradio_patches import without_app
from lora_studio.ui.studio import FOUND, DataLooks, Studio
from lora_studio.ui.train import card, form_state, picker, tab
from lora_studio.ui.train import picker as recipes
from lora_studio.ui.train.plan import ESTIMATED, plan
from lora_studio.workspace import Workspace


class Launches:
    """Stands in for the supervisor: remembers what it was to launch."""

    def __init__(self) -> None:
        self.configs: list[Config] = []

    def launch(self, config: Config, *, memory: int | None = None) -> str:
        self.configs.append(config)
        return f"run-{len(self.configs)}"


def overlaid(**changes: Any) -> list[Any]:
    return form.overlay(form.shown(Config()), {path.replace("__", "."): value for path, value in changes.items()})


def test_a_double_click_starts_once() -> None:
    launches, starter = Launches(), Starter()
    assert [starter.start(config, partial(launches.launch, config)) for config in (Config(), Config())] == ["run-1"] * 2
    assert len(launches.configs) == 1


def test_the_same_settings_can_be_started_again_later_and_others_at_once() -> None:
    launches = Launches()

    def started(starter: Starter, *configs: Config) -> list[str]:
        return [starter.start(config, partial(launches.launch, config)) for config in configs]

    assert started(Starter(seconds=0), Config(), Config()) == ["run-1", "run-2"]
    assert started(Starter(), Config(), parse({"title": "other"})) == ["run-3", "run-4"]


def test_a_run_that_asks_for_memory_is_told_what_else_holds_some() -> None:
    def studio(chat: bool, evaluation: str | None) -> Any:
        cards = [Device("Card", "cuda", 10**10, 10**9 * n, index=n, uuid=f"GPU-{n}") for n in range(2)]
        holders = [Holder("", CHAT, ("GPU-1",))] * chat
        holders += [Holder("evaluation", evaluation, ("GPU-1",), job="1")] if evaluation else []
        return SimpleNamespace(supervisor=SimpleNamespace(allocation=lambda: Allocation(cards, holders)))

    assert card.beside(studio(False, None).supervisor.allocation(), "auto") == ""
    assert "Unload it on the Chat tab" in card.beside(studio(True, None).supervisor.allocation(), "auto")
    assert card.beside(studio(True, None).supervisor.allocation(), "0") == "", (
        "what another device holds is no use there"
    )
    both = card.beside(studio(True, "an evaluation").supervisor.allocation(), "1")
    assert "The chat holds a model" in both
    assert "An evaluation holds a model" in both


def page_of(workspace: Workspace) -> tuple[gr.Blocks, Any]:
    """The train tab alone, and its handlers by name."""
    idle: Any = SimpleNamespace(busy=lambda choice: None)
    with without_app(), gr.Blocks() as page:
        start = gr.Button("Start training", interactive=False, render=False)
        with gr.Tabs() as tabs, gr.Tab("Train"):
            states = {"data": gr.State(), "form": gr.State(), "run": gr.State(""), "wish": gr.State(Wish())}
            shared = Shared(tabs, start=start, status=gr.HTML(), **states)
            tab.build(Studio(workspace, idle, idle, idle), shared)
    return page, lambda name: next(event.fn for event in page.fns.values() if event.name == name)


def test_a_form_that_a_full_disk_does_not_keep_says_so_and_can_be_started(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, handler = page_of(workspace)
    start = next(one for one in page.blocks.values() if getattr(one, "value", "") == "Start training")

    def full(_path: Path, _words: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workspaces, "write_atomically", full)
    told = handler("use_data")((1.0, {"data.train_file": "technical"}, "The Data tab"), "demo", *overlaid())
    assert told[start].interactive
    said = "".join(update.value for update in told.values() if isinstance(update, gr.HTML) and update.value)
    assert "be stored: No space left on device." in said


def test_the_demo_is_its_recipe_whatever_the_form_held(workspace: Workspace) -> None:
    _, handler = page_of(workspace)
    held = overlaid(model__name="my/model", data__train_file="technical", lora__r=99)
    told = handler("use_config")(job_views.demo_form(), None, *held)
    values = {
        component.elem_id: getattr(update, "value", update)
        for component, update in told.items()
        if getattr(component, "elem_id", None)
    }
    assert (values["preset"], values["set-model-name"], values["set-data-train_file"]) == ("demo", "demo", "pirate")
    assert values["set-lora-r"] == Config().lora.r
    assert form_draft.read_draft(workspace)[0] == "demo"


@pytest.mark.parametrize("fill", [form_state.with_preset, form_state.with_recipe])
def test_the_name_of_a_run_that_was_typed_outlives_another_recipe(fill: Any) -> None:
    typed, cpu = overlaid(title="my run"), presets()["cpu"]
    filled = form.values(fill(typed, cpu if fill is form_state.with_recipe else cpu.values()))
    assert (filled["title"], filled["training.num_train_epochs"]) == ("my run", 1)
    assert "title" not in form_state.changed_from(form_state.preset_settings(cpu)[0], typed)


def test_the_first_visit_finds_a_form_that_can_be_started(workspace: Workspace) -> None:
    preset, raws = form_draft.read_draft(workspace)
    config = form_state.checked(raws, workspace)
    assert preset == form_draft.FIRST_PRESET
    assert (config.model.name, config.data.train_file) == ("demo", "pirate")


def test_a_reload_finds_the_form_as_it_was_typed(workspace: Workspace) -> None:
    raws = overlaid(title="Mine", training__learning_rate="2e-")
    raws[list(form.to_draft(raws)).index("training.learning_rate")] = "2e-"
    form_draft.save_draft(workspace, "demo", raws)
    assert form_draft.read_draft(workspace) == ("demo", raws)


def test_a_draft_of_a_preset_that_is_gone_keeps_its_values(workspace: Workspace) -> None:
    raws = overlaid(title="Mine")
    form_draft.save_draft(workspace, "no such preset", raws)
    assert form_draft.read_draft(workspace) == (None, raws)


def test_a_preset_sets_all_but_the_model_and_data_that_it_does_not_name() -> None:
    raws = overlaid(model__name="my/model", data__train_file="technical", lora__r=99)
    config = form.read(form_state.with_preset(raws, {"lora": {"lora_alpha": 7}, "model": {"name": "demo"}}))
    assert (config.model.name, config.data.train_file) == ("demo", "technical")
    assert (config.lora.r, config.lora.lora_alpha) == (Config().lora.r, 7)


def test_a_file_that_is_not_there_is_named_before_anything_starts(workspace: Workspace) -> None:
    with pytest.raises(ConfigError) as caught:
        form_state.checked(overlaid(data__train_file="gone.jsonl", data__validation_file="gone too.jsonl"), workspace)
    assert [problem.path for problem in caught.value.problems] == ["data.train_file", "data.validation_file"]


def test_every_set_that_comes_with_the_studio_is_offered_as_the_method_is_chosen_beside_it(
    workspace: Workspace,
) -> None:
    assert {"pirate", "preference"} <= {value for _, value in picker.data_choices(workspace)}


def test_an_upload_is_offered_as_training_data(workspace: Workspace, tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text("{}\n")
    saved = workspace.save_upload(source)
    assert ("mine.jsonl", str(saved)) in picker.data_choices(workspace)


def test_the_summary_names_fields_by_title_and_escapes_what_was_found() -> None:
    words = form_state.problem_summary({"lora.r": "Too <big>."}, ["x: ${1+1}"])
    assert "LoRA rank (r): Too &lt;big&gt;." in words
    assert "${" not in words
    assert form_state.problem_summary({}, []) == ""


def rows_file(tmp_path: Path, count: int) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"instruction": "a{i}", "output": "b"}}\n' for i in range(count)))
    return path


@pytest.mark.parametrize(
    ("changes", "rows", "steps"),
    [
        ({}, 90, 18),
        ({"data": {"validation_fraction": 0}}, 100, 21),
        ({"data": {"max_samples": 10}}, 10, 3),
        ({"training": {"max_steps": 5}}, 90, 5),
        ({"training": {"packing": True}}, 90, None),
    ],
)
@pytest.mark.usefixtures("looked_at_here")
def test_rows_and_steps_are_known_before_the_start(
    workspace: Workspace, tmp_path: Path, changes: dict[str, Any], rows: int, steps: int | None
) -> None:
    data = {"train_file": str(rows_file(tmp_path, 100)), **changes.get("data", {})}
    config = parse({**changes, "data": data})
    found = plan(config, workspace)
    assert (found.effective_batch, found.rows, found.steps) == (16, rows, steps)
    assert (found.speed_from == ESTIMATED) == (steps is not None)


def test_a_file_that_can_not_be_counted_leaves_the_steps_open(workspace: Workspace, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert count_rows(empty).rows is None
    assert count_rows(tmp_path / "gone.jsonl").rows is None
    found = plan(parse({"data": {"train_file": str(empty)}}), workspace)
    assert (found.rows, found.steps) == (None, None)


def look_at(workspace: Workspace, **changed: Any) -> None:
    """As the data tab leaves it once a folder was looked at."""
    settings = {"data.train_file": str(workspace.root), "model.name": "demo", "data.mapping": None, **changed}
    settings |= {"data.max_length": 1024, "data.train_on": "assistant"}
    result = {
        "usable_rows": 1000,
        "train_rows": 890,
        "packing": {"rows": 890, "packs": 100},
        "tokens": {"max": 30, "mean": 12.5},
    }
    workspace.write_draft("data-found", {"settings": settings, "result": result})


def test_rows_and_steps_of_a_folder_are_known_once_the_data_tab_looked_at_it(workspace: Workspace) -> None:
    config = parse({"data": {"train_file": str(workspace.root), "bad_rows": "stop"}})
    unknown = plan(config, workspace)
    assert (unknown.rows, unknown.steps) == (None, None)
    assert "analyze the dataset" in card.numbers_markup(unknown)
    look_at(workspace)
    look = DataLooks().last(workspace)
    known = plan(config, workspace, look)
    assert (known.rows, known.steps) == (890, 168)
    half = plan(parse({"data": {"train_file": str(workspace.root), "validation_fraction": 0.5}}), workspace, look)
    assert (half.rows, half.steps) == (500, 96)
    assert "analyze the dataset" not in card.numbers_markup(known)
    packed = {"data": {"train_file": str(workspace.root)}, "training": {"packing": True}}
    assert plan(parse(packed), workspace, look).steps == 21
    other = plan(parse({**packed, "data": {**packed["data"], "max_length": 64}}), workspace, look)
    assert (other.rows, other.steps) == (900, None)
    assert "With packing" in card.numbers_markup(other)
    look_at(workspace, **{"data.mapping": {"text": "a"}})
    assert plan(config, workspace, DataLooks().last(workspace)).rows is None


def test_what_the_data_tab_found_is_read_from_its_draft_once_a_server_and_not_at_each_edit(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(workspace)
    _, handler = page_of(workspace)
    preset, raws = form_draft.read_draft(workspace)
    read: list[str] = []
    kept = workspace.read_draft
    monkeypatch.setattr(workspace, "read_draft", lambda name: read.append(name) or kept(name))
    for _ in range(3):
        handler("changed")(preset, form_state.ReportedProblems(), *raws)
    assert read.count(FOUND) == 1
    assert read == [FOUND]


def test_a_look_is_known_although_its_draft_can_not_be_kept_and_a_damaged_draft_is_none(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at(workspace)
    draft, looks = workspace.read_draft(FOUND), DataLooks()
    workspace.write_draft(FOUND, {"settings": {}, "result": {"usable_rows": "many"}})
    assert looks.last(workspace) is None
    with monkeypatch.context() as full:
        full.setattr(workspace, "write_draft", lambda *_: (_ for _ in ()).throw(StudioError("The disk is full.")))
        with pytest.raises(StudioError):
            looks.keep(workspace, draft["settings"], draft["result"])
    known = looks.last(workspace)
    assert known is not None
    assert (known.train_rows, known.longest, known.packs) == (890, 30, 100)


def test_a_folder_or_a_set_of_the_hub_can_be_trained_on_and_a_corrected_reading_goes_with_it(
    tmp_path: Path, workspace: Workspace
) -> None:
    mapping = {"user": "q", "assistant": "a"}
    for name in (str(tmp_path), "hub:owner/name?split=test"):
        raws = form.overlay(form.shown(Config()), {"data.train_file": name, "data.mapping": mapping})
        config = form_state.checked(raws, workspace)
        assert (config.data.train_file, config.data.mapping) == (name, mapping)


def words_of(updates: dict[Any, Any]) -> str:
    """The markup that an event wrote."""
    return "".join(update for update in updates.values() if isinstance(update, str))


def demo_form(workspace: Workspace, **typed: Any) -> list[Any]:
    values = {path.replace("__", "."): value for path, value in typed.items()}
    return form.overlay(form_draft.read_draft(workspace)[1], values)


def test_a_preset_lists_what_it_changed_and_an_undo_brings_the_typed_values_back(workspace: Workspace) -> None:
    _, handler = page_of(workspace)
    typed = demo_form(workspace, training__learning_rate=3e-4, model__name="mine")
    form_draft.save_draft(workspace, None, typed)
    notice = words_of(handler("use_preset")("gpu-8gb", *typed))
    assert "Preset gpu-8gb: " in notice
    assert "Learning rate: 3e-4 → <b>2e-4</b>" in notice
    preset, filled = form_draft.read_draft(workspace)
    assert (preset, form.values(filled)["model.name"]) == ("gpu-8gb", "mine")
    handler("undo")(preset, *filled)
    assert form_draft.read_draft(workspace) == (None, typed)


def test_a_notice_of_changes_outlives_a_reload_until_it_is_undone(workspace: Workspace) -> None:
    _, handler = page_of(workspace)
    handler("use_data")((1.0, {"data.max_length": 999}, "The Data tab"), "demo", *demo_form(workspace))
    assert "The Data tab: 1 setting changed.</span><ul><li>" in words_of(handler("restore")())
    assert "256 → <b>999</b>" in words_of(handler("restore")())


def test_what_fills_the_form_writes_the_fields_that_it_changes_alone(workspace: Workspace) -> None:
    _, handler = page_of(workspace)

    def written(handed: dict[str, Any], raws: list[Any]) -> set[str]:
        """Settings that get a value."""
        updates = handler("use_data")((1.0, handed, "The Data tab"), "demo", *raws)
        without = [
            part for part, update in updates.items() if isinstance(update, gr.Dropdown) and not has_value(update)
        ]
        names = {getattr(part, "elem_id", "") for part in updates if part not in without}
        return names & {form.element_id(path) for path in form.to_draft(raws)}

    def has_value(update: gr.Dropdown) -> bool:
        return "value" in update._constructor_args[0]

    raws = demo_form(workspace)
    assert written({"data.train_file": "technical"}, raws) == {"set-data-train_file"}
    # What an event in between has filled is on its way to the page: this one says what it has instead.
    form_draft.save_draft(workspace, "demo", form.overlay(raws, {"lora.r": 64}))
    assert written({"data.max_length": 999}, raws) == {"set-data-max_length", "set-lora-r"}


def test_a_preset_for_the_built_in_model_does_not_set_the_rate_of_another_model(workspace: Workspace) -> None:
    _, handler = page_of(workspace)
    handed = {"model.name": "my/4b", "data.train_file": "technical", "data.max_length": 700}
    written = handler("use_data")((1.0, handed, "The Data tab"), "demo", *demo_form(workspace))
    preset, raws = form_draft.read_draft(workspace)
    values, default = form.values(raws), Config().training
    assert preset is None
    assert values["model.name"] == "my/4b"
    assert values["data.max_length"] == 700
    assert values["training.learning_rate"] == default.learning_rate
    assert values["training.num_train_epochs"] == default.num_train_epochs
    assert "preset demo is for the built-in model" in words_of(written)


def test_what_was_typed_over_a_preset_stays_when_the_model_is_typed_anew(workspace: Workspace) -> None:
    _, handler = page_of(workspace)
    typed = demo_form(workspace, model__name="my/4b", training__learning_rate=5e-4)
    written = handler("changed")("demo", form_state.ReportedProblems(), *typed)
    values = form.values(form_draft.read_draft(workspace)[1])
    assert values["training.learning_rate"] == 5e-4
    assert values["training.num_train_epochs"] == Config().training.num_train_epochs
    names = {getattr(component, "label", "") for component in written}
    assert "Base model" not in names  # its widget may still be being typed into


def test_a_preset_with_its_own_model_says_which_where_the_form_has_another(workspace: Workspace) -> None:
    about = recipes.preset_about(presets()["problem-solver"], demo_form(workspace, model__name="my/4b"))
    assert "Its settings are for Qwen/Qwen3-0.6B" in about
    same = recipes.preset_about(presets()["demo"], demo_form(workspace))
    assert "check them" not in same


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every config that is checked, and with every setting that is read off the schema."""
    seen: list[object] = []
    validate, describe = Config.model_validate, settings._describe
    monkeypatch.setattr(Config, "model_validate", lambda values: seen.append(values) or validate(values))
    monkeypatch.setattr(settings, "_describe", lambda *field: seen.append(field) or describe(*field))
    return seen


def test_the_form_is_parsed_once_for_an_edit_and_once_for_a_start(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, parsed: list[object]
) -> None:
    page, handler = page_of(workspace)
    preset, raws = form_draft.read_draft(workspace)
    told = form_state.ReportedProblems()
    parsed.clear()
    handler("changed")(preset, told, *raws)
    assert len(parsed) == 1
    monkeypatch.setattr(tab, "check_before_start", lambda *_, **__: SimpleNamespace(state="ok", memory=None))
    monkeypatch.setattr(Starter, "start", lambda *_: "run-1")
    shared_run = next(part for part in page.blocks.values() if isinstance(part, gr.State) and part.value == "")
    parsed.clear()
    updates = list(handler("start")("demo", told, *raws))
    assert updates[-1][shared_run] == "run-1"
    assert len(parsed) == 1


def test_wrong_settings_are_parsed_once_for_a_refused_start(workspace: Workspace, parsed: list[object]) -> None:
    _, handler = page_of(workspace)
    told = form_state.ReportedProblems()
    parsed.clear()
    updates = list(handler("start")("demo", told, *overlaid(lora__r=-1)))
    assert told.paths == ("lora.r",)
    said = "".join(part.value for part in updates[-1].values() if isinstance(part, gr.HTML) and part.value)
    assert "LoRA rank (r): Must be at least 1." in said
    assert len(parsed) == 1


@pytest.mark.usefixtures("looked_at_here")
def test_choosing_a_method_brings_its_learning_rate_but_not_over_one_that_was_set(workspace: Workspace) -> None:
    _, handler = page_of(workspace)
    pairs = {"data.train_file": "preference"}

    def rate_after(method: str, preset: str | None = None, **typed: Any) -> Any:
        before = form.overlay(overlaid(**typed), pairs)
        form_draft.save_draft(workspace, preset, before)
        raws = form.overlay(before, {"training.method": method})
        written = handler("method_changed")(preset, form_state.ReportedProblems(), *raws)
        values = form.values(form_draft.read_draft(workspace)[1])
        assert values["training.method"] == method
        labels = {getattr(component, "label", "") for component in written}
        assert ("Learning rate" in labels) == (values["training.learning_rate"] != form.values(before)[form_state.RATE])
        return values["training.learning_rate"]

    assert rate_after("dpo") == 5e-6
    assert rate_after("sft", training__method="dpo", training__learning_rate=5e-6) == 2e-4
    assert rate_after("dpo", training__learning_rate=3e-5) == 3e-5
    assert rate_after("dpo", training__learning_rate="2e-") == "2e-"
    assert rate_after("dpo", "gpu-8gb") == 5e-6
    assert rate_after("dpo", "yes-no-recommender", training__learning_rate=2e-4) == 2e-4
    for rate, after in ((2e-4, 5e-6), (3e-4, 3e-4)):  # the same for pairs that the data tab hands over
        handed = (1.0, {**pairs, "training.method": "dpo"}, "The Data tab")
        handler("use_data")(handed, None, *overlaid(training__learning_rate=rate))
        assert form.values(form_draft.read_draft(workspace)[1])[form_state.RATE] == after


def test_a_field_is_reset_to_the_default_of_the_forms_method(workspace: Workspace) -> None:
    assert form_state.baseline(workspace, "lora", "dpo")[form_state.RATE] == 5e-6
    assert form_state.baseline(workspace, "demo", "dpo")[form_state.RATE] == 1e-3
    assert form.values(form_state.from_text("training: {method: dpo}"))[form_state.RATE] == 5e-6
    typed = form.overlay(
        form.shown(Config()), {"training.method": "dpo", "training.learning_rate": 5e-6, "lora.r": "x"}
    )
    assert "learning_rate" not in form_state.as_yaml(typed, None)


def test_advice_is_followed_by_its_button_and_can_be_undone(workspace: Workspace) -> None:
    _, handler = page_of(workspace)
    typed = overlaid(lora__target_modules="q_v", training__gradient_accumulation_steps=16)
    form_draft.save_draft(workspace, None, typed)
    offered = {"targets": {"lora.target_modules": "all-linear"}, "0": {"lora.r": 8}}
    event = gr.EventData(None, {"value": "targets"})
    notice = words_of(handler("follow")(event, offered, None, *typed))
    assert "Target modules: q_v → <b>all-linear</b>" in notice
    assert form.values(form_draft.read_draft(workspace)[1])["lora.target_modules"] == "all-linear"
    handler("undo")(None, *form_draft.read_draft(workspace)[1])
    assert form_draft.read_draft(workspace)[1] == typed
