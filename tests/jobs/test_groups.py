"""Lists of values make a group of plain runs, and weak ones are stopped early by successive halving."""

from collections.abc import Mapping, Sequence

import pytest

from lora_studio.config.parsing import load_config, parse
from lora_studio.config.sections import Config
from lora_studio.errors import StudioError
from lora_studio.jobs.events import Evaluated, Reason
from lora_studio.jobs.groups import (
    read_tries,
    rename,
    runs_of,
    start_group,
    variants,
    weak_runs,
)
from lora_studio.jobs.kinds import ending_words, membership
from lora_studio.runs.groups import groups_of, meant_group, result_of
from lora_studio.runs.summary import overview
from lora_studio.workspace import Policy, Workspace
from tests.jobs.conftest import Supervise, wait_until

RATES = ("training.learning_rate=1e-4,1e-3",)
EVALUATED = parse({"evaluation": {"eval_strategy": "steps", "eval_steps": 1}})


def test_lists_for_two_settings_make_every_combination_in_the_order_that_they_were_typed() -> None:
    made = variants(Config(), read_tries(["training.learning_rate=1e-4, 3e-4", "lora.r=8,16"]))
    tried = [(variant.values["training.learning_rate"], variant.values["lora.r"]) for variant in made]
    assert tried == [(1e-4, 8), (1e-4, 16), (3e-4, 8), (3e-4, 16)]
    assert [(item.config.training.learning_rate, item.config.lora.r) for item in made] == tried


def test_values_that_hold_commas_stand_between_semicolons() -> None:
    made = variants(Config(), read_tries(["lora.target_modules=q_proj,v_proj;all-linear"]))
    assert [variant.config.lora.target_modules for variant in made] == ["q_proj,v_proj", "all-linear"]


@pytest.mark.parametrize(
    ("tries", "words"),
    [
        (["lora.r=8"], "at least two values"),
        (["lora.rank=8,16"], "did you mean `lora.r`"),
        (["training.learning_rate=1e-4,3"], "must be at most 1.0 (found '3')"),
        (["lora.r=8,16", "lora.r=4,8"], "lora.r is listed twice"),
        (["training.learning_rate=1e-4,0.0001"], "learning_rate 1e-4"),
        (["training.min_lr_rate=0.1,0.2"], "applies only with the LR scheduler cosine_with_min_lr"),
        (["compute.device=0,1"], "cannot be tried"),
        (["title=a,b"], "cannot be tried"),
        (["lora.r=" + ",".join(map(str, range(1, 26)))], "25 runs"),
        (["lora.r=1,2", "lora.lora_alpha=1,2", "training.seed=1,2", "data.max_length=64,128"], "4 settings"),
        (["lora.r"], "not a setting with values"),
    ],
)
def test_what_cannot_be_tried_is_refused_by_its_name(tries: Sequence[str], words: str) -> None:
    with pytest.raises(StudioError) as refused:
        variants(Config(), read_tries(tries))
    assert words in str(refused.value)


@pytest.mark.slow
def test_each_run_of_a_group_is_a_plain_run_whose_folder_names_its_group_and_values(
    supervise: Supervise, workspace: Workspace
) -> None:
    supervisor = supervise("steps=2")
    group_id, ids = start_group(supervisor, variants(Config(), read_tries(RATES)), name="rates")
    first, second = (workspace.run(run_id) for run_id in ids)
    assert [load_config(run.config).training.learning_rate for run in (first, second)] == [1e-4, 1e-3]
    group = membership(second.read_facts())
    assert group is not None
    assert (group.id, group.name, group.values) == (group_id, "rates", {"training.learning_rate": 1e-3})
    assert second.read_facts()["title"] == "rates · learning_rate 0.001"
    wait_until(lambda: all(supervisor.state(run_id).state == "done" for run_id in ids))

    dates = [run.facts.stat().st_mtime_ns for run in (first, second)]
    rename(workspace, group_id, "rates of today")
    renamed = runs_of(workspace, group_id)
    assert [run.id for run in renamed] == ids
    assert [membership(run.read_facts()).name for run in renamed] == ["rates of today"] * 2  # type: ignore[union-attr]
    assert [run.facts.stat().st_mtime_ns for run in renamed] == dates


