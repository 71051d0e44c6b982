"""Which path a client wanted, whose request is for another API than the path that it posts to."""

from __future__ import annotations

import re

_CONTRACT = "/api/generate/basic/imageToImage"
_EDITS = "/v1/images/edits"
_IMG2IMG = "/sdapi/v1/img2img"
_STABILITY = "/v1/generation/{engine}/image-to-image"
_WANTED = (
    (re.compile(r"images/(edits?|variations)$|^/edits?$"), _EDITS),
    (re.compile(r"images/generations?$"), "/v1/images/generations"),
    (re.compile(r"image-to-image/masking$"), f"{_STABILITY}/masking"),
    (re.compile(r"image-to-image\b"), _STABILITY),
    (re.compile(r"text-to-image\b"), "/v1/generation/{engine}/text-to-image"),
    (re.compile(r"txt2img\b|texttoimage$"), "/sdapi/v1/txt2img"),
    (re.compile(r"img2img\b"), _IMG2IMG),
    (re.compile(r"imagetoimage$"), _CONTRACT),
    (re.compile(r"/models$"), "/v1/models"),
    (re.compile(r"/engines(/list)?$"), "/v1/engines/list"),
)
_NESTED = re.compile(r"/(?:sdapi/v1|v1/user)/[a-z-]+$")


def hint(status: int, path: str, message: str, root: str = "") -> str:
    """Return where to send such a request instead, or `""`; all paths are below ``root``.

    For a path where nothing is, by what it ends with; for a body of a type that is not read at a
    path, by that type.
    """
    if status == 404 and message.startswith("nothing is at "):
        lower = path.lower()
        if (nested := _NESTED.search(lower)) and nested[0] != path:
            return f"did you mean {root}{nested[0]}?"
        found = next((wanted for pattern, wanted in _WANTED if pattern.search(lower)), "")
        return f"did you mean {root}{found}?" if found and found != path else ""
    wants_json = message.endswith("application/json")
    if status == 415 and message.startswith("Content-Type is multipart/") and wants_json:
        return f"multipart forms go to {root}{_CONTRACT}, {root}{_EDITS} or {root}{_STABILITY}"
    if status == 415 and message.startswith("Content-Type is application/json"):
        return f"JSON goes to {root}{_IMG2IMG} (init_images) or {root}{_EDITS} (image)"
    return ""
