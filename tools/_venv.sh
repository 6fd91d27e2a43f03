# Shared by tools/test and tools/demo: the project's own .venv, made when it is not there.
# shellcheck shell=bash

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# Runs anything that might be a Python: a name can be there and not work.
python_is_right() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 </dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3 python; do
        if python_is_right "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    {
        echo "No Python that can be used was found: 3.11 or newer, with its venv module, is needed."
        echo "Debian and Ubuntu: apt-get install python3 python3-venv. Elsewhere: https://www.python.org/downloads/"
        echo "One that is not on the PATH can be named: PYTHON=/path/to/python $0"
    } >&2
    return 1
}

# install_into_venv LABEL REQUIREMENT...
# Makes .venv and installs, quietly; does nothing when that was done for this pyproject.toml.
install_into_venv() {
    local label=$1 stamp=".venv/.installed-$1" want log python
    shift
    want="$PWD $* $(cksum <pyproject.toml)"
    if ! python_is_right .venv/bin/python; then
        python=$(find_python) || return
        echo "making .venv with $("$python" --version)"
        # --clear: what is there belongs to a Python that is gone.
        "$python" -m venv --clear .venv || return
    elif [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        return 0
    fi
    echo "installing into .venv, which can take some minutes: $*"
    log=$(mktemp) || return
    if ! .venv/bin/python -m pip install --quiet --progress-bar off "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        echo "pip could not install $*" >&2
        return 1
    fi
    rm -f "$log"
    echo "$want" >"$stamp"
}
