"""The events of a run under test, of all its attempts, as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from launcher.events.fold import apply_event
from launcher.events.reader import EventReader, attempts
from launcher.events.run_state import RunState
from launcher.events.schema import CheckpointLoaded, Event, NodeJoined, ProcessChanged

POLL_S = 0.01
"""A publication takes a tenth of a second, so the log is read more often than that."""


class ObservedRun:
    """The event logs of a run, and the state that they amount to."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.events: dict[int, list[Event]] = {}
        """By attempt."""

        self.state = RunState()
        self._readers: dict[int, EventReader] = {}

    def read(self) -> list[Event]:
        """What is new."""
        new: list[Event] = []
        for number in attempts(self.run_dir):
            reader = self._readers.setdefault(number, EventReader(self.run_dir, number))
            found = list(reader.read())
            self.events.setdefault(number, []).extend(found)
            new += found
        for event in new:
            apply_event(self.state, event)
        return new

    def wait(self, wanted: Callable[[Event], bool], is_over: Callable[[], bool], timeout_s: float) -> Event | None:
        """The first event that is wanted, of those read before too; None if the run is over, or it does not come."""
        deadline = time.monotonic() + timeout_s
        unseen = self.all_events()
        while True:
            over = is_over() or time.monotonic() > deadline
            unseen += self.read()
            if (found := next(filter(wanted, unseen), None)) is not None or over:
                return found
            unseen = []
            time.sleep(POLL_S)

    def all_events(self) -> list[Event]:
        """Those of all attempts, in order."""
        return [event for number in sorted(self.events) for event in self.events[number]]

    def started(self, process: str) -> tuple[int, ProcessChanged] | None:
        """The newest start of a worker, with its attempt."""
        starts = [
            (number, event)
            for number in sorted(self.events)
            for event in self.events[number]
            if isinstance(event, ProcessChanged) and event.name == process and event.state == "started" and event.pid
        ]
        return starts[-1] if starts else None

    def hostname(self, node_rank: int, attempt: int = 1) -> str:
        """Name of a node of an attempt that has begun.

        Raises:
            LookupError: it has not reported.
        """
        joined = (event for event in self.events.get(attempt, ()) if isinstance(event, NodeJoined))
        name = next((event.hostname for event in joined if event.node_rank == node_rank), None)
        if name is None:
            raise LookupError(f"node {node_rank} has not reported")
        return name

    def hostnames(self) -> list[str]:
        """Every node that has reported in any attempt."""
        return sorted(
            {event.hostname for event in self.all_events() if isinstance(event, NodeJoined) and event.hostname}
        )


def lost_steps(events: Iterable[Event]) -> list[str]:
    """Where training went on from an earlier step than that of the last complete checkpoint."""
    state, problems = RunState(), []
    for event in events:
        saved = state.checkpoint_step or 0
        if isinstance(event, CheckpointLoaded) and (event.step or 0) < saved:
            problems.append(f"resumed from step {event.step}, though {saved} was saved")
        apply_event(state, event)
    return problems
