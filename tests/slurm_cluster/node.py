"""Runs as the first process of one node: makes the node's namespaces its own, starts slurmd and reaps every orphan.

Usage: node.py DIRECTORY HOSTNAME ISOLATION [COMMAND ...]; starts COMMAND each time SIGUSR1 arrives.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Never returns: the node ends when this process is killed."""
    directory, hostname, isolation, *command = sys.argv[1:]
    # Whatever a job leaves behind stays a descendant of this process, so that the node's processes can be counted.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGUSR1})
    if isolation != "plain":
        socket.sethostname(hostname)
        mount("--bind", f"{directory}/etc/hosts", "/etc/hosts")
        if command:
            mount("-t", "tmpfs", "tmpfs", "/dev/shm")
            # The login node's wrappers would take a job's srun out of the node's own network.
            mount("-t", "tmpfs", "tmpfs", f"{directory}/bin")
    if isolation in ("net", "net6"):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print("up", flush=True)
    while True:
        if signal.sigwait({signal.SIGCHLD, signal.SIGUSR1}) == signal.SIGUSR1:
            os.posix_spawn(command[0], command, os.environ, setsigmask=[])
        reap()


def mount(*arguments: str) -> None:
    """Mounts something inside this node's own mount namespace."""
    subprocess.run(["mount", *arguments], check=True)


def reap() -> None:
    """Collects every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
