"""Several processes that train one model: who they are, how they meet, how they end.

Nothing here imports TensorFlow. `cluster` reads from the environment who the workers
are, `peers` has them meet, `exit_timer` ends one that is stuck; `worker_group` and
`host_rendezvous` are the launcher's: its own workers, and those of other hosts.
"""
