"""The front's side of Ray: joins a cluster and calls its replicas.

`start_remotely` is a `server.engine_service.ModelStarter`: the application is the same whether its
engine is here or there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import suppress
from typing import Any

# Before Ray is imported. A late call must not begin a cluster of its own, workers are not to yield
# to whatever else runs, and nothing is reported to Ray's makers.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from models.errors import first_line
from pipelines.request import Pixels
from server.engine_service import LoadedModel, StartError
from server.ray.deployment import APP, ENGINE
from server.ray.route import Route, balance_of
from server.replicas.balance import Balance
from server.replicas.events import Call, Event, Facts
from server.replicas.processes import SCORE_SECONDS, remote_model
from server.replicas.remote_engine import NoReplica, RemoteEngine, ReplicaLost, work_of
from server.settings import Settings

logger = logging.getLogger(__name__)

NAMESPACE = "serve"
_JOIN_SECONDS = 120.0
_FACTS_SECONDS = 5.0
_LEAVE_SECONDS = 20.0


class RayReplicas:
    """The replicas of the application `APP`, by a handle."""

    def __init__(self, handle: DeploymentHandle, leave: Callable[[], None]) -> None:
        self._handle = handle
        self._streams = handle.options(stream=True)
        self._leave = leave

    @property
    def balance(self) -> Balance:
        return balance_of(APP)

    def call(self, call: Call, seconds: float, avoid: Collection[str]) -> RayStream:
        size, _, _ = work_of(call.request)
        route = Route(call.ident, size, seconds, tuple(avoid))
        return RayStream(lambda: self._streams.generate.remote(call=call, route=route))

    def watch(self, ident: str) -> None:
        replica = self.balance.replica_of(ident)
        if replica is not None:
            self._handle.watch.remote(ident=ident, route=Route(only=replica))

    def facts(self) -> Facts:
        """Return what they run. Blocks; raises what Ray does where none answers."""
        facts: Facts = self._handle.facts.remote(route=Route()).result(timeout_s=_FACTS_SECONDS)
        return facts

    def score(self, picture: Pixels) -> float:
        """Return the safety checker's score, by another replica where one is lost.

        Blocks; raises TimeoutError.
        """
        with suppress(RayError, RayServeException):
            return self._score(picture)
        try:
            return self._score(picture)
        except (RayError, RayServeException) as error:
            raise TimeoutError(first_line(error)) from error

    def _score(self, picture: Pixels) -> float:
        answer = self._handle.score.remote(picture=picture, route=Route())
        score: float = answer.result(timeout_s=SCORE_SECONDS)
        return score

    def close(self) -> None:
        self._leave()


class RayStream:
    """The events of one call."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self._begin = begin
        self._stream: Any = None

    async def __aiter__(self) -> AsyncGenerator[Event]:
        try:
            self._stream = self._begin()
            async for event in self._stream:
                yield event
        except RayActorError as error:
            raise ReplicaLost(f"{type(error).__name__}: {first_line(error)}") from None
        except RequestCancelledError:
            raise ReplicaLost("the call was cancelled") from None
        except RayServeException as error:
            raise NoReplica(f"{type(error).__name__}: {first_line(error)}") from None
        except RayError as error:
            raise ReplicaLost(f"{type(error).__name__}: {first_line(error)}") from None

    def cancel(self) -> None:
        if self._stream is not None:
            # It raises once more what the call has failed with.
            with suppress(Exception):
                self._stream.cancel()


class Connection:
    """This process's place in a cluster, and the thread that holds it and runs the calls.

    Ray ends what it began for a process when the thread that began it ends, so that is the one
    thread that lasts; and in another than the main one it leaves the signals alone.
    """

    def __init__(self, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._options = options
        self._joined: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="img2img-ray", daemon=True)

    def open(self) -> None:
        """Join. Raises StartError."""
        self._thread.start()
        try:
            self._joined.result(_JOIN_SECONDS)
        except TimeoutError:
            raise StartError("Ray: no cluster was joined in two minutes") from None
        except Exception as error:
            raise StartError(f"Ray: {error}") from error

    def close(self) -> None:
        """Leave the cluster; what hangs in that is left behind."""

        def leave() -> None:
            with suppress(Exception):
                ray.shutdown()

        leaving = threading.Thread(target=leave, name="leave-ray", daemon=True)
        leaving.start()
        leaving.join(_LEAVE_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _run(self) -> None:
        try:
            ray.init(
                namespace=NAMESPACE, configure_logging=False, log_to_driver=False, **self._options
            )
        except Exception as error:
            self._joined.set_exception(error)
            return
        self._joined.set_result(None)
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


def start_remotely(settings: Settings) -> LoadedModel:
    """Return the engine of a cluster's replicas, once one runs. Raises StartError."""
    connection = Connection(address=settings.ray_address)
    connection.open()
    replicas = RayReplicas(serve.get_deployment_handle(ENGINE, APP), connection.close)
    facts = _wait_for(replicas)
    engine = RemoteEngine(replicas, connection.loop, facts.costs)
    return remote_model(settings, facts, engine, replicas.score)


def _wait_for(replicas: RayReplicas) -> Facts:
    """Return what the replicas run, once one does: somebody else deploys them."""
    told = False
    while True:
        try:
            return replicas.facts()
        except (TimeoutError, RayError, RayServeException) as error:
            if not told:
                fields = {"reason": first_line(error)}
                logger.info("waiting for a replica", extra={"fields": fields})
                told = True
            time.sleep(0.5)
