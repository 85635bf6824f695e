"""Finds out which workers a run has and which one this process is.

The first that applies: `--worker_hosts`, `TF_CONFIG`, Slurm's environment, else one
worker alone.
"""

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence

from mnist_dist.errors import InputError

# Identifies what started a run and restarts it with the same command line: `launch`, a
# Slurm job, a Kubernetes Job. In the environment and in `config.json`.
LAUNCH_ID = "MNIST_DIST_LAUNCH"
# Environment variable: a secret with which the processes of a launch authenticate.
TOKEN = "MNIST_DIST_TOKEN"
# The evaluator's environment variable: when it was started, in seconds since 1970.
EVALUATOR_SINCE = "MNIST_DIST_EVALUATOR_SINCE"

_FIRST_SLURM_PORT, _NUM_SLURM_PORTS = 20_000, 10_000


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, as one of them sees it.

    Attributes:
      source: where this was read.
      workers: `host:port` of every worker by rank; the first is the chief. Empty
        for one worker that was not told of any.
      rank: of this worker.
      is_evaluator: this process is no worker, it follows the run and evaluates.
      has_own_gpus: the GPUs that this worker sees are not for others on its host.
      num_allocated_nodes: of the Slurm job in which one worker runs alone.
    """

    source: str
    workers: tuple[str, ...] = ()
    rank: int = 0
    is_evaluator: bool = False
    has_own_gpus: bool = True
    num_allocated_nodes: int = 1

    @property
    def num_workers(self) -> int:
        """Number of workers, at least 1."""
        return max(len(self.workers), 1)

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes."""
        return self.rank == 0 and not self.is_evaluator

    @property
    def host_peers(self) -> list[int]:
        """Ranks of the workers on this worker's host, its own among them."""
        hosts = [split_address(worker)[0] for worker in self.workers]
        return [r for r, host in enumerate(hosts) if host == hosts[self.rank]] or [0]

    def describe(self) -> str:
        """Returns one line: source, peers, rank, chief."""
        if self.is_evaluator:
            return f"{self.source}: evaluator of {', '.join(self.workers)}"
        if self.num_workers == 1:
            return f"{self.source}: one worker" + (
                f"; Slurm has allocated {self.num_allocated_nodes} nodes, to use them all: "
                "srun --ntasks-per-node=1 --distribution=block mnist-dist train ..."
                if self.num_allocated_nodes > 1
                else ""
            )
        return (
            f"{self.source}: worker {self.rank} of {self.num_workers} "
            f"({', '.join(self.workers)}); worker 0 is chief"
            + (", this one" if self.is_chief else "")
        )


def find_cluster(
    environ: Mapping[str, str] = os.environ,
    *,
    worker_hosts: str | None = None,
    task_index: int | None = None,
) -> Cluster:
    """Finds the workers of this run and this worker's place among them.

    Args:
      environ: where `TF_CONFIG` and Slurm's variables are looked up.
      worker_hosts: `host:port,host:port,...`, or None.
      task_index: this worker's place in `worker_hosts`.

    Raises:
      InputError: what was found describes no cluster.
    """
    # CUDA_VISIBLE_DEVICES is set for one process: its GPUs are not shared.
    has_own_gpus = bool(environ.get("CUDA_VISIBLE_DEVICES"))
    if worker_hosts:
        workers = _checked(worker_hosts.split(","), name="--worker_hosts")
        if task_index is None:
            raise InputError(
                "--task_index: found nothing, expected this worker's place in "
                f"--worker_hosts, 0 to {len(workers) - 1}"
            )
        rank = _checked_index(task_index, len(workers), name="--task_index")
        return Cluster("--worker_hosts", workers, rank, has_own_gpus=has_own_gpus)
    if task_index is not None:
        raise InputError(
            f"--task_index: found {task_index} without --worker_hosts, expected both"
        )
    if environ.get("TF_CONFIG", "").strip():
        return dataclasses.replace(
            _from_tf_config(environ["TF_CONFIG"]), has_own_gpus=has_own_gpus
        )
    if (
        "SLURM_STEP_NODELIST" in environ
        and _slurm_number(environ, "SLURM_STEP_NUM_TASKS") > 1
    ):
        return _from_slurm(environ)
    nodes = environ.get("SLURM_JOB_NUM_NODES", "")
    return Cluster(
        "no cluster", num_allocated_nodes=int(nodes) if nodes.isdecimal() else 1
    )


def hides_all_gpus(environ: Mapping[str, str]) -> bool:
    """Whether CUDA_VISIBLE_DEVICES is there and names no GPU: the CPU is meant."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and visible.strip() in ("", "-1", "NoDevFiles")


def find_evaluator(environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """Returns the cluster if `TF_CONFIG` makes this process its evaluator, or None.

    Raises:
      InputError: `TF_CONFIG` describes no cluster.
    """
    if not environ.get("TF_CONFIG", "").strip():
        return None
    cluster = _from_tf_config(environ["TF_CONFIG"])
    return cluster if cluster.is_evaluator else None


def split_address(address: str) -> tuple[str, int]:
    """Splits `host:port` (an IPv6 host in brackets).

    Raises:
      ValueError: it is none.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+):(\d{1,5})", address)
    if not match or not 0 < int(match[2]) < 1 << 16:
        raise ValueError(address)
    return match[1].strip("[]"), int(match[2])


