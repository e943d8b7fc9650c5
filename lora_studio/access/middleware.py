"""Authentication for everything that the server serves: which requests are admitted, and which user sent them.

Without logins, requests from this machine's own pages are admitted. With logins, the middleware asks for name and
password, sets an HttpOnly cookie, and passes the user on as `scope["user"]`. Programs may send a key instead. On a
public demonstration, guests are admitted and told apart. A Space logs in by OpenID Connect (Authlib).
"""

import asyncio
import hashlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from lora_studio.access import guests
from lora_studio.access.accounts import (
    API_KEY,
    Attempts,
    JobsTokens,
    Sessions,
    client_prefix,
    is_loopback,
    same_secret,
)
from lora_studio.access.requests import Pages
from lora_studio.access.serving import Serving
from lora_studio.errors import ApiError, StudioError
from lora_studio.models.hub import HubApp
from lora_studio.units import escape

_log = logging.getLogger(__name__)
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]
USER, COOKIE = "user", "lora-studio-cookie"
MAX_LOGIN_BYTES = 10_000  # bytes of a name and a password
MAX_BYTES = 10_000_000  # of any other request; uploads are limited per file and go to disk
LARGE_BODY, MAX_LARGE, MAX_LARGE_OF_ADDRESS = 1_000_000, 32, 8  # bytes, and how many such requests at once
LARGE = 100_000  # bytes of a request that is looked through beside the others
WITH_FILES = "/gradio_api/upload"
# The server calls the first itself, once, when it starts; it does nothing after that.
OPEN_PATHS = ("/gradio_api/startup-events",)
PROGRAMS = "/v1/"
LOGIN_MINUTES = 10  # for a login at the Hub
LOGIN_SCOPE = "openid profile"
JOBS_SCOPE = "jobs contribute-repos"
"""Rights of the Hub to run jobs, and to create repositories and change these alone: a bucket is one."""
SHORT_LIVED = 3600.0  # seconds that a token is taken to live where the Hub does not say
LOGIN_PAGE = Template((Path(__file__).parent / "login.html").read_text(encoding="utf-8"))
PROGRAM_OF: ContextVar[str] = ContextVar("program_of", default="")
"""The visitor on whose behalf the current request of a program is made."""


class LargeRequests:
    """Counts large requests in progress, per address and in total, because their bodies are held in memory. Used only
    in the server's event loop."""

    def __init__(self) -> None:
        self._places: Counter[str] = Counter()

    def begin(self, place: str) -> bool:
        """Counts a request if there is room for it, and returns whether there is."""
        if self._places[place] >= MAX_LARGE_OF_ADDRESS or self._places.total() >= MAX_LARGE:
            return False
        self._places[place] += 1
        return True

    def end(self, place: str) -> None:
        self._places[place] -= 1
        self._places += Counter()  # forgets those that have none


