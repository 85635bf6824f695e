"""Ends the process after a time limit, also while no Python code can run."""

import contextlib
import ctypes
from collections.abc import Iterator

_SIGEV_THREAD = 2


@contextlib.contextmanager
def exits_unless_done_within(seconds: float, *, code: int) -> Iterator[None]:
    """Ends the process with `code` if the block takes longer.

    While TensorFlow connects the workers no Python thread runs and no signal is
    handled, so the C library's timer does it.
    """
    librt = ctypes.CDLL("librt.so.1", use_errno=True)
    timer = ctypes.c_void_p()
    event = _SigEvent(value=code, notify=_SIGEV_THREAD)
    event.function = ctypes.cast(librt._exit, ctypes.c_void_p)
    # 1 is CLOCK_MONOTONIC. The four numbers are struct itimerspec: interval, value.
    if librt.timer_create(1, ctypes.byref(event), ctypes.byref(timer)):
        raise OSError(ctypes.get_errno(), "timer_create")
    spec = (ctypes.c_long * 4)(0, 0, int(seconds), int(seconds % 1 * 1e9))
    librt.timer_settime(timer, 0, ctypes.byref(spec), None)
    try:
        yield
    finally:
        librt.timer_delete(timer)


class _SigEvent(ctypes.Structure):
    """`struct sigevent` of the C library, 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_long),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_byte * 32),
    )
