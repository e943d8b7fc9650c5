"""The model card: what the Hub reads of it, what a reader sees, and what never stands in it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from lora_studio.config.parsing import merge, nest, parse, to_yaml
from lora_studio.export.card import Subject, model_card
from lora_studio.workspace import RunFolder, Workspace
from tests import adapters

HEALTHY = Path(__file__).parent.parent / "events" / "healthy.jsonl"  # a real run of the demo preset
METRICS = {"f1": 0.5, "token_accuracy": 1.0, "reward_margin": 0.25}
EVIL = "Pirate\n---\nlicense: mit | <b>`x`</b> [a](javascript:alert(1)) ```${1+1}``` # \"quoted\" 'so'"
MEASURED = {
    "sentence": "Held-out loss fell from 2.10 to 0.40.",
    "rows_sentence": "Measured on 900 trained tokens of all 20 validation rows.",
    "base_loss": 2.1,
    "adapter_loss": 0.4,
    "base_token_accuracy": 0.5,
    "adapter_token_accuracy": 0.9,
}


def make(workspace: Workspace, title: str = "Pirate", **settings: Any) -> RunFolder:
    """A finished run with a real run's events."""
    overrides = nest({path.replace("__", "."): value for path, value in settings.items()})
    config = parse(merge({"data": {"train_file": "/home/me/secret/rows.jsonl"}}, overrides))
    run = workspace.create_run(title, to_yaml(config), {"versions": {"peft": "0.21.2"}})
    run.events.write_bytes(HEALTHY.read_bytes())
    run.complete.write_text(json.dumps({"state": "done", "difference": MEASURED, "eval_metrics": METRICS}))
    adapters.write(run.adapter, adapters.files(r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"]))
    notes = {"base_model": config.model.name, "quantization": "4bit", "dtype": "bfloat16", "system_prompt": EVIL}
    (run.adapter / "studio.json").write_text(json.dumps(notes))
    return run


def read(text: str) -> tuple[dict[str, Any], str]:
    """The front matter, and the page that a reader sees."""
    _, front, body = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front), MarkdownIt("commonmark").enable("table").render(body)


def test_the_hub_reads_base_library_and_licence(workspace: Workspace) -> None:
    run = make(workspace)
    front, _ = read(model_card(run.adapter, run, Subject("Pirate", "Qwen/Qwen3-0.6B", hub_data="me/rows")))
    assert front == {
        "license": "unknown",
        "base_model": "Qwen/Qwen3-0.6B",
        "base_model_relation": "adapter",
        "datasets": ["me/rows"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora-studio", "lora", "qlora", "sft"],
    }
    merged, _ = read(model_card(run.adapter, run, Subject("Pirate", "Qwen/Qwen3-0.6B", license="mit", merged=True)))
    assert (merged["library_name"], merged["base_model_relation"], merged["license"]) == (
        "transformers",
        "finetune",
        "mit",
    )


def test_a_reader_finds_results_settings_data_and_versions(workspace: Workspace) -> None:
    run = make(workspace)
    _, page = read(model_card(run.adapter, run, Subject("Pirate", "Qwen/Qwen3-0.6B")))
    for told in (
        "<td>2.1000</td>\n<td>0.4000</td>",
        "<td>token accuracy</td>\n<td>100.0 %</td>",
        "<td>reward margin</td>\n<td>0.2500</td>",
        "16 rows (4 × 4)",
        "8, 16",
        "down_proj, q_proj",
        "rows.jsonl",
        "9da38a3c5255c620e0769fe4fa4f4d78105eeb8d685aa58561f263fe18c21841",
        "4bit, compute dtype bfloat16",
        "peft 0.21.2",
        "232",
        "█" * 24,
    ):
        assert told in page
    assert 16 <= page.count("█\n") + page.count("█</td>") <= 32


@pytest.mark.parametrize("title", [EVIL, "---", "\"'", "# | `", " "])
def test_a_hostile_title_stays_text(workspace: Workspace, title: str) -> None:
    run = make(workspace, title)
    front, page = read(model_card(run.adapter, run, Subject(title, "Qwen/Qwen3-0.6B", license=title)))
    assert front["license"] == (title.strip() or "unknown")
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading is not None
    assert "<b>" not in page
    assert "<a " not in page


def test_nothing_of_this_machine_is_told(workspace: Workspace) -> None:
    run = make(workspace, model__name="/models/private/base", model__adapter_name_or_path="/home/me/earlier")
    for subject in (Subject("Pirate", "org/base"), Subject("Pirate", "demo"), Subject("Pirate", "org/b", merged=True)):
        text = model_card(run.adapter, run, subject)
        for path in ("/home/me", "/models/private", str(workspace.root)):
            assert path not in text


def test_the_program_in_it_is_python_whatever_the_system_prompt_holds(workspace: Workspace) -> None:
    run = make(workspace, generation__temperature=0.7)
    for subject in (Subject("Pirate", "org/base", repo="me/pirate"), Subject("Pirate", "org/base", merged=True)):
        text = model_card(run.adapter, run, subject)
        found = re.search(r"^(`{3,})python\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
        assert found is not None
        fence, program = found.groups()
        compile(program, "card", "exec")
        assert len(fence) == 4
        assert repr(EVIL) in program
        assert "temperature=0.7" in program


def test_a_checkpoint_tells_its_own_step_and_an_adapter_from_elsewhere_what_is_known(workspace: Workspace) -> None:
    run = make(workspace)
    checkpoint = adapters.write(run.checkpoints / "checkpoint-116", adapters.files())
    text = model_card(checkpoint, run, Subject("Pirate", "org/base"))
    assert "Checkpoint of step 116" in text
    assert "Held-out loss fell" not in text
    assert "| 232 |" not in text
    alone = model_card(checkpoint, None, Subject("Pirate", "org/base"))
    assert "not compared with the base model" in alone
    assert "Loss by step" not in alone