class HubLogin:
    """Both halves of a login with the Hub: the redirect to it and the callback from it."""

    def __init__(self, app: HubApp) -> None:
        # A third of a second and 11 MB that only a server with this login pays for.
        from authlib.integrations.starlette_client import OAuth

        self._app = app
        self._oauth = OAuth()
        self._oauth.register(
            "hub",
            client_id=app.client_id,
            client_secret=app.client_secret,
            client_kwargs={"scope": LOGIN_SCOPE, "code_challenge_method": "S256"},
            server_metadata_url=f"{app.provider}/.well-known/openid-configuration",
        )

    @property
    def owner(self) -> str:
        """The Hub account that owns the studio."""
        return self._app.owner

    def middleware(self) -> Middleware:
        """The middleware that holds the state of a login in progress; it wraps `AuthMiddleware`."""
        https = self._app.address.startswith("https:")
        return Middleware(
            SessionMiddleware,
            secret_key=self._app.client_secret,
            session_cookie="lora-studio-login",
            max_age=60 * LOGIN_MINUTES,
            same_site="none" if https else "lax",  # a Space is shown in a frame of another site
            https_only=https,
        )

    async def away(self, request: Request, *, jobs: bool = False) -> Response:
        """Redirects to the Hub, which authenticates the user and sends them back. With `jobs` it asks them whether the
        studio may run jobs on their account, and store the files of these there."""
        scope = f"{LOGIN_SCOPE} {JOBS_SCOPE}" if jobs else LOGIN_SCOPE
        answer: RedirectResponse = await self._oauth.hub.authorize_redirect(request, self._app.callback, scope=scope)
        return answer

    async def back(self, request: Request) -> "HubAccount":
        """The account from the Hub's callback. Raises `StudioError` if the Hub does not confirm the login."""
        from authlib.integrations.starlette_client import OAuthError

        try:
            token = await self._oauth.hub.authorize_access_token(request)
        except OAuthError as error:
            raise StudioError(f"Hugging Face login failed: {error.description or error.error}", "Try again.") from None
        finally:
            request.session.clear()
        name, scope = str(token["userinfo"]["preferred_username"]), str(token.get("scope", "")).split()
        may_run = set(JOBS_SCOPE.split()) <= set(scope)
        expires = float(token.get("expires_at") or time.time() + SHORT_LIVED)
        return HubAccount(name, str(token["access_token"]) if may_run else "", expires)


@dataclass(frozen=True, slots=True)
class HubAccount:
    """Who logged in with the Hub; with the token for their jobs, where they allowed these, and when it expires."""

    name: str
    jobs_token: str = field(default="", repr=False)
    expires: float = 0.0


