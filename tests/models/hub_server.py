"""A hub on this machine: the addresses that huggingface_hub asks, over a folder of files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = "someone/tiny-diffusion"
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What is served, and what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()
        }
        self.fetched: list[str] = []
        self.url = ""

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables that point huggingface_hub here."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """Serve ``folder`` as `REPOSITORY` at `REVISION` until the context ends."""
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(send_body=True)

        def do_HEAD(self) -> None:
            self._answer(send_body=False)

        def _answer(self, send_body: bool) -> None:
            path = self.path.partition("?")[0]
            api = f"/api/models/{REPOSITORY}"
            resolve = f"/{REPOSITORY}/resolve/{REVISION}/"
            if path in (api, f"{api}/revision/{REVISION}", f"{api}/revision/main"):
                body = json.dumps(
                    {
                        "id": REPOSITORY,
                        "sha": REVISION,
                        "private": False,
                        "downloads": 0,
                        "tags": [],
                        "siblings": [{"rfilename": name} for name in sorted(hub.files)],
                    }
                ).encode()
                self._send(200, body, {"Content-Type": "application/json"}, send_body)
            elif path.startswith(f"{api}/tree/{REVISION}"):
                tree = [
                    {
                        "type": "file",
                        "path": name,
                        "size": file.stat().st_size,
                        "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                    }
                    for name, file in sorted(hub.files.items())
                ]
                body = json.dumps(tree).encode()
                self._send(200, body, {"Content-Type": "application/json"}, send_body)
            elif path.startswith(resolve) and (name := path.removeprefix(resolve)) in hub.files:
                body = hub.files[name].read_bytes()
                large = name.endswith(".safetensors")  # as the real hub keeps them
                etag = (hashlib.sha256 if large else hashlib.sha1)(body).hexdigest()
                if send_body:
                    hub.fetched.append(name)
                self._send(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION}, send_body)
            else:
                known = path.startswith((api, f"/{REPOSITORY}"))
                code = "RevisionNotFound" if known else "RepoNotFound"
                self._send(404, b"{}", {"X-Error-Code": code}, send_body)

        def _send(self, status: int, body: bytes, headers: dict[str, str], send_body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
