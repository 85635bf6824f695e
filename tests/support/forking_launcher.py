"""The launcher, whose workers are forks of it, in place of new interpreters.

  python tests/support/forking_launcher.py JSON --model_dir=DIR FLAGS OF train

JSON holds keywords of `launch`, as {"num_workers": 2, "hosts": {"least": 2, "most": 3}}.

Forked is all that differs: processes, pipes, signals and restarts are the launcher's
own.
"""

import json
import os
import signal
import subprocess
import sys

from forked import import_everything, run_module

from mnist_dist.cluster import restarts, worker_group
from mnist_dist.cluster.launcher import launch
from mnist_dist.cluster.rendezvous import HostsOptions


class ForkingPopen(subprocess.Popen):
    """Runs modules of Python in a fork, and other commands as ever."""

    def __init__(self, command, *, preexec_fn=None, env=None, **options):
        def run_here():
            preexec_fn()
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.SIG_DFL)
            os.environ.update(env)
            run_module(command[2], command[3:])

        is_module = command[:2] == [sys.executable, "-m"]
        super().__init__(
            command,
            preexec_fn=run_here if is_module else preexec_fn,
            env=env,
            **options,
        )


if __name__ == "__main__":
    import_everything()
    subprocess.Popen = ForkingPopen
    restarts.FIRST_DELAY = 0.1
    worker_group.LOST_SECONDS = 0.5
    text, model_dir, *flags = sys.argv[1:]
    keywords = {"num_workers": 2, "max_restarts": 0, "uses_gpus": False}
    keywords |= json.loads(text)
    master = keywords.get("hosts", {}).get("master")
    if master:
        keywords["hosts"]["master"] = tuple(master)
    keywords["hosts"] = HostsOptions(**keywords.get("hosts", {}))
    sys.exit(
        launch(
            [sys.executable, "-m", "mnist_dist.train", model_dir, *flags],
            **keywords,
            model_dir=model_dir.removeprefix("--model_dir="),
        )
    )
