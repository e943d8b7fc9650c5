"""The page as a whole: header, banner of a public demonstration, and the tabs in order.

The page keeps nothing that a reload would lose, and closing it touches no run.
"""

import threading
from collections.abc import Mapping

import gradio as gr
from starlette.routing import Route

from lora_studio.access.guests import ABOUT, hub_name
from lora_studio.access.requests import CLEAR_EVERY, CLEARED_SECONDS
from lora_studio.api import endpoints
from lora_studio.errors import StudioError
from lora_studio.ui import docs, gradio_patches, theme
from lora_studio.ui.chat import tab as chat_tab
from lora_studio.ui.components import Shared, Wish
from lora_studio.ui.data import tab as data_tab
from lora_studio.ui.evaluate import tab as evaluate_tab
from lora_studio.ui.export import tab as export_tab
from lora_studio.ui.runs import tab as runs_tab
from lora_studio.ui.studio import Studio
from lora_studio.ui.train import tab as train_tab


def build_banner(studio: Studio) -> None:
    """Draws the banner; whom it is for is known when the page is opened."""
    login = studio.audience.hub_login
    banner = gr.HTML(theme.guest_banner(ABOUT, owned=False, login=login), elem_id="guests")

    def refresh() -> str:
        workspace = studio.workspace
        owned, name = workspace.policy.is_admin, hub_name(workspace.policy.owner_id)
        token = workspace.policy.jobs_token(workspace.policy.owner_id)
        offers = login and token is not None and _offers_jobs(studio)
        rents, allowed = offers and not token, offers and bool(token)
        return theme.guest_banner(ABOUT, owned=owned, login=login, name=name, rents=rents, allowed=allowed)

    gr.on(None, refresh, None, banner, show_progress="hidden", api_visibility="private")


def _offers_jobs(studio: Studio) -> bool:
    """Whether the visitor may run jobs on an account of their own."""
    try:
        return any(target.trains_only for target in studio.supervisor.targets.all().values())
    except StudioError:  # the file is wrong, which the owner is told
        return False


TABS = (
    ("data", "Data", data_tab.build),
    ("train", "Train", train_tab.build),
    ("runs", "Runs", runs_tab.build),
    ("chat", "Chat", chat_tab.build),
    ("evaluate", "Evaluate", evaluate_tab.build),
    ("export", "Export", export_tab.build),
)
WARM_UP_SECONDS = 3.0  # after the page asked for its contents


def page(studio: Studio) -> gr.Blocks:
    """The whole page, wired and ready to be served."""
    cleared = (CLEAR_EVERY, int(CLEARED_SECONDS) - CLEAR_EVERY)  # Gradio's copies of uploads: we made our own
    gradio_patches.read_signatures_once()
    gradio_patches.leave_alone_what_is_skipped()
    gradio_patches.leave_bounds_to_handlers()
    with (
        gradio_patches.without_app(),
        gr.Blocks(title="LoRA Studio", analytics_enabled=False, fill_width=True, delete_cache=cleared) as demo,
    ):
        endpoints.build(studio)  # first: private events of the same name get another one
        logins = studio.audience.logins
        with gr.Row(elem_id="header"):
            gr.HTML(theme.brand(), elem_id="brand")
            status = gr.HTML(studio.status_line(), elem_id="status")
            tools = gr.HTML(
                theme.tools([(device, ()) for device in studio.supervisor.devices()], logins),
                elem_id="tools",
                js_on_load=theme.on_load("header"),
            )
        if studio.audience.guests:
            build_banner(studio)
        # Not inside the tabs: gradio would count them as tabs.
        data, form, run, wish = gr.State(), gr.State(), gr.State(""), gr.State(Wish())
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            start = gr.Button("Start training", variant="primary", size="lg", elem_id="start", render=False)
            shared = Shared(tabs=tabs, data=data, form=form, run=run, wish=wish, start=start, status=status)
            built = {}
            for name, label, build in TABS:
                with gr.Tab(label, id=name, elem_id=f"tab-{name}") as tab:
                    build(studio, shared)
                built[name] = tab
        _tell_tab_in_sight(demo, built)
        _keep_status(demo, status, tools, studio)
        _open_tab_of_address(demo, tabs)
        demo.load(lambda: _warm_up_soon(studio), show_progress="hidden", api_visibility="private")
    gradio_patches.show_silent_events_on(demo, status)
    return demo


def page_routes(studio: Studio) -> list[Route]:
    """What the page asks for beside Gradio's own: the documentation, the jobs that ended, and the script that Gradio's
    is replaced by."""
    return [*docs.routes(), *runs_tab.routes(studio), *gradio_patches.routes()]


def _warm_up_soon(studio: Studio) -> None:
    """The first look at data and the first checks find a child that has its libraries; the page is drawn first."""
    timer = threading.Timer(WARM_UP_SECONDS, studio.inspector.warm_up)
    timer.daemon = True
    timer.start()


def _keep_status(demo: gr.Blocks, status: gr.HTML, tools: gr.HTML, studio: Studio) -> None:
    """What runs and how much memory is free, in sight on every tab; sent only when it changes."""
    displayed = gr.State(("", ()))
    logins = studio.audience.logins

    def refresh(before: tuple[str, theme.Usage]) -> tuple[object, object, object]:
        line = studio.status_line()
        usage: theme.Usage = studio.supervisor.usage()
        if not theme.differs(before[1], usage):
            usage = before[1]
        now = (line, usage)
        top = gr.skip() if usage == before[1] else theme.tools(usage, logins)
        return (gr.skip() if line == before[0] else line), top, (gr.skip() if now == before else now)

    timer = gr.Timer(2)
    gr.on(
        [demo.load, timer.tick],
        refresh,
        displayed,
        [status, tools, displayed],
        show_progress="hidden",
        api_visibility="private",
        trigger_mode="once",
    )


def _tell_tab_in_sight(demo: gr.Blocks, tabs: Mapping[str, gr.Tab]) -> None:
    """The address names the tab in sight, for a reload and for bookmarks, and only the timers of that tab tick.

    Every tick of every open page costs both sides. The page is asked which tab is open: a tab's news wait for what
    else its opening set off, and come late, or after those of the tab that was opened next.
    """
    timers = [block for block in demo.blocks.values() if isinstance(block, gr.Timer)]
    places = [next(name for name, tab in tabs.items() if _is_in(timer, tab)) for timer in timers]
    opened = [tab.select for tab in tabs.values()]
    gr.on(opened, None, None, timers, js=theme.call("timersInSight", places), api_visibility="private")


def _is_in(block: gr.blocks.Block, tab: gr.Tab) -> bool:
    place = block.parent
    while place is not None and place is not tab:
        place = place.parent
    return place is tab


def _open_tab_of_address(demo: gr.Blocks, tabs: gr.Tabs) -> None:
    requested = gr.Textbox(visible=False)

    def choose(name: str) -> object:
        return gr.Tabs(selected=name) if name in {tab[0] for tab in TABS} else gr.skip()

    demo.load(choose, requested, tabs, js="() => studio.askedTab", show_progress="hidden", api_visibility="private")
