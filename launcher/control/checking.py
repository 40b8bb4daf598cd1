"""The look at every node before anything is started, as a part of the run's state."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from launcher.common.errors import PREFLIGHT_FAILED
from launcher.events.schema import Event, PhaseChanged, PreflightFinished
from launcher.layout.model import Layout
from launcher.preflight.aggregate import Gate
from launcher.preflight.model import BadNode, Report
from launcher.preflight.table import headline, table


class Checking:
    """Gathers the nodes' reports.

    Args:
        gate: judges them.
        timeout_s: longest wait for all of them.
        bad_nodes_fail: a bad node must not take part; else it is only reported.
        emit: called with each event.
    """

    def __init__(
        self, layout: Layout, gate: Gate, *, timeout_s: float, bad_nodes_fail: bool, emit: Callable[[Event], None]
    ) -> None:
        self.bad_nodes_fail = bad_nodes_fail
        self.bad_nodes: tuple[BadNode, ...] = ()
        """What the gate found."""

        self._nodes = layout.everybody
        self._gate = gate
        self._timeout_s = timeout_s
        self._emit = emit
        self._since = 0.0

    def begin(self, now: float) -> None:
        """Every node has reported; now each looks at itself and at its peers."""
        self._since = now
        self._emit(PhaseChanged(phase="preflight", who="job", state="begin"))

    def add(self, report: Report) -> None:
        """A node says what it found."""
        self._gate.add(report)

    def is_due(self, now: float) -> bool:
        """Whether nobody is awaited any more, or was awaited for long enough."""
        return self._gate.is_complete or now - self._since > self._timeout_s

    def judge(self, lost: Collection[int]) -> list[BadNode]:
        """Logs what was found, and returns the bad nodes without those that are ``lost`` already."""
        verdict = self._gate.verdict()
        for node in self._nodes:
            report = self._gate.reports.get(node.node_rank)
            self._emit(
                PreflightFinished(
                    node_rank=node.node_rank,
                    hostname=node.hostname,
                    ok=verdict.ok(node.node_rank),
                    seconds=report.seconds if report else None,
                    clock_s=report.clock_s if report else None,
                    clock_error_s=report.clock_error_s if report else None,
                    checks=[{"name": f.name, "ok": f.ok, "text": f.text} for f in verdict.findings[node.node_rank]],
                )
            )
        self.bad_nodes = verdict.bad
        return [node for node in verdict.bad if node.node_rank not in lost]

    def failure(self, bad: Collection[BadNode]) -> dict[str, Any]:
        """What to say when they are the end of the run."""
        return {
            "message": headline(list(bad), len(self._nodes)),
            "tail": table(list(bad)),
            "bad_nodes": [node.hostname for node in bad],
            "launcher_exit_code": PREFLIGHT_FAILED,
        }

    def end(self) -> None:
        """The run goes on."""
        self._emit(PhaseChanged(phase="preflight", who="job", state="end"))
