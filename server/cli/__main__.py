"""Run the `img2img` command as `python -m server.cli`."""

from __future__ import annotations

from server.cli.main import main

if __name__ == "__main__":
    main()
