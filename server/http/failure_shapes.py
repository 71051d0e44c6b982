"""The shape of a failure by the subtree of its path: each API's clients read their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from server.http.envelope import failure

FailureShape = Callable[[int, str, Mapping[str, str]], Response]
"""From status, message and headers to the response."""
Hint = Callable[[int, str, str, str], str]
"""From status, path, message and what is before every path to what is said behind it, or `""`."""

_FIELDS = re.compile(r"([\w.\[\]]+(?:, [\w.\[\]]+)*): ")
_NAMES = "field_names"


class FailureShapes:
    """The shapes of all subtrees but the contract's, which has the envelope."""

    def __init__(self) -> None:
        self._shapes: dict[str, FailureShape] = {}

    def add(self, prefix: str, shape: FailureShape) -> None:
        """Give all paths at and below ``prefix`` a shape; the longest prefix counts."""
        self._shapes[prefix] = shape

    def at(self, path: str) -> FailureShape | None:
        """Return the shape at a path, None for the envelope."""
        found = [
            prefix for prefix in self._shapes if path == prefix or path.startswith(f"{prefix}/")
        ]
        return self._shapes[max(found, key=len)] if found else None


def name_fields(scope: Scope, names: Mapping[str, str]) -> None:
    """Have failures of this request name fields as its API does; ``names`` are from ours to its."""
    scope.setdefault("state", {})[_NAMES] = names


def fields_of(line: str) -> list[str]:
    """Return the fields that a line such as `width, height: ...` begins with."""
    match = _FIELDS.match(line)
    return match[1].split(", ") if match else []


def failure_at(
    scope: Scope, status: int, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a failure in the shape and with the field names of the request's API.

    It ends with a hint, if the application has one for it.
    """
    names: Mapping[str, str] = scope.get("state", {}).get(_NAMES, {})
    if names:
        message = "; ".join(_renamed(line, names) for line in message.split("; "))
    hint: Hint | None = _state_of(scope, "hint")
    if hint is not None and (more := hint(status, _path(scope), message, _root(scope))):
        message = f"{message}; {more}"
    shape = shape_at(scope)
    return (
        failure(status, message, headers)
        if shape is None
        else shape(status, message, headers or {})
    )


def shape_at(scope: Scope) -> FailureShape | None:
    """Return the shape of a request's failures, None for the envelope."""
    shapes: FailureShapes | None = _state_of(scope, "shapes")
    return None if shapes is None else shapes.at(_path(scope))


def _state_of(scope: Scope, name: str) -> Any:
    app: Any = scope.get("app")
    return None if app is None else getattr(app.state, name, None)


def _path(scope: Scope) -> str:
    path: str = scope.get("path", "")
    return path.removeprefix(_root(scope))


def _root(scope: Scope) -> str:
    root: str = scope.get("root_path", "")
    return root


def _renamed(line: str, names: Mapping[str, str]) -> str:
    fields = fields_of(line)
    if not fields:
        return line
    rest = line[len(", ".join(fields)) :]
    return ", ".join(dict.fromkeys(names.get(name, name) for name in fields)) + rest
