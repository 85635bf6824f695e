# Makes the virtual environment of this checkout, once, and sets $venv_python. Sourced by
# launch/local.sh and tools/test.sh.

# These variables of the user's shell would change what is installed, or where.
unset VIRTUAL_ENV PYTHONHOME PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET PIP_PREFIX

# Prints the first suitable Python. One of a virtual environment, such as an activated one,
# is not suitable.
find_python() {
  local candidate candidates=(python3.13 python3.12 python3.11 python3.10 python3)
  if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
  while read -r candidate; do
    if "$candidate" -c 'import sys; sys.exit(
      not (3, 10) <= sys.version_info < (3, 14) or sys.prefix != sys.base_prefix
    )' 2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done < <(type -ap "${candidates[@]}")
  if [ -n "${PYTHON:-}" ]; then
    echo "${0##*/}: error: PYTHON=$PYTHON is no Python 3.10 to 3.13, or virtual" >&2
  else
    echo "${0##*/}: error: no Python 3.10 to 3.13 found; install one or set PYTHON" >&2
  fi
  return 2
}

# create_venv PYTHON DIR: tries several ways, as Debian's Python may lack ensurepip.
create_venv() {
  "$1" -m venv "$2" >/dev/null 2>&1 && return
  "$1" -m virtualenv --quiet "$2" 2>/dev/null && return
  command -v uv >/dev/null &&
    uv venv --quiet --allow-existing --seed --python "$1" "$2" && return
  if "$1" -m pip --version >/dev/null 2>&1 && "$1" -m venv --without-pip "$2"; then
    "$1" -m pip --quiet --python "$2/bin/python" install pip && return
  fi
  echo "${0##*/}: error: $1 cannot make a virtual environment; install python3-venv" >&2
  return 2
}

# setup_venv CHECKOUT EXTRAS: installs the package with these extras (a,b), unless it is
# installed.
setup_venv() {
  local root=$1 extras=$2 python dir stamp wanted made_by
  local -x PYTHONPATH=  # during set-up only
  python=$(find_python) || return
  dir=${MNIST_DIST_VENV:-$root/.venv}
  venv_python=$dir/bin/python
  stamp=$dir/installed${extras:+-${extras//,/-}}
  made_by="$python $root"
  wanted="$made_by $(cksum <"$root/pyproject.toml")"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi

  mkdir -p "$dir" || return 2
  # The order matters: another start, which makes the mark first, may run meanwhile.
  if [ -n "$(ls -A "$dir")" ] && [ ! -e "$dir/made-by" ]; then
    echo "${0##*/}: error: $dir is not empty and not ours; set MNIST_DIST_VENV to another" >&2
    return 2
  fi
  # Of two starts at once the second waits, and then finds the environment ready.
  if command -v flock >/dev/null; then
    exec 9>"${dir%/}.lock"
    flock 9
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exec 9>&-; return; fi
  fi
  echo "Setting up ${dir/#"$PWD/"/} with $("$python" --version), once ..." >&2
  if [ "$(cat "$dir/made-by" 2>/dev/null)" != "$made_by" ]; then
    # The mark comes first: an environment that was left unfinished is made anew.
    : >"$dir/made-by"
    find "$dir/" -mindepth 1 ! -name made-by -delete || return
    create_venv "$python" "$dir" || return
    echo "$made_by" >"$dir/made-by"
  fi
  "$venv_python" -m pip install --quiet --disable-pip-version-check \
    --editable "$root${extras:+[$extras]}" >&2 || return
  # The stamp comes last: an installation that was left unfinished has none.
  echo "$wanted" >"$stamp"
  if command -v flock >/dev/null; then exec 9>&-; fi
}
