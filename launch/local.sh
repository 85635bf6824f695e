#!/usr/bin/env bash
# Trains on this machine's GPUs, or its CPU. Sets everything up the first time.
#   launch/local.sh [--FLAG=VALUE ...]      flags of `mnist-dist train`
# What is installed follows from the GPUs here; MNIST_DIST_EXTRAS=gpu, or empty, decides.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/tools/venv.sh"

extras=
if [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]]; then extras=gpu; fi
setup_venv "$root" "${MNIST_DIST_EXTRAS-$extras}"
# Ours first: of two --model_dir the last counts.
exec "$venv_python" -m mnist_dist.train --model_dir="$root/runs/mnist" "$@"
