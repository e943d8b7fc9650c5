"""How the page looks and what runs in the browser: Gradio's theme, header, and the files under static/.

The files go out with the page, so nothing is fetched from anywhere.
"""

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils.sizes import Size

from lora_studio import __version__
from lora_studio.models.hardware import Device
from lora_studio.ui.html import Html, notice, render
from lora_studio.units import GIB

SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]
LOGIN = ' <a href="login/hub" target="_blank">Log in with Hugging Face</a> if you own it.'
JOBS_LOGIN = ' <a href="login/hub/jobs" target="_blank">Train larger models on your own Hugging Face account</a>.'
ON_JOBS = " On the targets of Hugging Face Jobs you can train other models, paid by your own account."
LOG_OUT = '<form class="log-out" method="post" action="logout"><button>Log out</button></form>'
# Gradio's seven steps, on the design's four type sizes, one radius, and distances of multiples of four.
TEXT = Size("12px", "12px", "12px", "14px", "14px", "16px", "20px", name="studio_text")
SPACING = Size("2px", "4px", "4px", "8px", "8px", "12px", "16px", name="studio_spacing")
RADIUS = Size("6px", "6px", "6px", "6px", "6px", "6px", "6px", name="studio_radius")


LOOK = {
    "body_background_fill": "#f6f8fa",
    "body_background_fill_dark": "#0e141b",
    "background_fill_primary": "#ffffff",
    "background_fill_primary_dark": "#151d26",
    "background_fill_secondary": "#f6f8fa",
    "background_fill_secondary_dark": "#111821",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "panel_background_fill": "#ffffff",
    "panel_background_fill_dark": "#151d26",
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_border_color": "#dde3ea",
    "block_border_color_dark": "#263241",
    "border_color_primary": "#dde3ea",
    "border_color_primary_dark": "#263241",
    "block_shadow": "none",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_label_border_width": "0px",
    "block_label_text_color": "#475569",
    "block_label_text_color_dark": "#a9b6c6",
    "block_title_text_color": "#1e293b",
    "block_title_text_color_dark": "#e2e8f0",
    "block_title_text_weight": "600",
    "block_info_text_color": "#5b6878",
    "block_info_text_color_dark": "#93a1b3",
    "body_text_color": "#1e293b",
    "body_text_color_dark": "#e2e8f0",
    "body_text_color_subdued": "#5b6878",
    "body_text_color_subdued_dark": "#93a1b3",
    "input_background_fill": "#ffffff",
    "input_background_fill_dark": "#0f161e",
    "input_border_width": "1px",
    "input_border_color": "#cbd5e1",
    "input_border_color_dark": "#344256",
    "input_border_color_focus": "#475569",
    "input_border_color_focus_dark": "#93a1b3",
    "input_shadow_focus": "0 0 0 3px rgba(100, 116, 139, 0.22)",
    "input_padding": "8px",
    "checkbox_background_color_selected": "#475569",
    "checkbox_background_color_selected_dark": "#64748b",
    "checkbox_border_color_selected": "#475569",
    "checkbox_border_color_selected_dark": "#64748b",
    "slider_color": "#475569",
    "slider_color_dark": "#93a1b3",
    "link_text_color": "#0f5c8c",
    "link_text_color_dark": "#7cc4f5",
    "button_primary_background_fill": "#137a72",
    "button_primary_background_fill_hover": "#12625d",
    "button_primary_background_fill_dark": "#137a72",
    "button_primary_background_fill_hover_dark": "#12625d",
    "button_primary_text_color": "#ffffff",
    "button_primary_text_color_dark": "#ffffff",
    "button_large_padding": "0 16px",
    "button_large_text_size": "14px",
    "button_large_text_weight": "600",
    "button_medium_padding": "0 16px",
    "button_medium_text_size": "14px",
    "button_medium_text_weight": "500",
    "button_small_padding": "0 12px",
    "button_small_text_size": "12px",
    "button_small_text_weight": "500",
    "button_secondary_background_fill": "#ffffff",
    "button_secondary_background_fill_hover": "#eef2f6",
    "button_secondary_background_fill_dark": "#1b2530",
    "button_secondary_background_fill_hover_dark": "#243140",
    "button_secondary_border_color": "#cbd5e1",
    "button_secondary_border_color_dark": "#344256",
    "button_border_width": "1px",
}


