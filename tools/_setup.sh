# shellcheck shell=bash
# Sourced by tools/demo, tools/test and .ci/run: the Debian packages and the virtual environment they run in.
# Everything it makes is .venv in the tree and ${XDG_CACHE_HOME:-~/.cache}/softrnic; both are safe to delete.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/softrnic
VENV=$ROOT/.venv

# Debian packages by name, and nowhere else.
APT_PYTHON=(python3 python3-venv)
# shellcheck disable=SC2034  # read by the scripts that source this
APT_TESTS=(iproute2 tshark)

export MYPY_CACHE_DIR=$CACHE/mypy RUFF_CACHE_DIR=$CACHE/ruff HYPOTHESIS_STORAGE_DIRECTORY=$CACHE/hypothesis
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$@"; exit 1; }

# apt_install NAME...: install what is absent (root on Debian), else say what is absent. False if some still is.
apt_install() {
    local name absent=()
    for name; do
        dpkg-query -W -f '${db:Status-Status}\n' "$name" 2>/dev/null | grep -qx installed || absent+=("$name")
    done
    [[ ${#absent[@]} -eq 0 ]] && return
    if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
        say "absent: ${absent[*]} (to have them: apt-get install ${absent[*]}, as root)"
        return 1
    fi
    say "apt-get install ${absent[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
    "${apt[@]}" update >&2 </dev/null && "${apt[@]}" install --no-install-recommends "${absent[@]}" >&2 </dev/null
}

# The first Python that can make a virtual environment; $PYTHON is asked first.
find_python() {
    local python
    for python in ${PYTHON:-} python3 /usr/bin/python3; do
        "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        command -v "$python"
        return
    done
    return 1
}

# ensure_venv LOCK: make .venv hold what LOCK pins and this tree, editable. At once when it does already.
ensure_venv() {
    local lock=$1 python key stamp=$VENV/.made-from-$1
    key=$(cd "$ROOT" && cat pyproject.toml requirements*.lock | sha256sum)
    key="${key%% *} $ROOT"
    # what serves the tests serves the demo
    venv_made() { grep -qxF "$key" "$stamp" "$VENV"/.made-from-*dev.lock 2>/dev/null && "$VENV/bin/python" -c '' 2>/dev/null; }
    venv_made && return
    [[ -w $ROOT ]] || die "$ROOT: not writable, and .venv has yet to be made there"
    exec 9<"$ROOT"
    flock 9 # two commands started at once: the second waits, then finds it made
    if ! venv_made; then
        if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
            python=$(find_python) || { apt_install "${APT_PYTHON[@]}" && python=$(find_python); } ||
                die "needs Python 3.11 or newer with venv and ensurepip"
            "$python" -m venv --clear "$VENV"
        fi
        say "installing $lock into .venv"
        "$VENV/bin/python" -m pip install -q -r "$ROOT/$lock" </dev/null
        "$VENV/bin/python" -m pip install -q --no-deps --no-build-isolation -e "$ROOT" </dev/null
        echo "$key" >"$stamp"
    fi
    exec 9<&-
}
