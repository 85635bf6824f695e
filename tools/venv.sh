# Sourced by launch/local.sh and tools/test.sh: makes the virtual environment of this
# checkout, once, and sets $venv_python.

# What the user's shell has set up must not leak in.
unset VIRTUAL_ENV PYTHONHOME PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET PIP_PREFIX

# The first suitable one; none of a virtual environment, as the one that is activated.
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

# create_venv PYTHON DIR: however this Python can; Debian splits ensurepip off.
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

# setup_venv CHECKOUT EXTRAS: installs the package with these extras (a,b), if it is not.
setup_venv() {
  local root=$1 extras=$2 python dir stamp wanted made_by
  local -x PYTHONPATH=  # the program that is started later has it again
  python=$(find_python) || return
  dir=${MNIST_DIST_VENV:-$root/.venv}
  venv_python=$dir/bin/python
  stamp=$dir/installed${extras:+-${extras//,/-}}
  made_by="$python $root"
  wanted="$made_by $(cksum <"$root/pyproject.toml")"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi

  mkdir -p "$dir" || return 2
  # In this order: another start may make both meanwhile, the mark first.
  if [ -n "$(ls -A "$dir")" ] && [ ! -e "$dir/made-by" ]; then
    echo "${0##*/}: error: $dir is not empty and not ours; set MNIST_DIST_VENV to another" >&2
    return 2
  fi
  # Two starts at once: the second waits, and finds the work done.
  if command -v flock >/dev/null; then
    exec 9>"${dir%/}.lock"
    flock 9
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exec 9>&-; return; fi
  fi
  echo "Setting up ${dir/#"$PWD/"/} with $("$python" --version), once ..." >&2
  if [ "$(cat "$dir/made-by" 2>/dev/null)" != "$made_by" ]; then
    # Marked first: one that broke off is ours to make anew.
    : >"$dir/made-by"
    find "$dir/" -mindepth 1 ! -name made-by -delete || return
    create_venv "$python" "$dir" || return
    echo "$made_by" >"$dir/made-by"
  fi
  "$venv_python" -m pip install --quiet --disable-pip-version-check \
    --editable "$root${extras:+[$extras]}" >&2 || return
  # Last: an installation that broke off has no stamp.
  echo "$wanted" >"$stamp"
  if command -v flock >/dev/null; then exec 9>&-; fi
}