class AuthMiddleware:
    """ASGI middleware that authenticates each request to the server."""

    def __init__(
        self,
        app: App,
        serving: Serving,
        sessions: Sessions,
        attempts: Attempts,
        hub: HubLogin | None = None,
        pages: Pages | None = None,
        jobs_tokens: JobsTokens | None = None,
    ) -> None:
        self._app, self._serving, self._hub = app, serving, hub
        self._jobs_tokens = jobs_tokens or JobsTokens()
        self._sessions, self._attempts = sessions, attempts
        self._large = LargeRequests()
        self._any_name = serving.accounts is not None and serving.accounts.one
        self._token = serving.accounts.token if serving.accounts else ""
        self._pages = pages or Pages()
        self._cookie = f"lora-studio-{secrets.token_hex(4)}"  # several studios on this machine share the host's cookies

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no web sockets
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        place = client_prefix(_address(request)) if _is_large(request) else None
        if place is not None and not self._large.begin(place):
            message = "Several large requests are in progress. Try again in a moment."
            await JSONResponse({"error": message}, 503)(scope, receive, send)
            return
        try:
            await self._handle(request, send)
        finally:
            if place is not None:
                self._large.end(place)

    async def _handle(self, request: Request, send: Any) -> None:
        """Answers a request, or passes it on to the app."""
        scope, receive = request.scope, request.receive
        answer = await self._answer(request)
        files, user = self._pages.files, scope.get(USER) or ""
        if scope["path"].startswith(PROGRAMS):
            PROGRAM_OF.set(user)
        elif answer is None:
            try:
                answer, receive = await self._check_body(scope, receive)
            except ClientDisconnect:
                return
            if files is not None and scope["path"] == WITH_FILES:
                send = _with_callback(send, partial(files.record_upload, user))
        await (answer or self._app)(scope, receive, _with_cookie(scope, send))

    async def _check_body(self, scope: Scope, receive: Any) -> tuple[Response | None, Any]:
        """A refusal because of a request's body or the files it names, if any; and a `receive` that replays what was
        read."""
        body: bytes | None = b""
        if scope["path"] == WITH_FILES:
            if self._pages.files is not None:
                headers = Request(scope).headers
                try:
                    message = await asyncio.to_thread(self._pages.files.check_upload, scope.get(USER) or "", headers)
                except StudioError as error:
                    return PlainTextResponse(str(error), 413), receive
                if message:
                    return PlainTextResponse(message, 411), receive
        elif scope["method"] not in ("GET", "HEAD"):
            body = await _body(Request(scope, receive), MAX_BYTES)
            receive = _replay(body or b"", receive)
        if body is None:
            message = f"A request is limited to {MAX_BYTES / 1e6:.0f} MB, not counting its files."
            return JSONResponse({"error": message}, 413), receive
        args = (scope.get(USER), scope["path"], scope["query_string"], body)
        large = len(body) > LARGE
        refused = await asyncio.to_thread(self._pages.refused, *args) if large else self._pages.refused(*args)
        return JSONResponse({"error": refused.words}, refused.status) if refused else None, receive

    async def _answer(self, request: Request) -> Response | None:
        """The middleware's own response; None for a request that may pass."""
        if refused := foreign(request, self._serving):
            return JSONResponse({"error": refused}, 403)
        path = request.scope["path"].rstrip("/")
        if path.startswith(PROGRAMS):
            return self._program(request)
        if self._serving.guests:
            return await self._guest(request, path)
        if self._serving.accounts is None:
            return None
        if path == "/login":
            return await self._login(request) if request.method == "POST" else RedirectResponse("./", 303)
        token = request.cookies.get(self._cookie, "")
        if path == "/logout":
            return self._logout(request, token)
        user = self._sessions.user(token)
        if path == "" and request.method == "GET" and self._has_token(request):
            entered = RedirectResponse("./", 303, headers={"Referrer-Policy": "no-referrer"})
            entered.headers["set-cookie"] = self._cookie_for(request, self._serving.owner)
            return entered
        if user is None and path not in OPEN_PATHS:
            if request.method in ("GET", "HEAD") and path == "":
                return HTMLResponse(self._login_page(), headers={"Cache-Control": "no-store"})
            return JSONResponse({"error": "Not logged in."}, 401)
        request.scope[USER] = user
        return None

    def _has_token(self, request: Request) -> bool:
        """Whether the URL holds the token that gives the owner's rights."""
        return self._token != "" and same_secret(request.query_params.get("token", ""), self._token)

    def _program(self, request: Request) -> Response | None:
        """The API for programs: a key grants the owner's rights, a visitor's cookie those of the visitor."""
        key, token = self._serving.api_key, self._token
        if not self._serving.accounts and not self._serving.guests and key is None:
            return None
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        keys = [secret for secret in (key, token) if secret]
        if scheme.lower() == "bearer" and any(same_secret(credentials.strip(), secret) for secret in keys):
            request.scope[USER] = self._serving.owner
            return None
        user = self._sessions.user(request.cookies.get(self._cookie, ""))
        request.scope[USER] = user or (self._by_address(request) if self._serving.guests else None)
        if request.scope[USER] is not None:
            return None
        words = (
            f"Give the {f'key that {API_KEY} holds' if key else 'token of the page'} as a bearer token."
            if keys
            else f"{API_KEY} is not set, so the API accepts no key."
        )
        refused = ApiError(401, words, "invalid_api_key")
        return JSONResponse(refused.body(), refused.status)

    async def _guest(self, request: Request, path: str) -> Response | None:
        """Admits a guest, known by a cookie, or by address if cookies are refused. The owner logs in at the Hub."""
        token = request.cookies.get(self._cookie, "")
        if path == "/logout":
            return self._logout(request, token)
        if self._hub is not None and path in ("/login/hub", "/login/hub/jobs"):
            return await self._hub.away(request, jobs=path.endswith("/jobs"))
        if self._hub is not None and path == "/login/callback":
            return await self._from_hub(self._hub, request)
        user = self._sessions.user(token)
        if user is None and path == "" and request.method == "GET":
            user = guests.new_name(self._place(request))
            request.scope[COOKIE] = self._cookie_for(request, user, guest_from=self._place(request))
        request.scope[USER] = user or self._by_address(request)
        return None

    async def _from_hub(self, hub: HubLogin, request: Request) -> Response:
        """Starts a session for the user that the Hub confirms: the owner, or a named guest."""
        try:
            account = await hub.back(request)
        except StudioError as error:
            return HTMLResponse(login_page(str(error)), 403)
        owner = account.name.casefold() == hub.owner.casefold()
        user = self._serving.owner if owner else guests.named(account.name)
        if account.jobs_token and not owner:
            self._jobs_tokens.remember(user, account.jobs_token, account.expires)
        answer = RedirectResponse("/", 303)
        answer.headers["set-cookie"] = self._cookie_for(request, user)
        return answer

    def _by_address(self, request: Request) -> str:
        """A name for a guest who keeps no cookie."""
        return f"guest-{self._place(request)}-address"

    def _place(self, request: Request) -> str:
        """An opaque identifier of a guest's address. It only reveals that others come from the same place."""
        return _hash(self._cookie + client_prefix(_address(request)))

    async def _login(self, request: Request) -> Response:
        """Starts a session for a correct password. Browsers are redirected to the page, programs get a JSON answer."""
        assert self._serving.accounts is not None
        address = client_prefix(_address(request))
        by_browser = "text/html" in request.headers.get("accept", "")
        form = (await _body(request, MAX_LOGIN_BYTES) or b"").decode("utf-8", "replace")
        form_fields = parse_qs(form, keep_blank_values=True)
        name = self._serving.accounts.name(form_fields.get("username", [""])[0])
        try:
            self._attempts.check(address, name)
            user = self._serving.accounts.user(name, form_fields.get("password", [""])[0])
            if user is None:
                self._attempts.failed(address, name)
                together = "Wrong name or password."
                raise StudioError("Wrong password." if self._any_name else together)
        except StudioError as error:
            status = 429 if error.hint else 401
            if by_browser:
                return HTMLResponse(self._login_page(str(error)), status)
            return JSONResponse({"error": str(error)}, status)
        self._attempts.succeeded(address, name)
        answer = RedirectResponse("./", 303) if by_browser else JSONResponse({"success": True})
        answer.headers["set-cookie"] = self._cookie_for(request, user)
        return answer

    def _login_page(self, message: str = "") -> str:
        return login_page(message, any_name=self._any_name, token=self._token != "")

    def _logout(self, request: Request, token: str) -> Response:
        """Ends a session, but not for a plain link, which a page of another site could make users follow."""
        gone = RedirectResponse("./", 303)
        if request.method == "POST":
            self._jobs_tokens.forget(self._sessions.user(token) or "")
            self._sessions.end(token)
            gone.delete_cookie(self._cookie)
        return gone

    def _cookie_for(self, request: Request, user: str, *, guest_from: str = "") -> str:
        """Starts a session and returns its Set-Cookie header."""
        https = bool(self._serving.names) or "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
        carrier = Response()
        # A Space is shown in a frame of another site, where cookies need SameSite=None.
        framed: Literal["none", "lax"] = "none" if self._serving.names else "lax"
        carrier.set_cookie(
            self._cookie,
            self._sessions.begin(user, guest_from=guest_from),
            httponly=True,
            secure=https,
            samesite=framed,
        )
        return carrier.headers["set-cookie"]


