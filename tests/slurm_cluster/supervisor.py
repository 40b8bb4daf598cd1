"""Owns every process of one cluster: starts them, serves commands, and ends them all when its parent is gone.

Reads the spec as one line of JSON from standard input, then one command a line; answers each with one line of JSON.
The end of standard input, however it came about, is the order to stop.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.common.procfs import become_subreaper, reap
from tests.slurm_cluster.conf import (
    ADD_CLUSTER,
    SLURMDBD,
    ClusterPlace,
    controller_address,
    hold_ports,
    mariadbd_command,
    node_address,
    ping_command,
    write_files,
)
from tests.slurm_cluster.processes import connect_node, create_switch, kill_tree, set_link
from tests.slurm_cluster.spec import (
    ClusterError,
    ClusterSpec,
    Isolation,
    find_program,
    namespaces,
    search_path,
    spec_from_json,
)

HERE = Path(__file__).parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SLURMD_BATCH = 16  # more at a time and some time out while they register


class ClusterSupervisor:
    """The processes of one cluster."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.login_pid: int | None = None
        self.node_pids: dict[str, int] = {}
        slot, port, self._lock = hold_ports(10 + len(spec.node_names))
        directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: it holds Unix sockets
        directory.chmod(0o755)  # munge's clients must reach its socket
        self.place = ClusterPlace(directory=directory, slot=slot, port=port)
        self.environment = {"PATH": search_path(spec), "SLURM_CONF": str(self.place.slurm_conf), "LANG": "C.UTF-8"}

    def start(self, deadline: float) -> None:
        """Brings everything up and returns when all nodes are idle."""
        write_files(self.spec, self.place)
        self._start_munged(deadline)
        if self.spec.isolation is not Isolation.PLAIN:
            self.login_pid = self._start_node_process("login", [], deadline)
            (self.place.directory / "nodes" / "login").write_text(str(self.login_pid), encoding="utf-8")
        if self.spec.isolation.has_network:
            assert self.login_pid is not None
            create_switch(self.login_pid, controller_address(self.spec))
            self._write_client_wrappers()
        if self.spec.accounting:
            self._start_accounting(deadline)
        slurmctld = self.spawn("slurmctld", self.in_login("slurmctld", "-D", "-f", str(self.place.slurm_conf)))
        self.wait(lambda: self.answers("scontrol", "ping"), deadline, "slurmctld to answer", slurmctld)
        names = self.spec.node_names
        for first in range(0, len(names), SLURMD_BATCH):
            for name in names[first : first + SLURMD_BATCH]:
                self.start_node(name, deadline)
            self.wait(lambda: self._idle() >= self.node_pids.keys(), deadline, "all nodes to be idle", slurmctld)

    def start_node(self, name: str, deadline: float) -> None:
        """Boots a node: namespaces, network, slurmd. Does not wait for its registration."""
        program = str(find_program("slurmd", self.spec.programs))
        slurmd = ["/usr/bin/setpriv", "--pdeathsig", "KILL", program, "-D", "-N", name]
        slurmd += ["-f", str(self.place.slurm_conf), "-d", str(self.place.stepd)]
        pid = self._start_node_process(name, slurmd, deadline)
        if self.spec.isolation.has_network:
            assert self.login_pid is not None
            index = self.spec.node_names.index(name)
            connect_node(self.login_pid, pid, index, node_address(self.spec, self.place, index))
        self.node_pids[name] = pid
        (self.place.directory / "nodes" / name).write_text(str(pid), encoding="utf-8")
        self.start_slurmd(name)

    def start_slurmd(self, name: str) -> None:
        """Starts the slurmd of a node that is up."""
        os.kill(self.node_pids[name], signal.SIGUSR1)

    def crash_node(self, name: str) -> None:
        """Ends every process of a node at once, as a loss of power does."""
        kill_tree(self.node_pids.pop(name), include_root=True)

    def set_link(self, name: str, *, up: bool) -> None:
        """Cuts or heals the network of a node."""
        if not self.spec.isolation.has_network or self.login_pid is None:
            raise ClusterError(f"isolation {self.spec.isolation!s} has no links to cut; 'net' has")
        set_link(self.login_pid, self.spec.node_names.index(name), up=up)

    def spawn(self, name: str, command: Sequence[str], *, piped: bool = False) -> subprocess.Popen[str]:
        """Starts a daemon that dies with this process and writes to its own log."""
        with self.place.log(name).open("a", encoding="utf-8") as log:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else log,
                stderr=log,
                env=self.environment,
                cwd=self.place.directory,
                start_new_session=True,
                encoding="utf-8",
                errors="replace",
            )

    def in_login(self, *command: str) -> list[str]:
        """The command as it runs on the login node."""
        if self.login_pid is None:
            return list(command)
        return ["nsenter", "--target", str(self.login_pid), *namespaces(self.spec.isolation), "--", *command]

    def answers(self, *command: str) -> bool:
        """Whether a command on the login node succeeds."""
        return self._client(*command).returncode == 0

    def wait(
        self, ready: Callable[[], bool], deadline: float, what: str, process: subprocess.Popen[str] | None = None
    ) -> None:
        """Returns when ``ready``; raises when the process behind it ended or the deadline passed."""
        while not ready():
            if process is not None and process.poll() is not None:
                raise ClusterError(f"waited for {what}, but it ended with {process.returncode}")
            if time.monotonic() > deadline:
                raise ClusterError(f"waited in vain for {what}")
            time.sleep(0.02)  # SLURM has no event for any of this

    def log_tails(self) -> str:
        """The last lines of the logs that say something, newest last."""
        logs = sorted((self.place.directory / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)
        parts = [
            f"--- {log.name}\n" + "\n".join(lines[-8:])
            for log in logs
            if (lines := log.read_text(encoding="utf-8").splitlines())
        ]
        return "\n".join(parts[-8:])

    def stop(self) -> None:
        """Leaves nothing behind; nothing here has a state worth a soft end."""
        kill_tree(os.getpid(), include_root=False)
        shutil.rmtree(self.place.directory)

    def _start_accounting(self, deadline: float) -> None:
        database = self.spawn("mariadbd", self.in_login(*mariadbd_command(self.place)))
        self.wait(lambda: self.answers(*ping_command(self.place)), deadline, "MariaDB to listen", database)
        daemon = self.spawn("slurmdbd", self.in_login(*SLURMDBD))
        self.wait(lambda: self.answers(*ADD_CLUSTER), deadline, "slurmdbd to answer", daemon)

    def _start_munged(self, deadline: float) -> None:
        key = self.place.directory / "etc" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        run = self.place.directory / "run"
        options = {"socket": self.place.munge_socket, "key-file": key, "log-file": self.place.log("munged")}
        options |= {"pid-file": run / "munged.pid", "seed-file": run / "munged.seed"}
        # --force: warnings about directories only; the key and the socket are this cluster's own
        command = ["munged", "--foreground", "--force", *(f"--{name}={value}" for name, value in options.items())]
        munged = self.spawn("munged", command)
        check = ["munge", "--no-input", "--socket", str(self.place.munge_socket)]
        self.wait(lambda: self._client(*check, login=False).returncode == 0, deadline, "munged to answer", munged)

    def _start_node_process(self, name: str, command: list[str], deadline: float) -> int:
        isolation = self.spec.isolation
        unshare = [] if isolation is Isolation.PLAIN else ["unshare", *namespaces(isolation), "--"]
        python = [sys.executable, "-I", "-S", str(HERE / "node.py")]
        arguments = [str(self.place.directory), name, str(isolation)]
        process = self.spawn(f"node-{name}", [*unshare, *python, *arguments, *command], piped=True)
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not readable or process.stdout.readline() != "up\n":
            raise ClusterError(f"node {name} did not come up with isolation {isolation!s}")
        process.stdout.close()
        return process.pid

    def _write_client_wrappers(self) -> None:
        """Programs for a process outside the cluster's network, such as one that calls ``sbatch`` through submitit."""
        prefix = " ".join(self.in_login())
        for name in ("sbatch", "srun", "salloc", "scancel", "scontrol", "squeue", "sinfo", "sacct", "sacctmgr"):
            wrapper = self.place.directory / "bin" / name
            program = find_program(name, self.spec.programs)
            wrapper.write_text(f'#!/bin/sh\nexec {prefix} env --chdir "$PWD" {program} "$@"\n', encoding="utf-8")
            wrapper.chmod(0o755)

    def _idle(self) -> set[str]:
        lines = self._client("sinfo", "--noheader", "--Node", "--format", "%N %T").stdout.splitlines()
        return {name for name, state in (line.split() for line in lines) if state == "idle"}

    def _client(self, *command: str, login: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.in_login(*command) if login else command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.environment,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=False,
        )


def _answer(**values: object) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    """Start, serve, stop."""
    parent = os.getppid()
    become_subreaper()
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit(1))  # through the finally below
    request = json.loads(sys.stdin.readline())
    try:
        supervisor = ClusterSupervisor(spec_from_json(request["spec"]))
    except ClusterError as error:
        _answer(error=str(error))
        return
    try:
        deadline = time.monotonic() + request["timeout_s"]
        try:
            supervisor.start(deadline)
        except (ClusterError, OSError, subprocess.SubprocessError) as error:
            _answer(error=f"{error}\n{supervisor.log_tails()}")
            return
        _answer(directory=str(supervisor.place.directory), login_pid=supervisor.login_pid)
        serve(supervisor, parent)
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        supervisor.stop()


def serve(supervisor: ClusterSupervisor, parent: int) -> None:
    """Carries out commands until standard input ends, or the parent is gone while somebody else holds the pipe."""
    actions: dict[str, Callable[[str], None]] = {
        "crash_node": supervisor.crash_node,
        "start_node": lambda name: supervisor.start_node(name, time.monotonic() + 30),
        "start_slurmd": supervisor.start_slurmd,
        "cut": lambda name: supervisor.set_link(name, up=False),
        "heal": lambda name: supervisor.set_link(name, up=True),
    }
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], 1.0)
        reap()
        if readable:
            line = sys.stdin.readline()
            if not line:
                return
            action, name = line.split()
            try:
                actions[action](name)
            except (ClusterError, OSError, KeyError, subprocess.SubprocessError) as error:
                _answer(error=f"{action} {name}: {error!r}")
            else:
                _answer(done=True)


if __name__ == "__main__":
    main()
