"""`/docs`: the API's description and a form to try it, from files that ship with the server."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: the page runs what this server ships, and speaks to it alone."""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="{static}/swagger/swagger-ui.css">
<link rel="icon" href="{static}/swagger/favicon-32x32.png">
<script defer src="{static}/swagger/swagger-ui-bundle.js"></script>
<script defer src="{static}/docs.js"></script>
</head>
<body>
<div id="swagger-ui" data-description="{description}"></div>
</body>
</html>
"""

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> Response:
    prefix = escape(_prefix(request))
    page = _PAGE.format(
        title=escape(request.app.title),
        static=f"{prefix}/static",
        description=f"{prefix}/openapi.json",
    )
    return HTMLResponse(page, headers={"Content-Security-Policy": DOCS_POLICY})


def _prefix(request: Request) -> str:
    return str(request.scope.get("root_path", ""))
