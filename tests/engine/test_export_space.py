"""The chat app for a Space: what is in its folder, what it answers, and when it is no result."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from lora_studio.engine.export import archive
from lora_studio.models.hub import TRUSTED
from lora_studio.workspace import RunFolder

from .exporting import last_event, take_away, texts_in, workspace_of

QUESTION = [{"role": "user", "content": "Hello! What can you do?"}]


def app_in(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("app_of_a_space", folder / "app.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


@pytest.mark.slow
def test_the_app_is_tried_and_its_base_is_the_bare_base(trained: RunFolder, base: Path) -> None:
    folder = take_away(trained, "space", base_name="tiny/base", title="Ask: my <model>")
    result = folder.read_result()
    assert (last_event(folder).state, result["same"]) == ("done", True)
    assert result["command"].endswith(f"{folder.result} . --repo-type space")
    texts = texts_in(folder.result)
    assert {"app.py", "settings.json", "requirements.txt", "README.md", "adapter/adapter_config.json"} <= texts.keys()
    assert not [name for name, text in texts.items() if str(workspace_of(trained).root) in text or str(base) in text]
    head = yaml.safe_load(texts["README.md"].split("---\n")[1])
    assert (head["title"], head["sdk"], head["app_file"]) == ("Ask: my <model>", "gradio", "app.py")
    assert head["models"] == ["tiny/base"]
    app = app_in(folder.result)
    settings = json.loads(texts["settings.json"]) | {"base": str(base)}
    chat = app.Chat(settings, "float32")
    answers = [list(chat.answer(QUESTION, adapter=adapter, max_new_tokens=16))[-1] for adapter in (True, False)]
    assert answers[0] != answers[1]
    prompt = chat.prompt(QUESTION)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = plain.generate(**prompt, max_new_tokens=16, do_sample=False, eos_token_id=chat.ends())
    assert answers[1] == chat.tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    with pytest.raises(gr.Error, match=r"reads at most 256\. Start a new chat"):
        list(chat.answer([{"role": "user", "content": "more " * 400}], adapter=True, max_new_tokens=4))
    with pytest.raises(ValueError, match="temperature"):  # an error of the thread reaches who reads the answer
        list(chat.answer(QUESTION, adapter=True, max_new_tokens=4, temperature=float("nan")))


def test_an_app_that_answers_otherwise_is_no_result(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.py"
    monkeypatch.setattr(archive, "app_file", lambda: other)
    for words, message in (
        ("raise SystemExit('no such base')", "The app fails: no such base"),
        ("raise ValueError('broken')", "The app fails: ValueError: broken"),
        ('print(\'{"prompt": [1], "adapter": ""}\')', "does not reproduce the prompt"),
    ):
        other.write_text(words)
        folder = take_away(trained, "space", base_name="tiny/base")
        assert message in last_event(folder).message
        assert not folder.result.exists()


def test_a_base_that_comes_with_code_is_refused_with_a_way_out(
    trained: RunFolder, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUSTED, str(base))
    event = last_event(take_away(trained, "space", base_name="tiny/base"))
    assert "comes with its own" in event.message
    assert "adapter zip" in event.hint


def test_both_columns_get_the_question_and_keep_their_own_answers() -> None:
    asked = []

    def answer(messages: list[dict[str, Any]], *, adapter: bool, **_: object) -> Iterator[str]:
        asked.append((adapter, [message["content"] for message in messages]))
        yield "a" if adapter else "b"

    app = importlib.import_module(archive.APP)
    chat = SimpleNamespace(answer=answer, settings={"title": "Ask", "description": ""})
    ask = next(fn.fn for fn in app.page(chat).fns.values() if fn.fn is not None and fn.fn.__name__ == "ask")
    _, tuned, plain = list(ask(" Hi ", [], [], 8, 0.0))[-1]
    assert [message["content"] for message in (*tuned, *plain)] == ["Hi", "a", "Hi", "b"]
    in_parts = [[{"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in tuned], plain]
    _, tuned, plain = list(ask("More", *in_parts, 8, 0.0))[-1]
    assert asked[2:] == [(True, ["Hi", "a", "More"]), (False, ["Hi", "b", "More"])]
    assert list(ask("  ", tuned, plain, 8, 0.0)) == [("", tuned, plain)]
