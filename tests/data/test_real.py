"""Real tokenizers on real files: ids and labels as the tokenizers' own apply_chat_template makes them."""

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from lora_studio.data.dataset import prepare
from lora_studio.data.messages import FORMS, IGNORED, Conversation, Message
from lora_studio.data.report import inspect
from lora_studio.data.word_tokens import WordEncoder
from lora_studio.errors import StudioError

pytestmark = pytest.mark.real

END_TOKENS = ("<|im_end|>", "<|end|>", "</s>")
MISTRALS_CALL = "[TOOL_CALLS]"
TOKENIZERS = ("qwen3", "minimind", "phi-3-mini", "mistral-7b-instruct-v3")
FILES = {
    "llama-factory/alpaca_en_demo.json": ("alpaca", 999, 0),
    "llama-factory/identity.json": ("alpaca", 91, 0),
    "llama-factory/glaive_toolcall_en_demo.json": ("sharegpt", 300, 0),
    "llama-factory/reason_tool_use_demo_50.jsonl": ("messages", 50, 0),
    "llama-factory/wiki_demo.txt": ("text", 30, 0),
    "tinker-cookbook/conversations.jsonl": ("messages", 128, 0),
    "self-instruct/ag_news_classify.jsonl": ("prompt_completion", 200, 0),
    "gsm8k/test.jsonl": ("prompt_completion", 1319, 0),
    "mlx-examples/wwdc25-train.jsonl": ("prompt_completion", 1800, 0),
    "llms-from-scratch/instruction-data-with-preference.json": ("alpaca", 1100, 0),
    "xtuner/qwen35_tokenize_data.jsonl": ("messages", 12, 5),
    "eda-corpus/query.csv": ("prompt_completion", 394, 0),
    "eda-corpus/Question-Answer_Dataset.csv": ("prompt_completion", 196, 0),
    "ms-swift-tests/alpaca.csv": ("alpaca", 3, 0),
    "ms-swift-tests/chatml.jsonl": ("messages", 3, 0),
    "ms-swift-tests/sharegpt.jsonl": ("sharegpt", 3, 0),
    "ms-swift-tests/swift_multi.jsonl": ("prompt_completion", 3, 0),
    "ms-swift-tests/swift_pre.csv": ("text", 3, 0),
    "ms-swift-tests/multi_modal_1.jsonl": ("prompt_completion", 1, 2),
    "smollm2-customs/train-00000-of-00001.parquet": ("prompt_completion", 48, 0),
}


@functools.cache
def _tokenizer(real: Path, name: str) -> Any:
    return AutoTokenizer.from_pretrained(real / "tokenizers" / name)


@pytest.fixture(scope="module", params=TOKENIZERS)
def real_tokenizer(request: pytest.FixtureRequest, real: Path) -> Any:
    return _tokenizer(real, request.param)


@pytest.mark.parametrize(("name", "expected"), FILES.items())
def test_real_files_are_read_as_a_person_would_read_them(real, name, expected):
    found = inspect(str(real / "datasets" / name), _tokenizer(real, "qwen3"))
    assert (found["format"], found["rows"], found["bad_rows"]) == expected


def test_a_real_preference_file_is_refused_with_a_way_out(real):
    with pytest.raises(StudioError) as error:
        inspect(str(real / "datasets" / "llama-factory/dpo_en_demo.json"), _tokenizer(real, "qwen3"))
    assert error.value.hint


def test_of_a_real_file_of_marked_answers_the_good_half_is_read(real):
    found = inspect(str(real / "datasets" / "llama-factory/kto_en_demo.json"), _tokenizer(real, "qwen3"))
    assert (found["format"], found["usable_rows"], found["marked_bad_rows"], found["bad_rows"]) == ("kto", 150, 150, 0)
    assert "150 answers labelled good are trained; 150 labelled bad are ignored." in found["assumptions"]


