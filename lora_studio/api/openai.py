"""An endpoint as OpenAI's beside the page, answered by the chat's engine: `/v1/models` and `/v1/chat/completions`.

`chat.arbiter` decides whose turn it is, and `access.middleware` lets requests in. What can't be done is refused in
words; what bears on no answer is let pass.
"""

import asyncio
import contextlib
import contextvars
import itertools
import json
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lora_studio.access.requests import has_lone_surrogates
from lora_studio.access.services import Services
from lora_studio.chat.arbiter import Answer, Answers, BusyError, ConsentError, Engine, HeldError, Status, asker
from lora_studio.chat.choices import Choice, choices
from lora_studio.config.fields import plain_words
from lora_studio.config.parsing import ConfigError, parse
from lora_studio.config.sections import Config
from lora_studio.errors import ApiError, EngineError, StudioError
from lora_studio.files import JsonObject
from lora_studio.jobs.protocol import ColumnAnswer, ColumnPrompt, Generated, ModelSelection, Piece
from lora_studio.workspace import DEMO_MODEL

FINISH = {"length": "length"}  # every other end of ours is a "stop"
NOT_DONE = {
    "tools": "Tools are not supported: omit `tools`.",
    "n": "Only one answer per request is supported: omit `n`, or set it to 1.",
    "logprobs": "Log probabilities are not supported: omit `logprobs`, or set it to false.",
    "frequency_penalty": "`frequency_penalty` is not supported: omit it, or use `repetition_penalty`.",
    "presence_penalty": "`presence_penalty` is not supported: omit it, or use `repetition_penalty`.",
    "response_format": "Only plain text is supported: omit `response_format`.",
}
OBJECTS = ("dict_type", "model_type", "model_attributes_type")
"""pydantic's kinds of error where JSON has no object."""
SERVED = "GET /v1/models and POST /v1/chat/completions are served."
Content = str | list[JsonObject] | None


