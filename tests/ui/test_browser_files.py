"""The files under static/: all of them go out with the page, they fetch nothing, and what is called is there."""

import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI

from lora_studio import ui
from lora_studio.ui import docs, theme

UI = Path(ui.__file__).parent
SCRIPTS = [*theme.SCRIPTS, theme.WITH_LOGIN]


def test_every_file_goes_out_with_the_page() -> None:
    assert sorted(theme.STATIC.iterdir()) == sorted([*theme.STYLES, *SCRIPTS, theme.ICON, docs.STYLE])


@pytest.mark.parametrize("file", [*theme.STYLES, *SCRIPTS, docs.STYLE], ids=lambda file: file.name)
def test_a_file_fetches_nothing_and_fits_the_screen(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert re.findall(r"https?:|@import|url\(|\bimport\b|importScripts", source) == []
    assert "</script" not in source.lower()
    assert source.count("{") == source.count("}")
    lines = source.splitlines()
    assert [line for line in lines if len(line) > 120 or line != line.rstrip() or "\t" in line] == []
    assert [line for line in lines if (len(line) - len(line.lstrip())) % 2] == [], "indented by two blanks"
    if file.suffix == ".css":
        assert [line for line in lines if re.search(r"}\s*\S", line)] == [], "one rule a line"


def test_what_the_page_calls_in_the_browser_is_defined_there() -> None:
    python = "".join(file.read_text(encoding="utf-8") for file in UI.rglob("*.py"))
    called = set(re.findall(r'theme\.(?:on_load|call)\(\s*"([\w.]+)"', python)) | set(
        re.findall(r"=> studio\.(\w+)\"", python)
    )
    assert {"clicks", "charts.curves", "askedTab", "timersInSight"} <= called
    scripts = "".join(file.read_text(encoding="utf-8") for file in SCRIPTS)
    defined = set(re.findall(r"^\s*studio\.(\w+) = ", scripts, re.MULTILINE))
    charts = re.findall(r"^  return \{(.*)\};$", scripts, re.MULTILINE)
    defined |= {f"charts.{name.strip()}" for name in charts[0].split(",")}
    assert called - defined == set()
    assert defined - called == {
        "charts",
        "refocus",
        "copy",
        "runShown",
        "listRuns",
        "shownRun",
        "openListed",
        "saveConfig",
    }  # what only other scripts use


def test_no_script_stands_in_a_python_string() -> None:
    for file in UI.rglob("*.py"):
        assert not re.search(r"addEventListener|querySelector", file.read_text(encoding="utf-8")), file


def test_the_login_is_asked_for_again_only_where_there_is_one() -> None:
    assert theme.WITH_LOGIN.read_text(encoding="utf-8") in theme.head(login=True)
    assert theme.WITH_LOGIN.read_text(encoding="utf-8") not in theme.head(login=False)


def test_a_page_that_is_mounted_in_another_app_has_its_styles_and_scripts() -> None:
    with gr.Blocks(analytics_enabled=False) as demo:
        gr.HTML()
    given: dict[str, Any] = {"css_paths": theme.STYLES, "head": theme.head(login=False), "ssr_mode": False}
    gr.mount_gradio_app(FastAPI(), demo, "/studio", **given)
    config = demo.get_config_file()
    assert all(style.read_text(encoding="utf-8") in str(config["css"]) for style in theme.STYLES)
    assert config["head"] == theme.head(login=False)


def test_options_reach_a_script_as_json() -> None:
    script = theme.on_load("clicks", questions={"delete": 'Delete "this"?'})
    assert script.endswith(', {"questions": {"delete": "Delete \\"this\\"?"}});')
    assert theme.call("timersInSight", ["runs"]) == '() => studio.timersInSight(["runs"])'
