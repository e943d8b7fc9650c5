"""A session's requests, answers, stops and deaths, with a child that has no model."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lora_studio.errors import EngineError, StudioError
from lora_studio.jobs.protocol import Progress, Waiting
from lora_studio.jobs.session import Session
from tests.jobs.requests import Babble, Count, Counted, Die, Echo, Fail, Half, Hang

FAKE = [sys.executable, str(Path(__file__).with_name("fake_session.py"))]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Session(tmp_path / "logs" / "session.log", command=FAKE) as session:
        yield session


def test_the_child_starts_with_the_first_request_and_stays(session: Session) -> None:
    assert not session.running
    first, second = session.call(Echo(word="hé")), session.call(Echo(word="two"))
    assert (first.word, second.word) == ("hé", "two")
    assert first.pid == second.pid
    assert session.running


def test_progress_comes_in_order_and_the_result_last(session: Session) -> None:
    answers = list(session.stream(Count(to=5)))
    assert [type(answer) for answer in answers] == [Progress] * 5 + [Counted]
    assert [getattr(answer, "done", None) for answer in answers] == [1, 2, 3, 4, 5, 5]


def test_an_answer_that_lacks_a_field_is_no_answer_and_the_child_is_replaced(session: Session) -> None:
    with pytest.raises(EngineError, match="did not answer 'half'"):
        session.call(Half())
    assert session.call(Echo(word="new child")).word == "new child"


def test_progress_is_handed_on_while_a_call_waits(session: Session) -> None:
    seen: list[int] = []
    session.call(Count(to=3), on_progress=lambda progress: seen.append(progress.done))
    assert seen == [1, 2, 3]


def test_an_error_answer_becomes_a_studio_error_and_the_child_lives_on(session: Session) -> None:
    with pytest.raises(StudioError) as raised:
        session.call(Fail())
    assert (raised.value.message, raised.value.hint) == ("The model cannot be found.", "Check its name.")
    assert session.call(Echo(word="still here")).word == "still here"


def test_each_request_says_whether_it_is_answered_without_the_machines_token(tmp_path: Path) -> None:
    visitors = iter([True, False])
    with Session(tmp_path / "session.log", command=FAKE, tokenless=lambda: next(visitors)) as session:
        assert session.call(Echo()).tokenless is True
        assert session.call(Echo()).tokenless is False


def test_a_dead_child_is_told_with_its_last_words_and_replaced(session: Session) -> None:
    before = session.call(Echo()).pid
    with pytest.raises(StudioError, match="ended unexpectedly") as raised:
        session.call(Die())
    assert "out of luck" in raised.value.hint
    assert session.call(Echo()).pid != before


def test_a_child_that_breaks_the_protocol_is_ended_and_quoted(session: Session) -> None:
    with pytest.raises(StudioError, match="Loading weights: 100%"):
        session.call(Babble())
    assert session.call(Echo(word="new child")).word == "new child"


def test_a_killed_child_is_said_to_have_run_out_of_memory(session: Session) -> None:
    pid = session.call(Echo()).pid
    with pytest.raises(StudioError, match="out of memory") as raised:
        session.call(Count(to=30_000), on_progress=lambda _: os.kill(pid, 9))
    assert raised.value.hint == "The next request starts a new process."


def test_stop_from_another_thread_ends_the_running_request(session: Session) -> None:
    answers = session.stream(Count(to=30_000))
    next(answers)
    threading.Thread(target=session.stop).start()
    last = list(answers)[-1]
    assert isinstance(last, Counted)
    assert last.done < 30_000


def test_stop_without_a_child_or_a_request_is_no_error(session: Session) -> None:
    session.stop()
    session.call(Echo())
    session.stop()
    assert session.call(Count(to=3)).done == 3


def test_leaving_a_stream_early_frees_the_session_for_the_next_request(session: Session) -> None:
    answers = session.stream(Count(to=30_000))
    next(answers)
    started = time.monotonic()
    del answers
    assert session.call(Echo(word="next")).word == "next"
    assert time.monotonic() - started < 200, "it did not count to the end"


def test_requests_of_many_threads_are_answered_one_after_the_other(session: Session) -> None:
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda n=number: results.append(session.call(Echo(word=f"w{n}")).word))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [f"w{number}" for number in range(8)]


def test_close_ends_the_child_and_can_be_called_twice(session: Session) -> None:
    pid = session.call(Echo()).pid
    session.close()
    session.close()
    assert not psutil.pid_exists(pid)
    assert not session.running
    assert session.call(Echo()).pid != pid


@pytest.mark.slow
def test_close_while_a_request_runs_ends_a_child_that_does_not_listen(session: Session) -> None:
    answers = session.stream(Hang(), beat=True)
    assert next(answers) == Waiting()
    threading.Thread(target=session.close).start()
    with pytest.raises(StudioError, match="was closed"):
        list(answers)


def test_a_session_is_busy_only_while_it_answers(session: Session) -> None:
    answers = session.stream(Count(to=2))
    next(answers)
    assert session.busy
    list(answers)
    assert not session.busy