class RequestMessage(BaseModel):
    """One message; `content` may come in parts, which have to be texts."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """What may be asked. Names that are not here are refused, but for those that change no answer."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str
    messages: list[RequestMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    tools: list[Any] | None = Field(None, max_length=0)
    # These two are vLLM's, for clients that can send more than OpenAI takes.
    top_k: int | None = None
    repetition_penalty: float | None = None
    # Nothing of these bears on an answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    parallel_tool_calls: Any = None


def read(body: Any) -> ChatRequest:
    """The checked request. Raises `ApiError` that names the first wrong field."""
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object with `model` and `messages`.")
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ApiError(400, f"`{param}` is not supported: omit it.", "unsupported_parameter", param) from None
        plain = "must be an object" if first["type"] in OBJECTS else plain_words(first)
        words = NOT_DONE.get(str(first["loc"][0]), f"`{param}` {plain}.")
        raise ApiError(400, words, "invalid_value", param) from None


def settings_of(request: ChatRequest) -> JsonObject:
    """The request's sampling in the studio's words, checked by the schema; what is not given has the schema's default.

    Without a seed each answer is sampled anew, as programs expect.
    """
    most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    sampling = {
        "max_new_tokens": most,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "repetition_penalty": request.repetition_penalty,
        "seed": secrets.randbelow(2**31) if request.seed is None else request.seed,
    }
    try:
        config: Config = parse({"generation": {name: value for name, value in sampling.items() if value is not None}})
    except ConfigError as error:
        first = error.problems[0]
        name = first.path.rpartition(".")[2]
        if name == "max_new_tokens":
            name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        raise ApiError(400, f"`{name}` {first.message}.", "invalid_value", name) from None
    return config.generation.model_dump()


def stops_of(request: ChatRequest) -> list[str]:
    """Texts that end the answer."""
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return [text for text in stops if text]


def messages_of(request: ChatRequest, system_prompt: str) -> list[JsonObject]:
    """The conversation as the engine takes it. One without a system message of its own begins with `system_prompt`,
    which the adapter was trained with; an empty one asks for none."""
    messages = [
        {"role": "system" if m.role == "developer" else m.role, "content": _text(m.content)} for m in request.messages
    ]
    if system_prompt and all(message["role"] != "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system_prompt})
    if messages[-1]["role"] == "assistant":
        raise ApiError(400, "The last message must have the role user: answers cannot be continued.", None, "messages")
    return [message for message in messages if message["role"] != "system" or message["content"]]


def _text(content: Content) -> str:
    if isinstance(content, list):
        other_parts = {str(part.get("type")) for part in content if part.get("type") != "text"}
        if other_parts:
            field = ", ".join(sorted(other_parts))
            raise ApiError(400, f"Only text is supported, but this message contains {field}.", None, "messages")
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """What a request can name. `adapter` is None for a base."""

    id: str
    selection: ModelSelection
    adapter: str | None = None
    system_prompt: str = ""
    created: int = 0

    def body(self) -> JsonObject:
        parent = None if self.adapter is None else self.selection.base
        return {"id": self.id, "object": "model", "created": self.created, "owned_by": "lora-studio", "parent": parent}


def listed_models(available: Sequence[Choice]) -> list[ListedModel]:
    """The built-in base, the bases of all adapters, then every run with an adapter, its id naming it."""
    bases = {DEMO_MODEL: ListedModel(DEMO_MODEL, ModelSelection(DEMO_MODEL))}
    runs = []
    for choice in available:
        if choice.run is None or choice.value != choice.run.id:
            continue
        try:
            card = choice.card()
        except StudioError:
            continue  # the files of one adapter are damaged: the others can answer
        base = ModelSelection(card.base, card.revision, card.quantization)
        bases.setdefault(card.base, ListedModel(card.base, base))
        created = int(choice.run.facts.stat().st_mtime)
        runs.append(ListedModel(choice.value, _with(base, choice), choice.value, card.system_prompt, created))
    return [*bases.values(), *runs]


def named_model(available: Sequence[Choice], name: str) -> ListedModel:
    """The model of that id; besides those listed, `RUN/checkpoint-N`. Raises `ApiError` where there is none."""
    for known in listed_models(available):
        if known.id == name:
            return known
    for choice in available:
        if choice.run is not None and choice.value == name:
            card = choice.card()
            base = ModelSelection(card.base, card.revision, card.quantization)
            return ListedModel(name, _with(base, choice), name, card.system_prompt)
    raise ApiError(404, f"There is no model {name!r}. GET /v1/models lists all models.", "model_not_found", "model")


def _with(base: ModelSelection, choice: Choice) -> ModelSelection:
    return ModelSelection(base.base, base.revision, base.quantization, ((choice.value, choice.folder),))


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer's frame: what all its parts have in common."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, column: ColumnAnswer) -> JsonObject:
        """The answer to a request that did not ask for a stream."""
        message = {"role": "assistant", "content": column.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish(column)}
        return self._frame("chat.completion", [choice]) | {"usage": usage(column)}

    def opening(self) -> JsonObject:
        """The first event of a stream."""
        return self._delta({"role": "assistant", "content": ""})

    def piece(self, text: str) -> JsonObject:
        return self._delta({"content": text})

    def ending(self, column: ColumnAnswer, *, with_usage: bool) -> list[JsonObject]:
        """The last events of a stream, but for the word that it is done."""
        last = [self._delta({}, finish(column))]
        return [*last, self._frame("chat.completion.chunk", []) | {"usage": usage(column)}] if with_usage else last

    def _delta(self, delta: JsonObject, finish_reason: str | None = None) -> JsonObject:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._frame("chat.completion.chunk", [choice])

    def _frame(self, kind: str, choices: list[JsonObject]) -> JsonObject:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def finish(column: ColumnAnswer) -> str:
    """OpenAI's word for why an answer ended."""
    return FINISH.get(column.finish, "stop")


def usage(column: ColumnAnswer) -> JsonObject:
    prompt, completion = column.prompt_tokens, column.tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


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
        Route("/v1/{path:path}", _in_words(_unknown), methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
    ]


async def _unknown(request: Request) -> Response:
    """Any other path or method below /v1, in the shape that a client reads."""
    raise ApiError(404, f"There is no {request.method} {request.url.path}. {SERVED}", "unknown_url")


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
        listed = await asyncio.to_thread(lambda: [model.body() for model in listed_models(self.found(request))])
        return JSONResponse({"object": "list", "data": listed})

    async def model(self, request: Request) -> Response:
        available = await asyncio.to_thread(lambda: named_model(self.found(request), request.path_params["name"]))
        return JSONResponse(available.body())

    async def chat(self, request: Request) -> Response:
        """One answer, whole or as a stream. Nothing is sent before the first token: what fails until then has its
        status."""
        if self._asking >= MAX_AT_ONCE:
            raise ApiError(503, f"{MAX_AT_ONCE} requests are already waiting. Try again later.", "busy")
        request_fields = read(await _json(request))
        events = self._events(request, await asyncio.to_thread(self._answers, request, request_fields))
        reply = Reply(request_fields.model)
        if request_fields.stream:
            first = await anext(events, None)
            if first is None:
                return Response(status_code=HUNG_UP)
            usage = request_fields.stream_options is not None and request_fields.stream_options.include_usage
            return StreamingResponse(_lines(reply, first, events, usage), media_type="text/event-stream")
        async with contextlib.aclosing(events):
            results = [answer async for answer in events if isinstance(answer, Generated)]
        return JSONResponse(reply.whole(results[0].columns[0])) if results else Response(status_code=HUNG_UP)

    def _answers(self, request: Request, request_fields: ChatRequest) -> tuple[str, Answers]:
        """The engine's answers to a request, and the name that it is asked under."""
        settings = settings_of(request_fields)
        self._services.workspace.policy.check_request({"settings": settings})  # also before anything is loaded for it
        model = named_model(self.found(request), request_fields.model)
        column = ColumnPrompt(adapter=model.adapter, messages=messages_of(request_fields, model.system_prompt))
        who = asker("program", self._services.workspace.policy.owner_id, str(next(self._names)))
        return who, self._services.engine.answer_program(
            who, model.selection, column, settings, stops_of(request_fields)
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


async def _lines(reply: Reply, first: Answer, events: Events, usage: bool) -> AsyncGenerator[str, None]:
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
