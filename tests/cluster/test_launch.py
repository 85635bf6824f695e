"""The launcher, with small programs in the place of `train`."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from mnist_dist.cluster.rendezvous import HostsOptions
from mnist_dist.cluster.stop_request import STOP_SIGNALS
from mnist_dist.launch import split_command

PRELUDE = """
import json, os, pathlib, signal, sys, time
options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
rank, workers = int(options["task_index"]), options["worker_hosts"].split(",")
folder = pathlib.Path(os.environ["FOLDER"])
attempt = len(list(folder.glob(f"{rank}.*")))
(folder / f"{rank}.{attempt}").write_text(json.dumps(
    {"pid": os.getpid(), "workers": workers, "env": dict(os.environ)}))
def wait_for_all():
    while len(list(folder.glob(f"*.{attempt}"))) < len(workers):
        time.sleep(0.01)
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Starts a launcher of workers that run a given text; ends it after the test."""
    folder = tmp_path / "started"
    folder.mkdir()
    processes = []

    def start(text, *, env=None, stop_seconds=3.0, **options):
        worker = tmp_path / "worker.py"
        worker.write_text(PRELUDE + textwrap.dedent(text))
        arguments = {"num_workers": 2, "max_restarts": 0} | options
        code = (
            "import signal, sys\nfrom mnist_dist import launch\n"
            # The tests may run under nohup.
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
            "from mnist_dist.cluster import restarts, worker_group\n"
            "from mnist_dist.cluster.rendezvous import HostsOptions\n"
            "restarts.FIRST_DELAY = 0.05\n"
            f"worker_group.STOP_SECONDS = {stop_seconds}\n"
            "worker_group.ORPHAN_SECONDS = 1.0\n"
            f"sys.exit(launch.launch([sys.executable, {str(worker)!r}],"
            f" model_dir={str(tmp_path)!r}, **{arguments!r}))"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | {"FOLDER": str(folder)} | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    start.folder = folder
    yield start
    for process in processes:
        process.kill()
        process.communicate()


def finish(process, timeout=30):
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


def starts(folder):
    return {p.name: json.loads(p.read_text()) for p in sorted(folder.iterdir())}


def wait_for(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return False
    return state[0] != "Z"


def handles(pid, number):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line for line in status.splitlines() if line.startswith("SigCgt"))
    return int(caught.split()[1], 16) >> (number - 1) & 1


def test_output_has_the_rank_and_is_kept(start, tmp_path):
    process = start(
        """
        print("hello")
        print("trouble", file=sys.stderr)
        os.write(1, b"no newline at the end \\xff")
        """
    )
    code, output, errors = finish(process)
    assert code == 0
    assert sorted(output.splitlines()) == [
        *("[0] hello", "[0] no newline at the end \N{REPLACEMENT CHARACTER}"),
        *("[1] hello", "[1] no newline at the end \N{REPLACEMENT CHARACTER}"),
    ]
    assert sorted(errors.splitlines()) == ["[0] trouble", "[1] trouble"]
    for rank in range(2):
        log = (tmp_path / "logs" / f"worker-{rank}.log").read_bytes()
        assert sorted(log.splitlines()) == [
            b"hello",
            b"no newline at the end \xff",
            b"trouble",
        ]


def test_much_output_arrives_whole(start):
    code, output, _ = finish(start("for i in range(20000): print(i, 'x' * 50)"))
    assert code == 0
    for rank in range(2):
        numbers = [
            int(line.split()[1])
            for line in output.splitlines()
            if line.startswith(f"[{rank}]")
        ]
        assert numbers == list(range(20000))


def test_workers_get_one_list_of_different_ports_and_shares_of_the_host(start):
    env = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    assert finish(start("", num_workers=2, env=env))[0] == 0
    found = starts(start.folder)
    assert found["0.0"]["workers"] == found["1.0"]["workers"]
    assert len(set(found["0.0"]["workers"])) == 2
    shares = [found[f"{r}.0"]["env"] for r in range(2)]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in shares] == ["4,5", "6,7"]
    threads = max(len(os.sched_getaffinity(0)) // 2, 1)
    assert {s["TF_NUM_INTRAOP_THREADS"] for s in shares} == {str(threads)}


def test_fewer_gpus_than_workers_are_refused(start):
    _, _, errors = finish(start("", num_workers=2, env={"CUDA_VISIBLE_DEVICES": "3"}))
    assert "CUDA_VISIBLE_DEVICES: found '3' for 2 workers" in errors
    assert not starts(start.folder)


def test_gpus_that_no_worker_uses_are_not_shared_out(start):
    env = {"CUDA_VISIBLE_DEVICES": "3"}
    assert finish(start("", num_workers=2, env=env, uses_gpus=False))[0] == 0
    assert len(starts(start.folder)) == 2


def test_too_few_open_files_are_an_input_error(tmp_path):
    result = subprocess.run(
        [
            *("sh", "-c", 'ulimit -n 20; exec "$@"', "sh"),
            *(sys.executable, "-m", "mnist_dist", "launch", "--num_workers=30"),
            *("--", f"--model_dir={tmp_path}/run"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "--num_workers: found 30, more than this process may start" in line
    assert "ulimit -n" in line


POISON = """
wait_for_all()
if rank == 1:
    raise ValueError("poison of attempt %d" % attempt)
