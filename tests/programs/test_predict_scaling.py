"""The cost model of docs/scaling.md, against numbers worked out by hand."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "tools" / "predict_scaling.py"


def predict(*arguments, code=0):
    """The columns of each row: replicas, ms a step, images/s, efficiency, bound."""
    result = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True
    )
    assert result.returncode == code, result.stderr
    return [line.split() for line in result.stdout.splitlines()[1:]]


# 1 MB of gradients; 1 GB/s and 1 ms in a host, 0.1 GB/s and 10 ms between hosts.
LINKS = (
    *("--parameters=250000", "--global_batch=100", "--image_us=100"),
    *("--overhead_us=500", "--host_gbps=1", "--host_latency_us=1000"),
    *("--network_gbps=0.1", "--network_latency_us=10000", "--replicas_per_host=2"),
)


def test_step_is_compute_overhead_and_rings_in_hosts_and_between_them():
    one, two, four = predict(*LINKS, "--replicas=1,2,4")
    assert one == ["1", "10.500", "9,524", "100%", "compute"]
    # 5 + 0.5 + 2 * (0.5 + 1)
    assert two == ["2", "8.500", "11,765", "62%", "compute"]
    # 2.5 + 0.5 + 2 * (0.5 + 1) + 2 * (5 + 10)
    assert four == ["4", "36.000", "2,778", "7%", "communication"]


def test_gather_sends_all_bytes_of_each_replica():
    # 2.5 + 0.5 + 3 * (10 + 10)
    (four,) = predict(*LINKS, "--replicas=4", "--gather")
    assert four[1] == "63.000"


def test_wrong_numbers_of_replicas_are_named():
    assert predict("--replicas=2,x", code=2) == []
    assert predict("--replicas=0", code=2) == []
