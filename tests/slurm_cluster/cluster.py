"""A real slurmctld with any number of slurmd on this machine, for as long as a ``with`` block lasts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.slurm_cluster.processes import NodeProcess, descendants, kill_tree
from tests.slurm_cluster.spec import (
    ClusterError,
    ClusterSpec,
    Isolation,
    expand_hostlist,
    missing_requirements,
    namespaces,
)

ROOT = Path(__file__).parents[2]
NODES = "rack[0-1]n[01-02]"
"""The nodes of the clusters that tests share."""
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"})
"""States after which nothing follows; NODE_FAIL and PREEMPTED may be followed by a requeue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedJob:
    """One line of ``squeue``."""

    job_id: str
    state: str
    nodes: str
    """Hostlist expression of the nodes, empty while it is pending."""


class SlurmCluster:
    """A cluster under one temporary directory, which ends with this process at the latest.

    Args:
        node_names: hostlist expression, such as ``rack[0-1]n[01-02]``.
        isolation: see :class:`tests.slurm_cluster.spec.Isolation`.
        options: any further field of :class:`tests.slurm_cluster.spec.ClusterSpec`.

    Raises:
        ClusterError: the names are no hostlist expression.
    """

    def __init__(
        self, node_names: str = "node[0-3]", *, isolation: str = "uts", accounting: bool = False, **options: Any
    ) -> None:
        names = expand_hostlist(node_names)
        self.spec = ClusterSpec(node_names=names, isolation=Isolation(isolation), accounting=accounting, **options)
        self.directory: Path | None = None
        self._login_pid: int | None = None
        self._supervisor: subprocess.Popen[str] | None = None

    def start(self, timeout_s: float = 60) -> Self:
        """Returns when every node is idle.

        Raises:
            ClusterError: the machine lacks something, or a daemon did not come up; holds the ends of the logs.
        """
        if missing := missing_requirements(self.spec):
            raise ClusterError("this machine cannot run the cluster:\n" + "\n".join(missing))
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.slurm_cluster.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"},
            start_new_session=True,  # Ctrl-C is for the tests; they then stop the cluster in order
            encoding="utf-8",
            errors="replace",
        )
        request = {"spec": dataclasses.asdict(self.spec), "timeout_s": timeout_s}
        try:
            answer = self._ask(json.dumps(request), timeout_s + 30)
        except BaseException:
            self.stop()
            raise
        self.directory, self._login_pid = Path(answer["directory"]), answer["login_pid"]
        return self

    def stop(self) -> None:
        """Ends every process of the cluster and removes its directory; harmless when nothing runs."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        assert supervisor.stdin is not None and supervisor.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            supervisor.stdin.close()
        try:
            supervisor.wait(timeout=30)
        except subprocess.TimeoutExpired:
            kill_tree(supervisor.pid, include_root=True)
            supervisor.wait()
            raise ClusterError("the supervisor did not end by itself; its processes were killed") from None
        finally:
            supervisor.stdout.close()
            self._login_pid = None
        if supervisor.returncode:
            raise ClusterError(f"the supervisor ended with {supervisor.returncode}; see its traceback above")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def variables(self) -> dict[str, str]:
        """The variables that make any SLURM program, or submitit, use this cluster."""
        directory = self._started()
        path = os.environ.get("PATH", "/usr/bin:/bin")
        programs = f"{self.spec.programs}:" if self.spec.programs else ""
        return {"SLURM_CONF": str(directory / "etc" / "slurm.conf"), "PATH": f"{directory / 'bin'}:{programs}{path}"}

    @property
    def env(self) -> dict[str, str]:
        """This process's environment, turned to this cluster; of another job or cluster nothing is left."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return inherited | self.variables

    @property
    def login(self) -> list[str]:
        """Words to put before a command, so that it runs on the login node, where node names resolve."""
        self._started()
        if self._login_pid is None:
            return []
        enter = ["nsenter", "--target", str(self._login_pid), *namespaces(self.spec.isolation)]
        return [*enter, "--", "env", "--chdir", str(Path.cwd())]

    def run(
        self, command: Sequence[str | Path], *, timeout_s: float = 60, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the login node; keywords in capitals are added to its environment.

        Raises:
            ClusterError: it failed and ``check`` is true; holds its output.
        """
        done = subprocess.run(
            [*self.login, *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.env | env,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise ClusterError(
                f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def jobs(self, job_id: str | int | None = None) -> list[QueuedJob]:
        """Jobs that slurmctld remembers, those that have ended included; array and het jobs as one line each."""
        chosen = [] if job_id is None else ["--jobs", str(job_id)]
        command = ["squeue", "--noheader", "--array", "--states", "all", *chosen, "--format", "%i|%T|%N"]
        lines = self.run(command).stdout.splitlines()
        rows = (line.strip().split("|") for line in lines if line.strip())
        return [QueuedJob(job_id=row[0], state=row[1], nodes=row[2]) for row in rows]

    def job_state(self, job_id: str | int) -> str:
        """State of a job of one component, such as ``RUNNING``."""
        (job,) = self.jobs(job_id)
        return job.state

    def wait_job(self, job_id: str | int, states: Collection[str] = ("COMPLETED",), timeout_s: float = 60) -> str:
        """Waits until a job is in one of ``states``, and returns which.

        Raises:
            ClusterError: the deadline passed, or the job ended in another state.
        """
        deadline = time.monotonic() + timeout_s
        while (state := self.job_state(job_id)) not in states:
            if state in ENDED or time.monotonic() > deadline:
                details = self.run(["scontrol", "show", "job", str(job_id)], check=False).stdout
                raise ClusterError(f"job {job_id} is {state}, wanted {', '.join(states)}:\n{details}")
            time.sleep(0.1)  # SLURM has no event for this, and strigger is slower
        return state

    def cancel_all(self, timeout_s: float = 20) -> None:
        """Cancels every job and returns when nothing of any is left, so that the next test finds an empty cluster."""
        if ids := [job.job_id for job in self.jobs() if job.state not in ENDED]:
            self.run(["scancel", "--full", "--signal=KILL", *ids], check=False)
            self.run(["scancel", *ids], check=False)  # some have ended by now
        self.wait_empty(timeout_s=timeout_s)

    def node_processes(self, node: str | None = None) -> list[NodeProcess]:
        """Processes of jobs that live on a node (or on any), however they detached themselves; empty when idle."""
        nodes = self.spec.node_names if node is None else (node,)
        found: list[NodeProcess] = []
        for name in nodes:
            pid = int((self._started() / "nodes" / name).read_text(encoding="utf-8"))
            found += [process for process in descendants(pid) if process.name not in ("slurmd", "setpriv")]
        return found

    def wait_empty(self, node: str | None = None, timeout_s: float = 15) -> None:
        """Returns when no process of any job is left.

        Raises:
            ClusterError: some are, after the deadline; names them.
        """
        deadline = time.monotonic() + timeout_s
        while left := self.node_processes(node):
            if time.monotonic() > deadline:
                lines = [f"{process.pid} (parent {process.parent}): {process.command}" for process in left]
                raise ClusterError("orphans:\n" + "\n".join(lines))
            time.sleep(0.05)

    def slurmd_pid(self, node: str) -> int:
        """Process id of a node's slurmd."""
        pid = int((self._started() / "nodes" / node).read_text(encoding="utf-8"))
        (slurmd,) = [process for process in descendants(pid) if process.name == "slurmd" and process.parent == pid]
        return slurmd.pid

    def crash_node(self, node: str) -> None:
        """Ends every process of a node at once, slurmd included."""
        self._command("crash_node", node)

    def start_node(self, node: str) -> None:
        """Boots a node that crashed; returns before it has registered."""
        self._command("start_node", node)

    def start_slurmd(self, node: str) -> None:
        """Starts slurmd again on a node where only that was killed."""
        self._command("start_slurmd", node)

    def cut(self, node: str) -> None:
        """Takes a node off the network; its processes live on (isolation ``net``)."""
        self._command("cut", node)

    def heal(self, node: str) -> None:
        """Undoes :meth:`cut`."""
        self._command("heal", node)

    def _command(self, action: str, node: str) -> None:
        if node not in self.spec.node_names:
            raise ClusterError(f"no node {node!r} among {', '.join(self.spec.node_names)}")
        self._ask(f"{action} {node}", 60)

    def _ask(self, line: str, timeout_s: float) -> dict[str, Any]:
        supervisor = self._supervisor
        if supervisor is None:
            raise ClusterError("the cluster is not started")
        assert supervisor.stdin is not None and supervisor.stdout is not None
        try:
            print(line, file=supervisor.stdin, flush=True)
        except BrokenPipeError as error:
            raise ClusterError("the supervisor has ended; see its traceback above") from error
        readable, _, _ = select.select([supervisor.stdout], [], [], timeout_s)
        reply = supervisor.stdout.readline() if readable else ""
        if not reply:
            raise ClusterError("the supervisor gave no answer" if readable else f"no answer within {timeout_s} s")
        answer: dict[str, Any] = json.loads(reply)
        if "error" in answer:
            raise ClusterError(answer["error"])
        return answer

    def _started(self) -> Path:
        if self.directory is None or self._supervisor is None:
            raise ClusterError("the cluster is not started")
        return self.directory
