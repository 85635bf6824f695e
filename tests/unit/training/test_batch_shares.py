import json

import pytest

from mnist_dist.errors import InputError
from mnist_dist.training.batch_shares import BatchShares
from mnist_dist.training.options import TrainingOptions


def fitting(shares):
    return [n for n in range(1, 10) if shares.fits(n)]


def test_workers_fit_batch_and_microbatches():
    assert fitting(BatchShares(48, 0, 1)) == [1, 2, 3, 4, 6, 8]
    assert fitting(BatchShares(48, 6, 1)) == [1, 2, 3, 6]
    assert fitting(BatchShares(48, 6, 2)) == [1, 3]
    with pytest.raises(InputError, match="found 6 for a global batch of 48 on 4"):
        BatchShares(48, 6, 2).check(2)


def test_what_was_not_given_is_as_the_run_began(tmp_path):
    def read(given=(), **options):
        options = TrainingOptions(model_dir=str(tmp_path), **options)
        return BatchShares.of_run(options, set(given), replicas_each=1)

    assert read() == BatchShares(128, 0, 1)
    settings = {"global_batch_size": 48, "num_microbatches": 6}
    config = {"settings": settings, "flags": {}, "resolved": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read() == BatchShares(48, 6, 1)
    found = read(given={"num_microbatches"}, num_microbatches=16)
    assert found == BatchShares(48, 16, 1)
    assert read(restore="none") == BatchShares(128, 0, 1)
