"""What a request's Accept header asks for."""

from __future__ import annotations

from fastapi import Request

from server.images.encode import ImageFormat

_FORMATS = {form.media_type: form for form in ImageFormat}
_WANTS_JSON = ("application/json", "application/*", "text/html", "*/*")


def accepted_types(accept: str) -> list[tuple[str, float]]:
    """Return the media types of an Accept header with their weights (RFC 9110, 12.5.1).

    A weight that cannot be read is 1, since the type was named.
    """
    types = []
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = min(max(float(parameter[2:]), 0.0), 1.0)
                except ValueError:
                    weight = 1.0
        if name:
            types.append((name, weight))
    return types


def accepted_image_format(request: Request) -> ImageFormat | None:
    """Return the image type that is preferred to JSON, or None.

    A browser's form names image/webp beside text/html and `*/*` and wants JSON: an image is sent
    only where its type has the highest weight and no type that JSON satisfies is named.
    """
    types = accepted_types(", ".join(request.headers.getlist("accept")))
    if any(name in _WANTS_JSON for name, weight in types if weight > 0):
        return None
    heaviest = max((weight for _, weight in types), default=0.0)
    for name, weight in types:
        if weight == heaviest > 0 and name in _FORMATS:
            return _FORMATS[name]
    return None
