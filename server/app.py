"""The application: routers, middleware, and the lifespan that starts and drains the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import FastAPI
from starlette.middleware import Middleware

from models.embedded.vocabulary import demo_notice
from server import __version__
from server.accounts.access import Access
from server.accounts.admission import EXPOSED_HEADERS
from server.api import (
    a1111,
    a1111_errors,
    a1111_lists,
    account,
    basic,
    docs,
    health,
    hints,
    metrics,
    openai,
    openai_errors,
    openai_files,
    page,
    runs,
    stability,
    stability_errors,
)
from server.engine_service import EngineHost, ModelStarter, load_model
from server.errors import ConfigurationError
from server.extras import missing_extras
from server.http.body_limit import BodyLimit
from server.http.bytes_in_flight import ByteBudget, BytesInFlight
from server.http.errors import add_failure_handlers
from server.http.failure_shapes import FailureShapes
from server.http.head_requests import HeadAsGet
from server.http.middleware import EnvelopedCors, ErrorsAs200, FailureGuard
from server.http.request_context import REQUEST_ID_HEADER, RequestContext
from server.http.request_path import RequestPath
from server.http.response_headers import ResponseHeaders, SafeHeaders
from server.images.workers.limits import DecoderLimits
from server.images.workers.pool import DecoderPool
from server.img2img.deny_list import DenyList
from server.img2img.image_store import open_store
from server.img2img.running import RunningBatches
from server.img2img.runs import Runs
from server.img2img.service import ImageToImage
from server.observability.access_log import AccessLog
from server.observability.metrics import Metrics
from server.observability.request_record import RequestObserver
from server.settings import Settings

if TYPE_CHECKING:
    from server.accounts.service import Accounts
    from server.observability.tracing import Tracing

_DESCRIPTION = """\
Image-to-image generation with Stable Diffusion 1.x. Every answer, failures too, is
`{"code", "message", "data"}`: code 0 for success, -1 for failure."""


def _description(settings: Settings) -> str:
    notice = demo_notice(settings.model)
    return _DESCRIPTION if notice is None else f"{_DESCRIPTION}\n\n**Note:** {notice}."


class Application(FastAPI):
    """FastAPI, whose description keeps the null in the examples of failures."""

    def openapi(self) -> dict[str, Any]:
        description = super().openapi()
        for path in description["paths"].values():
            for operation in path.values():
                # What FastAPI would answer with 422 is answered with 400 here.
                operation["responses"].pop("422", None)
                for response in operation["responses"].values():
                    for content in response.get("content", {}).values():
                        if "code" in (example := content.get("example", {})):
                            example.setdefault("data", None)
        return description


def create_app(
    settings: Settings,
    *,
    starter: ModelStarter = load_model,
    on_start_failure: Callable[[], None] = lambda: None,
    decoders: DecoderPool | None = None,
) -> FastAPI:
    """The application under `settings`. `starter` makes the engine; `on_start_failure` is called,
    perhaps in another thread, if it or the accounts cannot be opened. `decoders` are shared with
    others, instead of its own by the settings. Raises ConfigurationError."""
    problem = settings.exposure_problem()
    if problem is not None:
        raise ConfigurationError(problem)
    if missing := missing_extras(settings):
        raise ConfigurationError("\n".join(missing))
    deny_list = DenyList.read(settings.prompt_deny_list)
    byte_budget = ByteBudget(settings.max_bytes_in_flight)
    host = EngineHost(settings, starter)
    accounts = _open_accounts(settings)
    access = Access(settings, accounts)
    observers: list[RequestObserver] = [AccessLog(prompts=settings.log_prompts)]
    measured = Metrics(lambda: host.model) if settings.measures else None
    if measured is not None:
        observers.append(measured)
    if (tracing := _tracing(settings)) is not None:
        observers.insert(0, tracing)  # before the log, which names the trace
    decoders_in_use = decoders or DecoderPool(
        settings.picture_places,
        DecoderLimits(settings.picture_cpu_seconds, settings.picture_memory_mib),
        # Decoding takes far less than generating, and what waits is bounded in bytes and time too.
        most_waiting=4 * settings.max_queue,
    )
    app = Application(
        title="img2img-server",
        version=__version__,
        description=_description(settings),
        lifespan=partial(_lifespan, on_start_failure, decoders is None),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=_middleware(settings, byte_budget, observers),
    )
    app.state.settings = settings
    app.state.engine_host = host
    app.state.accounts = accounts
    app.state.access = access
    app.state.byte_budget = byte_budget
    app.state.metrics = measured
    app.state.tracing = tracing
    app.state.decoders = decoders_in_use
    app.state.hint = hints.hint
    app.state.shapes = _failure_shapes()
    app.state.image_store = open_store(
        settings.limits_url.get_secret_value(), settings.max_kept_bytes
    )
    app.state.runs = Runs(settings.run_grace, app.state.image_store)
    app.state.running = RunningBatches()
    app.state.service = ImageToImage(settings, decoders_in_use, deny_list)
    add_failure_handlers(app)
    _add_routes(app, settings)
    return app


def _failure_shapes() -> FailureShapes:
    shapes = FailureShapes()
    for subtree in ("/v1", "/openai"):
        shapes.add(subtree, openai_errors.failure_shape)
    for subtree in ("/sdapi", "/controlnet"):
        shapes.add(subtree, a1111_errors.failure_shape)
    for subtree in ("/v1/generation", "/v1/engines", "/v1/user"):
        shapes.add(subtree, stability_errors.failure_shape)
    return shapes


def _add_routes(app: FastAPI, settings: Settings) -> None:
    app.include_router(basic.router)
    app.include_router(runs.router)
    app.include_router(openai.router)
    app.include_router(openai_files.router)
    app.include_router(stability.router)
    app.include_router(a1111.router)
    app.include_router(a1111_lists.router)
    app.include_router(account.router)
    app.include_router(health.router)
    app.include_router(health.ray_router)
    app.include_router(docs.router)
    if settings.metrics_on_api:
        app.include_router(metrics.router)
    app.include_router(page.router)
    app.mount("/static", page.PageFiles(directory=page.WEB_FOLDER))


@asynccontextmanager
async def _lifespan(
    on_start_failure: Callable[[], None], owns_decoders: bool, app: FastAPI
) -> AsyncIterator[None]:
    """Start what serves, and end it, even if a part of it does not start."""
    host: EngineHost = app.state.engine_host
    accounts: Accounts | None = app.state.accounts
    decoders: DecoderPool = app.state.decoders
    tracing: Tracing | None = app.state.tracing
    async with AsyncExitStack() as ending:  # Ended in the reverse order of this.
        if tracing is not None:
            ending.push_async_callback(anyio.to_thread.run_sync, tracing.close)
        ending.push_async_callback(app.state.access.rates.close)
        ending.push_async_callback(app.state.image_store.close)
        if accounts is not None:
            ending.push_async_callback(accounts.stop)
        if owns_decoders:
            ending.push_async_callback(anyio.to_thread.run_sync, decoders.close)
            decoders.start()
        ending.push_async_callback(host.drain, app.state.settings.grace_period)
        host.start(on_start_failure)
        if accounts is not None:
            await accounts.start(on_start_failure)
        try:
            yield
        except asyncio.CancelledError:
            ending.pop_all()  # Told twice to stop: nothing is waited for.
            raise


def _open_accounts(settings: Settings) -> Accounts | None:
    if settings.no_auth or not settings.has_database:
        return None
    # Imported here: a server without a database should not load one either.
    from server.accounts.service import Accounts

    return Accounts(settings)


def _tracing(settings: Settings) -> Tracing | None:
    if not settings.traces_endpoint:
        return None
    # Imported here: an extra that is not installed where nobody asks for it.
    from server.observability.tracing import Tracing

    return Tracing.to(settings.traces_endpoint)


def _middleware(
    settings: Settings, byte_budget: ByteBudget, observers: Sequence[RequestObserver]
) -> list[Middleware]:
    """Outermost first. The log sees true statuses; CORS headers are on every answer."""
    stack = [Middleware(RequestPath, root_path=settings.root_path)]
    if settings.errors_as_200:
        stack.append(Middleware(ErrorsAs200))
    stack += [Middleware(RequestContext, observers=observers), Middleware(SafeHeaders)]
    if settings.cors_origins:
        stack.append(
            Middleware(
                EnvelopedCors,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                # Whatever a page's tools add, such as traces: a header by itself does nothing here.
                allow_headers=["*"],
                allow_private_network=True,
                expose_headers=[REQUEST_ID_HEADER, "Retry-After", "X-Status", *EXPOSED_HEADERS],
            )
        )
    stack.append(Middleware(ResponseHeaders))
    stack.append(Middleware(FailureGuard))
    stack.append(Middleware(BytesInFlight, budget=byte_budget))
    stack.append(
        Middleware(
            BodyLimit,
            max_bytes=settings.max_body_bytes,
            min_rate=settings.min_upload_rate * 1024,
            patience=settings.upload_patience,
            larger={
                "/api/generate/": settings.max_form_bytes,
                **dict.fromkeys(("/v1/", "/openai/", "/sdapi/"), settings.max_json_bytes),
            },
        ),
    )
    stack.append(Middleware(HeadAsGet))
    return stack
