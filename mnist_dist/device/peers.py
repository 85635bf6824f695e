"""Collectives between the workers of a run, lost workers, and the end together."""

import contextlib
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

from mnist_dist.cluster.exit_timer import exits_unless_done_within
from mnist_dist.cluster.membership import Cluster
from mnist_dist.errors import InputError, PeerError, RunError
from mnist_dist.files.untrusted import printable

_TOLD = "mnist_dist: "  # begins what a worker tells the others
_MAX_REASON = 500  # characters
_LEAVING_SECONDS = 5.0  # that the others may take to end with this worker
# What a worker's calls raise when another is gone, depending on what was under way.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)
# What NCCL finds when a connection to another worker ends, each as `ncclGetErrorString`
# words it. A broken connection has come up as all three (NVIDIA/nccl#795, #1039). Its
# other results are faults of this worker: of CUDA, or two workers on one GPU.
_NCCL_LOST = (
    "remote process exited or there was a network error",
    "unhandled system error",
    "internal error",
)


def broadcast_from_chief(
    strategy: tf.distribute.Strategy, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the chief's arrays on every worker, bit for bit.

    All workers must call it, with arrays of the same names, shapes and dtypes.
    """
    if not _has_peers(strategy):
        return arrays
    data = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())
    words = np.frombuffer(data + b"\0" * (-len(data) % 8), np.int64)
    data = _from_chief(strategy, words).tobytes()
    received, start = {}, 0
    for name, array in arrays.items():
        flat = np.frombuffer(data, array.dtype, array.size, start)
        received[name] = flat.reshape(array.shape)
        start += array.nbytes
    return received


def merge_shares(
    strategy: tf.distribute.Strategy, share: np.ndarray, *, cluster: Cluster
) -> np.ndarray:
    """Returns what each worker has a share of, whole on all of them, bit for bit.

    Args:
      strategy: of all workers, which must all call it.
      share: this worker's; all bits are 0 where another has its own.
      cluster: the workers.
    """
    if not _has_peers(strategy):
        return share
    data = share.tobytes()
    words = np.frombuffer(data + b"\0" * (-len(data) % 8), np.int64)
    per_worker = strategy.num_replicas_in_sync // cluster.num_workers
    words = _add_up(strategy, words, replicas_between=per_worker)
    return np.frombuffer(words.tobytes(), share.dtype, share.size).reshape(share.shape)


def gather_texts(
    strategy: tf.distribute.Strategy, text: str, *, cluster: Cluster
) -> list[str]:
    """Returns the text of every worker, by rank, on all of them."""
    if not _has_peers(strategy):
        return [text]
    per_worker = strategy.num_replicas_in_sync // cluster.num_workers
    data = text.encode()
    lengths = np.zeros(cluster.num_workers, np.int64)
    lengths[cluster.rank] = len(data)
    lengths = _add_up(strategy, lengths, replicas_between=per_worker)
    rows = np.zeros([cluster.num_workers, int(lengths.max()) // 8 + 1], np.int64)
    padded = data + b"\0" * (rows.shape[1] * 8 - len(data))
    rows[cluster.rank] = np.frombuffer(padded, np.int64)
    rows = _add_up(strategy, rows, replicas_between=per_worker)
    pairs = zip(rows, lengths, strict=True)
    return [row.tobytes()[:length].decode() for row, length in pairs]


@contextlib.contextmanager
def names_lost_peers(cluster: Cluster) -> Iterator[None]:
    """Turns what TensorFlow raises when another worker is gone into a PeerError.

    What ends this worker is told to the others, whose PeerError then names it.
    """
    try:
        yield
    except (InputError, RunError) as error:
        _tell_others(cluster, str(error))
        raise
    except tf.errors.OpError as error:
        if cluster.num_workers == 1 or not _is_lost_peer(error):
            raise
        if told := re.search(f"{_TOLD}(worker .*)", str(error)):
            raise PeerError(told[1]) from error
        reason = next(
            (line for line in str(error).splitlines() if "aborted by:" in line),
            str(error).partition("\n")[0],
        )
        tasks = sorted(set(re.findall(r"/job:worker/replica:0/task:(\d+)", str(error))))
        who = f"worker {' or '.join(tasks)}" if tasks else "another worker"
        raise PeerError(
            f"{who} is gone; unless its own output names an error, start all workers "
            f"again and the run goes on from its newest checkpoint ({reason.strip()})"
        ) from error


def _is_lost_peer(error: tf.errors.OpError) -> bool:
    """Returns whether an error of a worker's call may come from another worker's end.

    TensorFlow passes NCCL's results on as `UnknownError` where a collective ran, and as
    `InternalError` where its workers were meeting (Source: tensorflow/core/nccl/
    nccl_manager.cc); what they say decides.
    """
    text = str(error)
    if nccl := re.search(r"NCCL: (.+)", text):
        return nccl[1].startswith(_NCCL_LOST)
    if isinstance(error, tf.errors.InternalError):
        return "ollective" in text
    return isinstance(error, _LOST)


def _tell_others(cluster: Cluster, reason: str) -> None:
    """Makes the collectives of the other workers fail, and name the reason."""
    if cluster.num_workers == 1:
        return
    # One line of bounded length. Before the workers are connected this raises.
    text = f"{_TOLD}worker {cluster.rank} has ended: {printable(reason)[:_MAX_REASON]}"
    with contextlib.suppress(ValueError, tf.errors.OpError):
        context.context().report_error_to_cluster(tf.errors.FAILED_PRECONDITION, text)


def leave_together(strategy: tf.distribute.Strategy, *, code: int) -> None:
    """Returns when every worker has come here and may end its process with `code`."""
    if not _has_peers(strategy):
        return
    _from_chief(strategy, np.zeros(1, np.int64))
    # All have passed the first barrier, so each may end now. If one does, the second
    # barrier fails here, which means the same as passing it.
    with (
        exits_unless_done_within(_LEAVING_SECONDS, code=code),
        contextlib.suppress(tf.errors.OpError),
    ):
        _from_chief(strategy, np.zeros(1, np.int64))


def _has_peers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _from_chief(strategy: tf.distribute.Strategy, words: np.ndarray) -> np.ndarray:
    """Returns the chief's int64 words on every worker, when all have called it."""
    return _add_up(strategy, words, replicas_between=strategy.num_replicas_in_sync)


def _add_up(
    strategy: tf.distribute.Strategy, words: np.ndarray, *, replicas_between: int
) -> np.ndarray:
    """Adds int64 words up over the first of every so many replicas, on all of them."""

    @tf.function(autograph=False)
    def add(words: tf.Tensor) -> tf.Tensor:
        def share() -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            is_one = replica.replica_id_in_sync_group % replicas_between == 0
            sent = tf.where(is_one, words, tf.zeros_like(words))
            return replica.all_reduce(tf.distribute.ReduceOp.SUM, sent)

        return strategy.experimental_local_results(strategy.run(share))[0]

    # As a concrete function: TensorFlow warns of functions that are traced often.
    words = tf.constant(words)
    return add.get_concrete_function(words)(words).numpy()
