"""An endpoint as OpenAI's beside the page, answered by the chat's engine: `/v1/models` and `/v1/chat/completions`.

`api.openai_schema` has the shapes of requests and answers, `chat.arbiter` decides whose turn it is, and
`access.middleware` lets requests in.
"""

import asyncio
import contextlib
import contextvars
import itertools
import json
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lora_studio.access.requests import has_lone_surrogates
from lora_studio.access.services import Services
from lora_studio.api import openai_schema as wire
from lora_studio.chat.arbiter import Answer, Answers, BusyError, ConsentError, Engine, HeldError, Status, asker
from lora_studio.chat.choices import Choice, choices
from lora_studio.errors import ApiError, EngineError, StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.protocol import ColumnPrompt, Generated, Piece

MAX_AT_ONCE = 32
WAIT_SECONDS = 120.0
"""How long a request waits for others to be answered before it is told to come again."""
MAX_BYTES = 8_000_000
AGAIN = {"Retry-After": "10"}
HUNG_UP = 499  # nobody reads it: nginx' number for a client that left

Handler = Callable[[Request], Awaitable[Response]]
Events = AsyncGenerator[Answer, None]


def routes(services: Services) -> list[Route]:
    """The endpoint's routes, for the server's application."""
    api = OpenAi(services)
    return [
        Route("/v1/models", _in_words(api.models), methods=["GET"]),
        Route("/v1/models/{name:path}", _in_words(api.model), methods=["GET"]),
        Route("/v1/chat/completions", _in_words(api.chat), methods=["POST"]),
    ]


class OpenAi:
    """What the routes do."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._names = itertools.count(1)
        self._asking = 0

    def found(self, request: Request) -> list[Choice]:
        """Every adapter that can be asked for."""
        return choices(self._services.workspace, self._services.supervisor.runs())

    async def models(self, request: Request) -> Response:
        """Bases, and every run with an adapter."""
        listed = await asyncio.to_thread(lambda: [model.body() for model in wire.models(self.found(request))])
        return JSONResponse({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        available = await asyncio.to_thread(lambda: wire.model(self.found(request), request.path_params["name"]))
        return JSONResponse(available.body())

    async def chat(self, request: Request) -> Response:
        """One answer, whole or as a stream. Nothing is sent before the first token: what fails until then has its
        status."""
        if self._asking >= MAX_AT_ONCE:
            raise ApiError(503, f"{MAX_AT_ONCE} requests are already waiting. Try again later.", "busy")
        request_fields = wire.read(await _json(request))
        events = self._events(request, await asyncio.to_thread(self._answers, request, request_fields))
        reply = wire.Reply(request_fields.model)
        if request_fields.stream:
            first = await anext(events, None)
            if first is None:
                return Response(status_code=HUNG_UP)
            usage = request_fields.stream_options is not None and request_fields.stream_options.include_usage
            return StreamingResponse(_lines(reply, first, events, usage), media_type="text/event-stream")
        async with contextlib.aclosing(events):
            results = [answer async for answer in events if isinstance(answer, Generated)]
        return JSONResponse(reply.whole(results[0].columns[0])) if results else Response(status_code=HUNG_UP)

    def _answers(self, request: Request, request_fields: wire.ChatRequest) -> tuple[str, Answers]:
        """The engine's answers to a request, and the name that it is asked under."""
        settings = wire.settings_of(request_fields)
        self._services.workspace.policy.check_request({"settings": settings})  # also before anything is loaded for it
        model = wire.model(self.found(request), request_fields.model)
        column = ColumnPrompt(adapter=model.adapter, messages=wire.messages_of(request_fields, model.system_prompt))
        who = asker("program", self._services.workspace.policy.owner_id, str(next(self._names)))
        return who, self._services.engine.answer_program(
            who, model.selection, column, settings, wire.stops_of(request_fields)
        )

    async def _events(self, request: Request, work: tuple[str, Answers]) -> Events:
        """Pieces and the result; nothing more once the client hung up."""
        who, answers = work
        begun = time.monotonic()
        self._asking += 1
        try:
            async with contextlib.aclosing(carried(self._services.engine, who, answers, request)) as carrying:
                async for answer in carrying:
                    if isinstance(answer, Piece | Generated):
                        yield answer
                    elif isinstance(answer, Status) and answer.waiting and time.monotonic() - begun > WAIT_SECONDS:
                        raise ApiError(503, "Other requests are being answered. Try again later.", "busy")
        finally:
            self._asking -= 1


