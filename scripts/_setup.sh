# Sourced by the other scripts: makes .venv with the pinned dependencies, once for each lock file.
# Usage: setup LOCK...   (afterwards $VENV is the environment and the project is installed in it)
# The scripts run in the checkout; $CALLED_FROM is the folder that they were called from.

unset CDPATH  # with it `cd` prints where it went
CALLED_FROM=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV="$ROOT/.venv"
cd "$ROOT"

setup() {
    is_installed "$@" && return
    # One at a time: of two first runs the second waits for the first's environment.
    exec 9>"$VENV.lock"
    "${PYTHON:-python3}" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    is_installed "$@" || install_locks "$@"
    exec 9>&-
}

# What .venv holds is told by a line a lock file in .venv/.installed. What another revision's lock
# brought, or an installation that was cut off, leaves no line of this one's: it is installed again.
lines_of() {
    for lock in "$@"; do
        echo "$(cat "$lock" pyproject.toml scripts/_setup.sh | cksum) $lock $ROOT"
    done
}

is_installed() {
    [ -e "$VENV/.installed" ] && ! lines_of "$@" | grep -qvxFf "$VENV/.installed"
}

install_locks() {
    # pip, and of this very folder: `python -m venv` that was cut off or lacks ensurepip leaves a
    # Python alone, and a checkout that was moved has commands which name the old place.
    if [[ "$("$VENV/bin/pip" --version 2>/dev/null)" != *" $VENV/"* ]]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || {
            echo "Python 3.11 to 3.14 is needed; name it with PYTHON=..." >&2
            exit 2
        }
        echo "Making .venv ..." >&2
        "${PYTHON:-python3}" -m venv --clear "$VENV"
    fi
    echo "Installing the pinned dependencies, once: 1.3 GB with torch's CPU build, several more with" \
        "CUDA's libraries. Minutes, most of them torch's download:" >&2
    rm -f "$VENV"/.installed*
    local torch locks=() index=()
    torch=$(grep -o 'torch==[0-9.]*' pyproject.toml)
    for lock in "$@"; do locks+=(-r "$lock"); done
    [ -z "${TORCH_INDEX:-}" ] || index=(--index-url "$TORCH_INDEX")
    # torch by its pin alone: which build of it this machine gets is the index's to say, so no hash
    # can be listed. Then what is listed, each file by its hash; last what torch's build needs
    # besides, which for CUDA are the libraries of its makers.
    pip_install --no-deps ${index[@]+"${index[@]}"} "$torch"
    pip_install --no-deps --require-hashes "${locks[@]}"
    pip_install ${index[@]+"${index[@]}"} "$torch"
    pip_install --no-deps --editable .
    lines_of "$@" > "$VENV/.installed"
}

pip_install() {
    # What is fetched, by name and size: silent for minutes it would look hung. Bytecode is made of
    # what is imported when it is: of all that is installed it took most of the minutes.
    "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile "$@" |
        { grep --line-buffered -oE '(Downloading|Using cached) .*\([0-9.]+ [kMG]?B\)' || true; } >&2
}