class OriginMiddleware:
    """ASGI middleware that rejects cross-origin requests. It runs before Gradio's own CORS middleware.

    Gradio's answers any preflight request with the headers it asks for. Responses may be framed by another site only on
    a Space, and browsers must not guess their content type.
    """

    def __init__(self, app: App, serving: Serving) -> None:
        self._app, self._serving = app, serving
        self._warned = False
        self._headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"same-origin")]
        # A Space is shown in a frame of the Hub's page; anywhere else framing allows clickjacking.
        if not serving.names:
            self._headers.append((b"content-security-policy", b"frame-ancestors 'self'"))

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        refused = ""
        if scope["type"] == "http":
            request = Request(scope)
            self._warn_of_proxy(request)
            refused = foreign(request, self._serving)
        answer = JSONResponse({"error": refused}, 403) if refused else None
        await (answer or self._app)(scope, receive, _with_headers(send, self._headers))

    def _warn_of_proxy(self, request: Request) -> None:
        """Warns once, in the terminal, that behind an undeclared proxy all visitors share one address."""
        if self._warned or self._serving.proxies or "x-forwarded-for" not in request.headers:
            return
        self._warned = True
        _log.warning(
            "A request from %s claims to be forwarded for another client and is not trusted. If that address is "
            "your proxy, add it with --trusted-proxy: visitors are told apart by address.",
            _address(request),
        )


