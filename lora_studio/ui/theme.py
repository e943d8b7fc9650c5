"""How the page looks and what runs in the browser: Gradio's theme, header, and the files under static/.

The files go out with the page, so nothing is fetched from anywhere.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from lora_studio.models.hardware import Device
from lora_studio.ui.html import escape

SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]
LOG_OUT = '<form class="log-out" method="post" action="logout"><button>Log out</button></form>'
TEAL = gr.themes.Color(
    name="studio",
    c50="#effaf8",
    c100="#d5f2ed",
    c200="#aee4dc",
    c300="#79cfc5",
    c400="#45b3a8",
    c500="#22958b",
    c600="#137a72",
    c700="#12625d",
    c800="#134e4b",
    c900="#13413f",
    c950="#042625",
)


def theme() -> gr.themes.Base:
    """Slate and teal on plain surfaces; lines instead of shadows."""
    return gr.themes.Base(
        primary_hue=TEAL,
        secondary_hue=TEAL,
        neutral_hue=gr.themes.colors.slate,
        text_size=gr.themes.sizes.text_md,
        spacing_size=gr.themes.sizes.spacing_md,
        radius_size=gr.themes.sizes.radius_md,
        font=SANS,
        font_mono=MONO,
    ).set(
        body_background_fill="#f6f8fa",
        body_background_fill_dark="#0e141b",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#151d26",
        background_fill_secondary="#f6f8fa",
        background_fill_secondary_dark="#111821",
        block_background_fill="#ffffff",
        block_background_fill_dark="#151d26",
        block_border_width="1px",
        block_border_color="#dde3ea",
        block_border_color_dark="#263241",
        border_color_primary="#dde3ea",
        border_color_primary_dark="#263241",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="#475569",
        block_label_text_color_dark="#a9b6c6",
        block_title_text_color="#1e293b",
        block_title_text_color_dark="#e2e8f0",
        block_title_text_weight="600",
        block_info_text_color="#5b6878",
        block_info_text_color_dark="#93a1b3",
        body_text_color="#1e293b",
        body_text_color_dark="#e2e8f0",
        body_text_color_subdued="#5b6878",
        body_text_color_subdued_dark="#93a1b3",
        input_background_fill="#ffffff",
        input_background_fill_dark="#0f161e",
        input_border_width="1px",
        input_border_color="#cbd5e1",
        input_border_color_dark="#344256",
        input_border_color_focus="#137a72",
        input_border_color_focus_dark="#45b3a8",
        input_shadow_focus="0 0 0 3px rgba(34, 149, 139, 0.22)",
        button_primary_background_fill="#137a72",
        button_primary_background_fill_hover="#12625d",
        button_primary_background_fill_dark="#137a72",
        button_primary_background_fill_hover_dark="#22958b",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#eef2f6",
        button_secondary_background_fill_dark="#1b2530",
        button_secondary_background_fill_hover_dark="#243140",
        button_secondary_border_color="#cbd5e1",
        button_secondary_border_color_dark="#344256",
        button_border_width="1px",
    )


def differs(before: Sequence[Device], now: Sequence[Device]) -> bool:
    """Whether free memory changed by enough to write the header anew: a fiftieth of the device's."""
    return len(before) != len(now) or any(
        old.name != new.name or abs(old.memory_free - new.memory_free) > new.memory_total / 50
        for old, new in zip(before, now, strict=True)
    )


def header(devices: Sequence[Device], logins: bool = False) -> str:
    """The line at the top of every tab: what this is, what it runs on, and the way out where one logged in."""
    out = f" · {LOG_OUT}" if logins else ""
    return (
        '<div class="studio-head"><h1>LoRA Studio</h1>'
        '<span class="what">Teach a language model your own way of answering, and compare.</span>'
        f'<span class="device">{escape(" · ".join(map(str, devices)))}{out}</span></div>'
    )


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
