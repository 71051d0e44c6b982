"""`/docs`: the API's description and a form to try it, from files that ship with the server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

STATIC_FOLDER = Path(__file__).parent.parent / "static"

router = APIRouter(include_in_schema=False)
static_files = StaticFiles(directory=STATIC_FOLDER)


@router.head("/")
@router.get("/")
async def index(request: Request) -> Response:
    return RedirectResponse(f"{_prefix(request)}/docs")


@router.head("/docs")
@router.get("/docs")
async def docs(request: Request) -> Response:
    assets = f"{_prefix(request)}/static/swagger"
    return get_swagger_ui_html(
        openapi_url=f"{_prefix(request)}/openapi.json",
        title=request.app.title,
        swagger_js_url=f"{assets}/swagger-ui-bundle.js",
        swagger_css_url=f"{assets}/swagger-ui.css",
        swagger_favicon_url=f"{assets}/favicon-32x32.png",
        swagger_ui_parameters={
            "tryItOutEnabled": True,
            "persistAuthorization": True,
            "displayRequestDuration": True,
            "defaultModelsExpandDepth": -1,
            # The default would send the description to a validator on the network.
            "validatorUrl": None,
        },
    )


def _prefix(request: Request) -> str:
    return str(request.scope.get("root_path", ""))
