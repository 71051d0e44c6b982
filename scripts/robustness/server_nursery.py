"""Starts server processes quickly: imports what they need once, and forks one for each line read.

A program of one thread (`python -m scripts.robustness.server_nursery`), since a fork copies no
other thread. Each server reads its settings from the environment. Prints the process id of each.
"""

from __future__ import annotations

import os
import sys

from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import server.accounts.service  # noqa: F401
from server.observability.logs import configure_logging
from server.serve import serve
from server.settings import Settings


def serve_by_environment() -> None:
    settings = Settings.model_validate({})
    configure_logging(settings.log_level, settings.log_format)
    serve(settings)


if __name__ == "__main__":
    print("imported", flush=True)
    for _ in iter(sys.stdin.readline, ""):
        child = os.fork()
        if not child:
            os.close(0)
            serve_by_environment()
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)
