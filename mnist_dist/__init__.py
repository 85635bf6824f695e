"""Distributed training with TensorFlow, done well, with MNIST as the workload."""

import sys

__version__ = "0.1.0"

# A program of ours begins: `python -m mnist_dist.VERB`. This comes before its imports.
if sys.argv[:1] == ["-m"] and __name__ in sys.orig_argv[-len(sys.argv)]:
    from mnist_dist.cli.module_path import leave_working_directory

    leave_working_directory()
