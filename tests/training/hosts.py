"""Several "hosts" on this machine, made of namespaces and joined by a switch.

A host has a network, a name, mounts (/dev/shm, /sys, /etc/hosts) and System V IPC of its own. Files
are shared, as over NFS. mpiexec reaches a host by entering it, in place of ssh. Needs root.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("node-a", "node-b", "node-c", "node-d")
_BOOT = """
set -e
hostname {name}
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /dev/shm
mount --bind {hosts} /etc/hosts
mount --bind {boot_id} /proc/sys/kernel/random/boot_id
touch {booted}
exec sleep 3600
"""


def missing() -> str | None:
    """Return why there can be no such hosts here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("ip", "unshare", "nsenter", "mount"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        return "cannot make namespaces"
    return None


class Hosts:
    """The hosts node-a, node-b and so on; `count` of them.

    Attributes:
        launch: flags of an mpiexec on node-a that starts processes on all.
    """

    def __init__(self, folder: Path, count: int = 2):
        self.folder = folder
        self.addresses = {NAMES[i]: f"10.77.0.{i + 1}" for i in range(count)}
        names = ["127.0.0.1 localhost", *(f"{ip} {name}" for name, ip in self.addresses.items())]
        (folder / "hosts").write_text("\n".join(names) + "\n")
        self._holders = {"switch": subprocess.Popen(["unshare", "--net", "sleep", "3600"])}
        for name in self.addresses:
            (folder / f"{name}.boot_id").write_bytes(
                Path("/proc/sys/kernel/random/uuid").read_bytes()
            )
            boot = _BOOT.format(
                name=name,
                hosts=folder / "hosts",
                boot_id=folder / f"{name}.boot_id",
                booted=folder / f"{name}.booted",
            )
            self._holders[name] = subprocess.Popen(
                ["unshare", "--net", "--uts", "--ipc", "--mount", "sh", "-c", boot]
            )
        self._until(lambda: all((folder / f"{name}.booted").exists() for name in self.addresses))
        own = os.readlink("/proc/self/ns/net")
        switch = self._holders["switch"].pid
        self._until(lambda: os.readlink(f"/proc/{switch}/ns/net") != own)
        self._ip("switch", "link add switch type bridge")
        self._ip("switch", "link set switch up")
        for name, address in self.addresses.items():
            host = self._holders[name].pid
            self._ip("switch", f"link add {name} type veth peer name cable netns {host}")
            self._ip("switch", f"link set {name} master switch up")
            for command in (
                "link set lo up",
                f"addr add {address}/24 dev cable",
                "link set cable up",
            ):
                self._ip(name, command)
        for name in self.addresses:  # UCX leaves out a device that is not up yet
            state = ["grep", "-q", "up", "/sys/class/net/cable/operstate"]
            self._until(lambda: not subprocess.run(self.command(name, *state)).returncode)  # noqa: B023
        enter = folder / "enter"
        cases = "".join(
            f"{ip}|{name}) host={self._holders[name].pid};; " for name, ip in self.addresses.items()
        )
        enter.write_text(
            f'#!/bin/sh\n[ "$1" = -x ] && shift\ncase $1 in {cases}esac\nshift\n'
            f'exec nsenter -t $host -m -u -i -n --wd="$PWD" -- sh -c "$*"\n'
        )
        enter.chmod(0o755)
        where = ",".join(self.addresses.values())
        self.launch = ["-launcher", "ssh", "-launcher-exec", str(enter), "-hosts", where]

    def command(self, name: str, *command: object) -> list[str]:
        """Return a command line that runs `command` on a host."""
        host = str(self._holders[name].pid)
        return ["nsenter", "-t", host, "-m", "-u", "-i", "-n", "--wd=.", "--", *map(str, command)]

    def run(self, name: str, *command: object, **options: object) -> subprocess.CompletedProcess:
        return subprocess.run(self.command(name, *command), check=True, **options)

    def cut(self, name: str, down: bool = True) -> None:
        """Pull a host's cable at the switch, or plug it in again: no one is told."""
        self._ip("switch", f"link set {name} {'down' if down else 'up'}")
        if not down:
            switch = str(self._holders["switch"].pid)
            state = ["nsenter", "-t", switch, "-n", "ip", "-d", "link", "show", name]
            self._until(lambda: b"state forwarding" in subprocess.check_output(state))
            for host in self.addresses:  # each may know by now that the other cannot be reached
                self._ip(host, "neigh flush dev cable")

    def limit(self, gigabits: int | None) -> None:
        """Let each host send, and receive, so many Gbit/s; None for no limit."""
        rule = "pfifo"
        if gigabits is not None:
            burst = max(256_000, gigabits * 25_000)  # 0.2 ms, and some packets of 64 KiB
            rule = f"tbf rate {gigabits}gbit burst {burst} latency 50ms"
        for name in self.addresses:
            for place, device in (name, "cable"), ("switch", name):
                self._in(place, "tc", "qdisc", "replace", "dev", device, "root", *rule.split())

    def processes(self, name: str, word: str) -> list[int]:
        """Return the processes of a host with `word` among their arguments."""
        host = os.readlink(f"/proc/{self._holders[name].pid}/ns/uts")
        pids = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (process / "cmdline").read_text().split("\0")
                if os.readlink(process / "ns" / "uts") == host and word in arguments:
                    pids.append(int(process.name))
            except OSError:
                continue
        return pids

    def close(self) -> None:
        for holder in self._holders.values():
            holder.kill()
            holder.wait()

    def _ip(self, name: str, command: str) -> None:
        self._in(name, "ip", *command.split())

    def _in(self, name: str, *command: str) -> None:
        """Run a command in the network of a host or of the switch."""
        host = str(self._holders[name].pid)
        subprocess.run(["nsenter", "-t", host, "-n", *command], check=True)

    def _until(self, condition) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "the hosts do not come up"
            time.sleep(0.05)
