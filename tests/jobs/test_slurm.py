"""Jobs on a real Slurm with two nodes of this one machine: `tests/slurm_two_nodes.sh`, which needs root and apt."""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, expect

from lora_studio.chat.choices import choices, select_models
from lora_studio.config.parsing import parse
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as evaluating
from lora_studio.export import job as exporting
from lora_studio.jobs.events import Reason, RunState
from lora_studio.jobs.kinds import ending_words
from lora_studio.jobs.launchers.slurm import SlurmLauncher, read_worker
from lora_studio.jobs.protocol import ChatMessage, ColumnPrompt, Generate, Load
from lora_studio.jobs.session import Session
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.jobs.targets import TargetLaunchers
from lora_studio.workspace import RunFolder, Workspace
from tests.jobs.conftest import fake_command, wait_until
from tests.serving import PATIENCE, Server, open_tab

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
CLUSTER = Path(__file__).parent.parent / "slurm_two_nodes.sh"
ONE = {"partition": "all"}
TWO = {"partition": "all", "nodes": 2}
STEPS = 24


def missing() -> str:
    """Why no Slurm can be had here; "" where it can."""
    if os.geteuid() != 0:
        return "starting a Slurm needs root"
    installed = shutil.which("slurmctld") and shutil.which("munged")
    return "" if installed or shutil.which("apt-get") else "there is neither Slurm nor apt-get to install it"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([CLUSTER, "start", folder], capture_output=True, text=True)
    if started.returncode and "apt-get" in started.stderr:
        pytest.skip(f"Slurm could not be installed: {started.stderr.strip()[-200:]}")
    assert started.returncode == 0, started.stderr
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield folder
    subprocess.run(["scancel", "--signal=KILL", "--full", "--me"], check=False)
    subprocess.run([CLUSTER, "stop", folder], check=True)
    os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)


Studio = Callable[..., Supervisor]


