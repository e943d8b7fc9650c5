"""Settings of model, optimizer, schedule and loss change what training does, not only what it is told."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from transformers import get_scheduler

from lora_studio.config.parsing import parse, read_yaml, resolve, to_yaml
from lora_studio.config.sections import Training
from lora_studio.data.dataset import prepare
from lora_studio.engine.models.adapter import add_adapter, token_batches
from lora_studio.engine.models.layout import linear_modules
from lora_studio.engine.models.load import load_model
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.train.rows import as_dataset
from lora_studio.engine.train.settings import scheduler_settings, trainer_settings
from lora_studio.engine.train.trainers import StudioTrainer
from lora_studio.jobs.events import Evaluated, ModelLoaded, StepLogged, Warned
from lora_studio.workspace import RunFolder, Workspace
from tests.engine.conftest import MakeRun, events

Train = Callable[..., int]
OPTIMIZERS = [name for name in get_args(Training.model_fields["optim"].annotation) if "paged" not in name]


def four_bit(base: Path, **settings: Any) -> Any:
    return load_model(str(base), quantization="4bit", four_bit=settings).model.layers[0].mlp.up_proj


def test_4bit_numbers_double_quantization_and_computing_are_as_chosen(base: Path) -> None:
    usual = four_bit(base)
    assert (usual.weight.quant_state.quant_type, usual.weight.quant_state.nested) == ("nf4", True)
    assert usual.compute_dtype is torch.float32
    other = four_bit(
        base,
        bnb_4bit_quant_type="fp4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype="bfloat16",
    )
    assert (other.weight.quant_state.quant_type, other.weight.quant_state.nested) == ("fp4", False)
    assert other.compute_dtype is torch.bfloat16
    ones = torch.ones(1, usual.in_features)
    assert not torch.allclose(usual(ones), other(ones).float())


@pytest.mark.parametrize(
    ("target", "count"),
    [("q_v", 4), ("attention", 8), (r".*layers\.1\..*(up|down)_proj", 2), ("layers.0.self_attn.k_proj", 1)],
)
def test_an_adapter_sits_on_the_modules_that_are_named(target: str, count: int, base: Path) -> None:
    model = add_adapter(load_model(str(base)), base="b", revision=None, target=target, seed=1, r=2, lora_alpha=4)
    paths = [name for name, _ in model.named_modules() if name.endswith("lora_A.default")]
    assert len(paths) == count


def make_trainer(
    make_run: MakeRun, base: Path, ratio: float | None = None, **settings: Any
) -> tuple[StudioTrainer, RunFolder]:
    """A trainer that is ready for its first step."""
    run = make_run(lora__lora_dropout=0, **settings)
    config = parse(read_yaml(run.config))
    tokenizer = load_tokenizer(str(base))
    prepared = prepare(tokenizer=tokenizer, **config.data.model_dump())
    model = add_adapter(load_model(str(base)), base="b", revision=None, target="q_v", seed=1, r=32, lora_alpha=64)
    trainer = StudioTrainer(
        model=model,
        args=trainer_settings(config, run, torch.float32, measured=False, checkpointing=False),
        train_dataset=as_dataset(prepared.train, run.cache),
        processing_class=tokenizer,
        card={},
        loraplus_lr_ratio=ratio,
    )
    return trainer, run


def first_step(trainer: StudioTrainer, base: Path) -> dict[str, float]:
    """How far the adapter's matrices move in one step, at most, by their letter."""
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    optimizer = trainer.create_optimizer()
    ids = token_batches([[5, 9, 30, 41, 77, 120, 33, 8]], tokens=4, pad=0, device=torch.device("cpu"))[0]
    trainer.model.train()
    trainer.model(**ids).logits.square().sum().backward()
    optimizer.step()
    moved = {"A": 0.0, "B": 0.0}
    for name, weight in trainer.model.named_parameters():
        for letter in moved:
            if f"lora_{letter}" in name:
                moved[letter] = max(moved[letter], float((weight.detach() - before[name]).abs().max()))
    return moved


def test_lora_plus_lets_b_learn_faster(make_run: MakeRun, base: Path) -> None:
    rate = {"training__learning_rate": 1e-3}
    plain, _ = make_trainer(make_run, base, **rate)
    faster, _ = make_trainer(make_run, base, ratio=16, **rate)
    assert first_step(plain, base)["B"] == pytest.approx(1e-3, rel=0.01)
    assert first_step(faster, base)["B"] == pytest.approx(16e-3, rel=0.01)


