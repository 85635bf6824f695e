"""The table of docs/reproducibility.md, shorter: one value on all sets of devices."""

from pathlib import Path

import same_bits
from same_bits import Way
from small_mnist import small_mnist

STEPS = 80


def test_run_that_is_killed_and_spread_otherwise_ends_as_on_one_device(
    fork_server, tmp_path
):
    def start(num_replicas, train_flags):
        return fork_server.start(
            "same_bits_worker",
            *(str(num_replicas), *train_flags, f"--data_dir={small_mnist()}"),
            folder=Path(same_bits.__file__).parent,
            environment=same_bits.ENVIRONMENT,
        )

    flags = same_bits.train_flags("mixed", "float32", steps=STEPS)
    one, killed = tmp_path / "one", tmp_path / "killed"
    same_bits.train(Way(), one, flags, start=start)
    same_bits.train_with_kills(
        killed,
        flags,
        ways=[Way(2, 2), Way(1, 2)],
        steps=STEPS,
        kills=1,
        start=start,
    )
    expected = same_bits.digest(one, step=STEPS)
    assert same_bits.digest(killed, step=STEPS) == expected
