"""Hosts on one machine: network namespaces, each with a network card of its own."""

import contextlib
import os
import shutil
import subprocess

import pytest


class SeparateHosts:
    """Namespaces joined by a switch.

    Attributes:
      names: of the namespaces, as `ip netns` knows them.
      addresses: of the hosts.
    """

    def __init__(self, count: int) -> None:
        self.names = [f"mnist-{os.getpid()}-{i}" for i in range(count)]
        self.addresses = [f"10.77.0.{i + 1}" for i in range(count)]
        self._switch = f"mnist-{os.getpid()}-switch"
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        for i, (name, address) in enumerate(
            zip(self.names, self.addresses, strict=True)
        ):
            _ip("netns", "add", name)
            _ip(
                *("link", "add", "eth0", "netns", name, "type", "veth"),
                *("peer", "name", f"port{i}", "netns", self._switch),
            )
            _ip("-n", self._switch, "link", "set", f"port{i}", "master", "switch", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            self.connect(i)

    def connect(self, host: int) -> None:
        """Plugs a host's cable in."""
        _ip("-n", self.names[host], "link", "set", "eth0", "up")

    def cut(self, host: int) -> None:
        """Pulls a host's cable."""
        _ip("-n", self.names[host], "link", "set", "eth0", "down")

    def close(self) -> None:
        """Removes all."""
        for name in [*self.names, self._switch]:
            with contextlib.suppress(OSError):
                _ip("netns", "delete", name)


@contextlib.contextmanager
def separate_hosts(count: int):
    """Gives so many hosts to a test, or skips it where there can be none."""
    if not shutil.which("ip"):
        pytest.skip("no ip: tools/test.sh --system-packages installs iproute2")
    try:
        hosts = SeparateHosts(count)
    except OSError as error:
        pytest.skip(f"network namespaces need root: {error}")
    try:
        yield hosts
    finally:
        hosts.close()


def _ip(*arguments: str) -> None:
    result = subprocess.run(
        ["ip", *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise OSError(result.stderr)
