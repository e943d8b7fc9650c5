"""The folds below Start on the Train tab, and the webhook's form on the Runs tab, without a page."""

from typing import Any

import pytest

from lora_studio.errors import StudioError
from lora_studio.jobs.events import Finished, PhaseStarted, Reason, RunStarted, RunState, StepLogged, fold
from lora_studio.jobs.notes import save_webhook
from lora_studio.runs.rate_search import rate_curve
from lora_studio.ui.runs.queue import WebhookForm, ended_since
from lora_studio.ui.studio import Studio
from lora_studio.ui.train import tries
from lora_studio.workspace import Policy
from tests.ui.test_runs_tab import finished
from tests.ui.test_runs_tab import studio as studio  # a fixture

RATES = ["training.learning_rate", "1e-4, 3e-4", "lora.r", "8,16,32", "", "", "", False]


def test_the_fold_says_how_many_runs_its_lists_make() -> None:
    words, number = tries.counted(RATES)
    assert (number, "6 runs (2 × 3)" in words) == (6, True)
    assert tries.counted([*RATES[:3], "", *RATES[4:]])[1] == 2
    assert tries.counted(["", "", "", "", "", "", "", False]) == ("", 0)
    twice = ["lora.r", "1,2", "lora.r", "3,4", "", "", "", False]
    assert tries.counted(twice)[1] == 0
    with pytest.raises(StudioError, match=r"lora\.r is listed twice"):
        tries.tries_of(twice)


def test_values_without_a_setting_ask_for_one() -> None:
    typed = ["training.learning_rate", "1e-4, 3e-4", "", "8, 16", "", " ", "", False]
    assert tries.row_notes(typed) == ["", tries.NO_SETTING, ""]
    assert tries.row_notes(RATES) == ["", "", ""]


def search(*more: Any) -> RunState:
    """A search whose loss falls until the rate is too high."""
    losses = [4.0, 4.0, 3.0, 2.0, 1.0, 9.0]
    steps = [StepLogged(2.0 + n, n + 1, 6, 0.0, loss, 1e-7 * 10**n) for n, loss in enumerate(losses)]
    return fold([RunStarted(1.0, 1, "cpu", "float32"), PhaseStarted(1.5, "train", 6, "steps"), *steps, *more])


def test_a_search_shows_its_progress_then_the_suggestion_marked_on_a_log_axis() -> None:
    going, done = search(), search(Finished(9.0, "done", 6, reason=Reason.COMPLETED))
    curve = rate_curve(done.steps)
    assert "Training, step 6 of 6" in tries.search_words(going, curve)
    assert "suggested" not in tries.search_plot(curve, shows_suggestion=False)
    drawn = tries.search_plot(curve, shows_suggestion=True)
    assert "Learning rate, log scale" in drawn
    assert "suggested 1e-5" in drawn
    assert "a tenth of the rate" in tries.search_words(done, curve)
    stopped = search(Finished(9.0, "stopped", 6, reason=Reason.STOPPED))
    assert "Stopped on request." in tries.search_words(stopped, curve)


def test_the_address_of_the_webhook_never_goes_back_to_the_page(studio: Studio) -> None:
    form = WebhookForm(studio)
    shown = form.save("https://hooks.slack.com/services/T0S3CR3T", "auto")
    assert "hooks.slack.com (Slack)" in str(shown)
    assert "S3CR3T" not in str(shown)
    assert "S3CR3T" not in str(form.look())
    assert "not the address of a webhook" in str(form.save("S3CR3T", "auto"))
    assert "S3CR3T" not in str(form.save("S3CR3T", "auto"))


def test_a_visitor_sees_nothing_of_the_webhook(studio: Studio) -> None:
    class Visitor(Policy):
        is_admin = False

    save_webhook(studio.workspace, "https://example.org/S3CR3T")
    form = WebhookForm(studio)
    form.workspace = studio.workspace.with_policy(Visitor)
    assert "example.org" not in str(form.look())
    assert "Only the owner" in str(form.save("https://example.org/mine", "auto"))


def test_the_browser_is_told_of_ends_since_a_time(studio: Studio) -> None:
    finished(studio.workspace, "first")
    answer = ended_since(studio, 0.0)
    assert [note["title"] for note in answer["ended"]] == ["Run first: finished"]
    assert ended_since(studio, answer["now"] + 60)["ended"] == []
