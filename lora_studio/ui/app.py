"""The page as a whole: header, banner of a public demonstration, tabs in order, and how it is served.

The page keeps nothing that a reload would lose, and closing it touches no run.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import FrameType

import gradio as gr
from gradio.context import LocalContext
from gradio.routes import App
from gradio.utils import get_upload_folder
from starlette.middleware import Middleware
from starlette.requests import Request
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from lora_studio.access import requests as connections
from lora_studio.access.accounts import Attempts, Sessions
from lora_studio.access.guests import ABOUT, Guests, hub_name, origin
from lora_studio.access.middleware import PROGRAM_OF, USER, AuthMiddleware, HubLogin, OriginMiddleware
from lora_studio.access.policy import Users
from lora_studio.access.requests import CLEARED_SECONDS, Pages, VisitorFiles, remove_abandoned
from lora_studio.access.services import session, users_of
from lora_studio.access.serving import Serving, address_words, check_exposure, readable_by, where_words
from lora_studio.api import endpoints, openai
from lora_studio.errors import StudioError
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.models import hardware
from lora_studio.models.hardware import Device
from lora_studio.ui import docs, gradio_patches, html, theme
from lora_studio.ui.chat import tab as chat_tab
from lora_studio.ui.data import tab as data_tab
from lora_studio.ui.evaluate import tab as evaluate_tab
from lora_studio.ui.export import tab as export_tab
from lora_studio.ui.runs import tab as runs_tab
from lora_studio.ui.studio import Shared, Studio, Wish
from lora_studio.ui.theme import LOG_OUT
from lora_studio.ui.train import tab as train_tab
from lora_studio.workspace import PRIVATE, Workspace

LOGIN = ' <a href="login/hub" target="_blank">Log in with Hugging Face</a> if you own it.'


def build_banner(studio: Studio) -> None:
    """Draws the banner; whom it is for is known when the page is opened."""
    login = studio.serving.hub_app is not None
    banner = gr.HTML(words(owned=False, login=login), elem_id="guests")

    def refresh() -> str:
        workspace = studio.workspace
        return words(owned=workspace.policy.is_admin, login=login, name=hub_name(workspace.policy.owner_id))

    gr.on(None, refresh, None, banner, show_progress="hidden", api_visibility="private")


def words(*, owned: bool, login: bool, name: str = "") -> str:
    """The banner as markup. `name` is that of a Hub account that does not own the studio."""
    about, link = ABOUT, LOGIN if login else ""
    if owned or name:
        link = f" {LOG_OUT}"
    if owned:
        about = "You are the owner: no limits apply to you."
    elif name:
        about = f"You are logged in as {name}, who does not own this studio. {ABOUT}"
    return html.notice("This is a public demo.", about, link=link)


TABS = (
    ("data", "Data", data_tab.build),
    ("train", "Train", train_tab.build),
    ("runs", "Runs", runs_tab.build),
    ("chat", "Chat", chat_tab.build),
    ("evaluate", "Evaluate", evaluate_tab.build),
    ("export", "Export", export_tab.build),
)
OF_PROXIES = "FORWARDED_ALLOW_IPS"  # whom the server believes where nobody says; whom we believe, `_gated` says
CLEAR_EVERY = 600  # seconds
MAX_WAITING_EVENTS = 500  # of all open pages together; Gradio tells who comes after them that the queue is full
FIRST = 1  # the first process of a container, with which all others end
SAVE_SECONDS = 8.0  # Docker gives ten
WARM_UP_SECONDS = 3.0  # after the page asked for its contents


def page(studio: Studio) -> gr.Blocks:
    """The whole page, wired and ready to be served."""
    cleared = (CLEAR_EVERY, int(CLEARED_SECONDS) - CLEAR_EVERY)  # Gradio's copies of uploads: we made our own
    with gr.Blocks(title="LoRA Studio", analytics_enabled=False, fill_width=True, delete_cache=cleared) as demo:
        endpoints.build(studio)  # first: private events of the same name get another one
        logins = studio.serving.accounts is not None
        with gr.Row(elem_id="header"):
            gr.HTML(theme.brand(), elem_id="brand")
            status = gr.HTML(studio.status_line(), elem_id="status")
            tools = gr.HTML(
                theme.tools(hardware.recent_devices(), logins), elem_id="tools", js_on_load=theme.on_load("header")
            )
        if studio.serving.guests:
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


def _warm_up_soon(studio: Studio) -> None:
    """The first look at data and the first checks find a child that has its libraries; the page is drawn first."""
    timer = threading.Timer(WARM_UP_SECONDS, studio.inspector.warm_up)
    timer.daemon = True
    timer.start()


def _keep_status(demo: gr.Blocks, status: gr.HTML, tools: gr.HTML, studio: Studio) -> None:
    """What runs and how much memory is free, in sight on every tab; sent only when it changes."""
    displayed = gr.State(("", ()))
    logins = studio.serving.accounts is not None

    def refresh(before: tuple[str, tuple[Device, ...]]) -> tuple[object, object, object]:
        line, devices = studio.status_line(), hardware.recent_devices()
        if not theme.differs(before[1], devices):
            devices = before[1]
        now = (line, devices)
        top = gr.skip() if devices == before[1] else theme.tools(devices, logins)
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


def make_studio(workspace: Workspace, serving: Serving) -> Studio:
    """The studio behind the page: whole for whoever sits at this machine, else what each visitor may see of it."""
    users = users_of(workspace, serving)
    if users is not None:
        owner = users.owner
        workspace = users.workspace_for(visitor if serving.several else lambda: owner)
    return Studio(
        workspace=workspace,
        supervisor=Supervisor(workspace),
        inspector=session(workspace, "inspect.log", patience=True),
        chat=session(workspace, "chat.log"),
        serving=serving,
        users=users,
    )


def visitor() -> str:
    """The name of the visitor whose event, or whose program, is being answered; empty outside of both."""
    request = LocalContext.request.get(None)
    return (request.username or "") if request is not None else PROGRAM_OF.get()


def launch(workspace: Workspace, serving: Serving) -> None:
    """Serves the page until Ctrl-C or SIGTERM. Runs go on after it ends, but in a container, which ends whole."""
    check_exposure(serving)
    gradio_patches.wait_for_no_code()
    os.environ[OF_PROXIES] = ""
    if readers := readable_by(workspace.root):
        print(f"{workspace.root} can be read by {readers} on this machine. Restrict it: chmod 700.", flush=True)
    _keep_uploads_private()
    studio = make_studio(workspace, serving)
    studio.supervisor.start()
    signal.signal(signal.SIGTERM, _leave)
    try:
        _serve(page(studio), studio)
    finally:
        studio.inspector.close()
        studio.chat.close()
        studio.supervisor.close()
        if os.getpid() == FIRST:
            studio.supervisor.go_to_sleep(SAVE_SECONDS)


def _waiting(demo: gr.Blocks, visitor: str) -> int:
    """How many events of a visitor, and of those who may be the same person, wait for their turn."""
    network = origin(visitor)
    return sum(origin(user) == network for user in gradio_patches.waiting_users(demo))


def _keep_uploads_private() -> None:
    """Uploads lie in Gradio's folder until they are taken over, often below one that all users of a machine share."""
    folder = Path(get_upload_folder())
    folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    if os.name == "posix" and folder.stat().st_uid == os.getuid():
        folder.chmod(PRIVATE)