def test_a_group_that_would_not_fit_into_a_visitors_queue_starts_no_run(
    supervise: Supervise, workspace: Workspace
) -> None:
    class Visitor(Policy):
        max_queued = 2

    supervisor = supervise("steps=2")
    supervisor.workspace = workspace.with_policy(Visitor)
    with pytest.raises(StudioError, match="3 jobs at once are too many"):
        start_group(supervisor, variants(Config(), read_tries(["lora.r=4,8,16"])))
    assert not workspace.runs()


def test_weak_runs_need_evaluations_before_their_end(supervise: Supervise, workspace: Workspace) -> None:
    supervisor = supervise("steps=2")
    for settings, words in (
        ({"evaluation": {"eval_strategy": "no"}}, "has none"),
        ({"training": {"num_train_epochs": 1}, "evaluation": {"eval_strategy": "epoch"}}, "only at its end"),
    ):
        with pytest.raises(StudioError, match=words):
            start_group(supervisor, variants(parse(settings), read_tries(RATES)), stop_weak=True)
    assert not workspace.runs()


def evaluations(losses: Mapping[str, Sequence[float]], *, together: bool) -> dict[str, list[Evaluated]]:
    """The evaluations of runs: all at once side by side, or one run after another."""
    return {
        run: [
            Evaluated((10 * n + at) if together else (100 * at + n), 4 * (n + 1), 0.0, loss)
            for n, loss in enumerate(of)
        ]
        for at, (run, of) in enumerate(losses.items())
    }


def test_after_one_two_and_four_evaluations_the_better_half_goes_on() -> None:
    """Worked out by hand: of eight runs side by side four, two and one are left (Jamieson & Talwalkar 2016, algorithm
    1, with eta 2), where each round begins with the best ones: then no weak run passes before the better ones come."""
    order = {f"run{n}": [n + 1.0] * 8 for n in range(8)}
    weak = weak_runs(evaluations(order, together=True).items())
    steps = {run: item.step for run, item in weak.items()}
    assert "run0" not in steps
    assert {run for run, step in steps.items() if step == 4} >= {"run4", "run5", "run6", "run7"}
    assert all(step in (4, 8, 16, 32) for step in steps.values())


def test_runs_one_after_another_have_to_be_as_good_as_those_before_at_the_same_evaluation() -> None:
    losses = {"first": [2.0, 1.5, 1.4, 1.3], "worse": [3.0, 2.5, 2.4, 2.3], "better": [1.9, 1.4, 1.3, 1.2]}
    weak = weak_runs(evaluations(losses, together=False).items())
    assert {run: item.step for run, item in weak.items()} == {"worse": 4}


def test_of_accuracy_more_is_better_and_a_loss_that_is_no_number_is_weak() -> None:
    good = Evaluated(1.0, 4, 0.0, 1.0, {"accuracy": 0.9})
    bad = Evaluated(2.0, 4, 0.0, 0.5, {"accuracy": 0.1})
    assert weak_runs([("good", [good]), ("bad", [bad])], "accuracy") == {"bad": bad}
    lost = Evaluated(3.0, 4, 0.0, float("nan"))
    assert list(weak_runs([("good", [good]), ("lost", [lost])])) == ["lost"]


@pytest.mark.slow
def test_a_weak_run_is_stopped_says_why_and_goes_on_when_a_person_resumes_it(
    supervise: Supervise, workspace: Workspace
) -> None:
    supervisor = supervise("evaluates=40")
    tries = read_tries(["training.learning_rate=1e-3,1e-5"])
    group_id, (good, weak) = start_group(supervisor, variants(EVALUATED, tries), stop_weak=True)
    wait_until(lambda: supervisor.state(good).final and supervisor.state(weak).reason is Reason.PRUNED)
    assert supervisor.state(good).state == "done"
    state = supervisor.state(weak)
    assert state.state == "stopped"
    assert ending_words(state)[0] == "Stopped early: in the weaker half of its group at step 1."
    members = [(overview(workspace.run(run.id), run), run) for run in supervisor.runs()]
    result = result_of(groups_of(members)[group_id])
    assert result.best is not None
    assert (result.best.run.id, result.in_words) == (good, "1 finished, 1 stopped")
    assert meant_group(groups_of(members), "last") == group_id
    supervisor.resume(weak)
    wait_until(lambda: supervisor.state(weak).state == "done")
