"""A request of a child that reads files ends: when nothing comes of it, when it takes too long, when nobody waits."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lora_studio.errors import StudioError
from lora_studio.jobs import session as client
from lora_studio.jobs.protocol import Waiting
from lora_studio.jobs.session import DeadOnArrivalError, Patience, Session
from tests.jobs.conftest import wait_until
from tests.jobs.requests import Count, Die, Echo, Hang

FAKE = [sys.executable, str(Path(__file__).with_name("fake_session.py"))]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(client, "_DEAD_ON_ARRIVAL_SECONDS", 200.0)


class Impatient(Session):
    """A session whose requests have time enough, but for those that are asked while `limits` are others."""

    limits = Patience(quiet=200.0, whole=200.0, abandoned=200.0)


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Impatient]:
    with Impatient(tmp_path / "session.log", command=FAKE, patience=lambda: session.limits) as session:
        yield session


def test_a_request_of_which_nothing_comes_is_ended_and_told(patient: Impatient) -> None:
    patient.limits = Patience(quiet=0.4)
    with pytest.raises(StudioError, match="no response for 0 s"):
        patient.call(Hang())
    patient.limits = Impatient.limits
    assert patient.call(Echo(word="next")).word == "next"


def test_a_request_that_goes_on_and_on_is_ended_and_told(patient: Impatient) -> None:
    patient.limits = Patience(whole=1.0)
    with pytest.raises(StudioError, match="not finished after 1 s"):
        patient.call(Count(to=10_000))


def test_a_request_that_was_left_and_does_not_hear_is_ended_with_its_child(patient: Impatient) -> None:
    pid = patient.call(Echo()).pid
    patient.limits = Patience(abandoned=0.3)
    answers = patient.stream(Hang(), beat=True)
    assert next(answers) == Waiting()
    answers.close()
    wait_until(lambda: not psutil.pid_exists(pid))


def test_whoever_asks_behind_a_request_that_was_left_is_answered(patient: Impatient) -> None:
    patient.limits = Patience(abandoned=0.3)
    answers = patient.stream(Hang(), beat=True)
    next(answers)
    answers.close()
    patient.limits = Impatient.limits
    assert patient.call(Echo(word="mine")).word == "mine"


def test_a_request_that_was_left_and_heard_costs_no_child(patient: Impatient) -> None:
    pid = patient.call(Echo()).pid
    answers = patient.stream(Count(to=10_000))
    next(answers)
    answers.close()
    for thread in threading.enumerate():
        if thread.name == "abandoned request":
            thread.join()  # it looks whether the child hears
    assert patient.call(Echo()).pid == pid


def test_a_child_that_was_dead_before_it_was_asked_is_replaced_without_a_word(patient: Impatient) -> None:
    pid = patient.call(Echo()).pid
    os.kill(pid, 9)  # and the request is sent before the system has told its end
    assert patient.call(Echo(word="again")).word == "again"


def test_a_child_that_holds_something_is_told_to_be_gone(tmp_path: Path) -> None:
    with Session(tmp_path / "session.log", command=FAKE) as session:
        session.warm_up()
        with pytest.raises(DeadOnArrivalError):
            session.call(Die())


def test_an_answer_of_any_length_does_not_fill_this_process(
    patient: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_ANSWER_CHARACTERS", 1000)
    with pytest.raises(StudioError, match="an invalid answer"):
        patient.call(Echo(word="x" * 5000))
