"""Signals, in processes of their own: a handler belongs to all of one."""

import subprocess
import sys
import textwrap

import pytest


def run(text):
    """Runs a program that has a StopRequest `stop`; returns what it printed."""
    prelude = """
    import os, signal, threading
    from mnist_dist.cluster.stop_request import StopRequest
    stop = StopRequest()
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(text)],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout.splitlines(), result.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signal_before_listen_is_lost_to_no_other_handler_and_no_thread(name):
    code, output, errors = run(
        f"""
        end = threading.Event()
        threading.Thread(target=end.wait).start()
        signal.signal(signal.{name}, lambda *_: print("lost"))
        print(stop.is_made())
        os.kill(os.getpid(), signal.{name})
        print(stop.is_made(), stop.signal_name)
        stop.listen()
        print(stop.is_made(), stop.signal_name)
        end.set()
        """
    )
    assert (code, errors) == (0, "")
    assert output == ["False", "True None", f"True {name}"]


def test_first_sigint_is_noted_and_the_second_interrupts():
    code, output, errors = run(
        """
        stop.listen()
        os.kill(os.getpid(), signal.SIGINT)
        print(stop.signal_name, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print("not reached")
        """
    )
    assert code != 0
    assert output == ["SIGINT"]
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
