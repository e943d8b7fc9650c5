"""vLLM as the engine of an evaluation, by a stand-in server: its answers are used if they are ours, else refused."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_studio.config.parsing import parse
from lora_studio.engine.chat.generate import Column, generate, greedy, prompt_ids
from lora_studio.engine.evaluate import batches
from lora_studio.engine.evaluate.answer import AskedFile, Voice, read_asked_file
from lora_studio.engine.evaluate.tasks import Task
from lora_studio.engine.evaluate.vllm import check_columns
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, load_base
from lora_studio.engine.runtime import StopSignal
from lora_studio.errors import StudioError
from lora_studio.workspace import RunFolder

SETTINGS = parse({"generation": {"max_new_tokens": 12}}).generation
COLUMNS = {"base": None, "adapter": "adapter"}
STAND_IN = """#!{python}
import http.server, json, os, sys
folder = {folder!r}
json.dump(sys.argv[1:], open(folder + "/words.json", "w"))
if os.path.exists(folder + "/broken"):
    sys.exit(3)
answers = json.load(open(folder + "/answers.json"))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({{}})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"] or body["temperature"] != 0:
            return self.send_error(401)
        text, tokens, finish = answers[body["model"] + str(body["prompt"])]
        choice = {{"text": text, "finish_reason": "length" if finish == "length" else "stop"}}
        self.reply({{"choices": [choice], "usage": {{"completion_tokens": tokens}}}})
    def reply(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def log_message(self, *words):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


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
    program.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path)), encoding="utf-8")
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
    assert words[words.index("--lora-modules") + 1] == f"adapter={trained.adapter}"
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
