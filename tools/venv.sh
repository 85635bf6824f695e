# Sourced by launch/local.sh and tools/test.sh: makes the virtual environment of this
# checkout, once, and sets $venv_python.

# What the user's shell has set up must not leak in.
unset VIRTUAL_ENV PYTHONHOME PYTHONPATH PIP_REQUIRE_VIRTUALENV PIP_USER PIP_TARGET PIP_PREFIX

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.13 python3.12 python3.11 python3.10 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
      2>/dev/null; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  echo "${0##*/}: error: no Python 3.10 to 3.13 found; install one or set PYTHON" >&2
  return 2
}

# create_venv PYTHON DIR: however this Python can; Debian splits ensurepip off.
create_venv() {
  "$1" -m venv --clear "$2" 2>/dev/null && return
  "$1" -m virtualenv --quiet --clear "$2" 2>/dev/null && return
  command -v uv >/dev/null && uv venv --quiet --clear --seed --python "$1" "$2" && return
  if "$1" -m pip --version >/dev/null 2>&1 && "$1" -m venv --clear --without-pip "$2"; then
    "$1" -m pip --quiet --python "$2/bin/python" install pip && return
  fi
  echo "${0##*/}: error: $1 cannot make a virtual environment; install python3-venv" >&2
  return 2
}

# setup_venv CHECKOUT EXTRA...: installs the package with these extras, if it is not.
setup_venv() {
  local root=$1 extras python dir stamp wanted
  shift
  extras=$(IFS=,; echo "$*")
  python=$(find_python) || return
  dir=${MNIST_DIST_VENV:-$root/.venv}
  venv_python=$dir/bin/python
  stamp=$dir/installed${extras:+-${extras//,/-}}
  wanted="$python $root $(cksum <"$root/pyproject.toml")"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi

  # Two starts at once: the second waits, and finds the work done.
  if command -v flock >/dev/null; then
    exec 9>"${dir%/}.lock"
    flock 9
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exec 9>&-; return; fi
  fi
  echo "Setting up ${dir/#"$PWD/"/} with $("$python" --version), once ..." >&2
  if [ "$(cat "$dir/made-by" 2>/dev/null)" != "$python" ]; then
    create_venv "$python" "$dir" || return
    echo "$python" >"$dir/made-by"
  fi
  "$venv_python" -m pip install --quiet --disable-pip-version-check \
    --editable "$root${extras:+[$extras]}" >&2 || return
  # Last: an installation that broke off has no stamp.
  echo "$wanted" >"$stamp"
  if command -v flock >/dev/null; then exec 9>&-; fi
}
