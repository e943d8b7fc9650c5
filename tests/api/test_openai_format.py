"""OpenAI's shapes: what a request means, what is refused and in which words, and what answers look like."""

from typing import Any

import pytest

from lora_studio.api import openai as wire
from lora_studio.chat.choices import choices
from lora_studio.errors import ApiError
from lora_studio.jobs.events import RunState
from lora_studio.jobs.protocol import ColumnAnswer
from lora_studio.workspace import RunFolder, Workspace
from tests.chat.test_chat_choices import make_run

HELLO = [{"role": "user", "content": "Hello"}]
COLUMN = ColumnAnswer(
    **{
        "text": "Arr",
        "tokens": 3,
        "prompt_tokens": 7,
        "finish": "eos",
        "first_token_seconds": 0.1,
        "tokens_per_second": 9.0,
    }
)


def asked(**given: Any) -> wire.ChatRequest:
    return wire.read({"model": "demo", "messages": HELLO} | given)


def understood(**given: Any) -> None:
    request = asked(**given)
    wire.settings_of(request)
    wire.messages_of(request, "")


def test_sampling_is_asked_for_in_openais_words_and_checked_by_the_schema() -> None:
    settings = wire.settings_of(asked(temperature=0.7, top_p=0.9, max_tokens=5, seed=3, top_k=4))
    assert (settings["temperature"], settings["top_p"], settings["max_new_tokens"]) == (0.7, 0.9, 5)
    assert (settings["seed"], settings["top_k"]) == (3, 4)
    assert wire.settings_of(asked(max_tokens=5, max_completion_tokens=6))["max_new_tokens"] == 6
    assert wire.settings_of(asked())["temperature"] == 0
    assert len({wire.settings_of(asked())["seed"] for _ in range(3)}) > 1


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"seed": -1}, "seed"),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Arr"}]}, "messages"),
    ],
)
def test_what_cannot_be_done_is_refused_and_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        understood(**given)
    assert (error.value.status, error.value.param) == (400, param)
    assert error.value.body()["error"]["type"] == "invalid_request_error"
    assert "Input should" not in error.value.message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tools": [{"type": "function"}]}, "Tools are not supported: omit `tools`"),
        ({"n": 2}, "Only one answer per request is supported: omit `n`"),
        ({"max_tokens": -5}, "`max_tokens` must be at least 1"),
        ({"messages": []}, "`messages` must not be empty"),
        ({"messages": "Hello"}, "`messages` must be a list"),
        ({"messages": ["Hello"]}, r"`messages\.0` must be an object"),
    ],
)
def test_a_refusal_says_in_plain_words_what_was_sent(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words):
        understood(**given)


def test_a_body_that_is_no_object_is_refused() -> None:
    with pytest.raises(ApiError, match="JSON object"):
        wire.read([])
    with pytest.raises(ApiError, match="`model` is required"):
        wire.read({"messages": HELLO})


def test_what_bears_on_no_answer_is_let_pass() -> None:
    plain = wire.settings_of(asked(seed=1))
    beside = {"user": "me", "store": False, "n": 1, "presence_penalty": 0, "tools": [], "logprobs": False}
    assert wire.settings_of(asked(seed=1, frequency_penalty=0.0, **beside)) == plain


def test_an_adapter_gets_the_system_prompt_it_was_trained_with_unless_the_request_has_one() -> None:
    assert wire.messages_of(asked(), "Be a pirate.")[0] == {"role": "system", "content": "Be a pirate."}
    own = [{"role": "developer", "content": "Be brief."}, *HELLO]
    assert wire.messages_of(asked(messages=own), "Be a pirate.")[0] == {"role": "system", "content": "Be brief."}
    none = [{"role": "system", "content": ""}, *HELLO]
    assert wire.messages_of(asked(messages=none), "Be a pirate.") == HELLO


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert wire.messages_of(asked(messages=[{"role": "user", "content": parts}]), "") == HELLO


def test_stop_texts_may_have_several_lines() -> None:
    assert wire.stops_of(asked(stop="\n\n")) == ["\n\n"]
    assert wire.stops_of(asked(stop=["a", ""])) == ["a"]
    assert wire.stops_of(asked()) == []


@pytest.fixture
def run(workspace: Workspace) -> RunFolder:
    return make_run(workspace, "Pirate", adapter=True, steps=(8,), system_prompt="Be a pirate.")


def test_the_base_and_every_run_with_an_adapter_are_models(workspace: Workspace, run: RunFolder) -> None:
    found = choices(workspace, [RunState(run.id, "Pirate", "done")])
    assert [model.id for model in wire.listed_models(found)] == ["demo", run.id]
    base, adapter = wire.listed_models(found)
    assert base.selection.adapters == ()
    assert adapter.selection.of_base == base.selection.of_base
    assert adapter.body()["parent"] == "demo"
    assert wire.named_model(found, f"{run.id}/checkpoint-8").adapter == f"{run.id}/checkpoint-8"
    with pytest.raises(ApiError, match="no model 'gpt'") as error:
        wire.named_model(found, "gpt")
    assert (error.value.status, error.value.code) == (404, "model_not_found")


def test_an_answer_says_why_it_ended_and_what_it_took() -> None:
    whole = wire.Reply("demo").whole(COLUMN)
    assert whole["choices"][0]["message"]["content"] == "Arr"
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert (
        wire.Reply("demo").whole(COLUMN.model_copy(update={"finish": "length"}))["choices"][0]["finish_reason"]
        == "length"
    )
    assert len(wire.Reply("demo").ending(COLUMN, with_usage=False)) == 1
    assert wire.Reply("demo").ending(COLUMN, with_usage=True)[-1]["choices"] == []
