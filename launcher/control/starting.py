"""When a run may start: every place has its node, and every node has been looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.control.checking import Checking
from launcher.control.phase import Phase
from launcher.control.replicas import ReplicaState
from launcher.layout.model import Layout

if TYPE_CHECKING:
    from launcher.control.recovery import Recovery
    from launcher.control.state import JobState


class Starting:
    """Brings a run's state from :attr:`Phase.STARTING` to :attr:`Phase.RUNNING`.

    Args:
        checking: the look at every node; without one the run starts as soon as they are there.
        start_timeout_s: longest wait for all nodes to report.
    """

    def __init__(
        self, state: JobState, layout: Layout, recovery: Recovery, checking: Checking | None, start_timeout_s: float
    ) -> None:
        self._state = state
        self._layout = layout
        self._recovery = recovery
        self._checking = checking
        self._start_timeout_s = start_timeout_s

    def start_if_complete(self, now: float) -> None:
        """Goes on once every place has its node."""
        state = self._state
        if state.phase is not Phase.STARTING or self._missing_places():
            return
        if self._checking is None:
            self._run()
        else:
            state.phase = Phase.CHECKING
            self._checking.begin(now)
            self.judge_if_due(now)

    def judge_if_due(self, now: float) -> None:
        """Starts the run once every node has said what it found; spares take the places of bad nodes."""
        state, checking = self._state, self._checking
        if checking is None or state.phase is not Phase.CHECKING or not checking.is_due(now):
            return
        bad = checking.judge(state.members.lost)
        if bad and checking.bad_nodes_fail:
            places = [node for node in bad if state.members.place_of(node.node_rank) is not None]
            spares = state.members.spares() - {node.node_rank for node in bad}
            curable = all(node.is_its_own and node.node_rank != 0 for node in places)
            if places and not (curable and len(places) <= len(spares)):
                state.fail(checking.failure(bad))
                return
            for node in sorted(bad, key=lambda node: -node.node_rank):  # spares first, so that none takes a place
                message = f"Preflight failed on node {node.node_rank} ({node.hostname}): {node.reason}"
                failure = {"message": message, "node_rank": node.node_rank, "hostname": node.hostname}
                state.node_lost(node.node_rank, failure)
        checking.end()
        self._run()

    def give_up_waiting(self, now: float) -> None:
        """Not every node has reported in time: spares take the places of those that have not."""
        state = self._state
        missing = [self._layout.nodes[place] for place in self._missing_places()]
        names = ", ".join(f"{n.node_rank} ({n.hostname})" for n in missing[:8]) + (", ..." if missing[8:] else "")
        failure = {
            "message": f"{len(missing)} of {len(self._layout.nodes)} nodes did not report within"
            f" `start_timeout_s` ({self._start_timeout_s:g}): node {names}."
        }
        for planned in missing:
            node = state.members.node_at(planned.node_rank)
            if state.phase is not Phase.STARTING:
                return
            if node is None:
                self._recovery.refill(planned.node_rank, planned.role.value, failure, now)
                self.start_if_complete(now)
            else:
                state.node_lost(node, failure)

    def _run(self) -> None:
        self._state.phase = Phase.RUNNING
        self._state.touch(range(len(self._layout.nodes)))

    def _missing_places(self) -> list[int]:
        """Places that are waited for: those of replicas that were dropped are not."""
        state = self._state
        return [
            place
            for place in state.members.empty_places()
            if place in state.trainers.places
            or any(life.state is not ReplicaState.DROPPED for life in state.replicas.on_place(place))
        ]