def foreign(request: Request, serving: Serving) -> str:
    """Why a request is rejected as cross-origin; "" if it is not."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    # A proxy may put its own name into Host. Pages of other sites cannot: the preflight does not allow it.
    ours = (host, request.headers.get("x-forwarded-host"), *serving.names, *serving.allowed_hosts)
    if origin and _place(origin) not in ours:
        return "This request comes from a page on another site."
    name, names = _hostname(host), serving.page_names
    if names is not None and not is_loopback(name) and name not in names and host.lower() not in names:
        if serving.local and not names:
            return (
                f"This page is only available on this machine, but was requested as {name}; access from "
                "other machines requires a login."
            )
        return f"This page does not answer to the host name {name}. The owner can allow it."
    return ""


def _is_large(request: Request) -> bool:
    """Whether the body of a request takes, or may take, much memory. File uploads go to disk."""
    if request.method in ("GET", "HEAD", "OPTIONS") or request.scope["path"] == WITH_FILES:
        return False
    length = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers:
        return True
    return length.isdecimal() and int(length) > LARGE_BODY


def _with_cookie(scope: Scope, send: Any) -> Any:
    """Sends the app's response, adding the session cookie of a new guest."""
    if COOKIE not in scope:
        return send

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"set-cookie", scope[COOKIE].encode())]
        await send(message)

    return sending


def _with_callback(send: Any, tell: Callable[[bytes], None]) -> Any:
    """Sends the app's response, and calls back as soon as a successful one is complete."""
    good, body = False, bytearray()

    async def sending(message: MutableMapping[str, Any]) -> None:
        nonlocal good
        if message["type"] == "http.response.start":
            good = message["status"] == 200
        elif good:
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                tell(bytes(body))
        await send(message)

    return sending


def _with_headers(send: Any, headers: list[tuple[bytes, bytes]]) -> Any:
    """Sends the app's response with these headers, unless it already has them."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in headers if pair[0] not in there)]
        await send(message)

    return sending


def _address(request: Request) -> str:
    """The client's address: the other end of the connection, or what a trusted proxy reports."""
    return request.client.host if request.client else ""


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _place(origin: str) -> str:
    """Host and port of an Origin header; for an opaque origin such as "null", a value that no Host header can have."""
    return origin.partition("://")[2] or origin


def _hostname(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _body(request: Request, most: int) -> bytes | None:
    """The body of a request; None if it is larger than the limit, in which case the rest is not read."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def _replay(body: bytes, receive: Any) -> Any:
    """Replays a body that was already read, then passes on whatever follows."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Any:
        return waiting.pop() if waiting else await receive()

    return receiving


def login_page(message: str = "", any_name: bool = False, token: bool = False) -> str:
    """The login page, self-contained because nothing else is served before login. If only the password matters, it says
    so: a user who was given a password alone would look for a name to go with it."""
    intro = "This studio has a single password. Any user name works." if any_name else "Log in to this studio."
    if token:
        intro = (
            "This studio requires its access token, which is shown in the terminal where it was started. Any "
            "user name works."
        )
    alert = f'<p role="alert">{escape(message)}</p>' if message else ""
    return LOGIN_PAGE.substitute(asked=intro, told=alert)
