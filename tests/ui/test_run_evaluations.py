"""A run's evaluations on its page."""

import json

from lora_studio.evaluations import create
from lora_studio.ui.run_evaluations import listing
from lora_studio.workspace import Workspace

from .evaluated import HOSTILE, SUMMARY, request


def test_a_run_without_any_says_what_one_is_for_and_offers_it_once_an_adapter_is_there() -> None:
    assert "No evaluation yet" in listing([], "run", there=False)
    assert "Evaluate this run" not in listing([], "run", there=False)
    assert 'data-act="new" data-value="run"' in listing([], "run", there=True)


def test_each_evaluation_is_listed_with_what_it_came_to(workspace: Workspace) -> None:
    folder = create(workspace, request())
    assert "not measured yet" in listing([folder], "run", there=True)
    folder.complete.write_text(json.dumps(SUMMARY), encoding="utf-8")
    shown = listing([folder], "run", there=True)
    assert "Accuracy 50 % → 95 %" in shown
    assert f'data-value="{folder.id}"' in shown
    assert HOSTILE not in shown