def _middleware(studio: Studio, demo: gr.Blocks) -> list[Middleware]:
    """The door around everything, and around it what a login at the Hub needs."""
    serving, users = studio.serving, studio.users
    if users is not None and serving.several:
        owner = users.owner
        pages = Pages(_files(users), lambda name: 0 if name == owner else _waiting(demo, name))
    else:
        pages = Pages()
    if serving.hub_app is None:
        return [Middleware(AuthMiddleware, serving, Sessions(), Attempts(), pages=pages)]
    hub = HubLogin(serving.hub_app)
    return [hub.middleware(), Middleware(AuthMiddleware, serving, Sessions(), Attempts(), hub, pages)]


def _files(users: Users) -> VisitorFiles:
    """Whose files are whose, in the folders of uploads and downloads that users share."""
    files = VisitorFiles(
        users.owner,
        lambda name, size: users.policy(name).check_room(size),
        users.downloads,
        (users.workspace.root, Path(get_upload_folder()).resolve()),
    )
    if isinstance(users, Guests):
        users.pending_bytes = files.waiting
    return files


def _gated(serving: Serving) -> Callable[[App], AbstractAsyncContextManager[None]]:
    """The gate outside of what Gradio puts around the middleware that it is given, before the first request."""

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        gradio_patches.wrap(app, lambda stack: OriginMiddleware(stack, serving))
        if serving.proxies:
            gradio_patches.wrap(app, lambda stack: ProxyHeadersMiddleware(stack, list(serving.proxies)))
        tidying = asyncio.create_task(_tidy_up())
        yield
        tidying.cancel()

    return lifespan


async def _tidy_up() -> None:
    while True:
        await asyncio.to_thread(remove_abandoned, Path(get_upload_folder()))
        await asyncio.sleep(CLEAR_EVERY)


def _serve(demo: gr.Blocks, studio: Studio) -> None:
    serving = studio.serving
    host, port = serving.host, serving.port
    queue(demo)
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            auth_dependency=_visitor if serving.accounts or serving.guests else None,
            app_kwargs={
                "middleware": _middleware(studio, demo),
                "routes": [*openai.routes(studio), *docs.routes()],
                "lifespan": _gated(serving),
                "openapi_url": None,  # a list of all addresses, which neither people nor programs ask for
            },
            max_file_size=int(serving.max_upload_gb * 1e9),
            theme=theme.theme(),
            favicon_path=theme.ICON,
            css_paths=theme.STYLES,
            head=theme.head(login=bool(serving.accounts or serving.guests)),
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            show_error=True,
            state_session_capacity=100,
            share=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            quiet=True,
            _frontend=False,  # else Gradio asks itself for the page, and gives up where a busy machine takes over 3 s
        )
    except OSError as error:
        raise StudioError(
            f"Port {port} on {host} is in use or not available.",
            f"Choose another port: `LORA_STUDIO_PORT={port + 1} make run`, or --port {port + 1}.",
        ) from error
    connections.bound(demo.server, serving.proxies)
    print(
        address_words(serving), where_words(studio.workspace.root, container=os.getpid() == FIRST), sep="\n", flush=True
    )
    demo.block_thread()


def queue(demo: gr.Blocks) -> None:
    """The page's queue of events; what queues can't be asked for past it."""
    demo.queue(default_concurrency_limit=16, api_open=False, max_size=MAX_WAITING_EVENTS)
    gradio_patches.look_less_often(demo)


def _visitor(request: Request) -> str | None:
    """Who the door let in."""
    return request.scope.get(USER)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)