def _confirmed(tokenizer: Any, chat: Conversation, source: str) -> tuple[list[int], list[int]]:
    """A row's ids and labels by `apply_chat_template` and the text's offsets alone.

    An answer begins where the prompt for it ends, and ends with the next end-of-turn token, the last one with the text.
    In a text that moves the system prompt to the newest question it begins with its own words. A special token that
    begins before an answer is the prompt's, also where it takes in the white space behind it.
    """
    more = {"tools": list(chat.tools) or None, "chat_template": source}
    messages = _as_the_template_takes_them(tokenizer, chat, more)
    text = tokenizer.apply_chat_template(messages, tokenize=False, **more)
    spans, told = [], 0
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.apply_chat_template(messages[:at], tokenize=False, add_generation_prompt=True, **more)
            start = next(
                (place for place, pair in enumerate(zip(prompt, text, strict=False)) if len(set(pair)) > 1), len(prompt)
            )
            if re.sub(r"<[^<>\s]+>", "", prompt[start:]).strip():
                start = text.index(message["content"].strip() or MISTRALS_CALL, told)
                start -= len(text[:start]) - len(text[:start].rstrip(" "))
            end = next(end for end in END_TOKENS if end in text[start:])
            last = at + 1 == len(messages)
            stop = told = len(text.rstrip()) if last else text.index(end, start) + len(end)
            if chat.messages[at].trained:
                spans.append((start, stop))
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ids = tokenizer.apply_chat_template(messages, return_dict=False, **more)
    special = set(tokenizer.get_added_vocab().values())
    trained = [
        any(begin < stop and end > start and (begin >= start or token not in special) for start, stop in spans)
        for token, (begin, end) in zip(ids, places, strict=True)
    ]
    return ids, [token if learned else IGNORED for token, learned in zip(ids, trained, strict=True)]


def _without_ends(tokenizer: Any, answer: str) -> str:
    """An answer less the end tokens of this tokenizer that the file has written into it."""
    ends = tuple(end for end in (*END_TOKENS, "<|endoftext|>") if end in tokenizer.get_added_vocab())
    while answer.endswith(ends):
        answer = answer.removesuffix(next(end for end in ends if answer.endswith(end)))
    return answer


