"""Predicts how a training scales over replicas, by the cost model of docs/scaling.md.

  python tools/predict_scaling.py --parameters=25e6 --global_batch=8192 --image_us=400
  python tools/predict_scaling.py --host_gbps=1 --host_latency_us=1500 --replicas=1,2,4

It needs no TensorFlow. The defaults of the links are guesses for GPUs that are joined by
NVLink in hosts with one 200 Gbit/s network card; give your own, as `mnist-dist doctor`
prints them.
"""

import dataclasses
import sys

from absl import app, flags

_float, _int = flags.DEFINE_float, flags.DEFINE_integer
_float("parameters", 93_322, "Numbers that are trained.", lower_bound=1)
_int("global_batch", 128, "Images of a step, over all replicas.", lower_bound=1)
_float("image_us", 3.0, "Microseconds that a replica computes on an image.")
_float(
    "overhead_us", 60.0, "Microseconds of a step whatever its batch: update, starts."
)
_float("host_gbps", 150.0, "GB/s between two replicas of a host.")
_float("host_latency_us", 10.0, "Microseconds of a message between them.")
_float("network_gbps", 25.0, "GB/s of a host's network.")
_float("network_latency_us", 30.0, "Microseconds of a message between two hosts.")
_int("replicas_per_host", 8, "Replicas of a host.", lower_bound=1)
flags.DEFINE_list("replicas", ["1", "2", "4", "8", "64", "512"], "Of each prediction.")
flags.DEFINE_bool(
    "gather", False, "With --num_microbatches: all-gather, no all-reduce."
)


@dataclasses.dataclass(frozen=True)
class Link:
    """What joins replicas: bytes a second, and seconds of one message."""

    bytes_per_second: float
    latency: float

    def send(self, num_bytes: float) -> float:
        """Returns the seconds that one message takes."""
        return num_bytes / self.bytes_per_second + self.latency


def ring_all_reduce(num_bytes: float, num_members: int, link: Link) -> float:
    """Returns the seconds of a ring: 2 (n - 1) messages of an nth each.

    Source: P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce algorithms for
    clusters of workstations", 2009.
    """
    return 2 * (num_members - 1) * link.send(num_bytes / num_members)


def ring_all_gather(num_bytes: float, num_members: int, link: Link) -> float:
    """Returns the seconds of a ring that passes all on: n - 1 messages of all bytes."""
    return (num_members - 1) * link.send(num_bytes)


def hierarchical(
    num_bytes: float, *, num_hosts: int, per_host: int, host: Link, network: Link
) -> float:
    """Returns the seconds of an all-reduce in each host, and then between the hosts."""
    inside = ring_all_reduce(num_bytes, per_host, host)
    return inside + ring_all_reduce(num_bytes, num_hosts, network)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a step takes, in seconds.

    Attributes:
      num_replicas: that share the global batch.
      compute: forward and backward pass of a replica's images.
      overhead: what does not depend on the batch.
      communication: adding gradients up.
    """

    num_replicas: int
    compute: float
    overhead: float
    communication: float

    @property
    def step(self) -> float:
        """Seconds of a step: nothing overlaps, as the gradients are added up at once."""
        return self.compute + self.overhead + self.communication

    @property
    def bound(self) -> str:
        """What takes most of a step."""
        parts = ("compute", "overhead", "communication")
        return max(parts, key=lambda part: getattr(self, part))


def predict(num_replicas: int) -> Prediction:
    """Predicts a step by the flags."""
    values = flags.FLAGS
    host = Link(values.host_gbps * 1e9, values.host_latency_us / 1e6)
    network = Link(values.network_gbps * 1e9, values.network_latency_us / 1e6)
    per_host = min(num_replicas, values.replicas_per_host)
    num_hosts = -(-num_replicas // per_host)
    num_bytes = 4 * values.parameters  # gradients are added up in float32
    if values.gather:
        link = host if num_hosts == 1 else network
        communication = ring_all_gather(num_bytes, num_replicas, link)
    else:
        communication = hierarchical(
            num_bytes,
            num_hosts=num_hosts,
            per_host=per_host,
            host=host,
            network=network,
        )
    return Prediction(
        num_replicas,
        compute=values.image_us / 1e6 * values.global_batch / num_replicas,
        overhead=values.overhead_us / 1e6,
        communication=communication,
    )


def format_table(predictions: list[Prediction], *, global_batch: int) -> str:
    """Returns a table; the efficiency is against one replica."""
    alone = predict(1).step
    lines = [
        f"{'replicas':>8} {'ms a step':>10} {'images/s':>12} {'efficiency':>10}  bound by"
    ]
    for p in predictions:
        lines.append(
            f"{p.num_replicas:>8} {p.step * 1e3:>10.3f} {global_batch / p.step:>12,.0f} "
            f"{alone / p.step / p.num_replicas:>10.0%}  {p.bound}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Prints a line for each number of replicas."""
    del argv
    counts = flags.FLAGS.replicas
    if not all(text.isascii() and text.isdigit() and int(text) for text in counts):
        print(
            f"--replicas: found {','.join(counts)}, expected numbers", file=sys.stderr
        )
        return 2
    predictions = [predict(int(text)) for text in counts]
    print(format_table(predictions, global_batch=flags.FLAGS.global_batch))
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
