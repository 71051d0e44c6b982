# Sourced by the other scripts: makes .venv with the pinned dependencies, once for each lock file.
# Usage: setup LOCK...   (afterwards $VENV is the environment and the project is installed in it)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV="$ROOT/.venv"
cd "$ROOT"

setup() {
    local stamp
    stamp="$VENV/.installed-$(cat "$@" pyproject.toml scripts/_setup.sh | cksum | cut -d' ' -f1)"
    [ -e "$stamp" ] && return
    if [ ! -x "$VENV/bin/python" ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "Python 3.11 or newer is needed; name it with PYTHON=..." >&2
            exit 2
        }
        echo "Making .venv ..." >&2
        "${PYTHON:-python3}" -m venv "$VENV"
    fi
    echo "Installing the pinned dependencies, once: 1.3 GB with torch's CPU build, several more with" \
        "CUDA's libraries. Minutes, most of them torch's download:" >&2
    local torch locks=()
    torch=$(grep -o 'torch==[0-9.]*' pyproject.toml)
    for lock in "$@"; do locks+=(-r "$lock"); done
    # torch by its pin alone: which build of it this machine gets is the index's to say, so no hash
    # can be listed. Then what is listed, each file by its hash; last what torch's build needs
    # besides, which for CUDA are the libraries of its makers.
    pip_install --no-deps "$torch"
    pip_install --no-deps --require-hashes "${locks[@]}"
    pip_install "$torch"
    pip_install --no-deps --editable .
    touch "$stamp"
}

pip_install() {
    # What is fetched, by name and size: silent for minutes it would look hung. Bytecode is made of
    # what is imported when it is: of all that is installed it took most of the minutes.
    "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile "$@" |
        { grep --line-buffered -oE '(Downloading|Using cached) .*\([0-9.]+ [kMG]?B\)' || true; } >&2
}
