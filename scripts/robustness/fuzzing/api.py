"""Fuzz the HTTP API by its own OpenAPI document, with schemathesis against an echoing server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from scripts.paths import python_path

ECHO_SERVER = "scripts.robustness.fuzzing.echo_server"
# Not negative_data_rejection: more is taken than is documented, blank for left out, 1 for true.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "positive_data_acceptance",
    "unsupported_method",
    "allow_header_conformance",
)
# Loading and draining answer 503, and so does health where nothing is wrong with the request.
_OPERATIONS = "^/api/"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main(seconds: int) -> int:
    """Run for about ``seconds``; return schemathesis' exit status, 0 where it found nothing."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "IMG2IMG_PORT": str(port),
        "IMG2IMG_LOG_LEVEL": "warning",
        "PYTHONPATH": python_path(),
        "SCHEMATHESIS_HOOKS": "scripts.robustness.fuzzing.api_hooks",
    }
    with tempfile.TemporaryDirectory() as folder:
        environment["IMG2IMG_DATA_DIR"] = folder
        server = subprocess.Popen([sys.executable, "-m", ECHO_SERVER], env=environment)
        try:
            _wait_for(f"{url}/health/ready")
            command = [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
                *("--max-time", str(seconds), "--phases", "examples,coverage,fuzzing"),
                *("--checks", ",".join(CHECKS), "--include-path-regex", _OPERATIONS),
                *("--request-timeout", "30", "--continue-on-failure"),
            ]
            return subprocess.run(command, env=environment, cwd=folder, check=False).returncode
        finally:
            server.terminate()
            server.wait(30)


def _wait_for(url: str, seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