time.sleep(0.1)
sys.exit(143)
"""


def test_poison_job_stops_after_max_restarts_with_the_first_traceback_last(start):
    code, _, errors = finish(start(POISON, max_restarts=2))
    assert code == 1
    assert sorted(starts(start.folder)) == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert errors.count("restart 1 of 2") == errors.count("restart 2 of 2") == 1
    lines = errors.splitlines()
    assert lines[-1] == "ValueError: poison of attempt 2"
    last = max(i for i, line in enumerate(lines) if line.startswith("launch:"))
    assert "worker 1 failed first, with code 1" in lines[last]
    assert lines[last + 1] == "Traceback (most recent call last):"


def test_failure_is_named_though_one_that_lost_it_ended_first(start):
    text = """
    wait_for_all()
    if rank == 1:
        time.sleep(0.5)
        sys.exit("the cause")
    sys.exit(143)
    """
    code, _, errors = finish(start(text))
    assert code == 1
    assert errors.splitlines()[-1] == "the cause"


def test_restart_after_failure_ends_well(start):
    text = """
    wait_for_all()
    if rank == 0 and attempt == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if attempt == 0:
        time.sleep(60)
    """
    began = time.monotonic()
    code, _, errors = finish(start(text, max_restarts=1))
    assert code == 0
    assert "worker 0 ended with code 137; restart 1 of 1" in errors
    assert time.monotonic() - began < 10
    first = starts(start.folder)
    assert first["0.0"]["workers"] != first["0.1"]["workers"]


LOSING = """
wait_for_all()
if len(workers) > 1 and rank == 1:
    sys.exit("lost for good")
time.sleep(0.1)
sys.exit(143 if len(workers) > 1 else 0)
"""


def test_worker_that_fails_twice_in_a_row_is_given_up(start):
    env = {"CUDA_VISIBLE_DEVICES": "4,5,6"}
    options = {"num_workers": 3, "min_workers": 1, "max_restarts": 9}
    code, _, errors = finish(start(LOSING, env=env, **options))
    assert code == 0
    found = starts(start.folder)
    assert [len(found[f"0.{n}"]["workers"]) for n in range(5)] == [3, 3, 2, 2, 1]
    assert errors.count("worker 1 ended with code 1 and is given up") == 2
    assert errors.count("; restart") == 2
    # The others keep what they have: their own GPUs, and as many threads.
    gpus = [found[f"{r}.2"]["env"]["CUDA_VISIBLE_DEVICES"] for r in range(2)]
    assert gpus == ["4", "6"]
    threads = {s["env"]["TF_NUM_INTRAOP_THREADS"] for s in found.values()}
    assert len(threads) == 1


def test_no_more_workers_are_given_up_than_told(start):
    options = {"num_workers": 3, "min_workers": 2, "max_restarts": 2}
    code, _, errors = finish(start(LOSING, **options))
    assert code == 1
    counts = [len(starts(start.folder)[f"0.{n}"]["workers"]) for n in range(4)]
    assert counts == [3, 3, 2, 2]
    assert errors.splitlines()[-1] == "lost for good"


def test_wrong_input_is_never_tried_again(start):
    text = """
    print("train: error: what was wrong", file=sys.stderr)
    sys.exit(2 if rank == 1 else 143)
    """
    code, _, errors = finish(start(text, max_restarts=5))
    assert code == 2
    assert "restart" not in errors
    assert errors.splitlines()[-1] == "train: error: what was wrong"
    assert sorted(starts(start.folder)) == ["0.0", "1.0"]


def test_delay_grows_without_new_checkpoints(start, tmp_path):
    text = """
    if attempt == 2:
        (folder.parent / "checkpoints").mkdir()
        (folder.parent / "checkpoints" / "ckpt-1.index").touch()
    sys.exit(1)
    """
    _, _, errors = finish(start(text, num_workers=1, max_restarts=4))
    delays = [line.split(" in ")[1] for line in errors.splitlines() if " in " in line]
    assert delays == ["0.1 s", "0.2 s", "0.05 s", "0.1 s"]


STOPPABLE = """
def stop(number, frame):
    (folder.parent / f"told-{rank}").write_text(str(number))
    sys.exit(143)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, stop)
