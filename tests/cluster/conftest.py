"""What the tests of several processes share."""

import disturbed_run
import pytest


@pytest.fixture(scope="session")
def undisturbed(fork_server, tmp_path_factory):
    """The last checkpoint's arrays of `disturbed_run`, had nothing disturbed it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return disturbed_run.train_undisturbed(fork_server, folder)
