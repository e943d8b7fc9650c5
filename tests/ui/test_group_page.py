"""The page of a group on the Runs tab, as a group's folders give it: list, table, plot, curves, actions."""

import json
import re
from typing import Any

import gradio as gr

from lora_studio.config.parsing import parse
from lora_studio.jobs.events import Evaluated, Finished, Reason
from lora_studio.jobs.kinds import Membership
from lora_studio.ui.plots import Axis, Dot, Mark, Series, picture
from lora_studio.ui.runs import groups
from lora_studio.ui.runs.table import TableChoice
from lora_studio.ui.studio import Studio
from lora_studio.workspace import RunFolder, Workspace
from tests.ui.test_runs_tab import finished, look
from tests.ui.test_runs_tab import studio as studio  # a fixture

GROUP = "20260101-120000-abcd"
WEAK = "Stopped early: in the weaker half of its group at step 1."


def member(workspace: Workspace, rate: float, rank: int, *losses: float, pruned: bool = False) -> RunFolder:
    """A run of the group that was evaluated after each of its steps."""
    config = parse({"training": {"learning_rate": rate}, "lora": {"r": rank}})
    measured = [Evaluated(2.0 + step, step, step / 2, loss) for step, loss in enumerate(losses, start=1)]
    end = [Finished(9.0, "stopped", 1, WEAK, reason=Reason.PRUNED)] if pruned else []
    run = finished(workspace, f"rates · learning_rate {rate}", *measured, *end, config=config)
    values = {"training.learning_rate": rate, "lora.r": rank}
    facts = {**json.loads(run.facts.read_text()), "group": Membership(GROUP, "rates", values, True).as_facts()}
    run.facts.write_text(json.dumps(facts))
    return run


def a_group(workspace: Workspace) -> dict[str, RunFolder]:
    return {
        "low": member(workspace, 1e-5, 8, 3.0, 2.5),
        "best": member(workspace, 1e-3, 8, 2.0, 1.25),
        "second": member(workspace, 1e-3, 16, 2.1, 1.5),
        "weak": member(workspace, 1e-2, 8, 4.0, pruned=True),
    }


def shown_of(studio: Studio, choice: TableChoice) -> dict[str, Any]:
    return dict(look(studio, "", choice=choice).group["group"][1])


def test_a_group_is_one_item_of_the_list_that_opens_to_its_runs(studio: Studio) -> None:
    finished(studio.workspace, "a run of its own")
    a_group(studio.workspace)
    listed = str(look(studio, "").listed["list"])
    assert listed.count("data-open=") == 1
    assert listed.count("data-group=") == 1
    assert "4 runs · 4 ended" in listed
    opened = look(studio, "", choice=TableChoice(group=GROUP))
    assert str(opened.listed["list"]).count('class="member"') == 4
    assert ">lr\u00a00.001, r\u00a016</button>" in str(opened.listed["list"]), "whatever the group is called"
    assert opened.places == (True, False, False, True, False)
    table = look(studio, "", choice=TableChoice(whole=True))
    assert str(table.listed["list"]).count("<tr data-open=") == 5


def test_the_best_run_comes_first_and_is_marked_by_whichever_metric_is_chosen(studio: Studio) -> None:
    runs = a_group(studio.workspace)
    shown = shown_of(studio, TableChoice(group=GROUP))
    rows = re.findall(r'data-act="open" data-value="([^"]+)"', str(shown["table"]))
    assert rows == [runs[name].id for name in ("best", "second", "low", "weak")]
    assert str(shown["table"]).count("1.25 ★") == 1
    assert "Stopped early" in str(shown["table"])
    assert WEAK in str(shown["table"])
    assert ("2 finished" in str(shown["head"]), "3 finished, 1 stopped" in str(shown["head"])) == (False, True)
    by_time = shown_of(studio, TableChoice(group=GROUP, metric="loss"))
    assert "Training loss" in str(by_time["table"])
    assert (shown["chat"], shown["use"], shown["stop"], shown["delete"]) == (True, True, False, True)


def test_the_plot_has_the_rate_on_a_log_axis_and_all_curves_are_in_one_chart(studio: Studio) -> None:
    a_group(studio.workspace)
    shown = shown_of(studio, TableChoice(group=GROUP))
    assert "Learning rate, log scale" in str(shown["plot"])
    assert str(shown["plot"]).count("<circle") == 3
    assert str(shown["plot"]).count("★") == 1
    assert str(shown["plot"]).count("<polyline") == 2  # ranks 8 and 16
    names = [line["name"] for line in shown["chart"]["panels"][0]["lines"]]
    assert sorted(names) == sorted(
        f"learning_rate {rate}, r {r}" for rate, r in (("1e-5", 8), (0.001, 8), (0.001, 16), (0.01, 8))
    )


def test_the_settings_of_the_best_run_go_to_the_form_without_its_name(studio: Studio) -> None:
    runs = a_group(studio.workspace)
    choice = TableChoice(group=GROUP)
    result = groups.result_in(studio, choice)
    assert result.best is not None
    assert result.best.run.id == runs["best"].id
    assert [row.run.id for row in result.usable[:2]] == [runs["best"].id, runs["second"].id]
    view = groups.GroupView(studio, None, gr.State())  # type: ignore[arg-type]
    handed, tab = view.settings_of(runs["best"].id)
    assert (handed.settings["training.learning_rate"], handed.settings["title"]) == (1e-3, "")
    assert tab.selected == "train"


def test_a_picture_leaves_out_what_has_no_place_on_its_axes() -> None:
    dots = [Dot(1e-4, 2.0, "a"), Dot(0.0, 1.0, "zero"), Dot(1e-3, float("nan"), "nan"), Dot(1e-2, 1.0, "b", best=True)]
    drawn = picture(
        Axis("Rate", True),
        Axis("Loss"),
        dots=dots,
        lines=[Series("", [(1e-4, 2.0), (1e-2, 1.0)])],
        marks=[Mark(1e-3, "here")],
    )
    assert [name in drawn for name in ("zero", "nan", ">a<", ">b<", ">here<")] == [False, False, True, True, True]
    xs = [float(x) for x in re.findall(r'<circle cx="([\d.]+)%"', drawn)]
    mark = float(re.findall(r'class="mark" x1="([\d.]+)%"', drawn)[0])
    star = float(re.findall(r'class="star" x="([\d.]+)%"', drawn)[0])
    assert abs(mark - (xs[0] + star) / 2) < 0.2, "a decade is as wide as the next on a log axis"
    assert "appears with the first evaluation" in picture(Axis("Rate"), Axis("Loss"))


def test_words_and_lines_of_a_picture_keep_their_size_whatever_its_width() -> None:
    line = Series("loss", [(1e-7, 4.0), (1e-1, 1.0)])
    drawn = picture(Axis("Rate", True), Axis("Loss"), lines=[line], dots=[Dot(1e-3, 2.0, "a")], marks=[Mark(2e-2, "b")])
    places = re.findall(r'<(?:text|line|circle)[^>]* (?:c?x|x1)="([^"]*)"', drawn)
    assert all(place in ("0", "-6") or (place.endswith("%") and float(place[:-1]) <= 100) for place in places)
    (scaled,) = re.findall(r"<svg[^>]*viewBox.*?</svg>", drawn, re.DOTALL)  # the curves alone, which CSS strokes evenly
    assert "<polyline" in scaled
    assert "<text" not in scaled
