"""The path that is routed on: under a prefix or not, and whatever its slashes."""

from __future__ import annotations

import re

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile("/{2,}")


class RequestPath:
    """Lets a path be found with slashes doubled or at its end, and under `root_path`.

    Nothing is redirected: a client would not send its form again. A proxy in front may strip
    `root_path` or not. A path that begins with it is taken for the whole one, unless only as a
    stripped one it leads anywhere: `/api/account` under `/api`.
    """

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _SLASHES.sub("/", scope["path"]).rstrip("/") or "/"
            scope = {**scope, "path": path}
            if self.root_path:
                # Starlette routes on what follows root_path in path.
                path = self.root_path + self._inner_path(scope, path)
                scope |= {"root_path": self.root_path, "path": path}
        await self.app(scope, receive, send)

    def _inner_path(self, scope: Scope, path: str) -> str:
        if path != self.root_path and not path.startswith(self.root_path + "/"):
            return path
        inner = path[len(self.root_path) :] or "/"
        routes: list[BaseRoute] = scope["app"].routes
        if _leads(routes, scope, path) and (inner == "/" or not _leads(routes, scope, inner)):
            return path
        return inner


def _leads(routes: list[BaseRoute], scope: Scope, path: str) -> bool:
    """Return whether there is something at `path`, by this method or another."""
    asked = {**scope, "root_path": "", "path": path}
    return any(route.matches(asked)[0] is not Match.NONE for route in routes)
