"""How workers part, in processes of their own, and how the loss of one is known."""

import os
import time
import types

import pytest
import tensorflow as tf

from mnist_dist.device import peers
from mnist_dist.errors import PeerError


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


# As TensorFlow's nccl_manager.cc and base_collective_executor.cc put NCCL's words into
# errors: no GPU has shown them here.
RAN = "Error invoking NCCL: {}"
ABORTED = (
    "Collective ops is aborted by: Error invoking NCCL: {}\nThe error could be from a "
    "previous operation. Restart your program to reset."
)
MET = "NCCL: {}. Set NCCL_DEBUG=WARN for detail."
NODE = "\n\t [[{{node while/body/CollectiveReduceV2}}]] [Op:__inference_run_812]"
# ncclGetErrorString of nccl/src/init.cc; versions differ in WARN and INFO.
HINT = "(run with NCCL_DEBUG={} for details)"
LOST = [
    "remote process exited or there was a network error",
    f"unhandled system error {HINT.format('INFO')}",
    f"unhandled system error {HINT.format('WARN')}",
    "unhandled system error",
    "internal error - please report this issue to the NCCL developers",
]
OWN = [
    f"unhandled cuda error {HINT.format('INFO')}",
    "unhandled cuda error",
    f"invalid argument {HINT.format('WARN')}",
    f"invalid usage {HINT.format('WARN')}",
    "unknown result code",
]


def raise_in_cluster(kind, text, *, num_workers):
    cluster = types.SimpleNamespace(num_workers=num_workers, rank=0)
    with peers.names_lost_peers(cluster):
        raise kind(None, None, text)


@pytest.mark.parametrize("words", LOST)
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (tf.errors.UnknownError, RAN),
        (tf.errors.UnknownError, ABORTED),
        (tf.errors.InternalError, MET),
    ],
)
def test_worker_that_nccl_misses_is_lost_and_nccls_words_are_told(words, kind, form):
    text = form.format(words)
    with pytest.raises(PeerError) as caught:
        raise_in_cluster(kind, text + NODE, num_workers=2)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("another worker is gone; ")
    assert f"({text.splitlines()[0]})" in line
    with pytest.raises(kind):  # two GPUs of one worker: nobody can be lost
        raise_in_cluster(kind, text + NODE, num_workers=1)


@pytest.mark.parametrize("words", OWN)
@pytest.mark.parametrize(
    ("kind", "form"),
    [(tf.errors.UnknownError, ABORTED), (tf.errors.InternalError, MET)],
)
def test_fault_of_ones_own_under_nccl_is_no_lost_worker(words, kind, form):
    with pytest.raises(kind):
        raise_in_cluster(kind, form.format(words) + NODE, num_workers=2)


@pytest.mark.parametrize(
    ("kind", "text", "is_loss"),
    [
        (tf.errors.UnknownError, "Failed to rename: Input/output error", False),
        (tf.errors.InternalError, "Blas GEMM launch failed", False),
        (tf.errors.InternalError, "Collective ops is aborted by: it", True),
        (tf.errors.UnavailableError, "Connection reset by peer", True),
        (tf.errors.ResourceExhaustedError, "OOM when allocating", False),
    ],
)
def test_other_errors_are_told_apart(kind, text, is_loss):
    with pytest.raises(PeerError if is_loss else kind):
        raise_in_cluster(kind, text, num_workers=2)
