#!/usr/bin/env bash
# Sets up and runs the whole test suite, with lint and types, in several processes.
#   tools/test.sh [--system-packages] [PYTEST ARGUMENTS]
# With arguments pytest runs in one process, on what they name. --system-packages first
# installs, on Debian as root, what tools/system-packages.txt names (what it cannot
# install, it names in a warning); without it nothing outside .venv is touched.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

if [ "${1:-}" = --system-packages ]; then
  shift
  source tools/install_system_packages.sh
  install_system_packages tools/system-packages.txt
fi

unset PYTHONPATH
source tools/venv.sh
setup_venv "$root" test
if [ $# -gt 0 ]; then exec "$venv_python" -m pytest "$@"; fi
# One process more than processors, as some tests mostly wait; each takes file after file.
processes=$(($(nproc) < 8 ? $(nproc) + 1 : 8))
exec "$venv_python" -m pytest --numprocesses="$processes" \
  --dist=loadfile --no-loadscope-reorder
