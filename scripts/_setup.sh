# Sourced by the other scripts: makes .venv with the pinned dependencies, once for each lock file.
# Usage: setup LOCK...   (afterwards $VENV is the environment and the project is installed in it)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV="$ROOT/.venv"
cd "$ROOT"

setup() {
    local stamp
    stamp="$VENV/.installed-$(cat "$@" pyproject.toml | sha256sum | cut -c1-16)"
    [ -e "$stamp" ] && return
    if [ ! -x "$VENV/bin/python" ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "Python 3.11 or newer is needed; name it with PYTHON=..." >&2
            exit 2
        }
        echo "Making .venv ..." >&2
        "${PYTHON:-python3}" -m venv "$VENV"
    fi
    echo "Installing the pinned dependencies (a few minutes the first time) ..." >&2
    local arguments=()
    for lock in "$@"; do arguments+=(-r "$lock"); done
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${arguments[@]}"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --editable .
    touch "$stamp"
}
