"""How the page looks and what runs in the browser: the files under static/ as Gradio takes them, and calls into them.

They are read when the page is served and go out with it, so that nothing is fetched from anywhere, before or after a
login, whoever serves it.
"""

import json
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"
# In this order: of two rules that are equally specific, the later one holds.
STYLES = tuple(STATIC / f"{name}.css" for name in ("markup", "studio", "runs", "evaluate", "export", "chat"))
SCRIPTS = tuple(STATIC / f"{name}.js" for name in ("page", "clicks", "form", "charts", "connection"))
WITH_LOGIN = STATIC / "login.js"
GIVEN = "{element, trigger, props, watch}"  # what Gradio gives the script of a component


def head(login: bool) -> str:
    """The scripts for Gradio's `head`. Its `head_paths` takes files of HTML, in which no tool would see a script."""
    scripts = (*SCRIPTS, WITH_LOGIN) if login else SCRIPTS
    return "".join(f"<script>{script.read_text(encoding='utf-8')}</script>" for script in scripts)


def on_load(function: str, **options: Any) -> str:
    """The `js_on_load` of a component that one of the functions serves: `clicks`, `charts.curves`."""
    return f"studio.{function}({GIVEN}, {json.dumps(options)});"


def call(function: str, *values: Any) -> str:
    """The `js` of an event that calls one of the functions with values of the page's own."""
    return f"() => studio.{function}({', '.join(map(json.dumps, values))})"
