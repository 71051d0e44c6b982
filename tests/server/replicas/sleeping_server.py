"""A real server process whose engines, in processes of their own, sleep."""

from __future__ import annotations

import sys
from functools import partial

from scripts.benchmarks.replicas.sleeping import STARTER
from server.observability.logs import configure_logging
from server.replicas.processes import start_on_devices
from server.serve import serve
from server.settings import Settings

if __name__ == "__main__":
    settings = Settings()
    configure_logging(settings.log_level, settings.log_format)
    start = partial(start_on_devices, starter=STARTER)
    sys.exit(serve(settings, start, announce=partial(print, flush=True)))
