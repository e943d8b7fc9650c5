"""KTO: its tokens, batches and losses are those of plain trl, a stopped run resumes exactly, and it teaches."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from lora_studio.data.dataset import Prepared, prepare
from lora_studio.data.examples import Unpaired
from lora_studio.engine.models.load import load_tokenizer
from lora_studio.engine.train_script import EpochOrder, UnpairedCollator
from lora_studio.jobs.events import StepLogged
from lora_studio.workspace import RunFolder
from tests.engine.conftest import COLOURS, THINGS, MakeRun, events, run_worker

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
