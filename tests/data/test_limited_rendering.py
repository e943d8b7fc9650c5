"""A chat template that never ends, or takes all memory, ends as a sentence; what comes after it is rendered as ever."""

import os
import re
import signal
import time
from array import array
from pathlib import Path

import psutil
import pytest
from conftest import MARKED, build_tokenizer
from jinja2 import TemplateError

from lora_studio.data import render_process
from lora_studio.data.chat_templates import choose_template
from lora_studio.data.dataset import prepare
from lora_studio.data.encode import Encoder
from lora_studio.data.messages import Conversation, Message, RowError
from lora_studio.data.render import REFUSED, Renderer, rules_of
from lora_studio.data.render_process import LimitedRenderer, render_text
from lora_studio.data.word_cutting import Cutting
from lora_studio.errors import StudioError
from lora_studio.export.ollama import to_go

CHAT = Conversation(1, (Message("user", "Hi"), Message("assistant", "Hello.")))
LOOPS = "".join(f"{{% for {name} in range(99999) %}}" for name in "ijk") + "{% endfor %}" * 3
ENDLESS = {
    "loops in loops": LOOPS,
    "a power while compiling": "{{ 3 ** (10 ** 8) }}",
    "a power of the row's": "{{ (messages | length) * 7 ** (messages | length * 10 ** 9) }}",
    "a macro that forks": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}
