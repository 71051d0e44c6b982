"""Fuzz what reads a client's bytes, for a given time; exits with 1 if something was found.

.venv/bin/python scripts/fuzz [pictures] [multipart] [api] [--seconds 60]

pictures    uploads into the decoder (atheris)
multipart   bodies into the reader of forms (atheris)
api         requests by the OpenAPI document to a server whose engine echoes (schemathesis)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

from scripts.paths import python_path

TARGETS = ("pictures", "multipart", "api")
# Of one input: seconds, and MiB of the whole process.
LIMITS = ("-timeout=20", "-rss_limit_mb=4096")


def run(target: str, seconds: int) -> int:
    """Fuzz one target; return its exit status. What it finds is printed and kept here."""
    environment = os.environ | {"PYTHONPATH": python_path()}
    command = [sys.executable, "-m", f"scripts.robustness.fuzzing.{target}"]
    if target == "api":
        return subprocess.run([*command, str(seconds)], env=environment, check=False).returncode
    with tempfile.TemporaryDirectory() as corpus:
        command += [f"-max_total_time={seconds}", *LIMITS, "-max_len=65536", "-print_final_stats=1"]
        # A finding is printed in base64 as well, so its file need not outlive the run.
        command.append(f"-artifact_prefix={corpus}/")
        return subprocess.run([*command, corpus], env=environment, check=False).returncode


def main() -> None:
    """Read the command line and fuzz each target in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target [60]")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(TARGETS)}")
    found = [t for t in arguments.targets or TARGETS if run(t, arguments.seconds)]
    print(f"found something in: {', '.join(found)}" if found else "nothing was found")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
