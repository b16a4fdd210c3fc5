"""MegEngine's server, at which the processes of a run on GPUs meet, and what else it carries.

The server runs beside worker 0. It is MegEngine's own, with a dictionary that anyone can write to
and wait for. That dictionary carries heartbeats, and the reason for which a run fails, to hosts
that no common mpiexec can end.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException

from utils import UserError

_FAILURE = "reason of the failure"
_ERRORS = (OSError, HTTPException, xmlrpc.client.Error)
# Serves until its input ends, as it does when its parent has ended, however that was.
# No file in the working directory is imported; signals to all processes of a job are not for it.
_SERVE = """
import sys
del sys.path[0]
import signal, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
from megengine.distributed import Server
try:
    server = Server(int(sys.argv[1]))
except OSError as error:
    print("error", error.strerror, flush=True)
    raise SystemExit
print("port", server.py_server_port, flush=True)
sys.stdin.read()
time.sleep(float(sys.argv[2]))
server.proc.kill()
"""


class Server:
    """MegEngine's server in a process of its own, which ends after this one.

    Attributes:
        port: where it listens.
    """

    def __init__(self, port: int = 0, linger: float = 0):
        """Start it at `port`, or at any that is free.

        It serves for another `linger` seconds after this process has ended, so that other hosts
        learn the reason. Raises UserError when the port is taken.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _SERVE, str(port), str(linger)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C and the end of a process group are not for it
        )
        assert self._process.stdout is not None  # it is a pipe
        answer = self._process.stdout.readline().split()
        if answer[:1] != ["port"]:
            raise UserError(
                f"the server of the workers cannot listen on port {port} "
                f"({' '.join(answer[1:]) or 'it ended'}); give another --dist-port"
            )
        self.port = int(answer[1])


def await_server(address: str, port: int, timeout: float) -> None:
    """Wait until the server accepts connections; raises UserError after `timeout` seconds."""
    end, reason = time.monotonic() + timeout, ""
    while time.monotonic() < end:
        try:
            socket.create_connection((address, port), timeout=min(timeout, 10)).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
    raise UserError(
        f"{socket.gethostname()} cannot reach worker 0's server at {address}:{port} within "
        f"{timeout:g} s ({reason}); give an address of its host by --dist-addr, and a port that no "
        "firewall closes by --dist-port"
    )


def announce_failure(address: str, port: int, reason: str) -> None:
    """Tell all workers why the run fails, if the server can be reached."""
    with suppress(*_ERRORS):
        _proxy(address, port, 5).user_set(_FAILURE, reason)


def silence(worker: str, timeout: float) -> str:
    """Return the sentence about a worker that has sent no heartbeat for `timeout` seconds."""
    return (
        f"{worker} has sent no heartbeat for {timeout:g} s (--worker-timeout): its host is "
        "down, the network is cut, or the process is stopped"
    )


class Watch:
    """Heartbeats of the workers, and the reason of a failure elsewhere, through the server.

    Args:
        address, port: those of the server, beside worker 0.
        rank, size: number of this worker, and number of all.
        timeout: seconds without a heartbeat after which a worker counts as lost.
        fail: is called in a thread with a sentence when the run has failed.
    """

    def __init__(
        self,
        address: str,
        port: int,
        rank: int,
        size: int,
        timeout: float,
        fail: Callable[[str], object],
    ):
        self._place, self._rank, self._timeout, self._fail = (address, port), rank, timeout, fail
        self._leaving = False
        self._start(self._await_failure)
        if rank:
            self._start(self._send_heartbeats)
        else:
            for other in range(1, size):
                self._start(self._await_heartbeats, other)

    def stop(self) -> None:
        """Watch no longer; all workers have done their work."""
        self._leaving = True

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _end(self, reason: str) -> None:
        if not self._leaving:
            self._fail(reason)

    def _await_failure(self) -> None:
        try:
            self._end(str(_proxy(*self._place, None).user_get(_FAILURE)))
        except _ERRORS:
            time.sleep(1)  # the parent of worker 0 may know more
            self._end("worker 0 has ended, and its server with it")

    def _send_heartbeats(self) -> None:
        number = 0
        try:
            while not self._leaving:
                key = f"alive {self._rank} {number}"
                _proxy(*self._place, self._timeout).user_set(key, socket.gethostname())
                number += 1
                time.sleep(min(1.0, self._timeout / 4))
        except _ERRORS:
            time.sleep(1)
            self._end(silence(f"worker 0 at {self._place[0]}", self._timeout))

    def _await_heartbeats(self, other: int) -> None:
        number, host = 0, "its host"
        try:
            while not self._leaving:
                key = f"alive {other} {number}"
                host = str(_proxy(*self._place, self._timeout).user_pop(key))
                number += 1
        except _ERRORS:
            self._end(silence(f"worker {other} on {host}", self._timeout))


def _proxy(address: str, port: int, timeout: float | None) -> xmlrpc.client.ServerProxy:
    """Return the server's dictionary; a call that takes longer than `timeout` raises an error."""
    return xmlrpc.client.ServerProxy(
        f"http://{address}:{port}", transport=_Transport(timeout), allow_none=True
    )


class _Transport(xmlrpc.client.Transport):
    def __init__(self, timeout: float | None):
        super().__init__()
        self._timeout = timeout

    def make_connection(self, host: str | tuple[str, dict[str, str]]) -> HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = self._timeout
        return connection
