"""Base and adapters in one batch answer as each would alone; text comes in whole characters while they do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompileConfig, StaticCache

from lora_studio.data import render_process
from lora_studio.engine.chat.batch import BatchPrompt, generate_batch, joins
from lora_studio.engine.chat.generate import (
    Answer,
    Column,
    generate,
    generation_config,
    greedy,
    prompt_ids,
)
from lora_studio.engine.models.multi_adapter import LoadedModel, add_adapters, current_modules, load_base
from lora_studio.errors import StudioError
from lora_studio.workspace import RunFolder
from tests.engine.conftest import MakeRun, build_tokenizer, run_worker

QUESTIONS = (
    "Paint the sky green, please.",
    "Paint the rose black, please. Thank you. Thank you. Thank you.",
    "x",
    "Which colour is coal?\nAnd snow? ünïcödé ✓",
)
LONGEST = 24


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def alone_with(model: Any, tokenizer: Any, text: str) -> tuple[int, ...]:
    """What transformers' own generate says to one unpadded prompt."""
    prompt = tokenizer.apply_chat_template(ask(text), add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        output = model.generate(**prompt, max_new_tokens=LONGEST, do_sample=False)
    return tuple(output[0, prompt["input_ids"].shape[1] :].tolist())


@pytest.fixture(scope="module")
def dora(make_run: MakeRun) -> RunFolder:
    run = make_run(lora__use_dora=True, training__max_steps=2)
    assert run_worker(run) == 0
    return run


@pytest.fixture(scope="module")
def loaded(base: Path, trained: RunFolder) -> LoadedModel:
    loaded = load_base(str(base))
    add_adapters(loaded, {"run.1": trained.adapter, "early": trained.checkpoints / "checkpoint-4"})
    return loaded


def test_no_column_makes_a_copy_of_the_output_layer(loaded: LoadedModel) -> None:
    strides = set[bool]()

    def look(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        strides.add(inputs[0].stride() == torch.empty(inputs[0].shape).stride())

    watch = loaded.model.get_output_embeddings().register_forward_pre_hook(look)
    for names in ((None,), (None, "run.1")):
        generate(loaded, [Column(name, ask(QUESTIONS[1])) for name in names], greedy(loaded, 4))
    watch.remove()
    assert strides == {True}, "PyTorch copies a matrix that it multiplies a slice with"


def test_adapters_are_kept_in_the_precision_of_their_base(base: Path, trained: RunFolder) -> None:
    loaded = load_base(str(base), dtype="bfloat16")
    add_adapters(loaded, {"adapter": trained.adapter})
    kept = {weight.dtype for name, weight in loaded.model.named_parameters() if ".lora_" in name}
    assert kept == {torch.bfloat16}


@pytest.mark.slow
def test_the_adapter_loads_by_its_own_note_of_the_base(trained: RunFolder) -> None:
    model = AutoPeftModelForCausalLM.from_pretrained(trained.adapter)
    tokenizer = AutoTokenizer.from_pretrained(trained.adapter)
    assert tokenizer.decode(alone_with(model, tokenizer, QUESTIONS[0]))


@pytest.mark.slow
def test_pieces_add_up_to_the_answers(loaded: LoadedModel) -> None:
    heard = ["", ""]
    counts: list[list[int]] = []

    def listen(texts: list[str], tokens: list[int]) -> None:
        counts.append(tokens)
        for at, text in enumerate(texts):
            heard[at] += text

    answers = generate(
        loaded, [Column(None, ask("a")), Column("run.1", ask("b"))], greedy(loaded, LONGEST), on_pieces=listen
    )
    assert heard == [answer.text for answer in answers]
    assert counts[-1] == [answer.tokens for answer in answers]
    assert [answer.text for answer in answers] == [
        loaded.tokenizer.decode(list(answer.ids), skip_special_tokens=True) for answer in answers
    ]


@pytest.mark.slow
def test_a_stop_ends_all_columns_after_the_token(loaded: LoadedModel) -> None:
    answers = generate(
        loaded, [Column(None, ask("a")), Column("run.1", ask("a"))], greedy(loaded, 200), stop=lambda: True
    )
    assert [answer.tokens for answer in answers] == [1, 1]
    assert "stopped" in {answer.finish for answer in answers}


def test_every_sampling_setting_reaches_the_model_and_none_of_them_at_temperature_0(loaded: LoadedModel) -> None:
    given = {"max_new_tokens": 7, "top_p": 0.8, "top_k": 9, "min_p": 0.1, "repetition_penalty": 1.2}
    sampled = generation_config(loaded, temperature=0.7, **given)
    assert sampled.to_diff_dict().items() >= {"do_sample": True, "temperature": 0.7, **given}.items()
    likeliest = generation_config(loaded, temperature=0, **given)
    assert (likeliest.do_sample, likeliest.max_new_tokens, likeliest.repetition_penalty) == (False, 7, 1.2)
    assert (likeliest.top_p, likeliest.top_k, likeliest.min_p) == (None, None, None)


@pytest.mark.slow
def test_sampling_repeats_with_its_seed_and_varies_without(loaded: LoadedModel) -> None:
    def sample(seed: int) -> tuple[int, ...]:
        settings = generation_config(
            loaded, max_new_tokens=LONGEST, temperature=2.0, top_p=0.95, top_k=50, repetition_penalty=1.1
        )
        return generate(loaded, [Column(None, ask("a"))], settings, seed=seed)[0].ids

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


@pytest.mark.slow
def test_adapters_that_can_not_share_a_batch_answer_one_after_the_other(
    base: Path, dora: RunFolder, trained: RunFolder
) -> None:
    loaded = load_base(str(base))
    add_adapters(loaded, {"dora": dora.adapter, "lora": trained.adapter})
    assert not loaded.shares(loaded.adapters)
    names = (None, "dora", "lora")
    answers = generate(loaded, [Column(name, ask(QUESTIONS[0])) for name in names], greedy(loaded, LONGEST))
    tokenizer = AutoTokenizer.from_pretrained(dora.adapter)
    models = [AutoModelForCausalLM.from_pretrained(base)]
    models += [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), each.adapter) for each in (dora, trained)
    ]
    assert [answer.ids for answer in answers] == [alone_with(model, tokenizer, QUESTIONS[0]) for model in models]
    bare, last, lora = answers
    assert 0 < bare.first_token_seconds <= bare.seconds
    assert last.first_token_seconds > max(bare.seconds, lora.seconds)  # counted from the question on
    assert last.tokens_per_second == pytest.approx(last.tokens / last.seconds)
    # One that has hardly room left after its prompt does not shorten what others may say.
    long = Column(None, ask("Paint " * 115))
    assert 0 < 256 - len(prompt_ids(loaded, long, None)) < LONGEST
    full, other = generate(loaded, [long, Column("dora", ask(QUESTIONS[0]))], greedy(loaded, LONGEST))
    assert full.tokens < LONGEST
    assert other.ids == last.ids


