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
    local python="$VENV/bin/python"
    is_supported "$python" || python=$(named_python)
    # One at a time: of two first runs the second waits for the first's environment.
    exec 9>"$VENV.lock"
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    is_installed "$@" || install_locks "$@"
    exec 9>&-
}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null
}

named_python() {
    is_supported "${PYTHON:-python3}" || {
        echo "Python 3.11 to 3.14 is needed; name it with PYTHON=..." >&2
        exit 2
    }
    echo "${PYTHON:-python3}"
}

# What .venv holds is told by a line a lock file in .venv/.installed. What another revision's lock
# brought, a system's Python that went, or an installation that was cut off leaves no line of this
# one's: it is installed again.
lines_of() {
    local python lock
    python=$("$VENV/bin/python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null) \
        || return 0
    for lock in "$@"; do
        echo "$(cat "$lock" pyproject.toml scripts/_setup.sh | cksum) $lock $python $ROOT"
    done
}

is_installed() {
    [ -e "$VENV/.installed" ] || return
    # Another index than torch came from.
    [ -z "${TORCH_INDEX:-}" ] || [ "$TORCH_INDEX" = "$(kept_index)" ] || return
    # No pipe: grep ends at the first line that is missing, and what writes into it would fail.
    ! grep -qvxFf "$VENV/.installed" <<< "$(lines_of "$@")"
}

kept_index() {
    cat "$VENV/.torch-index" 2>/dev/null || true
}

install_locks() {
    local torch python named kept locks=() index=()
    kept=$(kept_index)
    named=${TORCH_INDEX:-$kept}
    # A Python, whose system may have lost it; and pip, of this very folder: `python -m venv` that was
    # cut off or lacks ensurepip leaves a Python alone, and the commands of a checkout that was moved
    # name the old place.
    if ! is_supported "$VENV/bin/python" ||
        [[ "$("$VENV/bin/pip" --version 2>/dev/null)" != *" $VENV/"* ]]; then
        python=$(named_python)
        echo "Making .venv ..." >&2
        "$python" -m venv --clear "$VENV"
    fi
    echo "Installing the pinned dependencies, once: 1.2 GB with torch's CPU build, several more with" \
        "CUDA's libraries. Minutes, most of them torch's download:" >&2
    rm -f "$VENV"/.installed*
    torch=$(grep -o 'torch==[0-9.]*' pyproject.toml)
    for lock in "$@"; do locks+=(-r "$lock"); done
    [ -z "$named" ] || index=(--index-url "$named")
    # The pin alone would keep the build of another index.
    [ "$named" = "$kept" ] || index+=(--force-reinstall)
    # torch by its pin alone: which build of it this machine gets is the index's to say, so no hash
    # can be listed. Then what is listed, each file by its hash; last what torch's build needs
    # besides, which for CUDA are the libraries of its makers.
    pip_install --no-deps ${index[@]+"${index[@]}"} "$torch"
    pip_install --no-deps --require-hashes "${locks[@]}"
    pip_install ${named:+--index-url "$named"} "$torch"
    pip_install --no-deps --editable .
    [ -z "$named" ] || echo "$named" > "$VENV/.torch-index"
    lines_of "$@" > "$VENV/.installed"
}

pip_install() {
    # What is fetched, by name and size: silent for minutes it would look hung. Bytecode is made of
    # what is imported when it is: of all that is installed it took most of the minutes.
    "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile "$@" |
        { grep --line-buffered -oE '(Downloading|Using cached) .*\([0-9.]+ [kMG]?B\)' || true; } >&2
}
