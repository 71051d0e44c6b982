"""Starts server processes quickly: imports what they need once, and forks one for each line read.

A program of one thread (`python -m scripts.robustness.server_nursery`), since a fork copies no
other thread. A line is JSON: the `environment` of a server beside the nursery's own, and a module
to `patch` it with, blank for none. Prints the process id of each, and its status when it has ended.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys

from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401
from typer import Exit

import server.accounts.service
import server.serve  # noqa: F401
from server.cli.main import serve


def serve_as(environment: dict[str, str], patch: str) -> int:
    """Run `img2img serve` in this process; return its status."""
    os.environ.update(environment)
    if patch:
        importlib.import_module(patch).patch()
    try:
        serve()
    except Exit as end:
        return int(end.exit_code)
    return 0


if __name__ == "__main__":
    print("imported", flush=True)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        child = os.fork()
        if not child:
            os.close(0)
            faulthandler.register(signal.SIGUSR2)  # where each thread is, for a server that hangs
            os.dup2(2, 1)  # what it says for people; its output is for process ids
            os._exit(serve_as(order["environment"], order["patch"]))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