def theme() -> gr.themes.Base:
    """Slate on plain surfaces, lines instead of shadows; teal marks the primary button and nothing else.

    Sizes are the design's tokens, which `static/studio.css` names for everything that is not Gradio's.
    """
    slate = gr.themes.colors.slate
    plain = gr.themes.Base(
        primary_hue=slate,
        secondary_hue=slate,
        neutral_hue=slate,
        text_size=TEXT,
        spacing_size=SPACING,
        radius_size=RADIUS,
        font=SANS,
        font_mono=MONO,
    )
    return plain.set(**LOOK)


Usage = Sequence[tuple[Device, Sequence[str]]]
"""Each device with those who use it."""


def differs(before: Usage, now: Usage) -> bool:
    """Whether users or free memory changed by enough to write the header anew: a fiftieth of the device's memory."""
    return len(before) != len(now) or any(
        (old.name, old_users) != (new.name, users) or abs(old.memory_free - new.memory_free) > new.memory_total / 50
        for (old, old_users), (new, users) in zip(before, now, strict=True)
    )


def brand() -> str:
    """The icon and the product's name."""
    return render("page.brand", Html(ICON.read_text(encoding="utf-8")))


def tools(usage: Usage, logins: bool = False) -> str:
    """What stands at the right of the header: devices, version, docs, theme switch, help, the way out of a login."""
    lines = [device_line(device, users, alone=len(usage) == 1) for device, users in usage]
    return render("page.tools", lines, __version__, logins)


def device_line(device: Device, users: Sequence[str], *, alone: bool) -> tuple[str, str]:
    """A device in one line of the header, and what its tooltip adds."""
    held = f"In use by {' and '.join(users)}." if users else "Free."
    about = f"{device}.\n{device.describe()}\n{held}"
    if alone:
        return str(device), about
    return f"{device.label}: {free_of(device)} · {', '.join(users) or 'no job'}", about


def free_of(device: Device) -> str:
    """Free memory and all of it: 2.0 of 8.0 GiB free."""
    return f"{device.memory_free / GIB:.1f} of {device.memory_total / GIB:.1f} GiB free"


def guest_banner(
    about: str, *, owned: bool, login: bool, name: str = "", rents: bool = False, allowed: bool = False
) -> str:
    """The banner of a public demonstration. `name` is that of a Hub account that does not own the studio; `rents` says
    that visitors may run jobs on their own accounts there, and this one has not allowed it yet; `allowed`, that it
    has."""
    link = LOGIN if login else ""
    if owned or name:
        link = f" {LOG_OUT}"
    if rents and login and not owned:
        link = JOBS_LOGIN + link
    if owned:
        about = "You are the owner: no limits apply to you."
    elif name:
        about = f"You are logged in as {name}, who does not own this studio. {about}{ON_JOBS if allowed else ''}"
    return notice("This is a public demo.", about, link=link)


STATIC = Path(__file__).parent / "static"
ICON = STATIC / "icon.svg"
# In this order: of two rules that are equally specific, the later one holds.
STYLES = tuple(STATIC / f"{name}.css" for name in ("markup", "studio", "train", "runs", "evaluate", "export", "chat"))
SCRIPTS = tuple(STATIC / f"{name}.js" for name in ("page", "clicks", "form", "charts", "chat", "connection"))
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


def plotly_script() -> str:
    """The tag that brings plotly's script out of its own package; a page that has it twice loads it once."""
    script = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    gr.set_static_paths([str(script)])
    return f'<script src="gradio_api/file={script}"></script>'
