"""The line of progress, on a real terminal (a pty, drawn by pyte) and elsewhere."""

import contextlib
import errno
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pyte
import pytest

from mnist_dist.training.progress import Progress

# Steps 1 to 5, a message after 2, a log message after 4.
RUN = """
import itertools, sys, time
from absl import logging
from mnist_dist.training.progress import Progress

progress = Progress(
    total_steps=5000, stream=sys.stdout, clock=itertools.count(0).__next__
)
for step in range(1, 6):
    progress.update(
        step=step * 100, epoch=step / 2, loss=1 / step, accuracy=0.5 + step / 100,
        images_per_second=12345.6,
    )
    if step == 2:
        progress.message("step 200  test accuracy 51.00%")
    if step == 4:
        logging.warning("the disk is slow")
progress.close()
print("the end")
"""
LAST = (
    "step 500/5,000  0:45 left  epoch 2.50  loss 0.2000  accuracy 55.00%  "
    "12,346 images/s"
)


def run_on_terminal(program, *, columns, env=(), rows=30):
    """Runs a program on a terminal.

    Returns:
      What its person sees at the end, line by line, and what it wrote.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm"} | dict(env),
    )
    os.close(slave)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while data := os.read(master, 65536):
            written += data
    os.close(master)
    assert process.wait() == 0, written
    screen = pyte.Screen(columns, rows)
    pyte.ByteStream(screen).feed(written)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines, written


def test_terminal_shows_one_line_and_what_was_said_above_it():
    lines, written = run_on_terminal(RUN, columns=100)
    assert lines[0] == "step 200  test accuracy 51.00%"
    assert lines[1].endswith("the disk is slow")
    assert lines[1].startswith("W")
    assert lines[2:] == [LAST, "the end"]
    assert written.count(b"step ") > 5  # it was there all the time


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (len(LAST) + 1, LAST),
        (len(LAST), LAST.rpartition("  ")[0]),
        (30, "step 500/5,000  0:45 left"),
        (16, "step 500/5,000"),
        (8, ""),
        (1, ""),
    ],
)
def test_line_never_wraps_nor_shows_half_a_number(columns, expected):
    without_messages = RUN.replace("step == 2", "False").replace("step == 4", "False")
    without_messages = without_messages.replace('print("the end")', "")
    lines, _ = run_on_terminal(without_messages, columns=columns)
    assert lines == ([expected] if expected else [])


def test_terminal_that_cannot_clear_a_line_gets_plain_lines():
    _, written = run_on_terminal(RUN, columns=100, env={"TERM": "dumb"})
    assert b"\x1b" not in written
    assert written.decode().splitlines()[-2:] == [LAST, "the end"]


def test_no_line_is_lost_at_the_end_of_a_narrow_terminal():
    lines, _ = run_on_terminal(RUN, columns=20, rows=30)
    assert lines[-2:] == ["step 500/5,000", "the end"]


def update(progress, step):
    progress.update(
        step=step, epoch=0.5, loss=0.25, accuracy=0.5, images_per_second=1000
    )


def test_plain_lines_are_few():
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(total_steps=100, stream=stream, clock=lambda: now[0])
    for step in range(1, 51):
        now[0] += 1.0
        update(progress, step)
    progress.message("evaluated")
    progress.close()
    lines = stream.getvalue().splitlines()
    steps = [int(line.split()[1].split("/")[0]) for line in lines if "loss" in line]
    assert steps == [1, 11, 21, 31, 41, 50]
    assert "step 50/100  0:50 left" in stream.getvalue()
    assert "evaluated" in lines
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_time_left_is_not_shown_before_the_speed_is_known():
    now = [0.0]
    stream = io.StringIO()
    progress = Progress(total_steps=8000, stream=stream, clock=lambda: now[0])
    now[0] += 60.0  # of compiling, before and in the first call
    update(progress, 4001)
    assert "left" not in stream.getvalue()
    now[0] += 10.0
    update(progress, 4401)
    assert "step 4,401/8,000  1:30 left" in stream.getvalue()


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("I/O operation on closed file"),
    ],
)
def test_output_that_fails_does_not_end_the_run(error):
    tried = []

    class Lost(io.StringIO):
        def write(self, text):
            tried.append(text)
            raise error

    progress = Progress(total_steps=10, stream=Lost())
    update(progress, 1)
    progress.message("evaluated")
    progress.close()
    assert tried


def test_sign_that_the_stream_lacks_is_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    progress = Progress(total_steps=10, stream=stream)
    progress.message("Größe ✓")
    update(progress, 1)
    progress.close()
    lines = raw.getvalue().decode("ascii").splitlines()
    assert lines[0] == r"Gr\xf6\xdfe \u2713"
    assert lines[1].startswith("step 1/10")


def test_no_stream_shows_nothing():
    progress = Progress(total_steps=10, stream=None)
    update(progress, 1)
    progress.message("evaluated")
    progress.close()