async def carried(engine: Engine, who: str, answers: Answers, request: Request) -> Events:
    """The engine's answers, made in a thread of their own. Ends when the client hangs up, and whenever it ends early
    the engine stops within a token."""
    loop = asyncio.get_running_loop()
    handed: asyncio.Queue[Answer | StudioError | None] = asyncio.Queue()
    left = threading.Event()

    def hand_on(answer: Answer | StudioError | None) -> None:
        with contextlib.suppress(RuntimeError):  # the server ended meanwhile, and its loop with it
            loop.call_soon_threadsafe(handed.put_nowait, answer)

    def work() -> None:
        last: StudioError | None = EngineError("The answer was interrupted.")
        try:
            with contextlib.closing(answers):
                for answer in answers:
                    if left.is_set():
                        break
                    hand_on(answer)
            last = None
        except StudioError as error:
            last = error
        finally:
            hand_on(last)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        handed.put_nowait(None)

    whose = contextvars.copy_context()  # the thread asks for the same visitor
    threading.Thread(target=whose.run, args=(work,), name=who, daemon=True).start()
    watching = asyncio.create_task(watch())
    try:
        while (answer := await handed.get()) is not None:
            if isinstance(answer, StudioError):
                raise answer
            yield answer
    finally:
        left.set()
        watching.cancel()
        engine.stop(who)


async def _lines(reply: wire.Reply, first: Answer, events: Events, usage: bool) -> AsyncGenerator[str, None]:
    """A stream of server-sent events. An error that comes after the first token is the last of them."""
    yield _line(reply.opening())
    answer: Answer | None = first
    async with contextlib.aclosing(events):
        try:
            while answer is not None:
                if isinstance(answer, Piece):
                    yield _line(reply.piece(answer.texts[0]))
                elif isinstance(answer, Generated):
                    for event in reply.ending(answer.columns[0], with_usage=usage):
                        yield _line(event)
                answer = await anext(events, None)
        except StudioError as error:
            yield _line(_problem(error).body())
            return
    yield "data: [DONE]\n\n"


def _line(event: JsonObject) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


async def _json(request: Request) -> Any:
    """The body as JSON. Only with its content type: a form of another site can't send that without asking first."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "The body must be JSON, with `Content-Type: application/json`.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise ApiError(413, f"The body is larger than {MAX_BYTES / 1e6:.0f} MB.")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON, or it is nested too deeply.") from None
    if has_lone_surrogates(bytes(body), found):
        raise ApiError(400, "The text contains half of a surrogate pair, which no model can read.")
    return found


def _in_words(handler: Handler) -> Handler:
    """What goes wrong, in OpenAI's shape and with its status."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            refused = error
        except StudioError as error:
            refused = _problem(error)
        return JSONResponse(refused.body(), refused.status, AGAIN if refused.status == 503 else None)

    return answered


def _problem(error: StudioError) -> ApiError:
    """A user's error as a wrong request, others by what is the matter."""
    match error:
        case HeldError():
            return ApiError(409, str(error), "model_held", "model")
        case BusyError():
            return ApiError(503, str(error), "busy")
        case ConsentError():
            return ApiError(503, str(error), "memory", "model")
        case EngineError():
            return ApiError(500, str(error), "engine")
    return ApiError(400, str(error))
