# Sourced by the other scripts: makes `.venv` with the package and its test extras, once.
# Sets `python` to its interpreter. Nothing outside the project's folder is changed, but for
# system packages: the one that brings `venv` where Debian leaves it out, and bubblewrap.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

find_python() {
    local name
    for name in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        if [ -n "$name" ] && command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "error: Python 3.11 or later is needed" >&2
    echo "hint: install it, or name one: PYTHON=/path/to/python3.12 $0" >&2
    return 3
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

make_environment() {
    local base
    base=$(find_python) || return
    if ! command -v git >/dev/null; then
        echo "error: git is needed" >&2
        echo "hint: on Debian and Ubuntu, \`apt-get install git\` installs it" >&2
        return 3
    fi
    if ! "$base" -c 'import ensurepip' 2>/dev/null; then
        echo "installing python3-venv, which this Python comes without" >&2
        as_root apt-get update -qq && as_root apt-get install -y -qq python3-venv >&2
    fi
    "$base" -m venv "$root/.venv"
}

# Install a package that much can do without; say what its absence means where that fails.
install_package() {
    local package=$1 absence=$2 root_command=()
    [ "$(id -u)" = 0 ] || root_command=(sudo -n)
    if command -v apt-get >/dev/null && "${root_command[@]}" true 2>/dev/null; then
        echo "installing $package" >&2
        "${root_command[@]}" apt-get update -qq >&2 &&
            DEBIAN_FRONTEND=noninteractive "${root_command[@]}" \
                apt-get install -y -qq "$package" </dev/null >/dev/null && return
    fi
    echo "$package is not installed, so $absence" >&2
}

command -v bwrap >/dev/null ||
    install_package bubblewrap "runs are isolated less than they could be"

# The stamp says what the environment was made from, so that a changed setup.cfg makes it anew.
wanted=$(cat "$root/setup.cfg" "$root/pyproject.toml" | sha256sum) || exit 3
if [ "$(cat "$root/.venv/made-from" 2>/dev/null)" != "$wanted" ]; then
    echo "making the environment in $root/.venv" >&2
    make_environment || exit 3
    "$python" -m pip install -q --disable-pip-version-check -e "$root[test]" >&2 || exit 3
    echo "$wanted" >"$root/.venv/made-from"
fi
