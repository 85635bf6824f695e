#!/usr/bin/env bash
# Shows a run, or a folder of runs to compare, in TensorBoard: http://localhost:6006.
#   launch/tensorboard.sh [DIRECTORY] [--FLAG=VALUE ...]     flags of `tensorboard`
# DIRECTORY is runs/ unless given. Nobody else can reach it: it listens on this host alone.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
directory=$root/runs
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  directory=$1
  shift
fi
if [ ! -d "$directory" ]; then
  echo "tensorboard.sh: error: found no directory $directory, expected that of a run, or of runs" >&2
  exit 2
fi
source "$root/tools/venv.sh"
setup_venv "$root" "${MNIST_DIST_EXTRAS-}"
exec "$venv_python" -m tensorboard.main --logdir="$directory" --host=127.0.0.1 "$@"
