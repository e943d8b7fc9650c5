"""How the page is served: the services behind it, the middleware around it, and the server's life from start to end."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
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
from lora_studio.access.guests import LIMITS, Guests, origin, users_of
from lora_studio.access.middleware import PROGRAM_OF, USER, AuthMiddleware, HubLogin, OriginMiddleware
from lora_studio.access.policy import Users
from lora_studio.access.requests import CLEAR_EVERY, Pages, VisitorFiles, remove_abandoned
from lora_studio.access.services import Audience, session
from lora_studio.access.serving import Serving, address_words, check_exposure, readable_by, where_words
from lora_studio.api import openai
from lora_studio.errors import StudioError
from lora_studio.jobs.supervisor import Supervisor
from lora_studio.ui import gradio_patches, theme
from lora_studio.ui.app import page, page_routes
from lora_studio.ui.studio import Studio
from lora_studio.workspace import PRIVATE, Workspace

OF_PROXIES = "FORWARDED_ALLOW_IPS"  # whom the server believes where nobody says; whom we believe, `_gated` says
MAX_WAITING_EVENTS = 500  # of all open pages together; Gradio tells who comes after them that the queue is full
FIRST = 1  # the first process of a container, with which all others end
SAVE_SECONDS = 8.0  # Docker gives ten


def make_studio(workspace: Workspace, serving: Serving, users: Users | None) -> Studio:
    """The studio behind the page: whole for whoever sits at this machine, else what each visitor may see of it."""
    if users is not None:
        owner = users.owner
        workspace = users.workspace_for(visitor if serving.several else lambda: owner)
    return Studio(
        workspace=workspace,
        supervisor=Supervisor(workspace),
        inspector=session(workspace, "inspect.log", patience=True),
        chat=session(workspace, "chat.log"),
        audience=Audience(
            serving.guests,
            serving.accounts is not None,
            serving.hub_app is not None,
            serving.owner if serving.several else "",
        ),
        max_questions=LIMITS.questions if serving.guests else None,
        person_of=origin,
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
    users = users_of(workspace, serving)
    studio = make_studio(workspace, serving, users)
    studio.supervisor.start()
    signal.signal(signal.SIGTERM, _leave)
    try:
        _serve(page(studio), studio, serving, users)
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


def _middleware(serving: Serving, users: Users | None, demo: gr.Blocks) -> list[Middleware]:
    """The door around everything, and around it what a login at the Hub needs."""
    if users is not None and serving.several:
        owner = users.owner
        pages = Pages(_files(users), lambda name: 0 if name == owner else _waiting(demo, name))
    else:
        pages = Pages()
    if serving.hub_app is None:
        return [Middleware(AuthMiddleware, serving, Sessions(), Attempts(), pages=pages)]
    hub, tokens = HubLogin(serving.hub_app), users.jobs_tokens if users is not None else None
    return [hub.middleware(), Middleware(AuthMiddleware, serving, Sessions(), Attempts(), hub, pages, tokens)]


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


def _serve(demo: gr.Blocks, studio: Studio, serving: Serving, users: Users | None) -> None:
    host, port = serving.host, serving.port
    queue(demo)
    try:
        demo.launch(
            server_name=host,
            server_port=port,
            auth_dependency=_visitor if serving.accounts or serving.guests else None,
            app_kwargs={
                "middleware": _middleware(serving, users, demo),
                "routes": [*openai.routes(studio), *page_routes(studio)],
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
    with gradio_patches.without_app():
        demo.queue(default_concurrency_limit=16, api_open=False, max_size=MAX_WAITING_EVENTS)
    gradio_patches.look_less_often(demo)


def _visitor(request: Request) -> str | None:
    """Who the door let in."""
    return request.scope.get(USER)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)
