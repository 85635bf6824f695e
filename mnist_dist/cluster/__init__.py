"""Several processes that train one model: who they are, how they meet, how they end.

Nothing here imports TensorFlow.
"""
