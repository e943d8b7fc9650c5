"""vLLM as the engine of an evaluation, by a stand-in server: its answers are used if they are ours, else refused."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from lora_studio.config.parsing import parse
from lora_studio.engine.accelerator import Memory
from lora_studio.engine.chat import agreement, vllm
from lora_studio.engine.chat.analysis import Call
from lora_studio.engine.chat.batch import batch_prompt
from lora_studio.engine.chat.generate import Answer, Column, generate, greedy, prompt_ids
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


def answered(answer: Answer) -> list[Any]:
    """An answer as the stand-in takes it."""
    return [answer.text, answer.tokens, answer.finish, list(answer.ids)]


def other_words(loaded: LoadedModel, text: str) -> list[Any]:
    """An answer that the model would not give."""
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    return [text, len(ids), "length", ids]


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
        (column.adapter or "base") + str(prompt_ids(loaded, column, None)): answered(answer)
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
    given: dict[str, Any] = {"revision": None, "max_new_tokens": 12, "enable_thinking": None, "stop": StopSignal()}
    with batches.answering_by(engine, loaded, file.rows, folders, tell=told.append, **given) as ask:
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
    assert told == ["vLLM answers. In its greedy answers to 12 prompts each token is that of transformers."]
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
    server["adapter" + str(prompt_ids(loaded, column, None))] = other_words(loaded, "Something else.")
    (tmp_path / "answers.json").write_text(json.dumps(server), encoding="utf-8")
    with pytest.raises(StudioError, match=r"to \"Paint .*adapter says '.+' instead of '") as refused:
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
        server[served[each.adapter] + str(prompt_ids(loaded, each, None))] = answered(answer)
    (tmp_path / "answers.json").write_text(json.dumps(server), encoding="utf-8")
    lines: list[dict[str, Any]] = []
    engine, call = vllm.Served(), Call(1, GenerateBatch(batch="b", columns=SERVED[:2]), lines.append)
    try:
        phases: list[str] = []

        def doing(phase: str) -> AbstractContextManager[None]:
            phases.append(phase)
            return nullcontext()

        follow = partial(engine.follow, loaded, revision=None, check=lambda: None, doing=doing)
        assert follow({}) == 0
        started = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
        assert started[started.index("--max-loras") + 1] == "8"
        assert started[started.index("--max-model-len") + 1] == str(loaded.longest_text)
        assert phases == ["agreement", "vllm", "agreement"]
        monkeypatch.setattr(vllm, "generate", None)  # the tokens of a later adapter are scored
        assert follow({"adapter": str(trained.adapter)}) == 0
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
        follow({})
        told = json.loads((tmp_path / "loras.json").read_text(encoding="utf-8"))
        assert told == [["load", "adapter1"], ["unload", "adapter1"]]
        place = str(trained.adapter) + str(prompt_ids(loaded, asked[len(prompts)], None))
        server[place] = other_words(loaded, "Something else.")
        (tmp_path / "answers.json").write_text(json.dumps(server), encoding="utf-8")
        with pytest.raises(StudioError, match=r"adapter says '.+' instead of '"):
            follow({"adapter": str(trained.adapter)})
        port = started[started.index("--port") + 1]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
    finally:
        engine.close()


def test_a_client_that_leaves_ends_its_answer_at_vllm(
    loaded: LoadedModel, server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = vllm.free_port()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1f9d")  # the name by which a session is given its GPU
    monkeypatch.setattr(vllm, "by_number", lambda environ: {"CUDA_VISIBLE_DEVICES": "0"})
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


def test_a_token_that_is_as_likely_as_the_models_own_is_a_tie_and_no_difference(loaded: LoadedModel) -> None:
    asked = Column(None, [{"role": "user", "content": vllm.QUESTIONS[0]}])
    (ours,) = generate(loaded, [asked], greedy(loaded, 8))
    prompt = prompt_ids(loaded, asked, None)
    used, weights = {*prompt, *ours.ids}, loaded.base.get_input_embeddings().weight
    twin = next(token for token in range(len(weights)) if token not in used)
    ids = (*ours.ids[:2], twin, *ours.ids[3:])
    theirs = replace(ours, ids=ids, text=agreement.text_of(loaded, asked, prompt, ids))
    check = partial(
        agreement.check_agreement, loaded, [asked], [theirs], enable_thinking=None, engine="vLLM", hint="Use ours."
    )
    with pytest.raises(StudioError, match=r"the base says '.+' instead of '"):
        check([ours])
    before = weights[twin].clone()
    with torch.no_grad():
        weights[twin] = weights[ours.ids[2]]  # tied embeddings: from here on the two tokens are the same to the model
    try:
        ties = [check([ours]), check(None)]
    finally:
        with torch.no_grad():
            weights[twin] = before
    assert ties == ([1, 1] if twin > ours.ids[2] else [0, 0])  # of equals the first is the top-1 token
    assert "but for 1 as likely within 16-bit rounding" in vllm.in_words(20, 1)
    with pytest.raises(StudioError, match="does not name the tokens"):
        agreement.check_agreement(
            loaded, [asked], [replace(ours, ids=())], [ours], enable_thinking=None, engine="vLLM", hint=""
        )
    assert [agreement.tie_nats(kind) for kind in (torch.bfloat16, torch.float16, torch.float32)] == [0.5, 0.0625, 0.01]


def test_vllm_makes_room_for_what_is_asked_or_for_what_the_memory_holds(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, gib = loaded.longest_text, 1 << 30
    assert whole is not None
    memory = Memory(0, 0, 0, free=40 * gib, total=48 * gib)
    monkeypatch.setattr(vllm, "read_memory", lambda: memory)
    monkeypatch.setattr(vllm, "LEAST_LENGTH", 8)
    assert vllm.served_length(loaded, 40) == 40
    assert vllm.served_length(loaded, 10 * whole) == whole
    assert vllm.served_length(loaded, None) == whole
    weights, token = sum(weight.nbytes for weight in loaded.base.parameters()), 1 << 20
    assert loaded.cached_tokens(token) == token // loaded_bytes(loaded, 1)
    needed = vllm.RESERVE + weights + loaded_bytes(loaded, 100)
    monkeypatch.setattr(vllm, "read_memory", lambda: replace(memory, free=int(needed / vllm.FREE_SHARE) + 1))
    assert vllm.served_length(loaded, None) == 100
    words = vllm.command(loaded, {"base": ""}, None, 1, length=100)
    assert words[words.index("--max-model-len") + 1] == "100"
    server = vllm.VllmServer(1, "", 30)
    with pytest.raises(StudioError, match="vLLM reads at most 30 here"):
        server.answer(loaded, batch_prompt(column("word " * 40)))


def loaded_bytes(loaded: LoadedModel, tokens: int) -> int:
    config: Any = loaded.base.config
    heads = config.num_key_value_heads * config.head_dim
    return int(2 * config.num_hidden_layers * heads * loaded.base.dtype.itemsize * tokens)
