"""How workers part, in processes of their own."""

import os
import time

import pytest

from mnist_dist.device import peers


@pytest.mark.parametrize("code", [0, 143])
def test_worker_that_waits_in_vain_for_the_others_end_ends_as_it_would(code):
    child = os.fork()
    if child == 0:
        signs = iter([lambda: None, lambda: time.sleep(60)])
        peers._LEAVING_SECONDS = 0.2
        peers._has_peers = lambda strategy: True
        peers._from_chief = lambda strategy, words: next(signs)()
        peers.leave_together(None, code=code)
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
