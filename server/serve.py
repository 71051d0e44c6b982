"""Runs the application under uvicorn, and ends it in order on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.engine_service import EngineHost, LoadedModel, ModelStarter, load_model
from server.http.listening import BACKLOG, CannotListen, close, listen, url_of
from server.http.protocol import BoundedProtocol, Limits
from server.observability.metrics_listener import MetricsListener
from server.replicas.processes import start_on_devices
from server.settings import Settings, misplaced_key, renamed_variables, unknown_variables

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
"""Longer than the usual proxies keep an idle connection, so that they close it and not we."""

SEND_SECONDS = 10
"""What finished answers get to reach their clients once the engine has drained."""

THREAD_SECONDS = 2.0
"""What threads get to end by themselves once nothing is served any more."""

_INSIDE_THE_DEVICE = ("img2img-engine", "img2img-prepare", "img2img-safety")
"""Daemons that are in the device's library while they work, and end before the process does."""


class DrainingServer(uvicorn.Server):
    """A uvicorn server that, told to stop, first finishes what runs while it refuses new work.

    Uvicorn alone closes its port at once, and ends by the signal's own death instead of exit 0.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        host: EngineHost,
        grace_period: float,
        announce: Callable[[str], None],
    ) -> None:
        super().__init__(config)
        self._host = host
        self._grace_period = grace_period
        self._announce = announce
        self._page = ""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._host.refuse_new()
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        urls = ", ".join(map(url_of, sockets or []))
        logger.info("listening", extra={"fields": {"url": urls}})
        self._page = page_url(sockets or [])

    async def on_tick(self, counter: int) -> bool:
        if self._page and self._host.serving_model is not None:
            self._announce(f"Ready. The page: {self._page} - the API: {self._page}docs")
            self._page = ""
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("draining", extra={"fields": {"grace_period": self._grace_period}})
        drain = asyncio.ensure_future(self._host.drain(self._grace_period))
        while not drain.done() and not self.force_exit:
            await asyncio.wait((drain,), timeout=0.1)
        await super().shutdown(sockets)


def page_url(sockets: Sequence[socket.socket]) -> str:
    """Return the page's address on this machine, blank where nothing listens."""
    if not sockets:
        return ""
    url = url_of(sockets[0])
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:") + "/"


def serve(
    settings: Settings,
    starter: ModelStarter = load_model,
    announce: Callable[[str], None] = lambda _: None,
) -> str | None:
    """Serve until told to stop; the reason if it ended, or never began, for another one.

    `announce` is told once, in words for a person, where the page is.
    Raises server.errors.ConfigurationError.
    """
    for line in (*unknown_variables(), *renamed_variables()):
        logger.warning(line)
    if misplaced := misplaced_key(settings):
        logger.warning(misplaced)
    stopping: list[DrainingServer] = []

    def stop() -> None:
        for server in stopping:
            server.should_exit = True

    app = create_app(settings, starter=_starter(settings, starter), on_start_failure=stop)
    host: EngineHost = app.state.engine_host
    server = DrainingServer(_config(app, settings), host, settings.grace_period, announce)
    stopping.append(server)
    if settings.no_auth and settings.api_keys:
        logger.warning("API keys are set, but no_auth lets every request in")
    try:
        # Before the accounts are opened: who does not get the port must not touch them.
        sockets = listen(settings.host, settings.port)
    except CannotListen as error:
        return str(error)
    try:
        with _metrics_listener(app, settings):
            server.run(sockets)
    except CannotListen as error:
        return str(error)
    finally:
        close(sockets)
    reason = app.state.engine_host.failure
    if app.state.accounts is not None and app.state.accounts.failure is not None:
        reason = app.state.accounts.failure
    return None if reason is None else str(reason) or repr(reason)


def _starter(settings: Settings, own: ModelStarter) -> ModelStarter:
    """Return what makes the engine: ``own``, or what finds it on replicas."""
    if own is not load_model or not settings.has_replicas:
        return own

    if settings.devices:
        return start_on_devices

    def start(settings: Settings) -> LoadedModel:
        # Imported here, after `create_app` has found that the extra is there.
        from server.ray.cluster import start_remotely

        return start_remotely(settings)

    return start


@contextmanager
def _metrics_listener(app: FastAPI, settings: Settings) -> Iterator[None]:
    """Answer scrapes on the metrics' own port meanwhile, if they have one. Raises CannotListen."""
    if not settings.metrics_listen or settings.metrics_port is None:
        yield
        return
    sockets = listen(settings.host, settings.metrics_port)
    try:
        listener = MetricsListener(app.state.metrics, sockets)
        listener.start()
        urls = ", ".join(f"{url_of(one)}/metrics" for one in sockets)
        logger.info("metrics", extra={"fields": {"url": urls}})
        try:
            yield
        finally:
            listener.close()
    finally:
        close(sockets)


def leave_hung_threads(status: int) -> None:
    """End the process with `status` at once, if there are threads that would keep or crash it.

    Call after `serve`. The interpreter waits for such threads, and where one is inside the device's
    library, tearing that down under it aborts the process.
    """
    give_up = time.monotonic() + THREAD_SECONDS
    working = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.current_thread()
        and (not thread.daemon or thread.name in _INSIDE_THE_DEVICE)
    ]
    for thread in working:
        thread.join(max(0.0, give_up - time.monotonic()))
    if hung := [thread.name for thread in working if thread.is_alive()]:
        logger.critical("ended without waiting for what hangs", extra={"fields": {"threads": hung}})
        logging.shutdown()
        os._exit(status)


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    limits = Limits(
        settings.max_header_kib * 1024, settings.header_timeout, settings.answer_patience
    )
    # A class by uvicorn's types, but it is only called.
    protocol: Any = partial(BoundedProtocol, limits=limits)
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        backlog=BACKLOG,
        http=protocol,
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.forwarded_allow_ips),
        forwarded_allow_ips=list(settings.forwarded_allow_ips),
        workers=1,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SEND_SECONDS,
    )
