"""Targets: how they are described, who may use them, which launcher serves a job, and what a cluster's words come to.

A real Slurm is in `test_slurm`; here its commands are stand-ins that print what Slurm 22.05 printed.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_studio.access.policy import Users
from lora_studio.config.parsing import parse
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Reason
from lora_studio.jobs.kinds import EXPORT, TRAIN, EvaluationFolder, ExportFolder
from lora_studio.jobs.launchers import SlurmTarget, slurm
from lora_studio.jobs.launchers.slurm import ClusterJob, SlurmWorker, read_squeue, script, updated
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.jobs.targets import Targets
from lora_studio.workspace import Workspace
from tests.jobs.conftest import Supervise, wait_until

Commands = Callable[..., Path]


def described(workspace: Workspace, text: str) -> Targets:
    (workspace.root / "targets.yaml").write_text(text)
    return Targets(workspace)


TWO = "slurm:\n  two:\n    partition: all\n    nodes: 2\n"


def test_a_target_is_found_by_kind_and_name(workspace: Workspace) -> None:
    assert Targets(workspace).all() == {}
    targets = described(workspace, TWO)
    assert targets.find("local") is None
    assert targets.find("slurm:two") == SlurmTarget(partition="all", nodes=2)
    with pytest.raises(StudioError, match=r"There is no target 'slurm:three'\.") as caught:
        targets.find("slurm:three")
    assert "Targets: local, slurm:two." in caught.value.hint


def test_everything_wrong_with_the_file_is_told_at_once(workspace: Workspace) -> None:
    targets = described(
        workspace,
        "slurm:\n  two:\n    nodes: many\n    gpus: 2\n  odd:\n    partition: a b\n    extra: constraint=a100\n"
        "    shared_folder: here\ncloud:\n  one: {}\n",
    )
    with pytest.raises(StudioError) as caught:
        targets.all()
    for words in (
        "slurm:two: nodes must be a whole number.",
        "slurm:two: gpus is not a setting of a target.",
        "slurm:odd: partition must be a single word.",
        "slurm:odd: extra must hold one option per line, each with its dashes.",
        "slurm:odd: shared_folder must be a whole path.",
        "'cloud' is not a kind of target",
    ):
        assert words in caught.value.message


def test_targets_are_saved_and_deleted_and_only_what_differs_stands_in_the_file(workspace: Workspace) -> None:
    targets = Targets(workspace)
    targets.save("slurm:two", {"partition": "all", "nodes": 2, "extra": "#SBATCH --constraint=a100\n\n--exclusive"})
    targets.save("slurm:one", {"shared": True})
    text = (workspace.root / "targets.yaml").read_text()
    assert "two:\n    partition: all\n    nodes: 2\n    extra:" in text
    assert "one:\n    shared: true\n" in text
    assert targets.all()["slurm:two"].model_dump()["extra"] == "--constraint=a100\n--exclusive"
    targets.delete("slurm:two")
    assert list(targets.all()) == ["slurm:one"]
    for name in ("two", "cloud:two", "slurm:", "slurm:a b", "slurm:../two"):
        with pytest.raises(StudioError, match="is not a name for a target"):
            targets.save(name, {})
    with pytest.raises(StudioError, match="nodes must be at least 1"):
        targets.save("slurm:none", {"nodes": 0})


def test_visitors_get_the_targets_that_the_owner_shares(workspace: Workspace) -> None:
    described(workspace, TWO + "  open:\n    shared: true\n")
    users = Users(workspace, "owner")
    assert list(Targets(users.workspace_for(lambda: "owner")).all()) == ["slurm:two", "slurm:open"]
    visited = users.workspace_for(lambda: "ann")
    assert list(Targets(visited).all()) == ["slurm:open"]
    with pytest.raises(StudioError, match=r"There is no target 'slurm:two'\."):
        Supervisor(visited).launch(parse({"compute": {"target": "slurm:two"}}))
    for act in (lambda: Targets(visited).save("slurm:mine", {}), lambda: Targets(visited).delete("slurm:open")):
        with pytest.raises(StudioError, match="Only the owner"):
            act()


def test_this_machine_may_be_called_by_its_title(workspace: Workspace) -> None:
    assert parse({"compute": {"target": " This machine"}}).compute.target == "local"
    assert parse({"compute": {"target": "slurm:two "}}).compute.target == "slurm:two"


def test_a_run_is_written_with_the_processes_of_its_target(workspace: Workspace) -> None:
    targets = described(workspace, TWO)
    assert targets.placed(parse({"compute": {"target": "slurm:two", "device": "3"}})).compute.world_size == 2
    assert targets.placed(parse({"compute": {"processes": 3}})).compute.world_size == 3
    with pytest.raises(StudioError) as caught:
        targets.placed(parse({"compute": {"target": "slurm:two", "processes": 4}}))
    assert "compute.processes: slurm:two trains in 2, one for each of its devices; use auto (found '4')" in str(
        caught.value
    )


# -- the script


def test_the_script_of_a_run_over_two_nodes_with_gpus(workspace: Workspace) -> None:
    run = workspace.create_run("test", "{}", {})
    target = SlurmTarget(
        partition="gpu", account="lab", qos="high", time="2:00:00", mem="64G", nodes=2, gpus_per_node=4,
        extra="--constraint=a100\n--exclusive", environment="source /shared/venv/bin/activate",
    )  # fmt: skip
    assert (target.ranks, target.device_kind) == (8, "cuda")
    text = script("slurm:big", target, run, TRAIN.module, resume=False)
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert options == [
        f"--job-name={run.id}",
        "--dependency=singleton",
        f"--chdir={run.path}",
        f"--output={run.log}",
        "--open-mode=append",
        "--requeue",
        "--signal=TERM@120",
        "--partition=gpu",
        "--account=lab",
        "--qos=high",
        "--time=2:00:00",
        "--mem=64G",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--constraint=a100",
        "--exclusive",
    ]
    assert "\nsource /shared/venv/bin/activate\n" in text
    assert "export MASTER_ADDR=$(hostname)" in text
    assert "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS" in text
    assert f"python -P -m lora_studio.engine.train.worker {run.path} $resume" in text
    assert 'SLURM_RESTART_COUNT:-0}" -gt 0 ] && compgen -G' in text
    assert "|| [" not in text
    again = script(
        "slurm:big", target.model_copy(update={"resume_at_time_limit": True}), run, TRAIN.module, resume=True
    )
    assert "resume=--resume\n" in again
    assert '{ preempted || [ "$((end - $(date +%s)))" -lt 190 ]; }; then scontrol requeue' in again


def test_other_jobs_take_one_process_of_the_target(workspace: Workspace) -> None:
    target = SlurmTarget(nodes=2, gpus_per_node=4, resume_at_time_limit=True)
    folder = EvaluationFolder(workspace.evaluations_folder / "e")
    text = script("slurm:big", target, folder, "lora_studio.engine.evaluate.worker", resume=False)
    assert "--nodes=1\n" in text
    assert "--ntasks-per-node=1\n" in text
    assert "--gpus-per-node=1\n" in text
    assert "MASTER_ADDR" not in text
    assert 'SLURM_RESTART_COUNT:-0}" -gt 0 ]; then' in text
    export = script("slurm:big", target, ExportFolder(workspace.exports_folder / "e"), EXPORT.module, resume=False)
    assert "--resume" not in export
    assert "scontrol requeue" not in export


# -- what the cluster says


def test_a_job_that_the_cluster_takes_back_waits_and_starts_again() -> None:
    worker = SlurmWorker("7", launched=100.0, state="PENDING", wait="Submitted", since=100.0)
    waiting = updated(worker, ClusterJob("7", "PENDING", "Resources", 100.0, 160.0, limit=3600.0), 101.0)
    assert (waiting.alive, waiting.wait, waiting.expected) == (True, "Resources", 160.0)
    running = updated(waiting, ClusterJob("7", "RUNNING", "None", 100.0, 150.0, 3750.0, 3600.0, nodes="n1"), 151.0)
    assert (running.wait, running.launched, running.nodes, running.at_limit) == ("", 150.0, "n1", False)
    again = updated(running, ClusterJob("7", "PENDING", "BeginTime", 200.0, restarts=1), 201.0)
    assert (again.alive, again.wait, again.since, again.restarts) == (True, "BeginTime", 200.0, 1)
    ended = updated(again, ClusterJob("7", "COMPLETED", "None", 200.0, 210.0, 220.0, 3600.0, 1, "n2", 0), 221.0)
    assert (ended.alive, ended.code, ended.at_limit, ended.restarts) == (False, 0, False, 1)


@pytest.mark.parametrize(
    ("state", "code", "at_limit", "reason"),
    [
        ("CANCELLED", 0, False, Reason.CANCELLED_ELSEWHERE),
        ("TIMEOUT", 0, True, Reason.OUT_OF_TIME),
        ("FAILED", 130, True, Reason.OUT_OF_TIME),
        ("FAILED", 130, False, None),
        ("NODE_FAIL", 0, False, Reason.NODE_FAILED),
        ("PREEMPTED", 0, False, Reason.PREEMPTED),
        ("OUT_OF_MEMORY", 0, False, Reason.MEMORY_KILL),
        ("FAILED", 78, False, Reason.NOT_SHARED),
        ("FAILED", 1, False, None),
    ],
)
def test_an_end_has_the_reason_that_the_cluster_gives(
    workspace: Workspace, state: str, code: int, at_limit: bool, reason: Reason | None
) -> None:
    run = workspace.create_run("test", "{}", {"compute_target": "slurm:two"})
    run.worker.write_text(
        json.dumps({"slurm_job": "7", "launched": 1.0, "state": state, "code": code, "at_limit": at_limit})
    )
    assert slurm.SlurmLauncher(lambda folder: ("", SlurmTarget())).how_it_ended(run).reason == reason


def test_a_worker_that_the_target_stopped_says_why(workspace: Workspace) -> None:
    run = workspace.create_run("test", "{}", {"compute_target": "slurm:two"})
    run.events.write_text('{"event": "Finished", "time": 5.0, "state": "stopped", "step": 3, "reason": "stopped"}\n')
    run.worker.write_text(json.dumps({"slurm_job": "7", "launched": 1.0, "state": "PREEMPTED"}))
    state = Supervisor(workspace).state(run.id)
    assert (state.state, state.reason, state.target) == ("stopped", Reason.PREEMPTED, "slurm:two")


# -- commands


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Stand-ins of Slurm's commands: commands(sbatch="echo 7") is one that prints 7; gives their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def write(**bodies: str) -> Path:
        for name, body in bodies.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
        return folder

    return write


NO_MUNGE = (
    "sbatch: error: If munged is up, restart with --num-threads=10\n"
    'sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file or directory\n'
    "sbatch: error: slurm_send_node_msg: g_slurm_auth_create: REQUEST_JOB_WILL_RUN has authentication error\n"
)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (NO_MUNGE, "slurm:two: Slurm cannot prove who you are: munge does not run on this machine."),
        (
            "sbatch: error: Unable to contact slurm controller (connect failure)",
            "slurm:two: The cluster's controller (slurmctld) does not answer.",
        ),
        (
            "sbatch: error: invalid partition specified: all\nallocation failure: Invalid partition name specified",
            "slurm:two: the cluster takes no job in the partition 'all'.",
        ),
        (
            "allocation failure: Invalid account or account/partition combination specified",
            "slurm:two: Slurm refuses the job: Invalid account or account/partition combination specified.",
        ),
    ],
)
def test_a_target_that_takes_no_jobs_says_so_before_anything_starts(
    workspace: Workspace, commands: Commands, answer: str, message: str
) -> None:
    described(workspace, TWO)
    (workspace.root / "answer").write_text(answer)
    commands(sbatch=f"cat {workspace.root}/answer >&2; exit 1", sinfo="echo all; echo urgent")
    with pytest.raises(StudioError) as caught:
        Supervisor(workspace).launch(parse({"compute": {"target": "slurm:two"}}))
    assert caught.value.message == message
    assert not workspace.runs()


def test_a_machine_without_slurm_says_so(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    described(workspace, TWO)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudioError, match="sbatch is not installed on this machine"):
        Supervisor(workspace).launch(parse({"compute": {"target": "slurm:two"}}))


def test_files_outside_the_shared_folder_are_refused(workspace: Workspace, tmp_path: Path, commands: Commands) -> None:
    commands(sbatch="exit 0")
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    supervisor = Supervisor(workspace)
    config = parse({"data": {"train_file": str(data)}, "compute": {"target": "slurm:two"}})
    for shared, message in (
        (tmp_path / "elsewhere", "its shared folder .* does not exist on this machine"),
        (workspace.root / "uploads", "workspace is outside the shared folder"),
        (workspace.root, r"rows\.jsonl is outside the shared folder .*, so the nodes cannot see it"),
    ):
        supervisor.targets.save("slurm:two", {"shared_folder": str(shared)})
        with pytest.raises(StudioError, match=message):
            supervisor.launch(config)
    assert not workspace.runs()


def squeue_line(*values: str) -> str:
    return "".join(f"{value:<{slurm.WIDTH}}" for value in values) + "\n"


def test_what_waits_in_a_clusters_queue_holds_no_device(
    workspace: Workspace, commands: Commands, supervise: Supervise
) -> None:
    described(workspace, TWO)
    now = int(time.time())
    (workspace.root / "jobs").write_text(
        squeue_line("7", "PENDING", "Resources", str(now), str(now + 3600), "N/A", "1:00:00", "0", "0:0", "")
    )
    commands(
        sbatch="case $* in *--test-only*) exit 0;; esac; echo 7",
        squeue=f"cat {workspace.root}/jobs",
        scancel=f'echo "$@" > {workspace.root}/cancelled; : > {workspace.root}/jobs',
        sacct=f"echo '7|CANCELLED by 0|{now}|Unknown|{now}|60|0:0|'",
    )
    supervisor = supervise("steps=30000")
    remote = supervisor.launch(parse({"compute": {"target": "slurm:two"}}))
    here = supervisor.launch(parse({}))
    wait_until(lambda: supervisor.state(here).state == "running")
    wait_until(lambda: "no free nodes (Resources)" in supervisor.state(remote).waiting)
    state = supervisor.state(remote)
    assert (state.state, state.expected_start) == ("queued", now + 3600)
    assert "In the queue of slurm:two" in state.waiting
    assert supervisor.busy() == here
    assert supervisor.queue() == []
    later = Supervisor(workspace)  # of another server
    assert later.state(remote).state == "queued"
    supervisor.stop(remote)
    wait_until(lambda: supervisor.state(remote).final)
    assert (workspace.root / "cancelled").read_text() == "7\n"  # without a signal: it had not begun
    assert supervisor.state(remote).state == "stopped"
    assert supervisor.state(here).state == "running"


def test_a_refusal_at_the_submission_is_the_runs_last_word(workspace: Workspace, commands: Commands) -> None:
    described(workspace, TWO)
    commands(sbatch="case $* in *--test-only*) exit 0;; esac; echo 'sbatch: error: Job violates policy' >&2; exit 1")
    supervisor = Supervisor(workspace)
    run = supervisor.launch(parse({"compute": {"target": "slurm:two"}}))
    state = supervisor.state(run)
    assert (state.state, state.message) == ("failed", "Slurm refuses the job: Job violates policy.")
    assert supervisor.queue() == []
    assert (workspace.runs_folder / run / "job.slurm").is_file()


def test_a_token_is_never_sent_to_a_cluster(workspace: Workspace, commands: Commands) -> None:
    described(workspace, TWO)
    commands(sbatch="exit 0")
    with pytest.raises(StudioError, match="A token cannot be sent to slurm:two"):
        Supervisor(workspace).submit(EXPORT, lambda: pytest.fail("made"), secrets={"HF_TOKEN": "x"}, target="slurm:two")


def test_lines_of_the_queue_are_read_as_slurm_writes_them() -> None:
    text = squeue_line("7", "RUNNING", "None", "100", "110", "3710", "1-01:00:00", "2", "0:0", "n[1-2]")
    text += squeue_line("8_1", "RUNNING", "None", "100", "110", "3710", "UNLIMITED", "0", "0:0", "n1")  # an array's
    text += squeue_line("9", "FAILED", "NonZeroExitCode", "100", "110", "120", "3:04", "0", "2:0", "n1")
    jobs = read_squeue(text)
    assert list(jobs) == ["7", "9"]
    assert jobs["7"] == ClusterJob("7", "RUNNING", "None", 100.0, 110.0, 3710.0, 90000.0, 2, "n[1-2]", 0)
    assert (jobs["9"].limit, jobs["9"].code) == (184.0, 2)
