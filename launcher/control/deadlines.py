"""What follows from the mere passing of time: leases that run out, hangs, restarts that are due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.control.phase import ENDED, Phase
from launcher.control.recovery import Recovery
from launcher.control.starting import Starting
from launcher.control.stopping import StopStage
from launcher.control.trainers import HOLD_S
from launcher.layout.model import Layout

if TYPE_CHECKING:
    from launcher.control.state import JobState


class Deadlines:
    """Turns silence and hangs into failures, and starts what has waited long enough.

    Args:
        start_timeout_s: longest wait for all nodes to report.
        lease_timeout_s: a node silent for longer is lost.
        began: when the wait for the nodes began.
    """

    def __init__(
        self,
        state: JobState,
        layout: Layout,
        starting: Starting,
        recovery: Recovery,
        start_timeout_s: float,
        lease_timeout_s: float,
        began: float,
    ) -> None:
        self._state = state
        self._layout = layout
        self._starting = starting
        self._recovery = recovery
        self._start_timeout_s = start_timeout_s
        self._lease_timeout_s = lease_timeout_s
        self._began = began

    def look(self, now: float) -> None:
        """Called about once a second."""
        state = self._state
        if state.phase is Phase.STARTING and now - self._began > self._start_timeout_s:
            self._starting.give_up_waiting(now)
        self._lose_silent_nodes(now)
        self._starting.judge_if_due(now)
        if state.phase in ENDED or state.phase is Phase.DRAINING:
            return
        if state.ending.is_due(now) or state.stopping.stage is not StopStage.NO:
            return
        for life in state.replicas.start_due(now):
            state.touch(life.replica.node_ranks)
        self._look_at_trainers(now)

    def _lose_silent_nodes(self, now: float) -> None:
        members = self._state.members
        for node, seconds in members.silent(now):
            place = members.place_of(node)
            role = "spare" if place is None else self._layout.nodes[place].role.value
            hostname = members.hostnames[node]
            message = (
                f"{role} on node {node} ({hostname}): its agent has been silent for {seconds:.0f} s, longer than"
                f" `lease_timeout_s` ({self._lease_timeout_s:g})."
            )
            failure = {"message": message, "role": role, "node_rank": node, "hostname": hostname}
            self._state.node_lost(node, failure)

    def _look_at_trainers(self, now: float) -> None:
        state, trainers = self._state, self._state.trainers
        if trainers.held is not None and state.members.have_spoken_since(trainers.places, trainers.held[0] + HOLD_S):
            state.fail(trainers.held[1])
        elif trainers.is_hanging(now):
            limit = trainers.restart.step_timeout_s
            message = f"No step was finished within `restart.step_timeout_s` ({limit:g} s)."
            self._recovery.restart_trainers({"message": message, "role": "trainer"}, now)
