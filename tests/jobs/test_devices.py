"""Every device trains a run of its own: three pretended GPUs whose workers compute nothing, on the CPU."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lora_studio.access.policy import Users
from lora_studio.config.compute import Compute
from lora_studio.config.parsing import ConfigError, parse
from lora_studio.config.sections import Config, Generation
from lora_studio.errors import StudioError
from lora_studio.evaluate import job as evaluating
from lora_studio.evaluate.job import EvaluatedColumn, EvaluationRequest, Measuring
from lora_studio.jobs.devices import Allocation, Demand, Holder, change_processes, demand_of, problems_here, read_held
from lora_studio.jobs.kinds import KINDS
from lora_studio.jobs.launchers.local import LocalLauncher, find, kill
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models.hardware import Device, cpu, environment_of
from lora_studio.units import GIB
from lora_studio.workspace import Workspace

from .conftest import wait_until
from .test_one_queue import command

CARDS = [Device(f"Card {n}", "cuda", 8 * GIB, (8 - n) * GIB, index=n, uuid=f"GPU-{n}") for n in range(3)]
EVALUATION = EvaluationRequest(
    "Test", "data", (EvaluatedColumn("adapter", "A", "/a"),), (), "", Measuring(), Generation()
)
GOES_ON = "runs:steps=30000,evaluations:slow"
Make = Callable[..., Supervisor]


class Machine:
    """A machine whose devices can come and go."""

    def __init__(self) -> None:
        self.devices = [*CARDS, cpu()]

    def __call__(self) -> list[Device]:
        return self.devices


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def make(workspace: Workspace, machine: Machine) -> Iterator[Make]:
    """make() gives a supervisor that looks around when it is told to; no worker is left behind."""
    made: list[Supervisor] = []

    def supervisor(modes: str = GOES_ON, whose: Workspace | None = None) -> Supervisor:
        made.append(Supervisor(whose or workspace, LocalLauncher(command(modes)), devices=machine))
        return made[-1]

    yield supervisor
    for kind in KINDS.values():
        for job in made[0].jobs(kind):
            kill(kind.folder_of(workspace, job.id))


def on(device: object) -> Config:
    return Config(compute=Compute.model_validate({"device": device}))


def placed(supervisor: Supervisor, ids: list[str]) -> list[str]:
    """Where each job works: "GPU 0"; "" while it waits."""
    return [" ".join(supervisor.state(job).devices).partition(" (")[0] for job in ids]


def end(supervisor: Supervisor, job: str) -> None:
    supervisor.cancel(job)
    wait_until(lambda: not supervisor.is_alive(job))
    supervisor.tick()


def test_each_free_device_gets_a_run_and_each_worker_sees_its_own_alone(make: Make, workspace: Workspace) -> None:
    supervisor = make()
    ids = [supervisor.launch(Config(title=f"Run {n}")) for n in range(4)]
    assert placed(supervisor, ids) == ["GPU 0", "GPU 1", "GPU 2", ""], "the most memory first; the CPU is no GPU"
    assert supervisor.state(ids[3]).waiting == "All 3 devices are in use."
    assert supervisor.busy() == ids[0]
    for run, card in zip(ids, CARDS, strict=False):
        worker = find(workspace.run(run))
        assert worker is not None
        assert worker.environ()["CUDA_VISIBLE_DEVICES"] == card.uuid
        assert read_held(workspace.run(run)) == [(card.uuid, card.title)]
    assert [users for _, users in supervisor.usage()] == [[f"the run Run {n}"] for n in range(3)] + [[]]
    end(supervisor, ids[1])
    assert placed(supervisor, ids[2:]) == ["GPU 2", "GPU 1"]


def test_a_run_waits_for_the_device_that_it_names_and_holds_up_no_other(make: Make, workspace: Workspace) -> None:
    supervisor = make()
    first, second = supervisor.launch(on(1)), supervisor.launch(on("cpu"))
    waits, goes = supervisor.launch(on(1)), supervisor.launch(Config())
    assert placed(supervisor, [first, second, waits, goes]) == ["GPU 1", "CPU", "", "GPU 0"]
    assert supervisor.state(waits).waiting == "GPU 1 is in use by the run demo-pirate-1."
    assert [supervisor.busy(on(name)) for name in ("auto", "1", "2", "cpu", "7")] == [
        *(None, first, None, second, None)
    ]
    worker = find(workspace.run(second))
    assert worker is not None
    assert (worker.environ()["CUDA_VISIBLE_DEVICES"], worker.environ()["LORA_STUDIO_DEVICE"]) == ("", "cpu")
    end(supervisor, goes)
    assert placed(supervisor, [waits]) == [""], "a free device that it did not name is not its own"
    end(supervisor, first)
    assert placed(supervisor, [waits]) == ["GPU 1"]


def test_jobs_that_wait_are_started_in_the_order_that_a_person_gave_them(make: Make) -> None:
    supervisor = make()
    busy = [supervisor.launch(Config()) for _ in range(3)]
    a, b, c = (supervisor.launch(config) for config in (Config(), on(0), Config()))
    supervisor.move(c, -2)
    assert supervisor.queue() == [c, a, b]
    end(supervisor, busy[2])
    assert placed(supervisor, [c, a, b]) == ["GPU 2", "", ""]
    end(supervisor, busy[0])
    assert placed(supervisor, [c, a, b]) == ["GPU 2", "GPU 0", ""], "the one ahead may take what the next one names"


def test_runs_and_evaluations_work_side_by_side(make: Make) -> None:
    supervisor = make()
    ids = [supervisor.launch(Config()), evaluating.start(supervisor, EVALUATION), supervisor.launch(Config())]
    ids.append(evaluating.start(supervisor, EVALUATION))
    assert placed(supervisor, ids) == ["GPU 0", "GPU 1", "GPU 2", ""]
    named = replace(EVALUATION, compute_device="1")
    waits = evaluating.start(supervisor, named, offered=supervisor.devices())
    assert "GPU 1 is in use by the evaluation" in supervisor.state(waits).waiting
    assert supervisor.busy(named.wanted) == ids[1]
    beside = evaluating.start(supervisor, EVALUATION, at_once=True)
    assert placed(supervisor, [beside]) == ["GPU 0"], "beside others it takes the device with the most free memory"


def test_another_server_finds_each_run_on_its_device(make: Make) -> None:
    before = make()
    ids = [before.launch(on(2)), before.launch(Config()), before.launch(on(2))]
    after = make()
    assert placed(after, ids) == ["GPU 2", "GPU 0", ""]
    assert after.state(ids[2]).waiting == "GPU 2 is in use by the run demo-pirate-1."
    more = [after.launch(Config()) for _ in range(2)]
    assert placed(after, more) == ["GPU 1", ""]
    end(after, ids[0])
    assert placed(after, [ids[2], *more]) == ["GPU 2", "GPU 1", ""]


def test_a_device_that_vanishes_is_waited_for(make: Make, machine: Machine) -> None:
    supervisor = make()
    run = supervisor.launch(on(1))
    waits, named = supervisor.launch(on(1)), supervisor.launch(on([2]))
    end(supervisor, named)
    machine.devices = [CARDS[0], cpu()]
    end(supervisor, run)
    assert supervisor.state(waits).waiting == "GPU 1 (Card 1) is not available now."
    with pytest.raises(StudioError, match=r"GPU 2 \(Card 2\) is not available now"):
        make().resume(named)
    machine.devices = [cpu()]  # the driver is gone: no run that was meant for a GPU starts on the CPU
    supervisor.tick()
    auto = supervisor.launch(Config())
    assert placed(supervisor, [auto]) == ["CPU"], "a run that begins on a machine without a GPU"
    machine.devices = [*CARDS, cpu()]
    supervisor.tick()
    assert placed(supervisor, [waits]) == ["GPU 1"]


def test_a_run_that_was_queued_for_a_gpu_does_not_start_on_the_cpu(make: Make, machine: Machine) -> None:
    supervisor = make()
    busy = [supervisor.launch(Config()) for _ in range(3)]
    waits = supervisor.launch(Config())
    machine.devices = [cpu()]
    end(supervisor, busy[0])
    assert placed(supervisor, [waits]) == [""]
    assert supervisor.state(waits).waiting == "It needs 1 device; none of that kind can be used now."
    machine.devices = [*CARDS, cpu()]
    supervisor.tick()
    assert placed(supervisor, [waits]) == ["GPU 0"]


def test_a_run_waits_for_memory_that_another_program_holds_and_can_be_started_all_the_same(
    make: Make, machine: Machine
) -> None:
    machine.devices = [replace(CARDS[0], memory_free=2 * GIB), cpu()]
    supervisor = make()
    large = supervisor.launch(Config(), memory=5 * GIB)
    assert supervisor.state(large).waiting == (
        "It needs about 5.0 GiB; GPU 0 has 2.0 GiB free, as another program uses it too."
    )
    assert supervisor.waits_for_memory(large)
    small = supervisor.launch(Config(), memory=GIB)
    assert placed(supervisor, [large, small]) == ["", "GPU 0"]
    end(supervisor, small)
    machine.devices = [CARDS[0], cpu()]
    supervisor.tick()
    assert placed(supervisor, [large]) == ["GPU 0"]
    second = supervisor.launch(Config(), memory=5 * GIB)
    supervisor.start_now(second)
    assert placed(supervisor, [second]) == ["GPU 0"]
    with pytest.raises(StudioError, match="is not in the queue"):
        supervisor.start_now(second)


def test_a_visitor_uses_one_device_at_a_time_unless_the_owner_says_more(make: Make, workspace: Workspace) -> None:
    for share, expected in ((1, ["GPU 0", ""]), (2, ["GPU 0", "GPU 1"])):
        users = Users(workspace, "owner", device_share=share)
        supervisor = make(whose=users.workspace_for(lambda: "anna"))
        ids = [supervisor.launch(Config()) for _ in range(2)]
        assert placed(supervisor, ids) == expected
        if share == 1:
            why = "Its owner's jobs already use 1 device; a visitor may use 1 at a time."
            assert supervisor.state(ids[1]).waiting == why
            assert make().state(ids[1]).waiting == why, "a terminal beside the page keeps to the share as well"
            other = make(whose=users.workspace_for(lambda: "bert"))
            theirs = other.launch(Config())
            assert placed(other, [theirs]) == ["GPU 1"]
            end(other, theirs)
        for job in reversed(ids):
            end(supervisor, job)


def test_a_device_that_is_not_there_is_told_before_anything_starts(make: Make, machine: Machine) -> None:
    supervisor = make()
    with pytest.raises(ConfigError, match="there is no GPU 7 here: the studio may use GPU 0, GPU 1, GPU 2"):
        supervisor.launch(on([0, 7]))
    machine.devices = [cpu()]
    with pytest.raises(ConfigError, match="there is no GPU 0 here: the studio can use no GPU"):
        make().launch(on(0))
    assert supervisor.runs() == []


# -- the rules alone


def test_what_an_old_gpu_cannot_do_is_told_before_the_start() -> None:
    volta, turing = (
        Device("Tesla", "cuda", 16 * GIB, 15 * GIB, bf16=False, capability=capability)
        for capability in ((7, 0), (7, 5))
    )
    eight = parse({"model": {"quantization": "8bit"}})
    problems = {problem.path: problem.message for problem in problems_here(eight, [volta])}
    assert "compute capability 7.5 or higher, and this one has 7.0; use 4bit or none" in problems["model.quantization"]
    assert "8bit" in volta.lacks
    assert "8bit" not in turing.lacks
    assert not problems_here(eight, [turing])


def holder(*ids: str, job: str = "1", owner: str = "", memory: int = 0) -> Holder:
    return Holder("run", "First", ids, owner, memory, job)


def test_a_job_that_needs_several_devices_keeps_the_free_ones_for_itself() -> None:
    allocation = Allocation(CARDS, [holder("GPU-1")])
    both = Demand(("GPU-0", "GPU-1"), ("GPU 0", "GPU 1"))
    assert allocation.place(both).why == "GPU 1 is in use by the run First."
    assert allocation.place(Demand(("GPU-0",), ("GPU 0",))).why == "GPU 0 is reserved for a job ahead of it."
    assert [device.label for device in allocation.place(Demand()).devices] == ["GPU 2"]
    assert Allocation(CARDS, [holder("GPU-1")]).place(Demand(count=3)).why == "It needs 3 devices; 2 of 3 are free."
    assert [device.label for device in Allocation(CARDS, []).place(both).devices] == ["GPU 0", "GPU 1"]


def test_runs_leave_the_chat_alone_and_the_chat_leaves_runs_alone_where_they_can() -> None:
    chat = Holder("", "the chat", ("GPU-0",))
    assert Allocation(CARDS, [chat]).place(Demand()).devices == (CARDS[1],)
    assert Allocation(CARDS, [chat, holder("GPU-1", "GPU-2")]).place(Demand()).devices == (CARDS[0],)
    assert Allocation(CARDS, [holder("GPU-0")]).for_session() == CARDS[1]
    assert Allocation(CARDS, [chat, holder("GPU-1")]).for_session("GPU-2") == CARDS[2], "it stays where it may"
    assert Allocation(CARDS, [holder("GPU-2")]).for_session("GPU-2") == CARDS[0]
    assert Allocation(CARDS, [holder("GPU-2")]).for_session("GPU-0", "2") == CARDS[2], "it was chosen"
    assert Allocation(CARDS, [holder("GPU-0", "GPU-1", "GPU-2")]).for_session() == CARDS[0]


def test_memory_that_a_run_has_not_taken_yet_is_not_free() -> None:
    allocation = Allocation(CARDS, [holder("GPU-0", memory=7 * GIB)])
    assert allocation.room(CARDS[0]) == GIB


def test_a_job_goes_to_a_device_that_holds_it_and_what_none_holds_need_not_wait() -> None:
    small, large = replace(CARDS[0], memory_free=8 * GIB), replace(CARDS[1], memory_total=24 * GIB, memory_free=GIB)
    allocation = Allocation([small, large], [])
    assert allocation.place(Demand(memory=8 * GIB)).devices == (small,)
    assert allocation.place(Demand(memory=20 * GIB)).short
    assert allocation.place(Demand(memory=30 * GIB)).devices == (small,), "a person agreed to that before"


def test_who_uses_a_device_is_told_of_their_own_jobs_and_of_others_only_the_kind() -> None:
    allocation = Allocation([replace(CARDS[0], memory_free=GIB)], [])
    assert allocation.users(allocation.offered[0], "") == ["another program"]
    allocation = Allocation(CARDS, [holder("GPU-0", owner="anna")])
    assert allocation.users(CARDS[0], "anna") == allocation.users(CARDS[0], None) == ["the run First"]
    assert allocation.users(CARDS[0], "bert") == ["a run of another visitor"]
    assert allocation.users(CARDS[2], "anna") == ["another program"]


@pytest.mark.parametrize(
    ("kind", "environ", "expected"),
    [
        ("cuda", {}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "3,1"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}),
        ("rocm", {}, {"HIP_VISIBLE_DEVICES": "1"}),
        ("rocm", {"ROCR_VISIBLE_DEVICES": "4,5,6", "HIP_VISIBLE_DEVICES": "0, 2"}, {"HIP_VISIBLE_DEVICES": "2"}),
        ("rocm", {"CUDA_VISIBLE_DEVICES": "7,5"}, {"CUDA_VISIBLE_DEVICES": "5"}),
        ("xpu", {}, {"ZE_AFFINITY_MASK": "1"}),
        ("xpu", {"ZE_AFFINITY_MASK": "2.0,2.1,5.0,5.1"}, {"ZE_AFFINITY_MASK": "5.0,5.1"}),
        ("mps", {}, {}),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "1"}, {"CUDA_VISIBLE_DEVICES": "", "LORA_STUDIO_DEVICE": "cpu"}),
    ],
)
def test_a_worker_sees_the_second_device_of_those_that_the_studio_sees(
    kind: str, environ: dict[str, str], expected: dict[str, str]
) -> None:
    second = Device("Second", kind, GIB, GIB, index=1, uuid="GPU-b")
    assert environment_of([second], environ) == expected


def test_several_devices_of_one_run_are_all_in_its_environment() -> None:
    assert environment_of(CARDS[:2], os.environ) == {"CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"}


def test_a_damaged_note_of_devices_is_none(tmp_path: Path, workspace: Workspace) -> None:
    run = workspace.create_run("x", "", {})
    for text in ("", "[", "[]", "{}", '{"devices": 1}', '{"devices": [1, {"id": 2}]}'):
        run.devices.write_text(text)
        assert read_held(run) == []


def test_a_run_in_several_processes_holds_a_gpu_for_each(make: Make) -> None:
    supervisor = make()
    two = supervisor.launch(Config(compute=Compute(processes="2")))
    named = supervisor.launch(on("0,2"))
    assert supervisor.state(two).devices == ["GPU 0 (Card 0)", "GPU 1 (Card 1)"]
    assert [supervisor.busy(Config(compute=Compute(processes=str(count)))) for count in (1, 2, 3)] == [None, two, two]
    assert supervisor.busy(Config(compute=Compute(processes="2", target="slurm:two"))) is None, (
        "that has a queue of its own"
    )
    assert "GPU 0 is in use" in supervisor.state(named).waiting
    end(supervisor, two)
    assert len(supervisor.state(named).devices) == 2
    with pytest.raises(ConfigError, match="3 GPUs to use, and each process takes one"):
        supervisor.launch(Config(compute=Compute(processes="4")))


def test_a_run_resumes_in_another_number_of_processes(make: Make, workspace: Workspace) -> None:
    supervisor = make()
    run = supervisor.launch(Config(compute=Compute(processes="2")))
    end(supervisor, run)
    with pytest.raises(ConfigError, match="3 GPUs"):
        change_processes(workspace.run(run), "5", CARDS)
    change_processes(workspace.run(run), "1", CARDS)
    supervisor.resume(run)
    assert len(supervisor.state(run).devices) == 1
    assert "processes: '1'" in workspace.run(run).config.read_text(encoding="utf-8")
    assert demand_of(workspace.run(run).read_facts()).size == 1, "a restart finds it so"
    end(supervisor, run)
    named = supervisor.launch(on("0,2"))
    end(supervisor, named)
    for processes, devices in (("1", ["GPU 0"]), ("3", ["GPU 0", "GPU 1", "GPU 2"])):
        change_processes(workspace.run(named), processes, [*CARDS, cpu()])
        supervisor.resume(named)
        assert [name.partition(" (")[0] for name in supervisor.state(named).devices] == devices
        end(supervisor, named)
