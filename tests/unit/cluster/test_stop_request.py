"""Signals, in processes of their own: a handler belongs to all of one."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mnist_dist.cluster.stop_request import STOP_SIGNALS


def run(text, *, ignored=()):
    """Runs a program that has a StopRequest `stop`; returns what it printed."""
    prelude = """
    import os, signal, threading
    from mnist_dist.cluster.stop_request import STOP_SIGNALS, StopRequest
    stop = StopRequest()
    """

    def set_signals():
        for number in STOP_SIGNALS:
            is_ignored = number in ignored
            signal.signal(number, signal.SIG_IGN if is_ignored else signal.SIG_DFL)

    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(text)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=set_signals,
    )
    return result.returncode, result.stdout.splitlines(), result.stderr


def test_signal_before_listen_is_lost_to_no_other_handler_and_no_thread():
    code, output, errors = run(
        """
        for number in STOP_SIGNALS:
            with StopRequest() as stop:
                end = threading.Event()
                threading.Thread(target=end.wait).start()
                signal.signal(number, lambda *_: print("lost"))
                os.kill(os.getpid(), number)
                print(stop.signal_name)
                stop.listen()
                print(stop.is_made(), stop.signal_name)
                end.set()
        """
    )
    assert (code, errors) == (0, "")
    names = ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"]
    assert output == [line for n in names for line in ("None", f"True {n}")]


def test_signal_before_listen_makes_the_request():
    code, output, errors = run(
        """
        with stop:
            print(stop.is_made())
            os.kill(os.getpid(), signal.SIGTERM)
            print(stop.is_made(), stop.signal_name)
        """
    )
    assert (code, output, errors) == (0, ["False", "True SIGTERM"], "")


def test_first_sigint_is_noted_and_the_second_interrupts():
    code, output, errors = run(
        """
        with stop:
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


def test_hangup_that_is_ignored_as_under_nohup_stays_so():
    code, output, errors = run(
        """
        with stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.listen()
            os.kill(os.getpid(), signal.SIGHUP)
            print(stop.is_made())
        """,
        ignored=[signal.SIGHUP],
    )
    assert (code, output, errors) == (0, ["False"], "")


@pytest.mark.parametrize("how", ["listened", "never listened", "raised"])
def test_leaving_puts_handlers_and_mask_back(how):
    code, output, errors = run(
        f"""
        def mine(number, frame): pass
        signal.signal(signal.SIGTERM, mine)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        def state():
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
            return [signal.getsignal(n) for n in STOP_SIGNALS], mask
        before = state()
        for _ in range(2):  # one run after the other
            try:
                with StopRequest() as stop:
                    if {how != "never listened"}:
                        stop.listen()
                    if {how == "raised"}:
                        raise ValueError
            except ValueError:
                pass
            print(state() == before)
        """
    )
    assert (code, output, errors) == (0, ["True", "True"], "")


def test_other_thread_notes_no_signals_and_is_stopped_by_request():
    code, output, errors = run(
        """
        ready = threading.Event()
        def train():
            with stop:
                stop.listen()
                ready.set()
                while not stop.is_made():
                    pass
                print(stop.signal_name)
        thread = threading.Thread(target=train)
        thread.start()
        ready.wait()
        print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        stop.request("the notebook")
        thread.join()
        """
    )
    assert (code, output, errors) == (0, ["True", "set()", "the notebook"], "")


def test_signal_ends_a_program_that_is_process_1_of_a_container():
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode:
        pytest.skip("a namespace of processes needs root")
    program = """if True:
        import os, time
        from mnist_dist.cli import program
        def main(argv):
            print(os.getpid(), flush=True)
            time.sleep(60)
        program.run(main)
    """
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "1\n"
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    os.kill(int(Path(children).read_text()), signal.SIGTERM)
    assert process.wait(timeout=20) == 143
