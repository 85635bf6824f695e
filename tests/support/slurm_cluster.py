"""A real Slurm of four nodes on this host, for tests; needs root and the packages.

Nodes are daemons of their own (`slurmd -N n1`), which Debian's build allows on one
host. Everything lies in one folder and ends with `close`. Several clusters may run at
once, if each has a number of its own.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "setpriv")
NODES = ("n1", "n2", "n3", "n4")
CONFIG = """
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={first_job}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
JobRequeue=1
{requeue_exit}
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=3
SlurmdParameters=config_overrides
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{port}1-{port}4] CPUs=4 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=00:30:00 State=UP
"""


def missing() -> str | None:
    """Says what keeps Slurm from running here, or None."""
    path = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if absent:
        return (
            f"no {', '.join(absent)}: on Debian as root, tools/test.sh "
            "--system-packages installs a real Slurm"
        )
    if os.geteuid() != 0:
        return "Slurm's daemons need root here"
    return None


class SlurmCluster:
    """The daemons, and what a user does with them.

    Attributes:
      environ: the environment in which Slurm's commands find this cluster.
    """

    def __init__(
        self, folder: Path, *, number: int = 0, requeue_exit: bool = True
    ) -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: dict[str, subprocess.Popen] = {}
        folder.chmod(0o755)
        for name in ("munge", "state", "run", "log", *(f"spool-{n}" for n in NODES)):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            CONFIG.format(
                host=socket.gethostname().split(".")[0],
                folder=folder,
                port=1681 + number,
                first_job=1 + 50 * number,  # whose ports no other cluster's jobs take
                requeue_exit="RequeueExit=143" if requeue_exit else "",
            )
        )
        self._start_munge()
        self._start("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self.wait_until(
            lambda: self.command("sinfo", "-h", "-o%t%D") == f"idle{len(NODES)}\n"
        )

    def start_node(self, node: str) -> None:
        self._start("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """Kills a node's daemon and all its jobs' processes, as a power cut does."""
        self._daemons.pop(node).kill()
        # Its job steps are no children of it, but write to its log.
        log = f"slurmd-{node}.log"
        for pid in [p for p in _pids() if "slurmstepd" in _read(p, "cmdline")]:
            if log in _open_files(pid):
                _kill(pid)
        for pid in _pids():
            if f"SLURMD_NODENAME={node}\0" in _read(pid, "environ"):
                _kill(pid)

    def command(self, *command: str, check: bool = True) -> str:
        result = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=60
        )
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr}")
        return result.stdout

    def submit(self, *arguments: str, cwd: Path, **environ: str) -> int:
        """Calls `sbatch`; returns the job's number."""
        result = subprocess.run(
            ["sbatch", "--parsable", *arguments],
            env={**self.environ, **environ},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if result.returncode:
            raise RuntimeError(result.stderr)
        return int(result.stdout)

    def job(self, number: int) -> dict[str, str]:
        """What `scontrol show job` says, by field."""
        text = self.command("scontrol", "--oneliner", "show", "job", str(number))
        return dict(re.findall(r"(\w[\w:/]*)=(\S*)", text))

    def wait_until(self, condition, *, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = [p.read_text()[-3000:] for p in self.folder.glob("log/*.log")]
                raise TimeoutError("\n".join(logs))
            time.sleep(0.2)

    def close(self) -> None:
        self.command("scancel", "--user=root", "--signal=KILL", check=False)
        for daemon in self._daemons.values():
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def _start(self, program: str, *arguments: str, name: str | None = None) -> None:
        self._daemons[name or program] = subprocess.Popen(
            [program, *arguments, "-f", str(self.folder / "slurm.conf")],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        for path in (folder, folder / "munge.key"):
            shutil.chown(path, "munge", "munge")
        folder.chmod(0o711)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log"}
        files |= {"seed-file": "seed", "key-file": "key"}
        self._daemons["munged"] = subprocess.Popen(
            [
                *("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"),
                *("munged", "--force", "--foreground"),
                *(f"--{flag}={folder}/munge.{end}" for flag, end in files.items()),
            ],
            env=self.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.wait_until((folder / "munge.socket").exists)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _open_files(pid: int) -> str:
    try:
        links = os.listdir(f"/proc/{pid}/fd")
        return " ".join(os.readlink(f"/proc/{pid}/fd/{link}") for link in links)
    except OSError:
        return ""