def _checked(addresses: Sequence[object], *, name: str) -> tuple[str, ...]:
    checked: list[str] = []
    for address in addresses:
        try:
            split_address(str(address).strip())
        except ValueError:
            raise InputError(
                f"{name}: found {address!r}, expected host:port with a port from 1 "
                "to 65535"
            ) from None
        checked.append(str(address).strip())
    if len(set(checked)) < len(checked):
        twice = next(a for a in checked if checked.count(a) > 1)
        raise InputError(f"{name}: found {twice} twice, expected different addresses")
    return tuple(checked)


def _checked_index(index: object, count: int, *, name: str) -> int:
    if isinstance(index, bool) or not re.fullmatch(r"\d+", str(index)):
        raise InputError(f"{name}: found {index!r}, expected 0 to {count - 1}")
    if int(str(index)) >= count:
        raise InputError(
            f"{name}: found {index}, expected 0 to {count - 1}: there are {count} workers"
        )
    return int(str(index))


def _from_tf_config(text: str) -> Cluster:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"TF_CONFIG: found {text[:60]!r}, expected JSON: {error}"
        ) from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    if not isinstance(cluster, dict):
        raise InputError(
            'TF_CONFIG: found no cluster, expected {"cluster": {"worker": [...]}, '
            '"task": {"type": ..., "index": ...}}'
        )
    unknown = cluster.keys() - {"chief", "worker", "evaluator"}
    if unknown:
        raise InputError(
            f"TF_CONFIG: found {', '.join(sorted(unknown))} in its cluster, expected "
            "chief, worker and evaluator"
        )
    jobs = {job: cluster.get(job, []) for job in ("chief", "worker")}
    if not all(isinstance(addresses, list) for addresses in jobs.values()):
        raise InputError("TF_CONFIG: a job's tasks are no list of host:port")
    if len(jobs["chief"]) > 1:
        raise InputError(
            f"TF_CONFIG: found {len(jobs['chief'])} chiefs, expected one at most"
        )
    workers = _checked(jobs["chief"] + jobs["worker"], name="TF_CONFIG")
    if not workers:
        raise InputError("TF_CONFIG: found no worker in its cluster, expected some")

    task = config.get("task")
    if not isinstance(task, dict) or "type" not in task or "index" not in task:
        raise InputError(
            f"TF_CONFIG: found task {task!r}, expected its type and its index"
        )
    if task["type"] == "evaluator":
        return Cluster("TF_CONFIG", workers, is_evaluator=True)
    if task["type"] not in ("chief", "worker"):
        raise InputError(
            f"TF_CONFIG: found task type {task['type']!r}, expected chief, worker or "
            "evaluator"
        )
    count = len(jobs[task["type"]])
    rank = _checked_index(task["index"], count, name=f"TF_CONFIG: {task['type']} index")
    return Cluster(
        "TF_CONFIG", workers, rank + len(jobs["chief"]) * (task["type"] == "worker")
    )


def _from_slurm(environ: Mapping[str, str]) -> Cluster:
    nodes = _node_addresses(environ["SLURM_STEP_NODELIST"])
    tasks = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(tasks) != len(nodes):
        raise InputError(
            f"SLURM_STEP_TASKS_PER_NODE: found {len(tasks)} nodes, expected the "
            f"{len(nodes)} of SLURM_STEP_NODELIST"
        )
    job = _slurm_number(environ, "SLURM_JOB_ID")
    places = [(node, task) for node, n in enumerate(tasks) for task in range(n)]
    # Numbered by rank, so they are unique even where nodes share an address. The next
    # job, which may share the node, begins 64 ports further on.
    workers = [
        f"{nodes[node]}:{_FIRST_SLURM_PORT + (64 * job + rank) % _NUM_SLURM_PORTS}"
        for rank, (node, _) in enumerate(places)
    ]
    rank = _checked_index(
        _slurm_number(environ, "SLURM_PROCID"), len(workers), name="SLURM_PROCID"
    )
    place = tuple(_slurm_number(environ, n) for n in ("SLURM_NODEID", "SLURM_LOCALID"))
    if place != places[rank]:
        raise InputError(
            f"SLURM_PROCID: found task {rank} as number {place[1]} of node {place[0]}, "
            f"expected number {places[rank][1]} of node {places[rank][0]}: start the "
            "step with --distribution=block"
        )
    return Cluster("Slurm", tuple(workers), rank, has_own_gpus=_binds_gpus(environ))


def _binds_gpus(environ: Mapping[str, str]) -> bool:
    """Whether each task of a Slurm step sees GPUs that no other sees."""
    bind = environ.get("SLURM_TRES_BIND") or environ.get("SLURM_GPU_BIND") or ""
    if re.search(r"\b(none|closest)\b", bind):
        return False
    return bool(bind or environ.get("SLURM_GPUS_PER_TASK"))


def _slurm_number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "")
    if not re.fullmatch(r"\d+", text):
        raise InputError(f"{name}: found {text!r}, expected a number, as Slurm sets it")
    return int(text)


def _node_addresses(node_list: str) -> list[str]:
    """The nodes' network addresses, in the order of the list: names need not resolve."""
    names = _scontrol("show", "hostnames", node_list).split()
    nodes = _scontrol("--oneliner", "show", "node", node_list)
    addresses = dict(re.findall(r"NodeName=(\S+).*?\bNodeAddr=(\S+)", nodes))
    return [addresses.get(name, name) for name in names]


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(
            f"SLURM_STEP_NODELIST: {' '.join(command)} failed: {error}; expected "
            "Slurm's client on this node"
        ) from error


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise InputError(
                f"SLURM_STEP_TASKS_PER_NODE: found {text!r}, expected as in 2(x3),1"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
