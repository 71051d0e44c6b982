"""`/`: the page on which pictures are made in a browser; `/client.js`, the client that it uses."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import MutableMapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from models.embedded import vocabulary
from models.spec import EMBEDDED, PRODUCTION_MODEL
from pipelines.request import MAX_SIDE, MAX_STEPS, MIN_SIDE, MIN_STEPS
from pipelines.scheduler import guidance_cost
from server import __version__
from server.accounts.pricing import MAX_PRICE, MIN_PRICE
from server.engine_service import EngineHost
from server.http.envelope import success
from server.settings import Settings

WEB_FOLDER = Path(__file__).parents[1] / "web"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'self'; frame-ancestors 'none'"
)
"""Content-Security-Policy: the page runs what this server ships, and speaks to it alone."""
_NATIVE_SIDE = {EMBEDDED: 320}
"""The side of the pictures that a model was trained on, where it is not Stable Diffusion's."""
_SD_SIDE = 512
# What a computer's registry says of .js is not to be relied on, and a browser runs no other type.
mimetypes.add_type("text/javascript", ".js")

router = APIRouter(include_in_schema=False)


class PageFiles(StaticFiles):
    """The files of the pages, asked for anew each time: those of two versions do not fit together.
    An unchanged one is answered 304."""

    def file_response(
        self,
        full_path: Any,
        stat_result: Any,
        scope: MutableMapping[str, Any],
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        return response


@router.get("/")
async def page(request: Request) -> Response:
    """The page. Without a prefix of the settings it goes by the address under which it is seen, so
    it works under one that only a proxy knows."""
    prefix = str(request.scope.get("root_path", ""))
    base = f'<base href="{escape(prefix)}/">' if prefix else ""
    text = (WEB_FOLDER / "page" / "index.html").read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"}
    return HTMLResponse(text.replace("<!-- base -->", base, 1), headers=headers)


@router.get("/client.js")
async def client() -> Response:
    return _client_file("client.js", "text/javascript")


@router.get("/client.d.ts")
async def client_types() -> Response:
    return _client_file("client.d.ts", "application/typescript")


def _client_file(name: str, media_type: str) -> Response:
    # Any page may import it; whether it may then ask is for IMG2IMG_CORS_ORIGINS to say.
    headers = {"Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*"}
    return FileResponse(WEB_FOLDER / name, media_type=media_type, headers=headers)


@router.get("/api/about")
async def about(request: Request) -> Response:
    """What the page shows of the server: its model, what it can, prices and limits."""
    settings: Settings = request.app.state.settings
    host: EngineHost = request.app.state.engine_host
    model = host.serving_model
    return success(
        {
            "version": __version__,
            "model": None if model is None else model.name,
            "obstacle": host.obstacle if model is None else None,
            "demo": _demo(settings.model),
            "native_side": _NATIVE_SIDE.get(settings.model, _SD_SIDE),
            "max_upload_bytes": settings.max_upload_bytes,
            "request_timeout": settings.request_timeout,
            "run_grace": settings.run_grace,
            # What an image takes alone on this device, in predicted seconds, by its pixels.
            "costs": [] if model is None else [asdict(c) for c in model.engine.costs_by_size()],
            # What CLIP guidance adds to a step, in steps, by preset.
            "guidance": dict(guidance_cost.MEASURED),
            # Tenths of a credit, and the work between which the price is linear (accounts/pricing).
            "price": {
                "least": MIN_PRICE,
                "most": MAX_PRICE,
                "least_work": MIN_SIDE * MIN_SIDE * MIN_STEPS,
                "most_work": MAX_SIDE * MAX_SIDE * MAX_STEPS,
            },
        }
    )


def _demo(model: str) -> dict[str, Any] | None:
    if model != EMBEDDED:
        return None
    return {
        "things": vocabulary.THINGS,
        "colours": vocabulary.COLOURS,
        "backgrounds": vocabulary.BACKGROUNDS,
        "command": f"{_serve_command()} --model {PRODUCTION_MODEL}",
    }


def _serve_command() -> str:
    """Return what starts a server here: a checkout's script, else the installed command."""
    script = Path("scripts", "serve.ps1" if os.name == "nt" else "serve")
    return str(script) if (WEB_FOLDER.parents[1] / script).exists() else "img2img serve"
