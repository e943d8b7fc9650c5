"""Runs on Hugging Face Jobs, against the fake Hub: refusals before the start, faults on the way, and what comes back.

Jobs that are `scripted` have no process: the test says what becomes of them, and the courier runs in a thread.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from lora_studio.config.parsing import resolve
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Finished, Reason, RunStarted, StepLogged, read_state, to_line
from lora_studio.jobs.kinds import TRAIN
from lora_studio.jobs.launchers import hf_sync
from lora_studio.jobs.launchers.hf_jobs import (
    HfJobsLauncher,
    HubTarget,
    Place,
    bundle,
    mirror,
    read_place,
    write_place,
)
from lora_studio.jobs.launchers.hf_sync import Courier
from lora_studio.jobs.launchers.local import LocalWorker, kill, read_worker, write_worker
from lora_studio.jobs.preflight import check_before_start
from lora_studio.jobs.protocol import FirstRows, LookAtFirst, ModelFacts
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.jobs.targets import Targets
from lora_studio.models.hub import JOBS_TOKEN, NO_TOKEN, Offer, jobs_offer, token_in, without_tokens
from lora_studio.models.shape import read_config
from lora_studio.workspace import RunFolder, Workspace

from ..fake_hub import ANN, READER, STRANGER, TOKEN, FakeHub, fake_hub
from .conftest import wait_until
from .test_preflight import FIRST

STAND_INS = Path(__file__).parents[1] / "stand_ins"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub that this process and those that it starts know, with the token of `me`."""
    with fake_hub() as hub:
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "hf"),
            "PYTHONPATH": str(STAND_INS),
            "OMP_NUM_THREADS": "1",
            hf_sync.EVERY: "0.05",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.syspath_prepend(str(STAND_INS))
        monkeypatch.delitem(sys.modules, "hf_xet", raising=False)
        monkeypatch.setattr("huggingface_hub.utils._xet._GLOBAL_XET_HOLDER._session", None)
        yield hub
        sys.modules.pop("hf_xet", None)
        huggingface_hub.utils._xet._GLOBAL_XET_HOLDER._session = None


# -- before the start


def offer(target: HubTarget, token: str, *, visitor: bool = False) -> Offer:
    options = {"namespace": target.namespace, "prepaid": target.prepaid}
    return jobs_offer(target.flavor, target.seconds, token, visitor=visitor, **options)  # type: ignore[arg-type]


def test_a_target_tells_hardware_and_what_it_costs_at_most(hub: FakeHub) -> None:
    terms = offer(HubTarget(flavor="a10g-small", timeout="90m"), TOKEN)
    assert (terms.namespace, terms.seconds) == ("me", 5400)
    assert terms.most == pytest.approx(1.6667 * 60 * 1.5 / 100)
    assert terms.words == "Nvidia A10G - small, 1 x A10G with 24 GB: $1.00 per hour, at most $1.50 in 1.5 h."
    assert offer(HubTarget(flavor="cpu-basic"), TOKEN).hardware == "CPU Basic, 2 vCPU with 16 GB"


@pytest.mark.parametrize(
    ("target", "token", "message"),
    [
        ({}, "", "No Hub token is configured."),
        ({}, "hf_madeupmadeupmadeup", "The Hub does not accept this token."),
        ({}, READER, "This Hub token is read-only."),
        ({"flavor": "a10-small"}, TOKEN, "Hugging Face Jobs has no hardware a10-small."),
        ({"namespace": "somebody"}, TOKEN, "This token cannot run jobs for somebody."),
        ({"namespace": "readers"}, TOKEN, "You may only read in readers, which runs no jobs."),
        ({"namespace": "poor"}, TOKEN, "poor has no payment method on the Hub."),
        ({"timeout": "1m"}, TOKEN, "The time limit 1m is not possible."),
    ],
)
def test_what_the_hub_would_refuse_is_one_sentence_before_anything_starts(
    hub: FakeHub, target: dict[str, str], token: str, message: str
) -> None:
    hub.jobs.pays["poor"] = False
    with pytest.raises(StudioError) as refused:
        offer(HubTarget(**target), token)
    assert refused.value.message == message
    assert refused.value.hint
    assert not hub.jobs.jobs
    assert not hub.jobs.buckets


