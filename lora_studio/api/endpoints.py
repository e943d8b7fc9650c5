"""What programs can do with the page through `gradio_client`: six named endpoints.

Everything else of the page is private. They do what the page's buttons do, for the same visitor and with its checks.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr

from lora_studio.access.services import Services
from lora_studio.api import openai
from lora_studio.chat.arbiter import asker
from lora_studio.chat.choices import choices
from lora_studio.config.fields import SettingValues
from lora_studio.config.parsing import parse, presets, resolve
from lora_studio.errors import ApiError, StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.kinds import ending_words
from lora_studio.jobs.preflight import ASK, FAILED, Report, check_before_start
from lora_studio.jobs.protocol import ColumnPrompt, Generated, Piece
from lora_studio.runs.summary import matching, overview, rows_of


def build(services: Services) -> None:
    """Adds the endpoints to the page that is being built. Each bears the name of its function."""
    programs = Programs(services)
    for function in (
        programs.list_runs,
        programs.start_run,
        programs.run_status,
        programs.stop_run,
        programs.metrics,
        programs.chat,
    ):
        gr.api(_told(function), api_name=function.__name__, concurrency_limit=8)


class Programs:
    """The endpoints. Their docstrings are what `client.view_api()` shows."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._numbers = itertools.count(1)

    def list_runs(self, search: str = "") -> list[JsonObject]:
        """Every run, newest first: what it is, how far it is, what it measured.

        Parameters:
            search: words that a run's title, id, state, model, data, tags or note must have; empty for all runs
        Returns:
            one object for each run; "run" holds its id
        """
        known = {run.id: run for run in self._services.workspace.runs()}
        states = [state for state in self._services.supervisor.runs() if state.id in known]
        return [run.row() for run in matching([overview(known[state.id], state) for state in states], search)]

    def start_run(self, preset: str = "", settings: SettingValues | None = None, insist: bool = False) -> JsonObject:
        """Checks a training and starts it, or queues it while other jobs hold the devices.

        Parameters:
            preset: name of the preset to begin with; empty for the defaults
            settings: settings over it by their path, such as {"training.max_steps": 100}
            insist: start also where the memory will hardly do
        Returns:
            the run's id and state
        """
        workspace, supervisor = self._services.workspace, self._services.supervisor
        if preset and preset not in (known := presets(workspace)):
            raise StudioError(f"There is no preset {preset!r}.", f"Presets are: {', '.join(sorted(known))}.")
        config = resolve(preset or None, settings or {}, workspace)
        busy = bool(supervisor.busy(config))
        report = check_before_start(config, workspace, self._services.inspector, busy=busy)
        if report.state == FAILED or (report.state == ASK and not insist):
            raise StudioError(f"The run was not started. {report.words}", _found(report))
        memory = None if report.state == ASK else report.memory
        return self.run_status(supervisor.launch(config, memory=memory))

    def run_status(self, run: str) -> JsonObject:
        """How far a run is.

        Parameters:
            run: its id, a beginning that only it has, or its title
        Returns:
            state, phase, steps, losses, seconds left, and of a run that ended its message and what to do about it
        """
        folder = self._services.workspace.run(run)
        state = self._services.supervisor.state(folder.id)
        going = {"phase": state.phase, "epoch": state.epoch, "seconds_left": state.seconds_left}
        going |= {"waiting": state.waiting, "devices": state.devices}
        message, hint = ending_words(state)
        status = {"message": message, "hint": hint, "reason": state.reason, "warnings": state.warnings}
        return overview(folder, state).row() | going | status

    def stop_run(self, run: str) -> JsonObject:
        """Asks a run to save and end, or takes a waiting one out of the queue.

        Parameters:
            run: its id, a beginning that only it has, or its title
        Returns:
            the run's state; "stopping" until its worker has ended
        """
        folder = self._services.workspace.run(run)
        self._services.supervisor.stop(folder.id)
        return self.run_status(folder.id)

    def metrics(self, run: str) -> list[JsonObject]:
        """What a run measured, in the order of steps.

        Parameters:
            run: its id, a beginning that only it has, or its title
        Returns:
            one object for each logged step (kind "step") and each evaluation (kind "evaluation")
        """
        return rows_of(self._services.supervisor.state(self._services.workspace.run(run).id))

    def chat(
        self,
        message: str,
        model: str = "demo",
        history: list[dict[str, str]] | None = None,
        system_prompt: str | None = None,
        settings: SettingValues | None = None,
    ) -> Iterator[str]:
        """An answer of a base or of a run's adapter, as it grows.

        Parameters:
            message: what is asked
            model: "demo", another base, or the id of a run with an adapter
            history: earlier messages, each {"role": "user" or "assistant", "content": text}
            system_prompt: None for the one that the adapter was trained with, "" for none
            settings: how to sample, by name, such as {"max_new_tokens": 100, "temperature": 0.7}
        Returns:
            the answer so far; the last one is whole
        """
        services = self._services
        sampling = parse({"generation": settings or {}}).generation.model_dump()
        services.workspace.policy.check_request({"settings": sampling})  # also before anything is loaded for it
        system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        messages = [*system, *(history or []), {"role": "user", "content": message}]
        request = openai.read({"model": model, "messages": messages})
        available = openai.named_model(choices(services.workspace, services.supervisor.runs()), model)
        column = ColumnPrompt(adapter=available.adapter, messages=openai.messages_of(request, available.system_prompt))
        said, who = "", asker("endpoint", services.workspace.policy.owner_id, str(next(self._numbers)))
        with contextlib.closing(services.engine.answer_program(who, available.selection, column, sampling)) as answers:
            for answer in answers:
                if isinstance(answer, Piece):
                    said += answer.texts[0]
                    yield said
                elif isinstance(answer, Generated):
                    yield answer.columns[0].text


def _found(report: Report) -> str:
    """What the checks found that stands against a start, one a line."""
    against = [check for check in report.checks if check.state in (ASK, FAILED)]
    return "\n".join(f"{check.title}: {check.found} {check.advice}".strip() for check in against)


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same, with what a user can mend as an error that the client is told in words."""

    if function.__name__ == "chat":

        @wraps(function)
        def told_as_it_grows(*given: Any) -> Iterator[Any]:
            with _in_words():
                yield from function(*given)

        return told_as_it_grows

    @wraps(function)
    def told(*given: Any) -> Any:
        with _in_words():
            return function(*given)

    return told


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except (StudioError, ApiError) as error:
        raise gr.Error(str(error), print_exception=False) from None
