"""Several processes that train one model: membership, meeting, launching, stopping.

Nothing here imports TensorFlow.
"""