def stepped(make_run: MakeRun, gradient: float, **settings: Any) -> tuple[float, torch.optim.Optimizer]:
    """How far a step of the chosen optimizer moves a matrix with that gradient everywhere."""
    run = make_run(training__learning_rate=1e-3, **settings)
    args = trainer_settings(parse(read_yaml(run.config)), run, torch.float32, measured=False, checkpointing=False)
    cls, kwargs = StudioTrainer.get_optimizer_cls_and_kwargs(args)
    weight = torch.nn.Parameter(torch.ones(128, 128))
    optimizer = cls([weight], **kwargs)
    weight.grad = torch.full_like(weight, gradient)
    optimizer.step()
    return float((weight.detach() - 1).abs().max()), optimizer


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_optimizer_moves_weights_and_the_8bit_ones_keep_bytes(optim: str, make_run: MakeRun) -> None:
    moved, optimizer = stepped(make_run, 0.5, training__optim=optim)
    assert moved > 0
    kept = [value.dtype for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert ("8bit" in optim) == (torch.uint8 in kept)


def test_betas_and_epsilon_reach_the_step(make_run: MakeRun) -> None:
    assert stepped(make_run, 0.5)[0] == pytest.approx(1e-3, rel=0.02)
    assert stepped(make_run, 0.5, training__adam_epsilon=0.5)[0] == pytest.approx(0.5e-3, rel=0.05)
    _, quick = stepped(make_run, 0.5, training__adam_beta1=0.0, training__adam_beta2=0.5)
    assert quick.param_groups[0]["betas"] == (0.0, 0.5)


def rates(name: str, steps: int = 100, rising: int | None = 10, **settings: Any) -> list[float]:
    """The learning rate of every step, as a share of the full one."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    usual = {"num_cycles": 1, "decay_ratio": 0.1, "min_lr_rate": 0.1, "warmup_ratio": 0.5}
    warm, shape = scheduler_settings(steps, lr_scheduler_type=name, warmup_steps=rising, **{**usual, **settings})
    schedule = get_scheduler(name, optimizer, warm, steps, scheduler_specific_kwargs=shape)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_schedules_move_as_their_words_say() -> None:
    stable = rates("warmup_stable_decay", decay_ratio=0.3)
    assert stable[0] == 0
    assert stable[10:70] == [1.0] * 60
    assert stable[85] == pytest.approx(0.5, abs=0.05)
    assert stable[99] < 0.05
    waves = rates("cosine_with_restarts", num_cycles=3)
    jumps = [step for step in range(11, 100) if waves[step] - waves[step - 1] > 0.5]
    assert len(jumps) == 2
    assert rates("cosine_with_min_lr", min_lr_rate=0.25)[99] == pytest.approx(0.25, abs=0.01)
    assert rates("inverse_sqrt")[39] == pytest.approx((10 / 39) ** 0.5, abs=0.01)
    assert rates("constant_with_warmup")[10:] == [1.0] * 90


def test_a_decay_longer_than_the_run_begins_after_the_warm_up() -> None:
    assert rates("warmup_stable_decay", steps=10, rising=8, decay_ratio=1)[8] == 1.0


def test_warm_up_steps_win_over_the_share() -> None:
    assert rates("linear", rising=4)[4] == 1.0
    assert rates("linear", rising=None, warmup_ratio=0.3)[30] == 1.0
    assert rates("linear", rising=0)[0] == 1.0


@pytest.mark.parametrize("name", get_args(Training.model_fields["lr_scheduler_type"].annotation))
def test_every_schedule_teaches_in_the_shortest_runs(name: str) -> None:
    for share in (0.0, 0.03, 0.6, 1.0):
        for steps in (1, 2, 3, 4):
            assert max(rates(name, steps, rising=None, warmup_ratio=share)) > 0.4
    assert rates(name, 1, rising=None) == rates(name, 1, rising=5) == [1.0]


@pytest.mark.slow
def test_the_preset_for_cpus_learns_from_so_few_rows_that_it_has_one_step(
    make_run: MakeRun, train: Train, data_file: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(data_file.read_text(encoding="utf-8").splitlines(keepends=True)[:10]), encoding="utf-8")
    config = resolve("cpu", {"data.train_file": str(few), "data.validation_fraction": 0.0}, Workspace(tmp_path))
    run = make_run()
    settings = config.model_dump() | {"model": parse(read_yaml(run.config)).model.model_dump()}
    run.config.write_text(to_yaml(parse(settings)), encoding="utf-8")
    assert train(run) == 0
    (point,) = events(run, StepLogged)
    assert point.learning_rate == config.training.learning_rate
    difference = json.loads(run.complete.read_text(encoding="utf-8"))["difference"]
    assert difference["adapter_loss"] < difference["base_loss"]
    assert any("has a single step" in event.message for event in events(run, Warned))


@pytest.mark.slow
def test_the_run_follows_the_schedule_that_was_chosen(make_run: MakeRun, train: Train) -> None:
    run = make_run(
        training__lr_scheduler_type="warmup_stable_decay",
        training__decay_ratio=0.25,
        training__warmup_steps=2,
        training__max_steps=8,
        evaluation__eval_strategy="no",
    )
    assert train(run) == 0
    assert [point.learning_rate / 1e-2 for point in events(run, StepLogged)] == pytest.approx(
        [0, 0.5, 1, 1, 1, 1, 1, 0.5]
    )
    assert events(run, ModelLoaded)[0].attention == "sdpa: FlashAttention 2 is not used, it needs a CUDA GPU"


@pytest.mark.slow
def test_smoothing_and_noise_change_what_is_learned_and_not_what_is_measured(make_run: MakeRun, train: Train) -> None:
    still = {"training__learning_rate": 1e-12, "training__max_steps": 1, "lora__lora_dropout": 0}
    runs = {
        "plain": make_run(**still),
        "smooth": make_run(**still, training__label_smoothing_factor=0.3),
        "noisy": make_run(**still, training__neftune_noise_alpha=50.0),
        "packed": make_run(**still, training__label_smoothing_factor=0.3, training__packing=True),
    }
    assert {train(run) for run in runs.values()} == {0}
    learned = {name: events(run, StepLogged)[0].loss for name, run in runs.items()}
    assert len({round(loss, 4) for name, loss in learned.items() if name != "packed"}) == 3
    measured = {name: events(run, Evaluated)[-1].loss for name, run in runs.items()}
    assert list(measured.values()) == pytest.approx([measured["plain"]] * 4, abs=1e-5)
    assert any("Label smoothing" in warning.message for warning in events(runs["smooth"], Warned))


@pytest.mark.slow
def test_a_module_trained_whole_changes_and_goes_with_the_adapter(make_run: MakeRun, train: Train, base: Path) -> None:
    run = make_run(lora__modules_to_save="lm_head", training__max_steps=2)
    assert train(run) == 0
    saved = load_file(run.adapter / "adapter_model.safetensors")
    head = next(weight for name, weight in saved.items() if "lm_head" in name)
    before = load_model(str(base)).get_output_embeddings().weight
    assert float((head - before).abs().max()) > 1e-3


@pytest.mark.slow
def test_a_module_that_can_not_be_trained_whole_is_told(make_run: MakeRun, train: Train) -> None:
    run = make_run(lora__modules_to_save="score")
    assert train(run) == 2
    assert "no module score" in events(run)[-1].message
    assert "lm_head" in events(run)[-1].hint
    quantized = make_run(lora__modules_to_save="up_proj", lora__target_modules="q_v", model__quantization="4bit")
    assert train(quantized) == 2
    assert "up_proj is quantized" in events(quantized)[-1].message


FAKE = """
import json, os, types
calls = os.environ["FAKE_CALLS"]
def note(call, **values):
    with open(calls, "a") as file:
        file.write(json.dumps({"call": call, **values}, default=str) + "\\n")
run = None
class Config(dict):
    def update(self, values, allow_val_change=False):
        super().update(values)
config = Config()
summary = {}
context_vars = types.SimpleNamespace(current_space_id=types.SimpleNamespace(get=lambda: None))
def init(project, name=None, **more):
    global run
    note("init", project=project, name=name)
    run = types.SimpleNamespace(summary=summary, _label=lambda code: None, id="1", name=name)
def log(values):
    note("log", **values)
def define_metric(*names, **more):
    pass
def finish():
    note("finish")
"""


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_a_tracker_gets_the_numbers_beside_tensorboard(
    tracker: str, make_run: MakeRun, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / tracker
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE, encoding="utf-8")
    for folder in (package / "sdk", package / "sdk" / "lib"):
        (folder / "__init__.py").write_text("", encoding="utf-8")
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("FAKE_CALLS", str(tmp_path / "calls.jsonl"))
    run = make_run(title="Mine", tracking__report_to=tracker, training__max_steps=2)
    try:
        assert train(run) == 0
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == tracker]:
            del sys.modules[name]
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text(encoding="utf-8").splitlines()]
    assert calls[0] == {"call": "init", "project": "lora-studio", "name": "Mine"}
    assert sum("train/loss" in call for call in calls) >= 2
    assert any("eval/loss" in call for call in calls)
    assert list(run.tensorboard.glob("events.out.tfevents.*"))


def test_linear_modules_are_told_by_their_paths(base: Path) -> None:
    paths = linear_modules(load_model(str(base)))
    assert paths[0] == "model.layers.0.self_attn.q_proj"
    assert len(paths) == 14
