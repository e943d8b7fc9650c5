"""A public demonstration: what guests may start, wherever it is started, and what the owner still may."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from lora_studio.access import guests
from lora_studio.access.guests import ELSEWHERE, LIMITS, Guests
from lora_studio.access.requests import VisitorFiles
from lora_studio.chat.choices import from_hub
from lora_studio.config.parsing import nest, parse, read_yaml, resolve, to_yaml
from lora_studio.config.sections import Config, files_of
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as benchmarks
from lora_studio.evaluate import job as evaluating
from lora_studio.evaluate.job import create, make_request
from lora_studio.export import job as exporting
from lora_studio.jobs.kinds import remove
from lora_studio.jobs.launchers.local import LocalLauncher
from lora_studio.jobs.queue import QueueEntry, check_room
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.jobs.targets import tokens
from lora_studio.models.hub import JOBS_TOKEN, NO_TOKEN
from lora_studio.workspace import RunFolder, Workspace
from tests.chat.test_chat_choices import make_run
from tests.jobs.conftest import fake_command

OWNER, GUEST = "owner", "guest-1-a"  # guests are named by where they come from, and a letter


class Visit:
    """A demonstration, of whose visitors one is answered at a time."""

    def __init__(self, root: Path) -> None:
        self.now = GUEST
        self.guests = Guests(Workspace(root / "workspace"), OWNER)
        self.workspace = self.guests.workspace_for(lambda: self.now)
        self.supervisor = Supervisor(self.workspace, LocalLauncher(fake_command("steps=1")))

    def run(self, name: str) -> RunFolder:
        self.now = name
        return self.workspace.create_run("run", to_yaml(Config()), {"model": "demo", "data": "pirate"})


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path)


def demo(**settings: Any) -> Config:
    return resolve("demo", settings)


def admitted(visit: Visit, config: Config) -> Config:
    visit.workspace.policy.check_request({**files_of(config), "target": config.compute.target})
    return visit.workspace.policy.admit(config)


def test_a_guest_with_an_account_of_their_own_is_limited_only_on_this_machine(visit: Visit) -> None:
    visit.now = "hub-ann"
    large = demo(**{"training.num_train_epochs": 500.0, "compute.target": "hf-jobs:t4"})
    other = demo(**{"model.name": "some/base", "compute.target": "hf-jobs:t4"})
    for config in (large, other):
        with pytest.raises(StudioError):
            admitted(visit, config)
    visit.guests.jobs_tokens.remember("hub-ann", "hf_ann", time.time() + 60)
    for config in (large, other):
        assert admitted(visit, config) == config
    for refused in (
        demo(**{"model.name": "some/base"}),
        demo(**{"training.num_train_epochs": 500.0}),
        demo(**{"model.name": "/etc", "compute.target": "hf-jobs:t4"}),
        demo(**{"data.train_file": "/etc/passwd", "compute.target": "hf-jobs:t4"}),
    ):
        with pytest.raises(StudioError):
            admitted(visit, refused)


def test_jobs_of_a_visitor_get_their_own_token_and_never_the_owners(visit: Visit) -> None:
    run = visit.run("hub-ann")
    assert tokens(visit.workspace, run) == NO_TOKEN
    visit.guests.jobs_tokens.remember("hub-ann", "hf_ann", time.time() + 60)
    assert tokens(visit.workspace, run) == {**NO_TOKEN, JOBS_TOKEN: "hf_ann"}
    visit.now = "hub-bert"
    assert tokens(visit.workspace, None) == NO_TOKEN
    visit.now = OWNER
    assert tokens(visit.workspace, None) == {}


def test_a_guest_trains_the_demo_once_on_few_rows(visit: Visit) -> None:
    run = visit.workspace.run(visit.supervisor.launch(demo()))
    assert run.read_facts()["maker"] == GUEST
    config = parse(read_yaml(run.config))
    assert config.data.max_samples == LIMITS.rows
    assert config.data.max_eval_samples == LIMITS.test_rows
    with pytest.raises(StudioError, match="can have one run"):
        visit.supervisor.launch(demo())
    visit.now = "guest-2-a"
    assert visit.workspace.runs() == []
    visit.supervisor.launch(demo())
    visit.now = OWNER
    assert visit.workspace.policy.admit(demo()) == demo()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.max_steps", LIMITS.steps + 1),
        ("training.num_train_epochs", 100),
        ("training.per_device_train_batch_size", 1),
        ("training.gradient_accumulation_steps", 4096),
        ("evaluation.gen_eval_samples", 256),
        ("data.max_length", LIMITS.max_length + 1),
        ("training.save_total_limit", 50),
        ("tracking.report_to", "wandb"),
        ("model.name", "owner/other-model"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_to_guests_and_left_to_the_owner(
    visit: Visit, path: str, value: object
) -> None:
    small = {"training.num_train_epochs": 8, "training.per_device_train_batch_size": 8, "data.max_length": 256}
    small["training.gradient_accumulation_steps"] = 1
    visit.workspace.policy.admit(parse(nest(small)))
    config = parse(nest({**small, path: value}))
    with pytest.raises(StudioError, match="exceeds the limits for guests"):
        visit.workspace.policy.admit(config)
    with pytest.raises(StudioError):
        visit.supervisor.launch(config)
    assert visit.workspace.unrestricted.runs() == []
    visit.now = OWNER
    assert visit.workspace.policy.admit(config) == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"training.max_steps": 600, "training.gradient_accumulation_steps": 4096}, "600 steps of 32,768 rows"),
        ({"training.max_steps": 1, "training.gradient_accumulation_steps": 4096}, "8,388,608 tokens"),
        ({"data.max_length": 1024, "training.max_steps": 600}, "4,915,200 tokens; guests are limited to 4,000,000"),
        ({"training.per_device_train_batch_size": 256, "training.max_steps": 1}, "256 rows per batch"),
        ({"evaluation.per_device_eval_batch_size": 4096}, "4,096 rows per batch"),
        (
            {"evaluation.eval_strategy": "steps", "evaluation.eval_steps": 1, "training.num_train_epochs": 8},
            "Evaluations would process",
        ),
        ({"evaluation.gen_eval_samples": 256, "generation.max_new_tokens": 131_072}, "Answers may have 131,072 tokens"),
    ],
)
def test_a_guests_run_goes_through_so_many_tokens_and_no_more(
    visit: Visit, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(StudioError, match=words):
        visit.workspace.policy.admit(demo(**settings))


def test_a_guests_run_whose_checkpoints_have_no_room_is_not_started(tmp_path: Path) -> None:
    workspace = Guests(Workspace(tmp_path / "workspace"), OWNER, quota=100_000_000).workspace_for(lambda: GUEST)
    for fits in ({}, {"lora.r": 64}):
        workspace.policy.admit(demo(**fits))
    for settings in ({"lora.r": 1024}, {"lora.r": 512, "training.save_total_limit": 2}):
        with pytest.raises(StudioError, match=r"would need [\d,]+ MB; guests have 100 MB"):
            workspace.policy.admit(demo(**settings))


def test_all_guests_together_start_so_many_runs_an_hour(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(LIMITS.runs_an_hour):
        visit.run(f"guest-{number + 10}-a")
    visit.run(OWNER)
    visit.now = GUEST
    with pytest.raises(StudioError, match=r"Guests started 12 runs within the last hour.\nTry again"):
        visit.workspace.policy.admit(demo())
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + guests.HOUR)
    visit.workspace.policy.admit(demo())


def test_one_person_with_many_cookies_leaves_runs_to_others(visit: Visit) -> None:
    for number in range(LIMITS.runs_of_address):
        run = visit.run(f"guest-1-{number}")
        remove(run)  # a start is a start
    for name, fits in (("guest-1-z", False), ("guest-2-a", True), ("hub-anna", True)):
        visit.now = name
        if fits:
            visit.workspace.policy.admit(demo())
        else:
            with pytest.raises(StudioError, match="Guests with your address started 4 runs"):
                visit.workspace.policy.admit(demo())
    again = Guests(visit.workspace.unrestricted, OWNER).workspace_for(lambda: "guest-3-a")
    again.policy.admit(demo())


def test_a_new_server_remembers_the_runs_of_the_last_hour(visit: Visit) -> None:
    for number in range(LIMITS.runs_an_hour):
        visit.run(f"guest-{number + 10}-a")
    again = Guests(visit.workspace.unrestricted, OWNER).workspace_for(lambda: GUEST)
    with pytest.raises(StudioError, match="within the last hour"):
        again.policy.admit(demo())


def test_two_starts_of_one_guest_at_once_make_one_run(visit: Visit) -> None:
    def launch(_: int) -> bool:
        try:
            visit.supervisor.launch(demo())
        except StudioError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(launch, range(4))) == 1


@pytest.mark.parametrize(
    "params",
    [
        {"model": "owner/other-model"},
        {"base": "/etc"},
        {"train_file": "hub:owner/data"},
        {"settings": {"max_new_tokens": LIMITS.answer_tokens + 1}},
        {"adapters": {"a": "hub:owner/adapter"}},
    ],
)
def test_the_engine_is_asked_nothing_that_guests_may_not(visit: Visit, params: dict[str, Any]) -> None:
    with pytest.raises(StudioError, match=r"[Gg]uests"):
        visit.workspace.policy.check_request(params)
    if params.get("base") != "/etc":
        visit.now = OWNER
        visit.workspace.policy.check_request(params)


def test_the_demo_and_a_guests_own_upload_may_be_asked_for(visit: Visit, tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text("{}")
    mine = visit.workspace.save_upload(source)
    visit.workspace.policy.check_request({"model": "demo", "train_file": str(mine), "settings": {"max_new_tokens": 50}})
    visit.workspace.policy.check_request({"base": "demo", "train_file": "pirate"})
    visit.now = "guest-2-a"
    with pytest.raises(StudioError, match=r"[Gg]uests"):
        visit.workspace.policy.check_request({"train_file": str(mine)})


def test_a_new_server_forgets_what_guests_of_the_last_one_typed(visit: Visit, tmp_path: Path) -> None:
    visit.workspace.write_draft("form", {"a": 1})
    visit.now = OWNER
    visit.workspace.write_draft("form", {"b": 2})
    visit.guests.forget_guests()
    assert visit.workspace.read_draft("form") == {"b": 2}
    visit.now = GUEST
    assert visit.workspace.read_draft("form") is None


def test_exports_benchmarks_and_longer_runs_are_the_owners(visit: Visit) -> None:
    request: Any = None
    with pytest.raises(StudioError, match="export adapters") as refused:
        exporting.start(visit.supervisor, request)
    assert refused.value.hint == ELSEWHERE
    with pytest.raises(StudioError, match="download adapters"):
        from_hub("hub:owner/adapter", visit.workspace)
    with pytest.raises(StudioError, match="run benchmarks"):
        benchmarks.start_benchmark(visit.supervisor, "title", ["lm_eval"])
    run = visit.run(GUEST)
    with pytest.raises(StudioError, match="continue a finished run"):
        visit.supervisor.resume(run.id, extra_epochs=1)


def test_a_guests_evaluation_answers_few_rows(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(visit.workspace, "Mine", adapter=True)
    kept: list[int | None] = []

    def keep(workspace: Workspace, request: Any, demand: Any = None) -> Any:
        kept.append(request.measuring.max_samples)
        return create(workspace, request, demand)

    monkeypatch.setattr("lora_studio.evaluate.job.create", keep)
    supervisor = Supervisor(visit.workspace, LocalLauncher(fake_command("steps=1")))
    request = make_request(visit.workspace, [run.id], "pirate")
    evaluating.start(supervisor, request)
    assert kept == [LIMITS.test_rows]
    make_request(visit.workspace, [run.id], str(visit.workspace.uploads_folder))
    for wrong in (f"{run.id}/../../x", f"{run.id}/worker.log", "hub:owner/adapter"):
        with pytest.raises(StudioError, match=r"[Gg]uests"):
            make_request(visit.workspace, [wrong], "pirate")
    assert visit.workspace.policy.test_rows(3) == 3
    visit.now = OWNER
    assert visit.workspace.policy.test_rows(None) is None


def test_guests_of_one_address_have_a_few_jobs_in_the_queue_together(visit: Visit) -> None:
    runs = [visit.run(f"guest-1-{letter}") for letter in "abc"]
    waiting = [QueueEntry(run.id) for run in runs]
    visit.now = "guest-1-d"
    with pytest.raises(StudioError, match="3 of your jobs are already queued"):
        check_room(visit.workspace, waiting)
    check_room(visit.workspace, waiting[1:])
    for visit.now in ("guest-2-a", OWNER):
        check_room(visit.workspace, waiting)


def test_guests_have_room_for_so_much_each_and_all_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [GUEST]
    workspace = Guests(Workspace(tmp_path / "workspace"), OWNER, quota=1000).workspace_for(lambda: now[0])
    monkeypatch.setattr(guests, "LIMITS", replace(LIMITS, quotas_together=2))
    for number, size in ((1, 900), (2, 900)):
        now[0] = f"guest-{number}-a"
        (workspace.uploads_folder / "data.csv").write_bytes(b"x" * size)
    with pytest.raises(StudioError, match=r"Your uploads and runs use.*\n.*after 24 hours"):
        workspace.policy.check_room(101)
    now[0] = "guest-3-a"
    workspace.policy.check_room(200)
    with pytest.raises(StudioError, match="Uploads and runs of guests use"):
        workspace.policy.check_room(201)
    now[0] = OWNER
    workspace.policy.check_room(10**12)


def test_one_person_with_many_cookies_leaves_room_to_others(tmp_path: Path) -> None:
    now = [GUEST]
    workspace = Guests(Workspace(tmp_path / "workspace"), OWNER, quota=1000).workspace_for(lambda: now[0])
    for number in range(LIMITS.quotas_of_address):
        now[0] = f"guest-1-{number}"
        (workspace.uploads_folder / "data.csv").write_bytes(b"x" * 1000)
    now[0] = "guest-1-z"
    with pytest.raises(StudioError, match="Runs and files of guests with your address use"):
        workspace.policy.check_room()
    now[0] = "guest-2-a"
    workspace.policy.check_room(1000)


def test_uploads_that_wait_in_the_temporary_folder_count_for_all_guests(tmp_path: Path) -> None:
    guests = Guests(Workspace(tmp_path / "workspace"), OWNER, quota=1000)
    files = VisitorFiles(OWNER, lambda name, size: guests.policy(name).check_room(size), lambda name: tmp_path, ())
    guests.pending_bytes = files.waiting

    def upload_much(name: str) -> None:
        for number in range(100):
            files.check_upload(name.format(number), Headers({"content-length": "900"}))

    with pytest.raises(StudioError, match="guests with your address"):
        upload_much("guest-1-{}")
    assert files.waiting(lambda _: True) == LIMITS.quotas_of_address * 900
    with pytest.raises(StudioError, match="Uploads and runs of guests"):
        upload_much("guest-2{}-a")
    together = LIMITS.quotas_together * 1000
    assert together - 900 < files.waiting(lambda _: True) <= together
    files.check_upload(OWNER, Headers({"content-length": "900000"}))


def test_prepared_data_of_all_guests_together_stays_small(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "LIMITS", replace(LIMITS, prepared_bytes=2500))
    for number in range(5):
        entry = visit.workspace.cache_folder / f"entry-{number}"
        entry.mkdir(parents=True)
        (entry / "ids").write_bytes(b"x" * 1000)
        os.utime(entry, (number, number))
    visit.guests.remove_old()
    assert sorted(path.name for path in visit.workspace.cache_folder.iterdir()) == ["entry-3", "entry-4"]


def test_what_guests_made_is_gone_after_a_day_and_makes_room(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    old, kept = visit.run(GUEST), visit.run(OWNER)
    visit.now = GUEST
    (visit.workspace.uploads_folder / "data.csv").write_text("x")
    visit.guests.remove_old()
    assert old.path.exists()
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + LIMITS.hours_kept * guests.HOUR + 1)
    visit.guests.remove_old()
    assert [run.id for run in visit.workspace.unrestricted.runs()] == [kept.id]
    assert list((visit.workspace.root / "users").iterdir()) == []
