"""The workers together: sums over all replicas, clocks, and what each found out."""

import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mnist_dist.cluster.membership import Cluster, split_address
from mnist_dist.device.all_reduce import all_reduce_sum
from mnist_dist.device.peers import gather_texts
from mnist_dist.diagnosis.diagnosis import Diagnosis

_NUM_VALUES = 1 << 20  # float32 in one all-reduce: 4 MiB
_ROUNDS = 5
_SLOW_GB_PER_SECOND = 0.1  # about a gigabit a second
_CLOCK_SECONDS = 1.0
_SLOWEST = 3.0  # times as long as the fastest, and others wait for it


def check_all_reduce(
    diagnosis: Diagnosis, strategy: tf.distribute.Strategy, cluster: Cluster
) -> None:
    """Adds numbers up over all replicas as a training does, and measures it."""
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        diagnosis.facts["all-reduce"] = "not needed: one replica"
        return
    values = np.arange(_NUM_VALUES) % 1024
    rows = tf.constant(values, tf.float32)

    def add(rounds: int) -> tf.Tensor:
        def share() -> tf.Tensor:
            replica = tf.distribute.get_replica_context()
            rank = tf.cast(replica.replica_id_in_sync_group, tf.float32)
            total = rows + rank
            for number in range(rounds):
                # Sums of whole numbers below 2^24 are exact in any order.
                share = total if number == 0 else total / replicas
                (total,) = all_reduce_sum(replica, [share])
            return total

        return strategy.experimental_local_results(strategy.run(share))[0]

    total = tf.function(add, autograph=False)(1).numpy()
    expected = replicas * values + replicas * (replicas - 1) // 2
    if not np.array_equal(total, expected.astype(np.float32)):
        wrong = np.flatnonzero(total != expected)
        diagnosis.facts["all-reduce"] = "WRONG"
        diagnosis.stops.append(
            f"the all-reduce over {replicas} replicas is wrong in {len(wrong)} of "
            f"{_NUM_VALUES} values: at {wrong[0]} found {total[wrong[0]]}, expected "
            f"{expected[wrong[0]]}"
        )
        return
    repeat = tf.function(lambda: add(_ROUNDS), autograph=False)
    repeat()  # traces it
    began = time.perf_counter()
    repeat().numpy()
    seconds = time.perf_counter() - began
    speed = _ROUNDS * 4 * _NUM_VALUES / seconds / 1e9
    diagnosis.facts["all-reduce"] = (
        f"right over {replicas} replicas, {speed:.2f} GB/s "
        f"({1000 * seconds / _ROUNDS:.1f} ms for 4 MiB)"
    )
    diagnosis.numbers["all_reduce_gb_per_second"] = speed
    hosts = {split_address(worker)[0] for worker in cluster.workers}
    if len(hosts) > 1 and speed < _SLOW_GB_PER_SECOND:
        diagnosis.slows.append(
            f"the all-reduce between {len(hosts)} hosts moves {speed:.2f} GB/s: look at "
            "the network between them"
        )


def check_ports(diagnosis: Diagnosis, cluster: Cluster, *, seconds: float) -> None:
    """Adds who was reached, and which port of this worker is open."""
    if cluster.num_workers == 1:
        diagnosis.facts["cluster"] = cluster.describe()
        return
    port = split_address(cluster.workers[cluster.rank])[1]
    diagnosis.facts["cluster"] = f"{cluster.describe()}; all reached in {seconds:.1f} s"
    diagnosis.facts["open port"] = (
        f"{port}, on all interfaces and unauthenticated: keep it in a private network"
    )


def gather(
    diagnosis: Diagnosis, strategy: tf.distribute.Strategy, cluster: Cluster
) -> list[Diagnosis]:
    """Returns what all workers found out, by rank, and compares it."""
    gather_texts(strategy, "", cluster=cluster)  # from here all go on at once
    diagnosis.numbers["clock_seconds"] = time.time()
    texts = gather_texts(strategy, diagnosis.to_json(), cluster=cluster)
    workers = [Diagnosis.from_json(text) for text in texts]
    _compare(workers)
    return workers


def _compare(workers: Sequence[Diagnosis]) -> None:
    """Adds what shows only where workers are compared."""
    first = workers[0]
    for worker in workers[1:]:
        behind = first.numbers["clock_seconds"] - worker.numbers["clock_seconds"]
        worker.facts["clock"] = f"{behind:+.3f} s behind worker 0's"
        if abs(behind) > _CLOCK_SECONDS:
            worker.facts["clock"] += ": times in logs and TensorBoard do not fit"
        for name in ("versions", "data"):
            if worker.facts.get(name) != first.facts.get(name):
                worker.stops.append(
                    f"{name}: found {worker.facts.get(name)}, worker 0 has "
                    f"{first.facts.get(name)}"
                )
    for name in first.numbers:
        if name.endswith("_gflop_per_second"):
            speeds = [worker.numbers.get(name, 0.0) for worker in workers]
            slowest = int(np.argmin(speeds))
            if speeds[slowest] * _SLOWEST < max(speeds):
                workers[slowest].slows.append(
                    f"{name}: {speeds[slowest]:,.0f}, where another worker has "
                    f"{max(speeds):,.0f}: all wait for the slowest"
                )
