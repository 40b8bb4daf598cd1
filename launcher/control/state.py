"""What the run as a whole is doing: the state machine behind the control service, without any network."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from launcher.errors import PREFLIGHT_FAILED
from launcher.layout.model import Layout
from launcher.preflight.gate import Gate
from launcher.preflight.model import BadNode, Report
from launcher.preflight.table import headline, table

Emit = Callable[[dict[str, Any]], None]


class Phase(StrEnum):
    """Phases of an attempt. They only ever move forward."""

    STARTING = "starting"
    """Not every node has reported yet."""

    CHECKING = "checking"
    """Every node has reported; each looks at itself and at its peers before anything is started (preflight)."""

    RUNNING = "running"
    DRAINING = "draining"
    """The trainer is done; engines finish their requests and exit."""

    FINISHED = "finished"
    """Everything ended as it should."""

    FAILED = "failed"
    """Something failed; every agent ends what it started."""

    CANCELLED = "cancelled"
    """Somebody asked for the end."""


ENDED = frozenset({Phase.FINISHED, Phase.FAILED, Phase.CANCELLED})

MODEL_READY = "model/ready"
"""True once the directory of the model is complete."""

STORE = "trainer/store"
"""``host:port`` of the trainers' rendezvous store."""

STOP_SEEN = "trainer/stopping"
"""True once the trainer has seen that the run shall stop, on all of its ranks; the engines may end."""

ALL_URLS = "inference/urls"
"""URLs of all replicas, in their order; one value, so that no node asks for each of them."""


def replica_key(index: int, what: str) -> str:
    """Key of what a replica publishes: its ``url``; that it is ``ready``; the ``master`` of one that spans nodes."""
    return f"replica/{index}/{what}"