print("ready", flush=True)
while True: time.sleep(0.01)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_passed_on_and_ends_all_without_restart(start, tmp_path, number):
    process = start(STOPPABLE, max_restarts=3)
    assert {process.stdout.readline() for _ in range(2)} == {
        "[0] ready\n",
        "[1] ready\n",
    }
    process.send_signal(number)
    assert finish(process)[0] == 143
    assert len(starts(start.folder)) == 2
    for rank in range(2):
        assert (tmp_path / f"told-{rank}").read_text() == str(int(number))


STUBBORN = """
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
child = os.fork()
if child == 0:
    (folder / f"child-{rank}").write_text(json.dumps({"pid": os.getpid()}))
while True: time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_whatever_ends_the_launcher_leaves_no_orphans(start, number):
    process = start(STUBBORN)
    wait_for(lambda: len(list(start.folder.iterdir())) == 4)
    time.sleep(0.1)
    pids = [s["pid"] for s in starts(start.folder).values()]
    assert all(map(is_alive, pids))
    process.send_signal(number)
    process.wait(timeout=15)
    wait_for(lambda: not any(map(is_alive, pids)), seconds=5)


def test_second_signal_kills_at_once(start):
    process = start(STUBBORN, stop_seconds=1000.0)
    wait_for(lambda: len(list(start.folder.iterdir())) == 4)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert not any(is_alive(s["pid"]) for s in starts(start.folder).values())


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_worker_that_dies_of_the_signal_is_stopped_too(start, number):
    process = start("print('ready', flush=True)\nwhile True: time.sleep(0.01)")
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(number)
    assert finish(process)[0] == 143


@pytest.mark.parametrize("output", ["full disk", "closed pipe"])
def test_output_that_nobody_takes_ends_no_worker(output, tmp_path):
    # In the place of Python, which the program would start `train` with.
    worker = tmp_path / "worker.sh"
    worker.write_text(
        "#!/bin/sh\nfor i in 1 2 3; do echo $i; sleep 0.1; done\n"
        f"echo done >>{tmp_path}/done\n"
    )
    worker.chmod(0o755)
    code = (
        f"import runpy, sys; sys.executable = {str(worker)!r}\n"
        f"sys.argv = ['launch', '--', '--model_dir={tmp_path}/run']\n"
        "runpy.run_module('mnist_dist.launch', run_name='__main__', alter_sys=True)\n"
    )
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=full if output == "full disk" else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    if process.stdout:
        process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 0, errors
    assert (tmp_path / "done").read_text() == "done\n" * 2


def test_hosts_agree_on_all_workers(start):
    master = ("127.0.0.1", free_port())
    hosts = [
        start("", hosts=HostsOptions(2, 2, r, master, 20.0), num_workers=n)
        for r, n in ((1, 1), (0, 2))
    ]
    assert [finish(p)[0] for p in hosts] == [0, 0]
    found = starts(start.folder)
    assert sorted(found) == ["0.0", "1.0", "2.0"]
    assert len({tuple(s["workers"]) for s in found.values()}) == 1
    assert len(set(found["0.0"]["workers"])) == 3


@pytest.mark.parametrize("node_rank", [0, 1])
def test_signal_ends_the_wait_for_other_hosts(start, node_rank):
    process = start("", hosts=HostsOptions(2, 2, node_rank, ("127.0.0.1", free_port())))
    wait_for(lambda: handles(process.pid, signal.SIGTERM))
    process.send_signal(signal.SIGTERM)
    assert "stopped while waiting for the other hosts" in finish(process)[2]
    assert not starts(start.folder)


def test_command_is_split_at_the_first_two_dashes():
    assert split_command(["l", "--a", "--", "--b", "--"]) == (
        ["l", "--a"],
        ["--b", "--"],
    )
    assert split_command(["l", "--a"]) == (["l", "--a"], [])
