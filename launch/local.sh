#!/usr/bin/env bash
# Trains on this machine's GPUs, or on its CPU if it has none. The first start installs
# everything into .venv.
#   launch/local.sh [--FLAG=VALUE ...]      flags of `mnist-dist train`
# CUDA's libraries are installed if nvidia-smi lists a GPU. MNIST_DIST_EXTRAS=gpu installs
# them in any case, an empty MNIST_DIST_EXTRAS never.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/tools/venv.sh"

extras=
if [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]]; then extras=gpu; fi
setup_venv "$root" "${MNIST_DIST_EXTRAS-$extras}"
# First, so that a --model_dir of the user replaces it.
exec "$venv_python" -m mnist_dist.train --model_dir="$root/runs/mnist" "$@"