def test_near_hardware_is_named_and_credits_pay_too(hub: FakeHub) -> None:
    with pytest.raises(StudioError) as refused:
        offer(HubTarget(flavor="a10-small"), TOKEN)
    assert refused.value.hint is not None
    assert refused.value.hint.startswith("Did you mean a10g-small? There are: cpu-basic, ")
    hub.jobs.pays["me"] = False
    assert offer(HubTarget(prepaid=True), TOKEN).namespace == "me"


class KnownRows:
    """A session that has read ten short rows and a model of which nothing is wrong."""

    busy = False

    def call(self, request: object) -> FirstRows | ModelFacts:
        return FIRST if isinstance(request, LookAtFirst) else ModelFacts(embeddings=10**6, parameters=1)


def test_a_run_is_weighed_against_one_gpu_of_the_hardware_and_trains_on_all(
    hub: FakeHub, workspace: Workspace, tmp_path: Path
) -> None:
    targets = Targets(workspace)
    for name, flavor in (("two", "a10g-largex2"), ("cpu", "cpu-basic"), ("gone", "a100-huge")):
        targets.save(f"hf-jobs:{name}", {"flavor": flavor})
    devices = {name: targets.device(f"hf-jobs:{name}") for name in ("two", "cpu", "gone")}
    assert {name: (device.kind, device.memory_total) for name, device in devices.items() if device} == {
        "two": ("cuda", 24 * 10**9),
        "cpu": ("cpu", 16 * 10**9),
        "gone": ("cuda", 0),
    }
    shape = {"hidden_size": 5120, "num_hidden_layers": 40, "intermediate_size": 17408, "vocab_size": 151936}
    heads = {"num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128}
    numbers = {**(read_config("demo") or {}), **shape, **heads}  # 14 billion parameters: 28 GB in 16 bits
    (tmp_path / "config.json").write_text(json.dumps(numbers), encoding="utf-8")

    def memory(target: str, quantization: str) -> tuple[str, str, str]:
        settings = {"model.name": str(tmp_path), "model.quantization": quantization, "compute.target": target}
        config = resolve(None, settings)
        assert targets.placed(config).compute.world_size == (2 if target == "hf-jobs:two" else 1)
        report = check_before_start(config, workspace, KnownRows(), busy=False)  # type: ignore[arg-type]
        check = next(check for check in report.checks if check.title == "Memory")
        return check.state, check.found, check.advice

    state, found, advice = memory("hf-jobs:two", "none")
    assert (state, "of 22.4 GiB free on hf-jobs:two." in found) == ("ask", True)
    assert "4-bit" in advice
    assert memory("hf-jobs:two", "4bit")[0] == "ok"


def test_a_hub_that_is_away_is_told_as_that(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.jobs.fail("GET", "/api/jobs/hardware", 503)
    with pytest.raises(StudioError, match=r"The Hub has a problem \(status 503\)"):
        offer(HubTarget(), TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StudioError, match="The Hub cannot be reached"):
        offer(HubTarget(), TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StudioError, match="HF_HUB_OFFLINE"):
        offer(HubTarget(), TOKEN)


def test_a_visitor_pays_with_their_own_account_and_never_with_the_owners(hub: FakeHub) -> None:
    assert token_in({**NO_TOKEN}) == ""
    assert token_in({**NO_TOKEN, JOBS_TOKEN: ANN}) == ANN
    assert token_in({}) == TOKEN
    with pytest.raises(StudioError, match="Hugging Face Jobs needs your own account"):
        offer(HubTarget(namespace="acme"), "", visitor=True)
    assert offer(HubTarget(namespace="acme"), ANN, visitor=True).namespace == "ann"
    with pytest.raises(StudioError, match="cannot run jobs for acme"):
        offer(HubTarget(namespace="acme"), STRANGER)


# -- what travels


def test_only_what_the_run_reads_travels_and_no_secret(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    for name in ("part-1.jsonl", "part-2.jsonl", "other.jsonl"):
        (tmp_path / name).write_text('{"text": "hello"}\n')
    text = f"data:\n  train_file: {tmp_path}/part-*.jsonl\nmodel:\n  name: {tmp_path}/base\n"
    run = workspace.create_run("t", text, {})
    (run.path / "courier.log").write_text("x")
    torn = run.checkpoints / "checkpoint-2"
    whole = run.checkpoints / "checkpoint-1"
    for folder in (torn, whole):
        folder.mkdir(parents=True)
        (folder / "adapter.safetensors").write_text("weights")
    (whole / "trainer_state.json").write_text("{}")
    place = Place("hf-jobs:a", "t4-small", "", 0.4, 3600, "image", "module", namespace="me", nonce="n")
    book = tmp_path / "book 1.xlsx"
    book.write_bytes(b"")
    of_sheet = workspace.create_run("s", f"data:\n  train_file: '{book}?sheet=My answers'\n", {})
    parcels = {name: source for source, name in bundle(of_sheet, place, 10)}
    assert parcels["files/0/book-1.xlsx"] == book
    sheet = ["files/0/book-1.xlsx?sheet=My answers", f"{book}?sheet=My answers"]
    assert json.loads(parcels["order.json"])["paths"] == {"data.train_file": sheet}
    parcels = {name: source for source, name in bundle(run, place, 10)}
    assert set(parcels) == {
        "files/0/part-1.jsonl",
        "files/0/part-2.jsonl",
        "files/1/base/config.json",
        "run/config.yaml",
        "run/run.json",
        "run/checkpoints/checkpoint-1/adapter.safetensors",
        "run/checkpoints/checkpoint-1/trainer_state.json",
        "order.json",
        "requirements.txt",
        "package.zip",
    }
    package = parcels["package.zip"]
    assert isinstance(package, bytes)
    assert b"demo/model" not in package
    assert b"lora_studio/ui" not in package
    order = json.loads(parcels["order.json"])
    assert order["paths"] == {
        "data.train_file": ["files/0/part-*.jsonl", f"{tmp_path}/part-*.jsonl"],
        "model.name": ["files/1/base", f"{tmp_path}/base"],
    }
    assert "token" not in json.dumps(order)


def test_a_growing_file_is_added_to_and_one_that_differs_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    mirror(path, b"one\n")
    with path.open("rb") as reader:
        reader.read()
        mirror(path, b"one\ntwo\n")
        assert reader.read() == b"two\n"
    mirror(path, b"one\n")  # an older listing
    assert path.read_bytes() == b"one\ntwo\n"
    mirror(path, b"other\n")
    assert path.read_bytes() == b"other\n"


def test_what_looks_like_a_token_is_in_no_text() -> None:
    assert without_tokens(f"with {TOKEN} and secret", "secret") == "with hf_… and hf_…"


# -- a courier in this process, and jobs that do what the test says


class World:
    """A run on its way: `job` once there is one, `run.events` and the like as they come back."""

    def __init__(self, hub: FakeHub, workspace: Workspace, **terms: object) -> None:
        hub.jobs.scripted = True
        self.hub = hub
        self.run = workspace.create_run("t", "model:\n  name: some/base\n", {"compute_target": "hf-jobs:t4"})
        place = Place("hf-jobs:t4", "t4-small", "t4-small", 0.0, 3600, "image", "module", nonce="nonce")
        write_place(self.run, place)
        write_worker(self.run, LocalWorker(1, 1.0, time.time() - 1))
        self.code: list[int] = []
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        place = read_place(self.run)
        assert place is not None
        self.code.append(Courier(self.run, place, TOKEN).run())

    @property
    def place(self) -> Place:
        place = read_place(self.run)
        assert place is not None
        return place

    def reach(self, stage: str) -> None:
        wait_until(lambda: self.place.stage == stage)

    def write(self, name: str, content: bytes) -> None:
        self.hub.jobs.put(f"{self.run.id}-nonce/out/{name}", content)

    def ends(self) -> int:
        self.thread.join(200)
        return self.code[0]

    def ask(self, **values: object) -> None:
        worker = read_worker(self.run)
        assert worker is not None
        write_worker(self.run, LocalWorker(worker.pid, worker.started, worker.launched, **values))  # type: ignore[arg-type]


@pytest.fixture
def begin(hub: FakeHub, workspace: Workspace) -> Iterator[Callable[[], World]]:
    worlds: list[World] = []

    def make() -> World:
        worlds.append(World(hub, workspace))
        return worlds[-1]

    yield make
    for world in worlds:
        hub.jobs.close()
        world.ask(stop_asked=time.time(), killed=time.time())
        world.thread.join(10)


def steps(count: int, *last: Finished) -> bytes:
    now = time.time()
    events = [RunStarted(now, 1, "cuda", "bfloat16")]
    logged = [StepLogged(now, step, 10, 0.1, 1.0, 1e-4) for step in range(1, count + 1)]
    return "".join(map(to_line, [*events, *logged, *last])).encode()


def test_a_job_that_gets_no_machine_waits_until_it_is_cancelled_there(hub: FakeHub, begin: Callable[[], World]) -> None:
    hub.jobs.capacity = False
    world = begin()
    world.reach("SCHEDULING")
    launcher = HfJobsLauncher(lambda folder: ("hf-jobs:t4", HubTarget()), lambda folder: {})
    waits = launcher.waits(world.run)
    assert waits is not None
    assert waits.reason == f"scheduling since {time.strftime('%H:%M', time.localtime(waits.since))} for t4-small"
    assert time.time() - waits.since < 300
    charge = launcher.charge(world.run)
    assert charge is not None
    assert (charge.at(time.time()), round(charge.most, 2)) == (0.0, 0.40)
    hub.jobs.end(next(iter(hub.jobs.jobs.values())), "CANCELED")
    assert world.ends() == 130
    state = read_state(world.run.events)
    assert (state.state, state.reason) == ("stopped", Reason.CANCELLED_ELSEWHERE)
    assert launcher.waits(world.run) is None


def test_the_job_is_started_once_though_the_hubs_answer_was_lost(hub: FakeHub, begin: Callable[[], World]) -> None:
    hub.jobs.fail("POST", r"/api/jobs/me$", "drop", after=True)
    world = begin()
    world.reach("RUNNING")
    assert len(hub.jobs.jobs) == 1
    world.write("events.jsonl", steps(3, Finished(time.time(), "done", 3, reason=Reason.COMPLETED)))
    hub.jobs.end(next(iter(hub.jobs.jobs.values())), "COMPLETED")
    assert world.ends() == 0


def test_faults_of_the_hub_lose_nothing(hub: FakeHub, begin: Callable[[], World]) -> None:
    hub.jobs.fail("POST", r"/api/jobs/me$", 500)
    hub.jobs.fail("POST", r"/buckets/me/lora-studio-jobs$", 502)
    world = begin()
    world.reach("RUNNING")
    job = next(iter(hub.jobs.jobs.values()))
    world.write("checkpoints/checkpoint-2/trainer_state.json", b"{}")
    world.write("checkpoints/checkpoint-2/adapter_model.safetensors", b"weights")
    world.write("events.jsonl", steps(2))
    wait_until(lambda: read_state(world.run.events).step == 2)
    assert [folder.name for folder in world.run.checkpoint_folders()] == ["checkpoint-2"]
    hub.jobs.fail("GET", f"/api/jobs/me/{job.id}$", 500, times=3)
    wait_until(lambda: world.place.trouble == "The Hub has a problem (status 500).")
    hub.jobs.fail("GET", f"/api/jobs/me/{job.id}$", "drop", times=2)
    world.write("events.jsonl", steps(5))
    hub.jobs.files.pop(("me/lora-studio-jobs", f"{world.run.id}-nonce/out/checkpoints/checkpoint-2/trainer_state.json"))
    hub.jobs.files.pop(
        ("me/lora-studio-jobs", f"{world.run.id}-nonce/out/checkpoints/checkpoint-2/adapter_model.safetensors")
    )
    wait_until(lambda: read_state(world.run.events).step == 5)
    wait_until(lambda: not world.run.checkpoint_folders())
    assert not world.place.trouble
    world.write("../../../escape", b"x")
    world.write("run.json", b"{}")
    world.write("events.jsonl", steps(6, Finished(time.time(), "done", 6, reason=Reason.COMPLETED)))
    world.write("complete.json", b'{"state": "done"}')
    hub.jobs.end(job, "COMPLETED")
    assert world.ends() == 0
    assert read_state(world.run.events).state == "done"
    assert world.run.read_result() == {"state": "done"}
    assert world.run.read_facts()["title"] == "t"
    assert not [path for _, path in hub.jobs.files if path.startswith(f"{world.run.id}-nonce/out/complete")]


def test_a_job_that_dies_says_how_and_its_log_comes_from_the_hub(hub: FakeHub, begin: Callable[[], World]) -> None:
    world = begin()
    world.reach("RUNNING")
    job = next(iter(hub.jobs.jobs.values()))
    job.log.write_text("Collecting torch\nERROR: no matching distribution\n")
    hub.jobs.end(job, "ERROR", "Job failed with exit code: 1")
    assert world.ends() == 1
    state = read_state(world.run.events)
    assert (state.state, state.reason) == ("failed", Reason.VANISHED)
    assert state.message == "The job on Hugging Face ended without a last word (Job failed with exit code: 1)."
    assert state.hint == "Resume starts over. The log ends with:\nERROR: no matching distribution"
    assert "Collecting torch" in world.run.log.read_text()


def test_logs_that_stop_keep_nothing_waiting(hub: FakeHub, begin: Callable[[], World]) -> None:
    hub.jobs.fail("GET", r"/logs", "drop", times=3, seconds=0.3)
    world = begin()
    world.reach("RUNNING")
    hub.jobs.end(next(iter(hub.jobs.jobs.values())), "ERROR", "Job timeout")
    assert world.ends() == 1
    state = read_state(world.run.events)
    assert (state.reason, state.message) == (Reason.OUT_OF_TIME, "The job's time limit was reached (Job timeout).")


def test_no_credits_is_one_sentence_and_nothing_runs(hub: FakeHub, begin: Callable[[], World]) -> None:
    hub.jobs.pays["me"] = False
    world = begin()
    assert world.ends() == 2
    state = read_state(world.run.events)
    assert (state.state, state.message) == ("failed", "The Hub takes no jobs from me without payment.")
    assert not hub.jobs.jobs
    assert world.place.ended


def test_a_cancel_ends_the_bill_and_is_confirmed_by_the_hub(hub: FakeHub, begin: Callable[[], World]) -> None:
    world = begin()
    world.reach("RUNNING")
    job = next(iter(hub.jobs.jobs.values()))
    world.write("events.jsonl", steps(4))
    wait_until(lambda: read_state(world.run.events).step == 4)
    hub.jobs.fail("POST", f"{job.id}/cancel", 500)
    world.ask(stop_asked=time.time(), killed=time.time(), cancelled=True)
    assert world.ends() == 130
    assert job.stage == "CANCELED"
    assert world.place.stage == "CANCELED"
    assert not read_state(world.run.events).final  # the watcher says who cancelled it


def test_a_stop_before_anything_began_cancels_the_job(hub: FakeHub, begin: Callable[[], World]) -> None:
    hub.jobs.capacity = False
    world = begin()
    world.reach("SCHEDULING")
    world.ask(stop_asked=time.time())
    assert world.ends() == 130
    assert next(iter(hub.jobs.jobs.values())).stage == "CANCELED"
    assert read_state(world.run.events).reason is Reason.STOPPED


def test_a_public_bucket_gets_nothing(hub: FakeHub, begin: Callable[[], World]) -> None:
    hub.jobs.buckets["me/lora-studio-jobs"] = False
    world = begin()
    assert world.ends() == 2
    assert "is public" in read_state(world.run.events).message
    assert not hub.jobs.ever


# -- whole jobs: processes of this machine


@pytest.fixture
def studio(workspace: Workspace, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Supervisor]]:
    """Each call is a server that begins to look after the workspace, which has the target hf-jobs:t4."""
    monkeypatch.setenv(hf_sync.EVERY, "0.4")
    (workspace.root / "targets.yaml").write_text("hf-jobs:\n  t4:\n    flavor: t4-small\n    timeout: 30m\n")
    begun: list[Supervisor] = []

    def begin() -> Supervisor:
        begun.append(Supervisor(workspace, tick_seconds=0.1))
        begun[-1].start()
        return begun[-1]

    yield begin
    for supervisor in begun:
        supervisor.close()
    for run in workspace.runs():
        kill(run)


@pytest.fixture
def supervisor(studio: Callable[[], Supervisor]) -> Supervisor:
    return studio()


def start(supervisor: Supervisor, mode: str) -> RunFolder:
    """A run whose worker is `tests/jobs/fake_worker.py` in that mode."""
    config = f"title: {mode}\nmodel:\n  name: some/base\n"

    def make() -> RunFolder:
        return supervisor.workspace.create_run(mode, config, {"compute_target": "hf-jobs:t4"})

    return supervisor.workspace.run(supervisor.submit(TRAIN, make))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = TRAIN.module
    object.__setattr__(TRAIN, "module", "quick_worker")
    yield
    object.__setattr__(TRAIN, "module", before)


SERVER = """
import json, sys, time
from lora_studio.config.parsing import resolve
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.workspace import Workspace
supervisor = Supervisor(Workspace.find(sys.argv[1]), tick_seconds=0.1)
supervisor.start()
print(supervisor.launch(resolve("demo", json.loads(sys.argv[2]))), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_server_after_one_that_was_killed_brings_the_run_home_as_any_run(
    studio: Callable[[], Supervisor], workspace: Workspace, hub: FakeHub, tmp_path: Path
) -> None:
    """And its courier was killed as well, as where the machine went down: the demo trains on all the same."""
    data = tmp_path / "my data.jsonl"
    rows = [{"prompt": f"What is {number} and one?", "completion": f"{number + 1}."} for number in range(24)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "compute.target": "hf-jobs:t4",
        "data.train_file": str(data),
        "training.max_steps": 3,
        "evaluation.eval_strategy": "no",
    }
    words = [sys.executable, "-c", SERVER, str(workspace.root), json.dumps(settings)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        run = workspace.run(server.stdout.readline().strip())
        wait_until(lambda: read_state(run.events).started is not None, 600)
        server.kill()
    courier = read_worker(run)
    assert courier is not None
    os.kill(courier.pid, signal.SIGKILL)
    supervisor = studio()
    assert supervisor.state(run.id).state == "running"
    wait_until(lambda: supervisor.state(run.id).final and not supervisor.is_alive(run.id), 600)
    assert (read_worker(run) or courier).pid != courier.pid
    state = supervisor.state(run.id)
    assert (state.state, state.message, state.step) == ("done", "", 3)
    assert [point.step for point in state.steps] == [1, 2, 3]
    assert [asked.method for asked in hub.requests if asked.path == "/api/jobs/me"].count("POST") == 1
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert [folder.name for folder in run.checkpoint_folders()] == ["checkpoint-3"]
    assert run.read_result()["state"] == "done"
    assert str(data) in run.report.read_text()
    (job,) = hub.jobs.jobs.values()
    assert job.spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert job.spec["timeoutSeconds"] == 1800
    assert TOKEN not in json.dumps({**job.spec, "secrets": ""})
    texts = [path for path in run.path.rglob("*") if path.suffix in (".json", ".jsonl", ".md", ".yaml", ".log")]
    assert len(texts) > 10
    for path in texts:
        assert TOKEN not in path.read_text()
        assert str(job.folder) not in path.read_text()
    assert hub.jobs.buckets == {"me/lora-studio-jobs": True}
    assert not hub.jobs.files
    assert state.charge is not None
    assert state.charge.at(time.time()) == pytest.approx(0.40 * state.charge.seconds / 3600, rel=0.01)


@pytest.mark.slow
def test_a_stopped_run_saves_comes_back_and_goes_on(supervisor: Supervisor, hub: FakeHub, quick: None) -> None:
    run = start(supervisor, "steps=30000")
    wait_until(lambda: supervisor.state(run.id).step >= 5)
    assert supervisor.state(run.id).state == "running"
    supervisor.stop(run.id)
    assert supervisor.state(run.id).state in ("stopping", "stopped")
    wait_until(lambda: supervisor.state(run.id).final and not supervisor.is_alive(run.id))
    state = supervisor.state(run.id)
    assert (state.state, state.reason) == ("stopped", Reason.STOPPED)
    saved = [folder.name for folder in run.checkpoint_folders()]
    assert saved == [f"checkpoint-{state.step}"]
    supervisor.resume(run.id)
    wait_until(lambda: any(job.stage == "RUNNING" for job in hub.jobs.jobs.values()))
    wait_until(lambda: supervisor.state(run.id).resumed != state.resumed)
    supervisor.cancel(run.id)
    wait_until(lambda: supervisor.state(run.id).final)
    assert supervisor.state(run.id).reason is Reason.CANCELLED
    assert [job.stage for job in hub.jobs.jobs.values()] == ["COMPLETED", "CANCELED"]
    assert not hub.jobs.files
    charge = supervisor.state(run.id).charge
    assert charge is not None
    assert 0 < charge.at(time.time()) < charge.most


@pytest.mark.slow
def test_the_time_limit_is_met_by_saving_before_it(supervisor: Supervisor, hub: FakeHub, quick: None) -> None:
    run = start(supervisor, "endless")
    wait_until(lambda: supervisor.state(run.id).step >= 1)
    hub.jobs.let_pass(1531)  # of half an hour, of which the last 270 seconds are for saving
    wait_until(lambda: supervisor.state(run.id).final and not supervisor.is_alive(run.id))
    state = supervisor.state(run.id)
    assert (state.state, state.reason) == ("stopped", Reason.OUT_OF_TIME)
    assert run.checkpoint_folders()
