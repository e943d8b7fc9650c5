"""KTO: its tokens, batches and losses are those of plain trl, a stopped run resumes exactly, and it teaches."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from lora_studio.config.parsing import load_config, resolve, to_yaml
from lora_studio.data.dataset import Prepared, prepare
from lora_studio.data.examples import Unpaired
from lora_studio.data.messages import IGNORED
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.engine.models.source import load_tokenizer
from lora_studio.engine.train.trainers import rewards_of
from lora_studio.engine.train_script import EpochOrder, UnpairedCollator
from lora_studio.jobs.events import Finished, StepLogged, fold
from lora_studio.workspace import RunFolder, Workspace, shipped_data
from tests.engine.conftest import COLOURS, THINGS, MakeRun, events, run_worker
from tests.engine.test_worker import stop_at

Train = Callable[..., int]
ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"Paint the {thing} {colour}." + " Please." * (number % 3),
        "completion": f"The {thing} is {colour}." if number % 3 else f"No {thing}.",
        "label": bool(number % 3),
    }
    for number, (colour, thing) in enumerate((colour, thing) for colour in COLOURS for thing in THINGS)
]
SETTINGS = {"training__method": "kto", "training__learning_rate": 1e-3, "preference__undesirable_weight": 1.5}


def as_turns(row: dict[str, Any]) -> dict[str, Any]:
    """A row as trl's conversational format has it."""
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
        "label": row["label"],
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ending_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template whose last answer ends the text, so that trl trains no line feed after it."""
    folder = tmp_path_factory.mktemp("models") / "ending"
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = str(tokenizer.chat_template)
    tokenizer.chat_template = text.replace(
        "{{- '\\n' }}{%- endfor %}",
        "{%- if not loop.last or add_generation_prompt %}{{- '\\n' }}{%- endif %}{%- endfor %}",
    )
    assert tokenizer.chat_template != text
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def start(ending_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new adapter of plain peft, which changes nothing yet."""
    folder = tmp_path_factory.mktemp("adapters") / "start"
    torch.manual_seed(5)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(ending_base), lora).save_pretrained(folder)
    return folder


