"""Distributed training with TensorFlow, done well, with MNIST as the workload."""

__version__ = "0.1.0"