@pytest.fixture(scope="module")
def place(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The workspace of all tests here, with the targets slurm:one and slurm:two."""
    workspace = Workspace(tmp_path_factory.mktemp("studio") / "workspace")
    targets = Supervisor(workspace).targets
    targets.save("slurm:one", {**ONE, "shared_folder": str(workspace.root)})
    targets.save("slurm:two", TWO)
    targets.save("slurm:short", {**ONE, "time": "1", "resume_at_time_limit": True})
    return workspace


@pytest.fixture
def studio(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """studio("steps=40") is a studio whose workers are fakes that make 40 steps; studio() has the real ones."""
    started: list[Supervisor] = []

    def make(mode: str = "") -> Supervisor:
        command = fake_command(mode) if mode else None

        def launcher(target_of: Callable[..., object]) -> SlurmLauncher:
            return SlurmLauncher(target_of, command, poll_seconds=0.3)  # type: ignore[arg-type]

        monkeypatch.setattr("lora_studio.jobs.targets.SlurmLauncher", launcher)
        supervisor = Supervisor(place, tick_seconds=0.1)
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield make
    for supervisor in started:
        supervisor.close()


def config(target: str, **more: object) -> Config:
    values: dict[str, dict[str, object]] = {
        "model": {"name": "demo"},
        "data": {"train_file": "pirate", "max_length": 256, "max_samples": 64},
        "training": {"max_steps": STEPS, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "evaluation": {"eval_strategy": "no"},
        "tracking": {"logging_steps": 1},
        "compute": {"target": target},
    }
    for path, value in more.items():
        section, _, leaf = path.partition("__")
        values.setdefault(section, {})[leaf] = value
    return parse(values)


def ended(supervisor: Supervisor, job: str, seconds: float = 600.0) -> RunState:
    wait_until(lambda: supervisor.state(job).final and not supervisor.is_alive(job), seconds)
    return supervisor.state(job)


def slurm_job(supervisor: Supervisor, run: str) -> str:
    worker = read_worker(RunFolder(supervisor.workspace.runs_folder / run))
    assert worker is not None
    return worker.slurm_job


def control(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def begin_now(supervisor: Supervisor, run: str, restarts: int) -> None:
    """Ends the two minutes that Slurm lets pass before it begins a job again, where they are not over yet.

    Two seconds are left: with its end a node refuses all beginnings of a job of the same second ("credential revoked").
    """

    def waits() -> bool:
        return "it begins again shortly" in supervisor.state(run).waiting

    def begun() -> bool:
        worker = read_worker(supervisor.workspace.run(run))
        return worker is not None and (worker.restarts, worker.state) == (restarts, "RUNNING")

    wait_until(lambda: (supervisor.state(run).restarts == restarts and waits()) or begun())
    if waits():
        words = ["scontrol", "update", f"jobid={slurm_job(supervisor, run)}", "starttime=now+2seconds"]
        subprocess.run(words, check=False, capture_output=True)  # it may have begun meanwhile


def steps_above(pid: int) -> list[psutil.Process]:
    """Slurm's processes that started a worker. A node on which one is left refuses the job, which Slurm then holds."""
    return [each for each in psutil.Process(pid).parents() if " ".join(each.cmdline()).startswith("slurmstepd")]


def at_step(supervisor: Supervisor, run: str, step: int) -> None:
    def there() -> bool:
        state = supervisor.state(run)
        assert not state.final or supervisor.is_alive(run), ending_words(state)
        return state.state == "running" and state.step >= step

    wait_until(there, 600)


@pytest.fixture(scope="module")
def undisturbed(place: Workspace) -> RunState:
    """A run of the real worker on one node, from which nobody took anything."""
    supervisor = Supervisor(place)
    state = ended(supervisor, supervisor.launch(config("slurm:one")))
    assert (state.state, state.step, state.target, state.restarts) == ("done", STEPS, "slurm:one", 0), ending_words(
        state
    )
    return state


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The chat's engine, which loads the base meanwhile."""
    with Session(tmp_path_factory.mktemp("chat") / "session.log") as session:
        loading = threading.Thread(target=session.call, args=[Load(base="demo")])
        loading.start()
        yield session
        loading.join()


def losses(state: RunState) -> list[float | None]:
    return [item.loss for item in state.steps]


def test_a_run_over_two_nodes_answers_while_it_learns_what_one_node_learns_and_serves_there(
    chat: Session, studio: Studio, undisturbed: RunState
) -> None:
    supervisor = studio()
    saving = {"training__save_strategy": "steps", "training__save_steps": 2, "training__save_total_limit": STEPS}
    two = supervisor.launch(config("slurm:two", training__gradient_accumulation_steps=1, **saving))
    wait_until(lambda: any(choice.run for choice in choices(supervisor.workspace, [supervisor.state(two)])), 600)
    first = choices(supervisor.workspace, [supervisor.state(two)])[-1]
    assert first.value == f"{two}/checkpoint-2"
    loaded = chat.call(select_models([first]).request())
    asked = ColumnPrompt(adapter=loaded.adapters[0], messages=[ChatMessage(role="user", content="Hello")])
    (answer,) = chat.call(Generate(columns=[asked], settings={"max_new_tokens": 4})).columns
    assert answer.tokens
    assert not supervisor.state(two).final, "it goes on while it is asked"
    other = ended(supervisor, two)
    assert other.state == "done", ending_words(other)
    assert losses(other) == pytest.approx(losses(undisturbed), abs=1e-4)
    workspace = supervisor.workspace
    request = evaluating.make_request(
        workspace, [two], "pirate", measuring={"max_samples": 4}, compute_target="slurm:one"
    )
    evaluation = evaluating.start(supervisor, request)
    export = exporting.start(supervisor, exporting.make_request(workspace, two, "zip", compute_target="slurm:one"))
    assert supervisor.busy() is None
    assert ended(supervisor, evaluation).state == "done"
    assert evaluating.evaluation(workspace, evaluation).read_result()["rows"] == 4
    state = ended(supervisor, export)
    assert state.state == "done", ending_words(state)
    assert any(exporting.folders(workspace).find(export).result.iterdir())


def test_a_run_that_is_requeued_and_loses_its_node_ends_with_the_losses_of_one_left_alone(
    studio: Studio, undisturbed: RunState
) -> None:
    supervisor = studio()
    run = supervisor.launch(config("slurm:one", training__save_strategy="steps", training__save_steps=2))
    at_step(supervisor, run, 3)
    control("scontrol", "requeue", slurm_job(supervisor, run))
    begin_now(supervisor, run, 1)
    at_step(supervisor, run, 7)
    pid, node = supervisor.state(run).pid, read_worker(supervisor.workspace.run(run))
    assert pid is not None
    assert node is not None
    steps = steps_above(pid)
    assert steps
    control("scontrol", "update", f"nodename={node.nodes}", "state=down", "reason=test")
    wait_until(lambda: not any(each.is_running() for each in steps))
    wait_until(lambda: not psutil.pid_exists(pid))
    begin_now(supervisor, run, 2)
    state = ended(supervisor, run)
    assert (state.state, state.restarts) == ("done", 2), ending_words(state)
    assert state.resumed is not None
    assert losses(state) == losses(undisturbed)


def test_the_page_starts_a_run_on_the_cluster_and_after_a_kill_another_evaluates_there_and_stops_it(
    place: Workspace, browser: Browser, undisturbed: RunState
) -> None:
    before = {run.id for run in place.runs()}
    server = Server(place.root)
    try:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{server.url}/#train")
        page.locator("#set-training-num_train_epochs input").fill("400")  # it goes on until it is stopped
        page.locator("#settings-search input").fill("slurm")
        target = page.locator("#set-compute-target input")
        expect(target).to_be_in_viewport(timeout=PATIENCE)
        target.click()
        page.get_by_role("option", name="slurm:one").click()
        page.locator("#start").click()
        expect(page.locator("#run-headline")).to_contain_text("slurm:one", timeout=PATIENCE)
        expect(page.locator("#run-stop")).to_be_visible(timeout=PATIENCE)
        (run,) = [run for run in place.runs() if run.id not in before]
        assert "srun" in (run.path / "job.slurm").read_text(encoding="utf-8")
        server.kill()
        server = Server(place.root, port=server.port)
        page.goto(f"{server.url}/#evaluate")
        page.get_by_role("button", name="Settings").first.click()
        # What the opening of the tab sets comes in the end, and over what was chosen before it.
        expect(page.locator("#evaluate-adapters")).to_contain_text("demo-pirate", timeout=PATIENCE)
        page.get_by_label("Max rows", exact=True).fill("2")
        page.locator("#evaluate-target input").click()
        page.get_by_role("option", name="slurm:one").click()
        page.get_by_label("Test data").click()
        page.get_by_role("option", name="Film recommender").click()
        page.locator("#evaluate-start").click()
        expect(page.locator("#evaluation-head")).to_contain_text("Film recommender", timeout=2 * PATIENCE)
        newest = evaluating.evaluations(place)[0]
        assert evaluating.request_of(newest).compute_target == "slurm:one"
        assert read_worker(newest) is not None, "it was submitted"
        open_tab(page, "Runs")
        expect(page.locator("#run-headline")).to_contain_text("slurm:one", timeout=PATIENCE)
        page.locator("#run-stop").click()
        expect(page.locator("#run-headline")).to_contain_text("Stopped", timeout=2 * PATIENCE)
    finally:
        server.end()


def test_a_stop_saves_and_a_resume_goes_on(studio: Studio) -> None:
    supervisor = studio("steps=30000")
    run = supervisor.launch(config("slurm:one"))
    at_step(supervisor, run, 2)
    supervisor.stop(run)
    state = ended(supervisor, run)
    assert (state.state, state.reason) == ("stopped", Reason.STOPPED)
    assert len(state.checkpoints) == 1
    supervisor.resume(run)
    at_step(supervisor, run, 3)
    supervisor.cancel(run)
    state = ended(supervisor, run)
    assert (state.state, state.reason) == ("stopped", Reason.CANCELLED)


def test_a_job_cancelled_by_hand_in_the_cluster_says_so(studio: Studio) -> None:
    supervisor = studio("steps=30000")
    run = supervisor.launch(config("slurm:one"))
    at_step(supervisor, run, 2)
    control("scancel", slurm_job(supervisor, run))
    state = ended(supervisor, run)
    assert (state.state, state.reason) == ("stopped", Reason.CANCELLED_ELSEWHERE)
    assert ending_words(state)[0] == "Cancelled on slurm:one, not in the studio."
    assert state.checkpoints  # it had time to save


def test_a_preempted_job_goes_on_and_another_server_follows_it(studio: Studio) -> None:
    first = studio("endless")
    run = first.launch(config("slurm:one"))
    beside = first.launch(config("slurm:one"))
    waiting = first.launch(config("slurm:two"))
    at_step(first, run, 2)
    at_step(first, beside, 2)
    wait_until(lambda: "(Resources)" in first.state(waiting).waiting or "(Priority)" in first.state(waiting).waiting)
    first.close()  # the server is killed: nobody looks for a while
    control("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 2", "--time=1")
    second = studio("endless")
    begin_now(second, run, 1)
    begin_now(second, beside, 1)
    for job in (run, beside):
        state = ended(second, job)
        assert state.state == "done", ending_words(state)
        assert state.resumed is not None
    at_step(second, waiting, 2)
    second.stop(waiting)
    state = ended(second, waiting)
    assert (state.state, state.restarts) == ("stopped", 0), ending_words(state)


def test_a_job_whose_time_is_over_is_queued_again(studio: Studio) -> None:
    supervisor = studio("steps=30000")
    run = supervisor.launch(config("slurm:short"))
    begin_now(supervisor, run, 1)
    wait_until(lambda: supervisor.state(run).resumed is not None)
    supervisor.stop(run)
    state = ended(supervisor, run)
    assert state.state == "stopped"
    assert state.checkpoints


def test_a_script_submitted_by_hand_is_followed(studio: Studio) -> None:
    supervisor = studio("steps=5")
    run = supervisor.launch(config("slurm:one"))
    assert ended(supervisor, run).state == "done"
    before = slurm_job(supervisor, run)
    shutil.rmtree(supervisor.workspace.run(run).checkpoints)
    control("sbatch", str(supervisor.workspace.runs_folder / run / "job.slurm"))
    wait_until(lambda: slurm_job(supervisor, run) != before)
    assert ended(supervisor, run).state == "done"


def test_what_a_real_cluster_refuses_is_told_before_anything_starts(
    studio: Studio, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = studio("steps=5")
    runs = len(supervisor.workspace.runs())
    supervisor.targets.save("slurm:none", {"partition": "none"})
    with pytest.raises(StudioError, match="takes no job in the partition 'none'") as caught:
        supervisor.launch(config("slurm:none"))
    assert "all, urgent" in caught.value.hint
    supervisor.targets.save("slurm:none", {"nodes": 3})
    with pytest.raises(StudioError, match="slurm:none: Slurm refuses the job: "):
        supervisor.launch(config("slurm:none"))
    assert TargetLaunchers(supervisor.workspace).try_out("slurm:two").startswith("slurm:two works: n1, n2 see")
    for name, before, after in (
        ("munge", r"munge\.socket", "no.socket"),
        ("slurmctld", r"SlurmctldPort=\d+", "SlurmctldPort=9"),
    ):
        other = cluster / f"{name}.conf"
        other.write_text(re.sub(before, after, (cluster / "slurm.conf").read_text()))
        monkeypatch.setenv("SLURM_CONF", str(other))
        with pytest.raises(StudioError, match=name):
            supervisor.launch(config("slurm:one"))
    assert len(supervisor.workspace.runs()) == runs
