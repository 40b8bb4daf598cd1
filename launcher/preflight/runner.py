"""One node's side: runs the checks beside each other, each with a deadline, and reports to node 0."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from launcher.common.codec import from_builtins, to_builtins
from launcher.control.client import ControlClient
from launcher.control.model import Phase
from launcher.control.preflight_report import Finding, PeerReport, PreflightReport
from launcher.control.protocol import PreflightRequest
from launcher.preflight.checks import (
    WARNING,
    check_cpus,
    check_disk,
    check_memlock,
    check_model,
    check_nofile,
    check_ports,
    check_ptrace,
    check_shm,
    check_slurm,
    facts,
)
from launcher.preflight.context import CheckContext, network_stack, peers_of
from launcher.preflight.gpus import check_gpus, hardware_facts
from launcher.preflight.peers import (
    Canary,
    Peer,
    Probe,
    clock_offset,
    clock_skew,
    connect,
    list_canaries,
    read_canaries,
    resolve,
)

logger = logging.getLogger(__name__)

CHECKS: Mapping[str, Callable[[CheckContext], Finding]] = {
    "gpus": check_gpus,
    "cpus": check_cpus,
    "shm": check_shm,
    "memlock": check_memlock,
    "nofile": check_nofile,
    "disk": check_disk,
    "model": check_model,
    "ports": check_ports,
    "ptrace": check_ptrace,
    "slurm": check_slurm,
}
"""What a node checks alone, by name."""


def peer_key(node_rank: int) -> str:
    """Key under which a node publishes its :class:`~launcher.preflight.peers.Peer`."""
    return f"preflight/{node_rank}"


class Preflight:
    """One node's preflight. Nothing in it outlives :meth:`close`.

    Args:
        client: answers quickly; may be shared with other threads.
        wait_past: blocks until the run has left a phase; returns the phase that it is in then.
    """

    def __init__(self, site: CheckContext, client: ControlClient, wait_past: Callable[[Phase], Phase]) -> None:
        self._site = site
        self._settings = site.config.preflight
        self._client = client
        self._wait_past = wait_past
        self._probe = Probe(site.address, site.node.node_rank)
        self._canary = Canary(site.attempt_dir, site.node.node_rank)
        self._stack = network_stack()
        self._gathering: dict[str, _Task] = {}
        self._thread = threading.Thread(target=self._run, name="preflight", daemon=True)

    def start(self) -> None:
        """Publishes where this node can be reached, and goes on in a thread. To be called before the node reports."""
        for name in filter(self._has, CHECKS):
            self._gathering[name] = _Task(partial(CHECKS[name], self._site))
        self._gathering["versions"] = _Task(self._facts)
        write = _Task(self._canary.write)
        written = write.wait(self._settings.timeout_s)
        if not written:
            logger.warning("the canary was not written: %s", write.problem)
        peer = Peer(
            node_rank=self._site.node.node_rank,
            hostname=self._site.node.hostname,
            address=self._site.address,
            port=self._probe.port,
            stack=self._stack,
            canary=self._canary.token if written else "",
        )
        self._client.put(peer_key(peer.node_rank), to_builtins(peer))
        if self._has("canary"):
            self._gathering["canary"] = write
        self._thread.start()

    def close(self) -> None:
        """Ends the probe and removes the canary."""
        self._probe.close()
        self._canary.remove()

    def _run(self) -> None:
        begin = time.monotonic()
        findings = self._gather(begin)
        seconds = time.monotonic() - begin
        for finding in findings:
            if finding.text.startswith(WARNING):
                logger.warning("%s: %s", finding.name, finding.text.removeprefix(WARNING))
        if self._wait_past(Phase.STARTING) is not Phase.CHECKING:
            return
        begin = time.monotonic()
        peer_reports, clock = self._check_peers()
        report = PreflightReport(
            node_rank=self._site.node.node_rank,
            seconds=seconds + time.monotonic() - begin,
            findings=tuple(findings),
            peer_reports=tuple(peer_reports),
            facts=self._gathering["versions"].value or {},
            clock_s=clock[0],
            clock_error_s=clock[1],
        )
        self._client.call(PreflightRequest(report=report))
        # The other nodes still use the probe and the canary.
        self._wait_past(Phase.CHECKING)
        self.close()

    def _gather(self, begin: float) -> list[Finding]:
        found = []
        for name, task in self._gathering.items():
            if task.wait(begin + self._settings.timeout_s - time.monotonic()):
                found += [task.value] if isinstance(task.value, Finding) else []
            else:
                found.append(Finding(name=name, ok=False, text=task.problem))
        return found

    def _check_peers(self) -> tuple[list[PeerReport], tuple[float, float]]:
        """Checks the peers, all at once; a check that hangs is reported as a fault."""
        timeout_s = self._settings.timeout_s
        nodes = len(self._site.layout.all_nodes)
        me = self._site.node.node_rank
        # Node 0 reads the values of all nodes in one request; the others those of their few peers.
        ranks = list(range(nodes)) if me == 0 else peers_of(me, nodes)
        values = self._client.get(*(peer_key(rank) for rank in ranks))
        known = {rank: from_builtins(values[peer_key(rank)], Peer) for rank in ranks if peer_key(rank) in values}
        peers = [known[rank] for rank in peers_of(me, nodes) if rank in known]
        clock = clock_offset(lambda: self._client.status().time)
        tasks: list[tuple[str, int, _Task]] = []
        for peer in peers:
            if self._has("connect"):
                tasks.append(("connect", peer.node_rank, _Task(partial(connect, peer, timeout_s=timeout_s / 2))))
            if self._has("names") and not self._site.is_simulated:
                tasks.append(("names", peer.node_rank, _Task(partial(resolve, peer, self._stack))))
        if self._has("canary"):
            tokens = {peer.node_rank: peer.canary for peer in peers if peer.canary}
            read = _Task(partial(read_canaries, self._site.attempt_dir, tokens, timeout_s=timeout_s / 2))
            tasks.append(("canary", 0, read))
            if me == 0:
                every = {rank: peer.canary for rank, peer in known.items() if peer.canary}
                listing = _Task(partial(list_canaries, self._site.attempt_dir, every, timeout_s=timeout_s / 2))
                tasks.append(("canary", 0, listing))
        peer_reports = _collect(tasks, timeout_s)
        if self._has("clock") and (skew := clock_skew(*clock, self._settings.max_clock_skew_s)) is not None:
            peer_reports.append(skew)
        return peer_reports, clock

    def _facts(self) -> dict[str, str]:
        return {**facts(), **hardware_facts(self._settings.timeout_s)} if self._has("versions") else {}

    def _has(self, name: str) -> bool:
        return name not in self._settings.skip


class _Task:
    """A call in a thread of its own, so that one that hangs in the kernel blocks nothing else."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value: Any = None
        self._call = call
        self._error: Exception | None = None
        self._began = time.monotonic()
        self._done = threading.Event()
        threading.Thread(target=self._run, name="check", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """True if it came to a value in time."""
        return self._done.wait(max(0.0, timeout_s)) and self._error is None

    @property
    def problem(self) -> str:
        """Why there is no value."""
        if self._error is None:
            return f"did not end within {time.monotonic() - self._began:.0f} s"
        return f"{self._error.strerror or self._error}" if isinstance(self._error, OSError) else repr(self._error)

    def _run(self) -> None:
        try:
            self.value = self._call()
        except Exception as error:  # the report holds it, whatever it is
            self._error = error
        self._done.set()


def _collect(tasks: list[tuple[str, int, _Task]], timeout_s: float) -> list[PeerReport]:
    deadline = time.monotonic() + timeout_s
    found: list[PeerReport] = []
    for name, about, task in tasks:
        if not task.wait(deadline - time.monotonic()):
            found.append(PeerReport(name=name, about=about, text=task.problem))
        elif isinstance(task.value, PeerReport):
            found.append(task.value)
        elif isinstance(task.value, list):
            found += task.value
    return found
