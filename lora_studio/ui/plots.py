"""The chart on the page: draws what `curves` gives, and holds the controls for how it is drawn.

The browser keeps one chart and is given new numbers, so that zoom and hidden curves stay while the run goes on.
"""

import importlib.resources
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lora_studio.ui import browser
from lora_studio.ui.curves import AXES, Style


@dataclass(frozen=True)
class Controls:
    """The widgets beside a chart, from which `style` is made."""

    axis: gr.Radio
    smoothing: gr.Slider
    logarithmic: gr.Checkbox
    everything: gr.Checkbox

    @property
    def widgets(self) -> list[Any]:
        """In the order that `style` takes their values."""
        return [self.axis, self.smoothing, self.logarithmic, self.everything]


def style(axis: str, smoothing: float, logarithmic: bool, everything: bool) -> Style:
    """How a person wants the curves drawn, from the values of the controls."""
    return Style(axis, min(max(float(smoothing), 0.0), 0.99), logarithmic, everything)


def controls(start: Style | None = None) -> Controls:
    """Draws the controls in one row."""
    start = start or Style()
    with gr.Row(elem_classes="chart-controls"):
        across = [(name.capitalize(), name) for name in AXES]
        axis = gr.Radio(across, value=start.axis, label="Horizontal axis", min_width=220)
        smoothing = gr.Slider(0, 0.99, value=start.smoothing, step=0.01, label="Smoothing", min_width=200)
        with gr.Column(min_width=180):
            logarithmic = gr.Checkbox(value=start.logarithmic, label="Logarithmic loss")
            everything = gr.Checkbox(value=start.everything, label="More curves")
    return Controls(axis, smoothing, logarithmic, everything)


def plotly_script() -> str:
    """The tag that brings plotly's script out of its own package; a page that has it twice loads it once."""
    script = importlib.resources.files("plotly") / "package_data" / "plotly.min.js"
    gr.set_static_paths([str(script)])
    return f'<script src="gradio_api/file={script}"></script>'


def chart(elem_id: str = "chart", label: str = "Curves of the run: loss, learning rate, gradient norm") -> gr.HTML:
    """The chart's place on the page; its value is a `curves.drawing`."""
    return gr.HTML(
        value={},
        html_template=f'<div class="chart" role="img" aria-label="{label}"></div>',
        js_on_load=browser.on_load("charts.curves"),
        head=plotly_script(),
        elem_id=elem_id,
    )