class JobState:
    """The one copy of the truth, kept by the agent of node 0. Not thread-safe: one event loop owns it.

    Args:
        layout: the attempt's layout; says how many nodes are awaited and what role each has.
        emit: called with each event, in order.
        start_timeout_s: longest wait for all nodes to report.
        lease_timeout_s: a node silent for longer is lost.
        gate: judges the nodes before anything is started; without one the last node to report starts the run.
        check_timeout_s: longest wait for all nodes' reports to the gate.
        bad_nodes_fail: a bad node ends the run; else it is only reported.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        layout: Layout,
        emit: Emit,
        *,
        start_timeout_s: float,
        lease_timeout_s: float,
        gate: Gate | None = None,
        check_timeout_s: float = 60.0,
        bad_nodes_fail: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phase = Phase.STARTING
        self.bad_nodes: tuple[BadNode, ...] = ()
        """What the gate found."""

        self._gate = gate
        self._check_timeout_s = check_timeout_s
        self._bad_nodes_fail = bad_nodes_fail
        self._checking_since = 0.0
        self.failure: dict[str, Any] | None = None
        self.values: dict[str, Any] = {}
        self._layout = layout
        self._trainer_nodes = frozenset(node.node_rank for node in layout.trainer_nodes)
        self._urls = [replica_key(replica.index, "url") for replica in layout.replicas]
        self._unknown_urls = set(self._urls)
        self._emit = emit
        self._clock = clock
        self._start_timeout_s = start_timeout_s
        self._lease_timeout_s = lease_timeout_s
        self._started = clock()
        self._last_seen: dict[int, float] = {}
        self._done: set[int] = set()
        self._gone: set[int] = set()

    def emit(self, event: str, **fields: Any) -> None:
        """Logs one event with the time of this host."""
        self._emit({"time": time.time(), "event": event, **fields})

    def hello(self, node_rank: int, hostname: str, address: str) -> None:
        """A node reports. The last one to do so starts the run."""
        node = self._layout.nodes[node_rank]
        self._last_seen[node_rank] = self._clock()
        self.values[f"node/{node_rank}/address"] = address
        self.emit(
            "node_up",
            node_rank=node_rank,
            hostname=hostname,
            role=node.role.value,
            role_rank=node.role_rank,
            address=address,
        )
        if self.phase is Phase.STARTING and len(self._last_seen) == len(self._layout.nodes):
            self._all_up()

    def _all_up(self) -> None:
        if self._gate is None:
            self.phase = Phase.RUNNING
            return
        self.phase = Phase.CHECKING
        self._checking_since = self._clock()
        self.emit("phase", phase="preflight", who="job", state="begin")
        self._judge_if_complete()

    def preflight(self, report: Report) -> None:
        """A node says what it found. The last one to do so starts the run, or ends it."""
        if self._gate is not None:
            self._gate.add(report)
            self._judge_if_complete()

    def _judge_if_complete(self) -> None:
        if self.phase is Phase.CHECKING and self._gate is not None and self._gate.is_complete:
            self._judge(self._gate)

    def _judge(self, gate: Gate) -> None:
        verdict = gate.verdict()
        for node in self._layout.nodes:
            report = gate.reports.get(node.node_rank)
            self.emit(
                "preflight",
                node_rank=node.node_rank,
                hostname=node.hostname,
                ok=verdict.ok(node.node_rank),
                seconds=report.seconds if report else None,
                clock_s=report.clock_s if report else None,
                clock_error_s=report.clock_error_s if report else None,
                checks=[{"name": f.name, "ok": f.ok, "text": f.text} for f in verdict.findings[node.node_rank]],
            )
        self.bad_nodes = verdict.bad
        if verdict.bad and self._bad_nodes_fail:
            message = headline(verdict.bad, len(self._layout.nodes))
            self.fail(
                {
                    "message": message,
                    "tail": table(verdict.bad),
                    "bad_nodes": [node.hostname for node in verdict.bad],
                    "launcher_exit_code": PREFLIGHT_FAILED,
                }
            )
            return
        self.emit("phase", phase="preflight", who="job", state="end")
        self.phase = Phase.RUNNING

    def put(self, key: str, value: Any) -> None:
        """Publishes a value. Once each replica has said where it listens, :data:`ALL_URLS` holds all of them."""
        self.values[key] = value
        self._unknown_urls.discard(key)
        if not self._unknown_urls and key in self._urls:
            self.values[ALL_URLS] = [self.values[url] for url in self._urls]

    def beat(self, node_rank: int) -> None:
        """A node renews its lease."""
        self._last_seen[node_rank] = self._clock()

    def node_done(self, node_rank: int) -> None:
        """Everything that a node had to do ended well."""
        self._done.add(node_rank)
        if self.phase is Phase.RUNNING and self._trainer_nodes <= self._done:
            self.phase = Phase.DRAINING
            self.emit("draining")

    def node_gone(self, node_rank: int) -> None:
        """A node has ended all its processes and leaves."""
        if node_rank in self._last_seen:
            self._gone.add(node_rank)
        if self.phase is Phase.DRAINING and self.everybody_gone:
            self.phase = Phase.FINISHED

    def fail(self, failure: dict[str, Any]) -> None:
        """The first failure is the failure; what comes later is logged as a consequence."""
        first = self.phase not in ENDED
        self.emit("failure", first=first, **failure)
        if first:
            self.failure = failure
            self.phase = Phase.FAILED

    def cancel(self, reason: str) -> None:
        """Somebody asked for the end."""
        if self.phase not in ENDED:
            self.failure = {"message": reason}
            self.emit("cancelled", message=reason)
            self.phase = Phase.CANCELLED

    def check_leases(self) -> None:
        """Turns silence into a failure. Called about once a second."""
        now = self._clock()
        if self.phase is Phase.STARTING and now - self._started > self._start_timeout_s:
            missing = [n for n in self._layout.nodes if n.node_rank not in self._last_seen]
            names = ", ".join(f"{n.node_rank} ({n.hostname})" for n in missing[:8]) + (", ..." if missing[8:] else "")
            self.fail(
                {
                    "message": f"{len(missing)} of {len(self._layout.nodes)} nodes did not report within"
                    f" `start_timeout_s` ({self._start_timeout_s:g}): node {names}."
                }
            )
        checking_for = now - self._checking_since
        if self.phase is Phase.CHECKING and self._gate is not None and checking_for > self._check_timeout_s:
            self._judge(self._gate)
        for node_rank, seen in sorted(self._last_seen.items()):
            if node_rank in self._gone or now - seen <= self._lease_timeout_s:
                continue
            # Nobody waits for it any more.
            self._gone.add(node_rank)
            node = self._layout.nodes[node_rank]
            self.fail(
                {
                    "message": f"{node.role.value} on node {node_rank} ({node.hostname}): its agent has been silent"
                    f" for {now - seen:.0f} s, longer than `lease_timeout_s` ({self._lease_timeout_s:g}).",
                    "role": node.role.value,
                    "node_rank": node_rank,
                    "hostname": node.hostname,
                }
            )

    @property
    def everybody_gone(self) -> bool:
        """True once each node that ever reported has left, or is lost."""
        return len(self._gone) == len(self._last_seen)