@pytest.mark.slow
def test_what_can_not_be_answered_is_a_plain_error(loaded: LoadedModel) -> None:
    with pytest.raises(StudioError, match="adapter 'other' is not loaded"):
        generate(loaded, [Column("other", ask("a"))], greedy(loaded, 4))
    with pytest.raises(StudioError, match="reads at most 256"):
        generate(loaded, [Column(None, ask("Paint " * 300))], greedy(loaded, 4))


@pytest.mark.slow
def test_a_template_that_never_ends_costs_one_answer_and_not_what_is_loaded(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    question = [Column("run.1", ask(QUESTIONS[0]))]
    before = generate(loaded, question, greedy(loaded, 4), seed=0)
    monkeypatch.setattr(render_process, "MAX_TEXT_SECONDS", 0.2)
    with monkeypatch.context() as patch:
        patch.setitem(loaded.templates, "run.1", loops + loaded.template("run.1"))
        with pytest.raises(StudioError, match="does not finish"):
            generate(loaded, question, greedy(loaded, 4), seed=0)
    assert generate(loaded, question, greedy(loaded, 4), seed=0)[0].ids == before[0].ids


def test_an_answer_goes_out_without_its_ids() -> None:
    assert "ids" not in Answer("a", 1, 1.0, 1.0, 1.0, "eos", (1,)).to_dict()


SETTINGS = {"max_new_tokens": LONGEST, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
SETTINGS |= {"min_p": 0.0, "seed": 0, "enable_thinking": None}
REQUESTS = [
    (None, QUESTIONS[0], SETTINGS),
    ("run.1", QUESTIONS[1], SETTINGS | {"max_new_tokens": 5}),
    ("early", QUESTIONS[2], SETTINGS | {"repetition_penalty": 1.3}),
    ("run.1", QUESTIONS[3], SETTINGS | {"temperature": 0.9, "seed": 7}),
    (None, QUESTIONS[1], SETTINGS | {"temperature": 1.4, "seed": 8, "top_p": 0.9, "top_k": 40, "min_p": 0.01}),
    ("early", QUESTIONS[0], SETTINGS),
]
"""Requests that differ in who answers, in the length of the prompt, and in every setting."""


def batch_of(requests: list[Any]) -> list[BatchPrompt]:
    return [BatchPrompt(Column(adapter, ask(text)), settings) for adapter, text, settings in requests]


def in_batch(loaded: LoadedModel, prompts: list[BatchPrompt], **options: Any) -> dict[int, Any]:
    ended: dict[int, Any] = {}

    def end(position: int, answer: Any) -> None:
        assert position not in ended
        ended[position] = answer

    options.setdefault("on_pieces", lambda positions, texts, tokens: None)
    generate_batch(loaded, prompts, on_end=end, **options)
    return ended


def test_requests_in_one_batch_are_answered_as_each_alone_greedily_and_sampled(loaded: LoadedModel) -> None:
    pieces = [""] * len(REQUESTS)

    def grow(positions: list[int], texts: list[str], _tokens: list[int]) -> None:
        for at, text in zip(positions, texts, strict=True):
            pieces[at] += text

    together = in_batch(loaded, batch_of(REQUESTS), on_pieces=grow)
    for at, (adapter, text, settings) in enumerate(REQUESTS):
        values = {name: value for name, value in settings.items() if name not in ("seed", "enable_thinking")}
        (answer,) = generate(
            loaded, [Column(adapter, ask(text))], generation_config(loaded, **values), seed=int(settings["seed"] or 0)
        )
        assert (together[at].ids, together[at].finish) == (answer.ids, answer.finish), at
        assert together[at].text == pieces[at] == answer.text


def coming(*requests: tuple[int, list[BatchPrompt]]) -> Any:
    """What gives requests after so many tokens of those that are being answered."""
    calls, due = iter(range(10_000)), dict(requests)
    return lambda: due.pop(next(calls), [])


def test_requests_that_come_while_others_are_answered_join_them_and_change_no_answer(loaded: LoadedModel) -> None:
    alone = [in_batch(loaded, [request])[0] for request in batch_of(REQUESTS)]
    asked, sizes = batch_of(REQUESTS), list[int]()
    watch = loaded.base.register_forward_pre_hook(
        lambda _module, _inputs, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    together = in_batch(loaded, asked[:2], more=coming((2, asked[2:4]), (3, asked[4:5]), (9, asked[5:])))
    watch.remove()
    for at, answer in enumerate(alone):
        assert (together[at].ids, together[at].finish, together[at].text) == (answer.ids, answer.finish, answer.text)
    assert sizes[:5] == [2, 2, 2, 2, 4], "two read their prompts and answer, two more read theirs and join them"
    assert max(sizes) == 5
    assert sizes[-1] < max(sizes), "rows that ended leave their places"
    first = next(at for at, request in enumerate(REQUESTS) if request[0] is None)
    tokenizer, model = loaded.tokenizer, AutoModelForCausalLM.from_pretrained(loaded.name)
    assert together[first].ids == alone_with(model, tokenizer, REQUESTS[first][1])


WINDOW, LONG = 6, "Paint the rose black, please. Thank you."
FAMILIES = {
    "mistral": {"sliding_window": WINDOW},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
}
"""Caches of keys and values that differ: a window alone, a window in some layers, none and learned positions."""


WAITS = {"bloom": {"n_layer": 2, "n_head": 2}, "mamba": {"state_size": 8}}
"""Families that requests can't join: they take no positions (ALiBi), or keep no keys and values."""


@pytest.mark.parametrize("family", [*FAMILIES, *WAITS])
def test_a_request_that_comes_is_answered_as_plain_transformers_does_whatever_holds_the_past(family: str) -> None:
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    given = {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "eos_token_id": None}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, **{**given, "pad_token_id": 0, "tie_word_embeddings": False, **sizes, **{**FAMILIES, **WAITS}[family]}
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        weight.data += 0.5 * torch.randn_like(weight)  # else nearly all tokens are as likely
    loaded = LoadedModel(family, model, tokenizer, current_modules(model))
    assert joins(loaded) == (family not in WAITS)
    settings = SETTINGS | {"repetition_penalty": 1.5}  # a random model repeats itself
    asked = [
        BatchPrompt(Column(None, ask(text)), settings | {"max_new_tokens": n}) for text, n in ((LONG, 8), ("x", 24))
    ]
    said = []
    for each in asked:
        ids = torch.tensor([prompt_ids(loaded, each.column, None)])
        settings = {"max_new_tokens": each.settings["max_new_tokens"], "repetition_penalty": 1.5, "do_sample": False}
        said.append(
            tuple(model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist())
        )
    assert len({*said[0], *said[1]}) > 4
    for order in ((0, 1), (1, 0)):
        together = in_batch(loaded, [asked[order[0]]], more=coming((0 if family in WAITS else 3, [asked[order[1]]])))
        assert [together[0].ids, together[1].ids] == [said[at] for at in order]


def test_one_request_of_a_batch_ends_or_fails_and_the_others_go_on(loaded: LoadedModel) -> None:
    alone = in_batch(loaded, batch_of(REQUESTS[:1]))[0]
    prompts = [*batch_of([REQUESTS[0], REQUESTS[5], (None, "word " * 400, SETTINGS)])]
    left = {1}
    together = in_batch(loaded, prompts, stopped_columns=left)
    assert together[0].ids == alone.ids
    assert together[1].finish == "stopped"
    assert len(together[1].ids) <= 1
    assert isinstance(together[2], StudioError)
    assert "reads at most 256" in together[2].message
    stops = BatchPrompt(prompts[0].column, SETTINGS, [alone.text[3:6]])
    assert in_batch(loaded, [prompts[1], stops])[1].text == alone.text[: alone.text.index(alone.text[3:6])]


def test_a_static_cache_gives_the_answers_of_the_dynamic_one_with_base_and_adapters_in_one_batch(
    loaded: LoadedModel,
) -> None:
    columns = [Column(name, ask(text)) for name, text in zip((None, "run.1", "early"), QUESTIONS, strict=False)]
    plain = generate(loaded, columns, greedy(loaded, LONGEST))
    assert len({answer.ids for answer in plain}) == 3
    static = generate(loaded, columns, greedy(loaded, LONGEST, "static"))
    assert [answer.ids for answer in static] == [answer.ids for answer in plain]
    caches, settings = [], {**SETTINGS, "cache_implementation": "static"}
    watch = loaded.base.register_forward_pre_hook(
        lambda _module, _inputs, named: caches.append(type(named["past_key_values"])), with_kwargs=True
    )
    ended: dict[int, Any] = {}
    asked = [BatchPrompt(column, {**settings, "max_new_tokens": LONGEST}) for column in columns]
    generate_batch(loaded, asked, on_pieces=lambda positions, texts, tokens: None, on_end=ended.__setitem__)
    watch.remove()
    assert [ended[at].ids for at in range(3)] == [answer.ids for answer in plain]
    assert set(caches) == {StaticCache}


@pytest.mark.slow
def test_a_batch_with_adapters_is_compiled_as_one_graph(loaded: LoadedModel) -> None:
    """As on a GPU, with the backend that traces the model and runs the graph as it is."""
    columns = [Column(None, ask(QUESTIONS[0])), Column("run.1", ask(QUESTIONS[0]))]
    plain = [answer.ids for answer in generate(loaded, columns, greedy(loaded, 8))]
    settings = greedy(loaded, 8, "static")
    settings.compile_config = CompileConfig(backend="eager", mode=None)
    settings.compile_config._compile_all_devices = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        assert [answer.ids for answer in generate(loaded, columns, settings)] == plain
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_static_cache_is_refused_where_the_library_would_ignore_it(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Column("run.1", ask("a"))]
    monkeypatch.setattr(LoadedModel, "virtual_tokens", lambda self, column: 4)
    with pytest.raises(StudioError, match=r"cannot be static: run\.1 puts virtual tokens"):
        generate(loaded, asked, greedy(loaded, 4, "static"))
    monkeypatch.undo()
    monkeypatch.setattr(type(loaded.base), "_supports_default_dynamic_cache", classmethod(lambda cls: False))
    with pytest.raises(StudioError, match="keeps a state of its own kind"):
        generate(loaded, asked, greedy(loaded, 4, "static"))
    assert generate(loaded, asked, greedy(loaded, 1))[0].tokens == 1
