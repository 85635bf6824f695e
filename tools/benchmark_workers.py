"""Times a step of two workers on this host: ours against PyTorch's DDP with gloo.

  python tools/benchmark_workers.py [--rounds=5]     (needs PyTorch: pip install torch)

Both train the same perceptron from the same weights and batches (Adam 1e-3, global batch
256, data in memory), and must reach the same loss. Then they take turns. It prints
milliseconds a step of the first worker (median of the rounds) and the ratio (median and
range).
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from mnist_dist.cli import program
from mnist_dist.data import load_dataset

ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
PEER = flags.DEFINE_enum("peer", None, ["ours", "ddp"], "Be a worker of this peer.")
RANK = flags.DEFINE_integer("rank", 0, "Of this worker.")
ADDRESSES = flags.DEFINE_list("addresses", [], "host:port of both.")
FOLDER = flags.DEFINE_string("folder", "", "Where the first worker's result goes.")
BATCH, WARM_UP, STEPS, LEARNING_RATE = 256, 100, 600, 1e-3


def time_ours() -> dict[str, float]:
    """Runs a worker of ours."""
    with program.quiet_imports():
        import tensorflow as tf

        from mnist_dist.cluster.membership import Cluster
        from mnist_dist.device.strategy import create_strategy
        from mnist_dist.device.train_loop import create_train_loop
        from mnist_dist.device.train_state import TrainState
        from mnist_dist.modeling.losses import cross_entropy
        from mnist_dist.modeling.networks import create_model
        from mnist_dist.modeling.optimizers import create_schedule, create_update_rule
    dataset = load_dataset()
    strategy = create_strategy(
        cluster=Cluster("benchmark", tuple(ADDRESSES.value), RANK.value)
    )
    rule = create_update_rule("adam")
    with strategy.scope():
        model = create_model("mlp", image_shape=(28, 28, 1), num_classes=10, seed=1)
        state = TrainState(model, slot_names=rule.slots)
    loop = create_train_loop(
        strategy,
        state,
        update_rule=rule,
        schedule=create_schedule(
            "constant", learning_rate=LEARNING_RATE, total_steps=STEPS
        ),
        global_batch_size=BATCH,
        seed=1,
        use_xla=True,
    )
    images = tf.constant(dataset.train.images)
    labels = tf.constant(dataset.train.labels)
    indices = batch_indices(len(dataset.train.labels))

    def run(first: int, num_steps: int) -> float:
        rows = np.zeros_like(indices)
        rows[:num_steps] = indices[first : first + num_steps]
        began = time.perf_counter()
        loop(
            images,
            labels,
            tf.constant(rows),
            tf.constant(num_steps),
            tf.zeros([2]),
        )
        state.step.numpy()
        return time.perf_counter() - began

    run(0, WARM_UP)
    seconds = run(WARM_UP, STEPS)
    test = dataset.test.images[:1000].astype(np.float32) / 255.0
    loss = cross_entropy(model(test, training=False), dataset.test.labels[:1000])
    return {"milliseconds": 1e3 * seconds / STEPS, "loss": float(np.mean(loss))}


def time_ddp() -> dict[str, float]:
    """Runs a worker of DistributedDataParallel."""
    import torch
    import torch.distributed

    host, _, port = ADDRESSES.value[0].partition(":")
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": port}
    torch.distributed.init_process_group("gloo", rank=RANK.value, world_size=2)
    dataset = load_dataset()
    hidden, output = torch.nn.Linear(784, 128), torch.nn.Linear(128, 10)
    model = torch.nn.Sequential(torch.nn.Flatten(), hidden, torch.nn.ReLU(), output)
    start = np.load(os.path.join(FOLDER.value, "start.npz"))
    with torch.no_grad():
        for number, layer in ((1, hidden), (2, output)):
            layer.weight.copy_(torch.tensor(start[f"kernel_{number}"].T))
            layer.bias.zero_()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=1e-7)
    images = torch.tensor(dataset.train.images)
    labels = torch.tensor(dataset.train.labels.astype(np.int64))
    half = BATCH // 2
    mine = slice(RANK.value * half, (RANK.value + 1) * half)
    indices = torch.tensor(batch_indices(len(labels))[:, mine].astype(np.int64))

    def run(first: int, num_steps: int) -> float:
        began = time.perf_counter()
        for row in indices[first : first + num_steps]:
            optimizer.zero_grad()
            logits = parallel(images[row].float() / 255.0)
            torch.nn.functional.cross_entropy(logits, labels[row]).backward()
            optimizer.step()
        return time.perf_counter() - began

    run(0, WARM_UP)
    seconds = run(WARM_UP, STEPS)
    with torch.no_grad():
        test = torch.tensor(dataset.test.images[:1000]).float() / 255.0
        targets = torch.tensor(dataset.test.labels[:1000].astype(np.int64))
        loss = torch.nn.functional.cross_entropy(model(test), targets)
    torch.distributed.barrier()
    return {"milliseconds": 1e3 * seconds / STEPS, "loss": float(loss)}


def batch_indices(num_examples: int) -> np.ndarray:
    """Returns int32 [steps, global batch], the same for both peers."""
    total = (WARM_UP + STEPS) * BATCH
    order = np.random.default_rng(1).permutation(num_examples).astype(np.int32)
    return np.resize(order, total).reshape(-1, BATCH)


def run_peer(peer: str, folder: str) -> dict[str, float]:
    """Starts both workers of a peer; returns the first one's result."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for free in sockets:
        free.close()
    workers = [
        subprocess.Popen(
            [
                *(sys.executable, __file__, f"--peer={peer}", f"--rank={rank}"),
                *(f"--addresses={','.join(addresses)}", f"--folder={folder}"),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # two workers, two cores
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    if any(worker.wait() for worker in workers):
        raise RuntimeError(f"a worker of {peer} failed")
    with open(os.path.join(folder, f"{peer}.json"), encoding="utf-8") as file:
        return json.load(file)


def save_start(folder: str) -> None:
    """Writes the weights that both start from."""
    with program.quiet_imports():
        from mnist_dist.modeling.networks import create_model
    model = create_model("mlp", image_shape=(28, 28, 1), num_classes=10, seed=1)
    kernels = {f"kernel_{i}": model.weights[2 * i - 2].numpy() for i in (1, 2)}
    np.savez(os.path.join(folder, "start.npz"), **kernels)


def main(argv: list[str]) -> int:
    """Compares the two, or is a worker of one."""
    del argv
    if PEER.value:
        result = time_ours() if PEER.value == "ours" else time_ddp()
        if RANK.value == 0:
            path = os.path.join(FOLDER.value, f"{PEER.value}.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump(result, file)
        sys.stdout.flush()
        time.sleep(1)  # a worker that leaves early is an error to the other
        os._exit(0)
    with tempfile.TemporaryDirectory() as folder:
        save_start(folder)
        rounds = [
            {peer: run_peer(peer, folder) for peer in ("ours", "ddp")}
            for _ in range(ROUNDS.value)
        ]
    losses = [peer["loss"] for turn in rounds for peer in turn.values()]
    print(f"losses {min(losses):.4f} to {max(losses):.4f}")
    if max(losses) > 1.02 * min(losses):
        print("these are not the same computation")
        return 1
    for peer, name in (("ours", "mnist_dist"), ("ddp", "PyTorch DDP, gloo")):
        times = [turn[peer]["milliseconds"] for turn in rounds]
        print(f"  {name:<20}{statistics.median(times):6.2f} ms a step")
    ratios = [t["ddp"]["milliseconds"] / t["ours"]["milliseconds"] for t in rounds]
    print(
        f"  DDP takes {statistics.median(ratios):.2f} times as long as ours "
        f"({min(ratios):.2f}-{max(ratios):.2f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
