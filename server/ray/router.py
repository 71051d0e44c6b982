"""Ray Serve's request router of the engines: `Balance` says which replica is the next.

Serve makes one in every process that holds a handle. Its balance is that process's, by the
application's name, for whoever reads it. Serve also copies this module's classes and functions with
the class, by value: what has to be the same object elsewhere in the process is in `route.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from server.ray.route import Route, balance_of
from server.replicas.balance import Report


class BacklogRouter(RequestRouter):
    """Sends a call to the replica that has the least to do."""

    def initialize_state(self, near_seconds: float = 0.1, patience: float = 3.0) -> None:
        """Take what `RequestRouterConfig.request_router_kwargs` has."""
        self.balance = balance_of(self.app_name)
        self.balance.near_seconds = near_seconds
        self.balance.patience = patience

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Hear of replicas that came or went, and of what they say."""
        super().update_replicas(replicas)
        self._hear(replicas)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the candidates, the best one first, each a rank of its own."""
        self._hear(list(self.curr_replicas.values()))
        by_name = {name_of(one.replica_id): one for one in candidate_replicas}
        route = _route(pending_request)
        if route.only is not None or not route.ident:
            wanted = [by_name[route.only]] if route.only in by_name else candidate_replicas
            return [[one] for one in wanted]
        names = self.balance.choose(
            route.ident, route.size, route.seconds, route.avoid, by_name.keys()
        )
        return [[by_name[name]] for name in names]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: object
    ) -> None:
        """Hear which replica has the call: not the best one, if that was full."""
        self.balance.moved(_route(pending_request).ident, name_of(replica_id))

    def _hear(self, replicas: Sequence[RunningReplica]) -> None:
        self.balance.hear({name_of(r.replica_id): Report.of(r.routing_stats) for r in replicas})


def name_of(replica_id: ReplicaID) -> str:
    """Return a replica's name, unlike any other's in its application."""
    return str(replica_id.unique_id)


def _route(pending: PendingRequest | None) -> Route:
    route = None if pending is None else pending.kwargs.get("route")
    return route if isinstance(route, Route) else Route()
