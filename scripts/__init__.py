"""Commands are the files without a suffix; what they are made of is in the folders.

They run in the checkout's environment, also where another Python was named: a command's first line
is `/usr/bin/env python3`, the system's, which has none of the packages.
"""

import importlib.util
import os
import sys
from pathlib import Path

_VENV = Path(__file__).resolve().parents[1] / ".venv"
_PYTHON = _VENV / "bin" / "python"
_IS_ANOTHER = Path(sys.prefix).resolve() != _VENV.resolve()

if _IS_ANOTHER and _PYTHON.exists() and importlib.util.find_spec("torch") is None:
    os.execv(_PYTHON, [str(_PYTHON), *sys.orig_argv[1:]])