def _as_the_template_takes_them(tokenizer: Any, chat: Conversation, more: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages in the first form that renders, without end tokens that the file has written into answers."""
    for form in FORMS:
        messages = chat.to_dicts(form)
        for message in messages:
            if message["role"] == "assistant" and message["content"]:
                message["content"] = _without_ends(tokenizer, message["content"])
        try:
            tokenizer.apply_chat_template(messages, tokenize=False, **more)
        except TemplateError:
            continue
        return messages
    raise AssertionError("no form renders")


@pytest.mark.parametrize("name", [name for name, (shape, _, _) in FILES.items() if shape != "text"])
def test_real_files_are_confirmed_token_by_token(real, real_tokenizer, name):
    prepared = prepare(
        str(real / "datasets" / name), real_tokenizer, max_length=1_000_000, validation_fraction=0, max_samples=40
    )
    chats = {chat.row: chat for chat in prepared.conversations}
    assert prepared.train
    for example in prepared.train:
        ids, labels = _confirmed(real_tokenizer, chats[example.row], prepared.template.source)
        assert example.input_ids == ids
        assert example.labels == labels
        trained = real_tokenizer.decode([label for label in labels if label != IGNORED])
        at = 0
        for message in chats[example.row].messages:
            if message.role == "assistant" and message.trained:
                answer = _without_ends(real_tokenizer, message.content.strip())
                place = trained.find(answer, at)
                assert place >= at
                at = place + len(answer)


USER, ANSWER = (
    {"role": "user", "content": "Wie heißt du? 🙂"},
    {"role": "assistant", "content": "Jörg.\n\n- naïve\n- 日本"},
)
MORE, END_OF_IT = {"role": "user", "content": "And 12 + 30?"}, {"role": "assistant", "content": "42"}
TALK = [USER, ANSWER, MORE, END_OF_IT]
PROBLEM = {"title": "Sum", "description": "Add two numbers.", "examples": [{"input": "1 2", "output": "3"}]}
# shape -> a row as people write it, and the conversation that it is
SHAPES: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "messages": ({"messages": TALK}, TALK),
    "system": (
        {"messages": [{"role": "system", "content": "Be kind."}, *TALK[:2]]},
        [{"role": "system", "content": "Be kind."}, *TALK[:2]],
    ),
    "typed parts": (
        {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]},
        TALK,
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human" if turn["role"] == "user" else "gpt", "value": turn["content"]} for turn in TALK
            ]
        },
        TALK,
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "12 and 30", "output": "42"},
        [{"role": "user", "content": "Add.\n\n12 and 30"}, END_OF_IT],
    ),
    "instruction": ({"instruction": MORE["content"], "output": "42"}, TALK[2:]),
    "prompt_completion": ({"prompt": MORE["content"], "completion": "42"}, TALK[2:]),
    "question and answer": ({"question": MORE["content"], "answer": "42"}, TALK[2:]),
    "query and response": ({"query": MORE["content"], "response": "42"}, TALK[2:]),
    "history": (
        {"history": [[USER["content"], ANSWER["content"]]], "query": MORE["content"], "response": "42"},
        TALK,
    ),
    "problem": (
        {**PROBLEM, "solution": "print(a + b)"},
        [
            {"role": "user", "content": "Sum\n\nAdd two numbers.\n\nExamples:\nInput: 1 2\nOutput: 3"},
            {"role": "assistant", "content": "print(a + b)"},
        ],
    ),
    "dialogue": ({"text": "Human: And 12 + 30?\n\nAssistant: 42"}, TALK[2:]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_confirmed_token_by_token(real_tokenizer, shape, write):
    row, turns = SHAPES[shape]
    prepared = prepare(str(write("rows.jsonl", [row] * 3)), real_tokenizer, max_length=10_000, validation_fraction=0)
    chat = Conversation(1, tuple(Message(**turn) for turn in turns))
    ids, labels = _confirmed(real_tokenizer, chat, prepared.template.source)
    for example in prepared.train:
        assert (example.input_ids, example.labels) == (ids, labels)


def test_text_is_trained_whole_and_ends(real_tokenizer, write):
    text = "Once upon a time, naïve 🙂.\n\nThe end."
    file = write("rows.jsonl", [{"text": text}])
    prepared = prepare(str(file), real_tokenizer, max_length=10_000, validation_fraction=0)
    (example,) = prepared.train
    ids = real_tokenizer(text)["input_ids"] + [real_tokenizer.eos_token_id]
    begins = ids[0] == real_tokenizer.bos_token_id
    assert example.input_ids == ids
    assert example.labels == ([IGNORED, *ids[1:]] if begins else ids)


def test_rows_of_tokens_stay_as_they_are(real_tokenizer, write):
    ids = real_tokenizer("What is it? It is 42.")["input_ids"]
    labels = [IGNORED] * 4 + ids[4:]
    file = write("rows.jsonl", [{"input_ids": ids, "labels": labels}] * 2)
    prepared = prepare(str(file), real_tokenizer, max_length=10_000, validation_fraction=0)
    assert [(example.input_ids, example.labels) for example in prepared.train] == [(ids, labels)] * 2


def test_what_is_not_the_answers_is_not_trained(real, real_tokenizer):
    prepared = prepare(
        str(real / "datasets/tinker-cookbook/conversations.jsonl"),
        real_tokenizer,
        validation_fraction=0,
        max_length=4096,
    )
    chats = {chat.row: chat for chat in prepared.conversations}
    assert len(prepared.train)
    for example in prepared.train:
        pairs = zip(example.input_ids, example.labels, strict=True)
        untrained = real_tokenizer.decode([token for token, label in pairs if label == IGNORED])
        assert all(m.content.strip() in untrained for m in chats[example.row].messages if m.role == "user")
        spoken = sum(len(m.content) for m in chats[example.row].messages if m.role == "assistant")
        trained = real_tokenizer.decode(
            [label for label in example.labels if label != IGNORED], skip_special_tokens=True
        )
        assert abs(len(trained.replace("<think>\n\n</think>\n\n", "")) - spoken) <= 2 * len(chats[example.row].messages)


@pytest.mark.slow
def test_another_mask_of_a_real_file_is_that_of_a_first_look(real, tmp_path):
    chosen = _tokenizer(real, "qwen3")
    for name in (
        "llama-factory/alpaca_en_demo.json",
        "llama-factory/wiki_demo.txt",
        "tinker-cookbook/conversations.jsonl",
    ):
        file = str(real / "datasets" / name)
        prepare(file, chosen, cache_folder=tmp_path)
        for mask in ("last_turn", "all"):
            again, fresh = (prepare(file, chosen, cache_folder=folder, train_on=mask) for folder in (tmp_path, None))
            assert list(again.train) == list(fresh.train)
            assert (again.fingerprint, again.part.facts) == (fresh.fingerprint, fresh.part.facts)


@pytest.mark.slow
def test_real_rows_have_the_ids_of_the_tokenizer(real, real_tokenizer):
    word_by_word = WordEncoder.of(real_tokenizer.backend_tokenizer) is not None
    for name in list(FILES)[:: 2 if word_by_word else 7]:
        prepared = prepare(str(real / "datasets" / name), real_tokenizer, validation_fraction=0, max_length=1 << 20)
        texts = [prepared.encoder.render(chat) for chat in prepared.conversations]
        encoded = real_tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        assert [row.ids for row in prepared.part.rows] == [encoding.ids for encoding in encoded]