VAST = {
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "a text that doubles": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
    ),
    "a wide text": "{{ 'a'.center(10 ** 10) }}",
    "more than any row holds": "{{ 'a' * 40000000 }}",
}
FAULTY = {
    "a macro without an end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "too long a range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "nothing to divide by": "{{ 1 / (messages | length - messages | length) }}",
}
UNREADABLE = {
    "loops too deep for Python": "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
    "brackets too deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}


@pytest.fixture
def hurried(monkeypatch):
    """Limits that a test can wait for."""
    monkeypatch.setattr(render_process, "MAX_ROW_SECONDS", 0.2)
    monkeypatch.setattr(render_process, "MAX_TEXT_SECONDS", 0.2)


def _encoder(template):
    tokenizer = build_tokenizer(template)
    chosen = choose_template(tokenizer, "auto")
    return Encoder(tokenizer, chosen, max_length=1 << 20, truncation="drop", train_on="assistant")


@pytest.mark.slow
@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_never_ends_ends_as_a_sentence(template, hurried):
    with pytest.raises(StudioError, match="does not finish"):
        _encoder(template + MARKED).encode([CHAT])
    with pytest.raises(StudioError, match="does not finish"):
        render_text(template, {}, CHAT.to_dicts(), prompt=True)
    examples, _ = _encoder(MARKED).encode([CHAT])
    assert len(examples) == 1


@pytest.mark.parametrize("template", VAST.values(), ids=VAST)
def test_a_template_that_takes_all_memory_ends_as_a_sentence(template):
    with pytest.raises(StudioError, match=r"needs more than|writes more than"):
        _encoder(template + MARKED).encode([CHAT])
    assert render_text("{{ messages[0].content }}", {}, CHAT.to_dicts(), prompt=True) == "Hi"


@pytest.mark.parametrize("template", FAULTY.values(), ids=FAULTY)
def test_a_template_that_fails_in_pythons_own_ways_makes_bad_rows(template):
    _, bad_rows = _encoder(template + MARKED).encode([CHAT])
    assert [bad.reason for bad in bad_rows] == [REFUSED]
    with pytest.raises(TemplateError):
        render_text(template, {}, CHAT.to_dicts(), prompt=True)


@pytest.mark.parametrize("template", UNREADABLE.values(), ids=UNREADABLE)
def test_a_template_that_python_can_not_compile_is_refused(template):
    with pytest.raises(StudioError, match=r"cannot be (read|parsed)"):
        _encoder(template + MARKED)


@pytest.mark.slow
def test_a_file_is_not_prepared_with_a_template_that_never_ends(write, hurried):
    rows = [{"messages": CHAT.to_dicts()}] * 4
    with pytest.raises(StudioError, match="does not finish"):
        prepare(str(write("a.jsonl", rows)), build_tokenizer(LOOPS + MARKED))


def test_only_the_conversation_that_a_template_chokes_on_ends_it(hurried):
    encoder = _encoder("{% if messages[0].content == 'boom' %}" + LOOPS + "{% endif %}" + MARKED)
    examples, _ = encoder.encode([CHAT])
    assert len(examples) == 1
    with pytest.raises(StudioError, match="does not finish"):
        encoder.encode([CHAT, Conversation(2, (Message("user", "boom"), CHAT.messages[1]))])
    assert len(encoder.encode([CHAT])[0]) == 1


def test_an_export_for_ollama_does_not_wait_for_a_template(hurried):
    with pytest.raises(StudioError, match="does not finish"):
        to_go(LOOPS + MARKED, {})


def test_the_other_process_renders_what_this_one_does():
    tokenizer = build_tokenizer(MARKED)
    rules = rules_of(tokenizer, choose_template(tokenizer, "auto"), "assistant")
    chats = [
        CHAT,
        Conversation(2, text="Plain 🙂 \u2028 text"),
        Conversation(3, (CHAT.messages[0], Message("tool", "x"))),
    ]
    plain = Renderer(rules)
    assert [str(vars_of(one)) for one in LimitedRenderer(rules).render(chats)] == [
        str(vars_of(plain.render(chat))) for chat in chats
    ]


def vars_of(result):
    return (result.reason, result.found) if isinstance(result, Exception) else (result.text, result.spans)


def test_a_process_that_was_killed_is_started_again():
    assert render_text("{{ 1 }}", {}, [], prompt=False) == "1"
    child = render_process._processes().idle.queue[-1].child
    os.kill(child.pid, signal.SIGKILL)
    psutil.Process(child.pid).wait()
    assert render_text("{{ 2 }}", {}, [], prompt=False) == "2"


def test_a_request_does_not_wait_for_a_busy_process_and_a_row_is_cut_as_its_text_is():
    processes = render_process._processes()
    busy = processes.idle.get()
    try:
        tokenizer = build_tokenizer(MARKED)
        rules = rules_of(tokenizer, choose_template(tokenizer, "auto"), "assistant")
        cutting = Cutting(r"\w+|\W", ("<|im_end|>",), beyond_ascii=False, form=None)
        chats = [
            CHAT,
            Conversation(2, (Message("user", "é"), *CHAT.messages[1:])),
            Conversation(3, (Message("tool", "x"),)),
        ]
        cut = LimitedRenderer(rules, cutting).render_and_cut(chats)
    finally:
        processes.idle.put(busy)
    first, second, refused = cut.results
    places, beyond = cut.words
    assert beyond is None
    assert "".join(cut.vocabulary[place] for place in array("I", places)) == first.text
    assert "é" in second.text
    assert isinstance(refused, RowError)


def test_templates_run_in_the_process_that_can_be_ended_and_nowhere_else():
    package = Path(render_process.__file__).parents[1]
    running = re.compile(
        r"\b(ChatTemplate|Renderer)\(|\.apply_chat_template\(|render_jinja_template|jinja2.*Environment\("
    )
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if running.search(re.sub(r"class \w+\(.*|LimitedRenderer\(", "", path.read_text(encoding="utf-8")))
    }
    # The card and the chat app name the call in what others run.
    ours = {"export/card.py", "engine/space_app.py"}
    assert found - ours == {"data/render.py", "data/render_process.py"}


def test_an_idle_process_takes_no_time_that_counts(hurried):
    render_text("{{ 1 }}", {}, [], prompt=False)
    time.sleep(0.1)
    for _ in range(200):
        render_text("{% for i in range(2000) %}{{ i }}{% endfor %}", {}, [], prompt=False)
