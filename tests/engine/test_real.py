"""The engine on real files: a base without template and padding token, and rows that people wrote."""

from pathlib import Path
from typing import Any

import pytest

from lora_studio.config.parsing import parse, to_yaml
from lora_studio.engine.chat.generate import Column, generate, greedy
from lora_studio.engine.models.multi_adapter import add_adapters, load_base
from lora_studio.jobs.events import Evaluated
from lora_studio.workspace import RunFolder, Workspace
from tests.engine.conftest import events, run_worker

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def story_run(real: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A real base model of 260,000 parameters, trained on real conversations for a few steps."""
    values: dict[str, Any] = {
        "model": {"name": str(real / "weights" / "stories260K")},
        "data": {
            "train_file": str(real / "datasets" / "tinker-cookbook" / "conversations.jsonl"),
            "max_length": 256,
            "max_samples": 64,
        },
        "training": {"num_train_epochs": 3, "learning_rate": 5e-3, "gradient_accumulation_steps": 1},
    }
    workspace = Workspace(tmp_path_factory.mktemp("real"))
    run = workspace.create_run("stories", to_yaml(parse(values)), {})
    assert run_worker(run) == 0, events(run)[-1]
    return run


def test_a_base_without_template_and_padding_learns_conversations(story_run: RunFolder) -> None:
    first, *_, last = events(story_run, Evaluated)
    assert last.loss < first.loss
    assert (story_run.adapter / "chat_template.jinja").is_file()


def test_base_and_adapter_of_a_real_model_answer_side_by_side(story_run: RunFolder, real: Path) -> None:
    loaded = load_base(str(real / "weights" / "stories260K"))
    add_adapters(loaded, {"run": story_run.adapter})
    question = [{"role": "user", "content": "Tell me a story about a cat."}]
    base, adapter = generate(loaded, [Column(None, question), Column("run", question)], greedy(loaded, 60))
    assert base.text
    assert adapter.text != base.text
    assert loaded.tokenizer.pad_token_id is not None