def plain_trl(base: Path, start: Path, rows: list[dict[str, Any]], out: Path, **settings: Any) -> KTOTrainer:
    """trl's own trainer on rows in text, with nothing of ours."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), start, is_trainable=True)
    arguments = KTOConfig(
        output_dir=str(out),
        report_to="none",
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        gradient_checkpointing=False,
        logging_steps=1,
        disable_tqdm=True,
        **settings,
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    return KTOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(list(map(as_turns, rows))),
        processing_class=tokenizer,
    )


@pytest.fixture(scope="module")
def run(make_run: MakeRun, ending_base: Path, start: Path, file: Path) -> RunFolder:
    """A finished run from that adapter."""
    settings = {
        "model__name": str(ending_base),
        "model__adapter_name_or_path": str(start),
        "data__train_file": str(file),
        "training__lr_scheduler_type": "constant",
        "training__num_train_epochs": 1,
        "evaluation__per_device_eval_batch_size": 4,
    }
    made = make_run(**{**SETTINGS, **settings})
    assert run_worker(made) == 0
    return made


@pytest.fixture(scope="module")
def prepared(ending_base: Path, file: Path) -> Prepared:
    return prepare(str(file), load_tokenizer(str(ending_base)), goal="unpaired", max_length=64, validation_fraction=0.2)


@pytest.fixture(scope="module")
def theirs(prepared: Prepared, ending_base: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> KTOTrainer:
    """Plain trl on the same rows, in the order of our first epoch."""
    order = list(EpochOrder(len(prepared.train), 4, 42, None))
    rows = [ROWS[prepared.train.row_numbers[at] - 1] for at in order]
    trainer = plain_trl(
        ending_base,
        start,
        rows,
        tmp_path_factory.mktemp("trl"),
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        num_train_epochs=1,
        undesirable_weight=1.5,
        max_length=64,
    )
    trainer.train()
    return trainer


@pytest.mark.slow
def test_tokens_trained_part_and_mismatched_answers_are_those_of_trls_own_preparation(
    prepared: Prepared, theirs: KTOTrainer
) -> None:
    rows: Any = prepared.train
    assert isinstance(rows, Unpaired)
    order = list(EpochOrder(len(rows), 4, 42, None))
    batches = [order[first : first + 4] for first in range(0, len(order), 4)]
    ours, their = UnpairedCollator(0, 64), DataCollatorForUnpairedPreference(0, max_length=64)
    dataset: Any = theirs.train_dataset
    for number, batch in enumerate(batches):
        mine = [
            {"input_ids": rows[at].input_ids, "labels": rows[at].labels, "desirable": bool(rows.desirable[at])}
            for at in batch
        ]
        expected = their([dataset[4 * number + place] for place in range(len(batch))])
        made = ours(mine)
        assert set(made) == set(expected)
        assert all(torch.equal(made[name], expected[name]) for name in made)


@pytest.mark.slow
def test_losses_and_metrics_are_those_of_plain_trl(run: RunFolder, theirs: KTOTrainer) -> None:
    expected = [entry for entry in theirs.state.log_history if "loss" in entry]
    points = events(run, StepLogged)
    assert len(points) == len(expected) == 4
    assert [point.loss for point in points] == pytest.approx([entry["loss"] for entry in expected], abs=1e-5)
    names = {
        "rewards/chosen": "chosen_reward",
        "rewards/rejected": "rejected_reward",
        "rewards/margins": "reward_margin",
    }
    for point, entry in zip(points, expected, strict=True):
        for name in ("kl", "logps/chosen", "logits/rejected", *names):
            assert point.metrics[names.get(name, name)] == pytest.approx(entry[name], abs=1e-4), name


@pytest.mark.slow
def test_an_evaluation_measures_the_rewards_of_held_out_rows_one_by_one(run: RunFolder, ending_base: Path) -> None:
    """Rewards are computed anew with plain peft: beta times the difference of the answers' log-likelihoods."""
    rows: Any = prepare(
        str(shown_file(run)), load_tokenizer(str(ending_base)), goal="unpaired", max_length=64, validation_fraction=0.2
    ).validation
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ending_base), run.adapter)

    def likelihood(example: Any) -> float:
        ids, labels = torch.tensor([example.input_ids]), torch.tensor(example.labels[1:])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return float(scores[labels != IGNORED].sum())

    policy = [likelihood(row) for row in rows]
    with model.disable_adapter():
        reference = [likelihood(row) for row in rows]
    rewards = [
        (0.1 * (own - base), bool(good)) for own, base, good in zip(policy, reference, rows.desirable, strict=True)
    ]
    (measured,) = fold(events(run)).evaluations
    expected = rewards_of(rewards)
    assert {name: measured.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert set(measured.metrics) == {*expected, "kl"}
    config = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 4
    assert not [path for path in run.adapter.iterdir() if path.is_dir()]


def shown_file(run: RunFolder) -> Path:
    return Path(load_config(run.config).data.train_file)


def test_the_accuracy_of_labels_is_the_share_of_good_and_bad_rows_in_the_right_order() -> None:
    rows = [(0.5, True), (0.1, True), (0.1, False), (-1.0, False), (0.3, False)]
    measured = rewards_of(rows)
    pairs = [(good, bad) for good, label in rows if label for bad, other in rows if not other]
    share = np.mean([1.0 if good > bad else 0.5 if good == bad else 0.0 for good, bad in pairs])
    assert measured["reward_accuracy"] == pytest.approx(share)
    assert measured["reward_margin"] == pytest.approx(0.3 - -0.2)
    assert rewards_of([(0.5, True)]) == {"chosen_reward": 0.5}


@pytest.fixture(scope="module")
def make_kto(make_run: MakeRun, file: Path) -> MakeRun:
    settings = {**SETTINGS, "data__train_file": str(file), "data__max_samples": 20}
    return lambda **more: make_run(**{**settings, **more})


@pytest.mark.slow
def test_a_stopped_run_in_four_bits_resumes_as_if_it_had_never_stopped(
    make_kto: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model__quantization": "4bit", "training__num_train_epochs": 3}
    whole, run = make_kto(**settings), make_kto(**settings)
    assert train(whole) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, lambda event: isinstance(event, StepLogged) and event.step == 3)
        assert train(run) == 130
    assert train(run, "--resume") == 0
    one, other = (fold(events(each)) for each in (whole, run))
    assert [point.loss for point in one.steps] == [point.loss for point in other.steps]
    assert [point.metrics for point in one.steps] == [point.metrics for point in other.steps]
    assert 0.5 <= one.steps[0].loss <= 0.75  # half of each row's weight, before the first step
    assert one.evaluations[-1].metrics == other.evaluations[-1].metrics


@pytest.mark.slow
def test_pairs_train_in_one_step_and_plain_answers_are_refused(
    make_kto: MakeRun, data_file: Path, train: Train, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Ask {n}", "chosen": f"Yes {n}", "rejected": f"No, not {n}"} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = make_kto(data__train_file=str(path), training__max_steps=1)
    assert train(run) == 0
    state = fold(events(run))
    assert state.data is not None
    assert (state.data.train_rows, state.data.validation_rows) == (12, 4)
    assert not [words for words in state.warnings if "label" in words], "nothing is ignored"
    plain = make_kto(data__train_file=str(data_file))
    assert train(plain) == 2
    assert "contain no preference data" in events(plain, Finished)[-1].message


@pytest.mark.slow
def test_the_demo_model_learns_from_labels_what_it_never_saw(workspace: Workspace, train: Train) -> None:
    heldout = shipped_data()["feedback"].heldout
    settings = {
        "data.validation_file": str(heldout),
        "data.max_samples": 96,
        "training.num_train_epochs": 1,
        "evaluation.per_device_eval_batch_size": 20,
    }
    run = workspace.create_run("kto", to_yaml(resolve("demo-kto", settings)), {})
    assert train(run) == 0
    (measured,) = fold(events(run)).evaluations
    assert measured.metrics["reward_accuracy"] >= 0.95
    assert measured.metrics["reward_margin"] > 1
    assert json.loads(run.complete.read_text(encoding="utf-8"))["eval_metrics"] == measured.metrics
    rows: Any = prepare(str(heldout), load_tokenizer("demo"), goal="unpaired", validation_fraction=0).train
    loaded = load_base("demo")
    base = preference_of_good(loaded, rows)
    add_adapters(loaded, {"polite": run.adapter})
    assert preference_of_good(loaded, rows) > base + 0.1


def preference_of_good(loaded: Any, rows: Unpaired) -> float:
    """How much likelier, token for token, good answers are than bad ones on average."""
    means = []
    for example in rows:
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            scores = loaded.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        means.append(float(scores[torch.tensor(example.labels[1:]) != IGNORED].mean()))
    return float(np.mean(np.array(means)[rows.desirable]) - np.mean(np.array(means)[~rows.desirable]))
