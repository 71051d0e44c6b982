"""JSON that came with weights, from whoever made them: read, or a reason why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.errors import ModelLoadError


def parse_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the object that ``text`` is. Raises ValueError, which begins with ``what``."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{what} is no object")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a file. Raises ModelLoadError."""
    try:
        return parse_object(path.read_text(encoding="utf-8"), "the file")
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
