"""Starts processes that have imported torch already: a fork of this one, which nothing else happens in.

``python -m tests.integration.bridge.fork_server`` reads, from the Unix socket that is its standard input, the name of a
module and an open file. It answers with the process id of a new process that has that file as standard input and output
and runs the module's ``main``. It ends with its socket.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[3]
LONGEST_NAME = 4096
PRELOAD = (
    "torch.distributed",
    "tests.integration.bridge.transfer_process",
    "tests.integration.bridge.replica_process",
    "tests.integration.bridge.trainer_process",
)


class Child:
    """A process of a fork server, as `subprocess.Popen` would have it, with a socket for its standard files."""

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.socket = sock
        self._fd = os.pidfd_open(pid)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal, and never to another process that has its number after it."""
        if self._fd < 0:
            return  # Long forgotten.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        """Ends it, stopped or not."""
        self.send_signal(signal.SIGKILL)

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._fd >= 0 and not self._has_ended(0.0)

    def wait(self, timeout_s: float = 60.0) -> None:
        """Returns once it has ended.

        Raises:
            AssertionError: it does not.
        """
        assert not self.lives or self._has_ended(timeout_s), f"process {self.pid} has not ended"

    def close(self) -> None:
        """Forgets it."""
        self.socket.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _has_ended(self, timeout_s: float) -> bool:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))


class ForkServer:
    """Holds the process that is forked."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.bridge.fork_server"],
                cwd=ROOT,
                # torch asks for the name of every address that its stores connect to, and a name server may not answer.
                env={**os.environ, "OMP_NUM_THREADS": "1", "RES_OPTIONS": "timeout:1 attempts:1"},
                stdin=theirs.fileno(),
            )

    def start(self, module: str) -> Child:
        """A new process that runs a module's ``main``."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._socket, [module.encode()], [theirs.fileno()])
        answer = self._socket.recv(LONGEST_NAME)
        assert answer, "the fork server has ended"
        return Child(json.loads(answer)["pid"], ours)

    def end(self) -> None:
        """Ends it; its children live on."""
        self._socket.close()
        self._process.wait()


_nurseries: list[ForkServer] = []


def start(module: str) -> Child:
    """A new process of this test run's one fork server."""
    if not _nurseries:
        _nurseries.append(ForkServer())
        atexit.register(end)
    return _nurseries[0].start(module)


def end() -> None:
    """Ends the fork server, if there is one."""
    while _nurseries:
        _nurseries.pop().end()


def main() -> None:
    """Forks until the socket is closed."""
    import torch

    torch.set_num_threads(1)  # Threads do not survive a fork.
    for name in PRELOAD:
        import_module(name)
    import_module("tests.integration.bridge.replica_process").warm()
    assert threading.active_count() == 1
    # Nobody waits for the children but the kernel.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as sock:
        while True:
            name, files, _flags, _address = socket.recv_fds(sock, LONGEST_NAME, 1)
            if not name:
                return
            pid = os.fork()
            if not pid:
                sock.close()
                _live(name.decode(), files[0])
            os.close(files[0])
            sock.send(json.dumps({"pid": pid}).encode())


def _live(module: str, file: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(file, 0)
        os.dup2(file, 1)
        os.close(file)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        import_module(module).main()
        sys.stdout.flush()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
