"""What tests do where a program that they need is not on the machine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test; fail it where CI=true, which promises that every service is there.

    `scripts/test` installs the services where it may: root on Debian.
    """
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"CI=true, but {reason}", pytrace=False)
    pytest.skip(reason)
