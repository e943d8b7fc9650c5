"""How the page looks: one theme with system fonts, light and dark, and the few rules that Gradio has no setting for.

Holds colours, spacing and the header's markup. Nothing here is fetched from anywhere.
"""

from collections.abc import Sequence

import gradio as gr

from lora_studio.hardware import Device
from lora_studio.ui.text import escape

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


CSS = """
:root { --good: #15803d; --warn: #b45309; --bad: #b91c1c; --busy: #137a72; --quiet: #64748b;
  --soft: #eef2f6; --line: #dde3ea; --curve-1: #137a72; --curve-2: #d97706; --curve-3: #7c5cc4; --curve-4: #64748b;
  --curve-5: #be3a73; --curve-6: #2f6fc4; --curve-7: #6b8e23; --curve-8: #8d5a3c; }
.dark { --good: #4ade80; --warn: #fbbf24; --bad: #f87171; --busy: #5cc9be; --quiet: #93a1b3;
  --soft: #1b2530; --line: #263241; --curve-1: #5cc9be; --curve-2: #fbbf24; --curve-3: #b9a3f0; --curve-4: #93a1b3;
  --curve-5: #f28bb4; --curve-6: #82b4f5; --curve-7: #b5d16a; --curve-8: #d3a587; }
html { scrollbar-gutter: stable; background: #f6f8fa; }
html:has(body.dark) { background: #0e141b; color-scheme: dark; }
.gradio-container button[role="tab"].selected { color: var(--busy); }
.gradio-container { width: 100%; max-width: 1320px !important; margin: 0 auto !important;
  padding: 0 20px 40px !important; }
.gradio-container > .main { max-width: none !important; padding: 0 !important; }
.gradio-container .hide-container.padded { padding: 0; }
.gradio-container :focus-visible { outline: 2px solid var(--busy); outline-offset: 2px; }
.gradio-container .wrap-inner input:focus-visible { outline: none; }  /* its frame shows the focus */
.gradio-container input:focus-visible, .gradio-container textarea:focus-visible { outline-offset: -1px; }
button.lg { min-height: 42px; }
.label-wrap > span { text-align: left; } .label-wrap { gap: 8px; } .label-wrap > .icon { align-self: center; }
footer { display: none !important; }
#no-server { position: fixed; top: 0; left: 0; right: 0; z-index: 10000; padding: 12px 20px; text-align: center;
  background: #b91c1c; color: #fff; font-size: 14px; }
.server-gone .gradio-container { opacity: 0.55; } .server-gone .toast-wrap { display: none; }

#header { margin: 18px 0 -10px; }
.studio-head { display: flex; align-items: baseline; gap: 6px 14px; flex-wrap: wrap; }
.studio-head h1 { font-size: 22px; font-weight: 700; margin: 0; letter-spacing: -0.01em; }
.studio-head .what { color: var(--body-text-color-subdued); }
form.log-out { display: inline; margin: 0; }
form.log-out button { font: inherit; color: var(--link-text-color); text-decoration: underline; padding: 0;
  border: 0; background: none; cursor: pointer; }
.studio-head .device { margin-left: auto; color: var(--body-text-color-subdued); font-size: 13px; }
.studio-status { display: flex; align-items: center; gap: 8px; font-size: 14px; min-height: 24px;
  color: var(--body-text-color-subdued); }
.dot { flex: none; display: inline-block; width: 9px; height: 9px; border-radius: 50%; background: var(--quiet); }
.dot.running, .dot.stopping { background: var(--busy); animation: breathe 1.6s ease-in-out infinite; }
.dot.done { background: var(--good); } .dot.failed { background: var(--bad); }
.dot.stopped, .dot.worse { background: var(--warn); }
@keyframes breathe { 50% { opacity: 0.35; } }
@media (prefers-reduced-motion: reduce) { .dot { animation: none !important; } }

.field-note { color: var(--body-text-color-subdued); font-size: 13px; padding-top: 6px; }
.field-error { color: var(--bad); font-size: 13px; padding-top: 6px; overflow-wrap: anywhere; }
[aria-invalid="true"] { border-color: var(--bad) !important; }
.nothing { display: none !important; }
.quiet { color: var(--body-text-color-subdued); font-size: 14px; }
h3.part { font-size: 15px; font-weight: 600; margin: 4px 0 0; }
.grid .form { display: grid !important; gap: 12px !important; border: 0 !important; overflow: visible !important;
  grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); background: none !important; }
.grid .form > .block { display: flex; flex-direction: column; min-width: 0 !important;
  border: 1px solid var(--block-border-color) !important; border-radius: var(--block-radius) !important; }
.grid .block > label:not(:has(input[type="checkbox"])), .grid .block > .container { display: flex;
  flex-direction: column; flex: 1; }
.grid .block > label:not(:has(input[type="checkbox"])) > :last-child, .grid .block > .container > :last-child {
  margin-top: auto; }

.run-looked-at.stale { position: relative; }
.run-looked-at.stale > * { opacity: 0; transition: opacity 0s 0.15s; }
.run-looked-at.stale::before { content: "Opening the run…"; position: absolute; top: 12px;
  color: var(--body-text-color-subdued); animation: appear 0s 0.15s both; }
@keyframes appear { from { visibility: hidden; } to { visibility: visible; } }
.bar { display: block; height: 6px; border-radius: 3px; background: var(--soft); overflow: hidden; margin-top: 7px; }
.bar > i { display: block; height: 100%; background: var(--busy); border-radius: 3px; transition: width 0.4s; }
.bar.done > i { background: var(--good); } .bar.failed > i { background: var(--bad); }
.bar.stopped > i, .bar.worse > i { background: var(--warn); }
.run-head h2 { font-size: 19px; font-weight: 700; margin: 0; display: flex; align-items: center; gap: 9px;
  overflow-wrap: anywhere; }
.run-head > .bar { max-width: 420px; } .run-head .now { margin: 2px 0; } .run-head .bar + .id { margin-top: 6px; }
.run-head .id { color: var(--body-text-color-subdued); font-size: 12px; font-family: var(--font-mono);
  overflow-wrap: anywhere; }
ol.phases { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px;
  color: var(--body-text-color-subdued); }
.phases li { margin: 0; white-space: nowrap; } .phases i { font-style: normal; margin-right: 5px; }
.phases li.now { color: var(--busy); font-weight: 600; } .phases li.done i { color: var(--good); }
.phases li.ended i { color: var(--bad); }
ul.health { list-style: none; margin: 0; padding: 0; display: grid; gap: 8px; }
.health li { border-left: 3px solid var(--warn); background: var(--soft); border-radius: 4px; padding: 9px 12px;
  color: var(--body-text-color); display: grid; gap: 3px; margin: 0; overflow-wrap: anywhere; }
.health li.error { border-color: var(--bad); }
.health small { color: var(--body-text-color-subdued); font-size: 12px; }
.health button { justify-self: start; border: 1px solid var(--line); border-radius: 6px; padding: 4px 12px;
  background: var(--block-background-fill); color: var(--body-text-color); cursor: pointer; margin-top: 4px; }
.health button:hover { border-color: var(--busy); }
.chart { width: 100%; min-height: 420px; }
.chart-controls { align-items: stretch !important; gap: 0 16px !important; font-size: 13px; }
.chart-controls .block { border: 0 !important; background: transparent !important; padding: 4px 0 !important; }
.chart-controls .form { border: 0 !important; background: transparent !important; gap: 0 !important; }
.chart-controls label:has(input[type="radio"]) { padding: 3px 9px !important; }
#log textarea { font-family: var(--font-mono); font-size: 12px; white-space: pre; overflow-x: auto; }

#run-numbers .ls-tiles { grid-template-columns: repeat(auto-fill, minmax(134px, 1fr)); }
#run-numbers .ls-tiles > div { min-height: 82px; padding: 6px 10px; }
#run-numbers b { white-space: nowrap; }
#run-numbers b { font-size: 17px; } #run-numbers span { font-size: 13px; }
.run-top { align-items: flex-start !important; }
.run-top > .actions { flex: 0 0 auto !important; width: auto !important; flex-wrap: nowrap !important;
  gap: 8px !important; }
.actions button, .run-life-row > button { flex: 0 0 auto !important; white-space: nowrap; min-width: auto !important; }
.run-life-row { align-items: flex-end !important; }
#run-delete-yes, #run-cancel { color: var(--bad); }
#form { gap: 10px !important; }
#form-changes { align-items: flex-start !important; flex-wrap: nowrap !important; }
#form-changes ul { margin: 4px 0 0; padding-left: 18px; font-size: 13px; overflow-wrap: anywhere; }
#form-changes summary { cursor: pointer; font-size: 13px; }
#plan .ls-tiles { grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)); }
#plan .ls-tiles > div { padding: 8px 10px; }
#plan .ls-tiles span { font-size: 13px; }
.plan-memory p { margin: 4px 0 6px; } .plan-memory h3.part { margin: 8px 0 2px; }
.verdict { font-size: 13px; margin-left: 6px; } .verdict.good { color: var(--good); }
.verdict.warn { color: var(--warn); } .verdict.bad { color: var(--bad); }
.memory-bar { display: flex; height: 14px; border-radius: 7px; background: var(--soft); overflow: hidden; }
.memory-bar > i { display: block; height: 100%; }
table.memory-parts { width: 100%; border-collapse: collapse; font-size: 13px; margin: 8px 0 4px; }
.memory-parts, .memory-parts tr, .memory-parts th, .memory-parts td { border: 0 !important; padding: 2px 0 !important; }
.memory-parts th { text-align: left; font-weight: 400 !important; }
.memory-parts td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.memory-parts th i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.memory-parts caption.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.part-weights { background: var(--curve-1); } .part-adapter { background: #5b8def; }
.part-gradients { background: #c05c9b; } .part-optimizer { background: var(--curve-4); }
.part-activations { background: var(--curve-2); } .part-logits { background: #a3a14e; }
.part-overhead { background: var(--curve-3); }
.plan-change { white-space: normal !important; text-align: left !important; justify-content: flex-start !important; }
ol.checks { list-style: none; margin: 8px 0 0; padding: 0; font-size: 14px; }
ol.checks li { display: flex; gap: 8px; padding: 4px 0; overflow-wrap: anywhere; }
.checks .sign { flex: none; width: 1em; font-weight: 700; text-align: center; }
.checks .good .sign { color: var(--good); } .checks .warn .sign { color: var(--warn); }
.checks .bad .sign { color: var(--bad); } .checks .do { display: block; color: var(--body-text-color-subdued); }
.beside { position: sticky; top: 12px; align-self: flex-start; }
@media (min-width: 1100px) { #set-title, #set-data-train_file { grid-column: span 2; } }
@media (max-width: 640px) {
  .studio-head .device { margin-left: 0; width: 100%; }
  #header { margin-top: 10px; }
  button[role="tab"] { padding: 0 7px !important; }
  #data-upload, #data-upload button { height: 140px !important; }
  .run-top > #run-headline, .run-top > .actions { flex: 1 1 100% !important; max-width: 100%; }
  .actions, .run-top > .actions { flex-wrap: wrap !important; }
  #run-chat { order: -1; }
  .beside { position: static; }  /* sticky, it would keep the button below the fields that it lies over */
  #start { position: fixed; left: 20px; right: 20px; bottom: 12px; z-index: 20; width: auto; }
  #form-summary .ls-notice, #checks .checks { scroll-margin-bottom: 72px; }
  .train { padding-bottom: 56px; }
}
"""


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
