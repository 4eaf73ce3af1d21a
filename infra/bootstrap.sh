#!/bin/sh
# Make .venv hold the pinned set of constraints.txt and this project, editable.
#
# Needs Python 3.11 to 3.13 with its venv module, and nothing else; every other tool comes from the
# pinned set. When nothing has changed since the last time, this costs milliseconds and installs
# nothing: a stamp in .venv records what it was made from. It is written last, so that an
# interrupted installation goes on at the next call.
#
#   PYTHON=/path/to/python   takes that interpreter instead of the newest that fits
set -eu

UV=0.13.9  # the installer: same set in a quarter of pip's time
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/made-from

fail() {
    echo "error: $1" >&2
    exit 2
}

# Runs and is 3.11 to 3.13. A pyenv shim may have the right name and no interpreter behind it.
fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

has_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# Prints the newest interpreter that fits, one with a working venv module before one without.
choose() {
    without=
    for python in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        fits "$python" || continue
        if has_venv "$python"; then
            echo "$python"
            return
        fi
        [ -n "$without" ] || without=$python
    done
    if [ -n "$without" ]; then
        package=python$(version_of "$without")-venv
        fail "$without has no venv module with pip; install the package $package (python3-venv)"
    fi
    tried=${PYTHON:-python3}
    found=$(version_of "$tried") || fail "$tried does not run; install the package python3 (3.11 to 3.13)"
    fail "$tried is Python $found, and 3.11 to 3.13 is needed; install a newer python3 or set PYTHON="
}

wanted="uv $UV, folder $PWD, files $(cat pyproject.toml constraints.txt | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && fits "$venv/bin/python"; then
    exit 0
fi

if ! fits "$venv/bin/python"; then
    python=$(choose)
    echo "making $venv with $python"
    "$python" -m venv --clear "$venv"
fi
echo "installing the pinned set into $venv (once; the first time this fetches some gigabytes)"
rm -f "$stamp"
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" VIRTUAL_ENV="$PWD/$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV"
# Where Python may not keep compiled modules, every process would compile torch, Ray and MLflow anew: 5 of the 10 s that
# a worker takes to start (measured). There they are compiled now; elsewhere at their first import.
"$venv/bin/uv" pip install ${PYTHONDONTWRITEBYTECODE:+--compile-bytecode} \
    --require-hashes --requirements constraints.txt
"$venv/bin/uv" pip install --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
