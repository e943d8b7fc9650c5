"""vLLM as the engine of an evaluation, by a stand-in server: its answers are used if they are ours, else refused."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_studio.config.parsing import parse
from lora_studio.engine.chat import vllm
from lora_studio.engine.chat.analysis import Call
from lora_studio.engine.chat.batch import batch_prompt
from lora_studio.engine.chat.generate import Column, generate, greedy, prompt_ids
from lora_studio.engine.chat.vllm import check_columns
from lora_studio.engine.evaluate import batches
from lora_studio.engine.evaluate.answer import AskedFile, Voice, read_asked_file
from lora_studio.engine.evaluate.tasks import Task
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base
from lora_studio.engine.runtime import StopSignal
from lora_studio.errors import StudioError
from lora_studio.jobs.protocol import BatchColumn, GenerateBatch
from lora_studio.workspace import RunFolder

SETTINGS = parse({"generation": {"max_new_tokens": 12}}).generation
COLUMNS = {"base": None, "adapter": "adapter"}
STAND_IN = Path(__file__).parents[1] / "vllm_stand_in.py"


def column(text: str, adapter: str | None = None, stop: Sequence[str] = (), **settings: Any) -> BatchColumn:
    settings = {"max_new_tokens": vllm.PROVED_TOKENS, **settings}
    return BatchColumn(
        adapter=adapter, messages=[{"role": "user", "content": text}], settings=settings, stop=list(stop)
    )


@pytest.fixture(scope="module")
def loaded(base: Path, trained: RunFolder) -> LoadedModel:
    loaded = load_base(str(base))
    add_adapters(loaded, {"adapter": trained.adapter})
    return loaded


@pytest.fixture(scope="module")
def file(loaded: LoadedModel, trained: RunFolder, data_file: Path) -> AskedFile:
    voice = Voice.of(trained.adapter)
    return read_asked_file(str(data_file), loaded.tokenizer, dict.fromkeys(COLUMNS, voice), most=6)


@pytest.fixture
def server(
    tmp_path: Path, loaded: LoadedModel, file: AskedFile, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """A program called vllm that answers as our engine does; what is changed in the dictionary, it answers instead."""
    asked = [Column(adapter, row.asked[name].messages) for row in file.rows for name, adapter in COLUMNS.items()]
    answers = {
        (column.adapter or "base") + str(prompt_ids(loaded, column, None)): [answer.text, answer.tokens, answer.finish]
        for column, answer in zip(asked, generate(loaded, asked, greedy(loaded, 12)), strict=True)
    }
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} {tmp_path} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(batches, "device_kind", lambda: "cuda")
    (tmp_path / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    return answers


def evaluated(
    loaded: LoadedModel, file: AskedFile, trained: RunFolder, engine: str, told: list[str]
) -> list[dict[str, Any]]:
    folders = {"base": "", "adapter": str(trained.adapter)}
    given = {"revision": None, "max_new_tokens": 12, "enable_thinking": None, "stop": StopSignal(), "tell": told.append}
    with batches.answering_by(engine, loaded, file.rows, folders, **given) as ask:
        size = batches.batch_size(loaded, file.rows, COLUMNS, SETTINGS, None, engine)
        done = batches.answer_in_batches(
            loaded, file.rows, COLUMNS, Task("text", ""), SETTINGS, batch_size=size, ask=ask
        )
        return [row for batch in done for row in batch]


@pytest.mark.slow
def test_rows_are_answered_by_vllm_where_its_answers_are_ours(
    loaded: LoadedModel, file: AskedFile, trained: RunFolder, server: dict[str, Any], tmp_path: Path
) -> None:
    told: list[str] = []
    ours = evaluated(loaded, file, trained, "transformers", told)
    assert evaluated(loaded, file, trained, "vllm", told) == ours
    assert told == ["vLLM answers. Its answers to 12 prompts are those of transformers."]
    words = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
    assert words[:4] == ["serve", loaded.name, "--served-model-name", "base"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert json.loads(words[words.index("--lora-modules") + 1]) == {"name": "adapter", "path": str(trained.adapter)}
    with pytest.raises(httpx.ConnectError):  # it ended with the evaluation
        httpx.get(f"http://127.0.0.1:{words[words.index('--port') + 1]}/health", trust_env=False)


@pytest.mark.slow
def test_a_server_that_answers_otherwise_is_refused_with_the_first_difference(
    loaded: LoadedModel, file: AskedFile, trained: RunFolder, server: dict[str, Any], tmp_path: Path
) -> None:
    column = Column("adapter", file.rows[1].asked["adapter"].messages)
    server["adapter" + str(prompt_ids(loaded, column, None))][0] = "Something else."
    (tmp_path / "answers.json").write_text(json.dumps(server), encoding="utf-8")
    with pytest.raises(StudioError, match=r"to \"Paint .*adapter says 'Something else\.' instead of") as refused:
        evaluated(loaded, file, trained, "vllm", [])
    assert refused.value.hint == "Set the engine to transformers."


def test_a_server_that_does_not_start_is_told_at_once(
    loaded: LoadedModel, file: AskedFile, trained: RunFolder, server: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(StudioError, match=r"vLLM ended\."):
        evaluated(loaded, file, trained, "vllm", [])


def test_vllm_is_refused_without_a_gpu_and_for_a_quantized_base(
    loaded: LoadedModel, file: AskedFile, trained: RunFolder, server: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "device_kind", lambda: "cpu")
    with pytest.raises(StudioError, match="vLLM needs a GPU"):
        evaluated(loaded, file, trained, "vllm", [])
    monkeypatch.setattr(loaded.base.config, "quantization_config", {"load_in_4bit": True}, raising=False)
    with pytest.raises(StudioError, match="unquantized"):
        check_columns(loaded, {"base": ""})


SERVED = [
    column("One?"),
    column("Two?", temperature=0.0),
    column("Three?", "adapter"),
    column("Four?", stop=[*"aeinrst"]),
]


def test_vllm_takes_the_place_of_the_model_and_follows_its_adapters(
    loaded: LoadedModel, trained: RunFolder, server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "on_cpu", lambda: False)
    monkeypatch.setattr(vllm, "QUESTIONS", vllm.QUESTIONS[:3])
    names, prompts = (None, "adapter"), (*vllm.QUESTIONS, "One?", "Two?", "Three?", "Four?")
    asked = [Column(name, [{"role": "user", "content": text}]) for name in names for text in prompts]
    served = {None: "base", "adapter": str(trained.adapter)}
    for each, answer in zip(asked, generate(loaded, asked, greedy(loaded, vllm.PROVED_TOKENS)), strict=True):
        server[served[each.adapter] + str(prompt_ids(loaded, each, None))] = [answer.text, answer.tokens, answer.finish]
    (tmp_path / "answers.json").write_text(json.dumps(server), encoding="utf-8")
    lines: list[dict[str, Any]] = []
    engine, call = vllm.Served(), Call(1, GenerateBatch(batch="b", columns=SERVED[:2]), lines.append)
    try:
        engine.follow(loaded, {}, None, lambda: None)
        started = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
        assert started[started.index("--max-loras") + 1] == "8"
        engine.follow(loaded, {"adapter": str(trained.adapter)}, None, lambda: None)
        assert json.loads((tmp_path / "words.json").read_text(encoding="utf-8")) == started, "no new server for it"
        for late in SERVED[2:]:
            call.joining.put(late)
        engine.answer_call(loaded, call)
        ended = {line["position"]: line["answer"] for line in lines if line["kind"] == "ended"}
        for at, each in enumerate(SERVED):
            settings = greedy(loaded, vllm.PROVED_TOKENS)
            (ours,) = generate(loaded, [Column(each.adapter, each.messages)], settings, stop_strings=each.stop)
            assert (ended[at]["text"], ended[at]["finish"]) == (ours.text, ours.finish), at
            assert each.stop or ended[at]["tokens"] == ours.tokens
            pieces = [line["texts"][0] for line in lines if line["kind"] == "piece" and line["positions"] == [at]]
            assert "".join(pieces) == ours.text
        assert ended[3]["finish"] == "stop_string"
        # A changed adapter is loaded anew under another name, and one that vLLM answers otherwise with ends it all.
        engine.follow(loaded, {}, None, lambda: None)
        told = json.loads((tmp_path / "loras.json").read_text(encoding="utf-8"))
        assert told == [["load", "adapter1"], ["unload", "adapter1"]]
        server[str(trained.adapter) + str(prompt_ids(loaded, asked[len(prompts)], None))][0] = "Something else."
        (tmp_path / "answers.json").write_text(json.dumps(server), encoding="utf-8")
        with pytest.raises(StudioError, match=r"adapter says 'Something else\.' instead of"):
            engine.follow(loaded, {"adapter": str(trained.adapter)}, None, lambda: None)
        port = started[started.index("--port") + 1]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
    finally:
        engine.close()


def test_a_client_that_leaves_ends_its_answer_at_vllm(
    loaded: LoadedModel, server: dict[str, Any], tmp_path: Path
) -> None:
    port = vllm.free_port()
    server["base" + str(prompt_ids(loaded, Column(None, SERVED[0].messages), None))] = ["endless", 1, "endless"]
    (tmp_path / "answers.json").write_text(json.dumps(server), encoding="utf-8")
    words = ["vllm", "serve", "x", "--host", "127.0.0.1", "--port", str(port)]
    with vllm.serving(words, port, lambda: None) as running:
        pieces: list[str] = []
        answer = running.answer(
            loaded,
            batch_prompt(SERVED[0]),
            on_piece=lambda text, tokens: pieces.append(text),
            stop=lambda: len(pieces) > 2,
        )
        assert (answer.finish, answer.tokens) == ("stopped", 3)
        with pytest.raises(StudioError, match=r"vLLM refuses: The model .adapter. does not exist"):
            running.answer(loaded, batch_prompt(SERVED[0].model_copy(update={"adapter": "adapter"})))
    for wrong in (["--lora-modules", "a=b=c"], ["--max-lora-rank", "7"], ["--max-lora", "8"], ["--no-such"]):
        with pytest.raises(StudioError, match=r"vLLM ended"), vllm.serving([*words, *wrong], port, lambda: None):
            pass
