"""Reads a run's event logs as they grow."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from launcher.common.run_dir import EVENTS, attempt_dir
from launcher.events.fold import apply_event
from launcher.events.run_state import ENGINE, NODES, RunState
from launcher.events.schema import Event
from launcher.events.serialize import event_from_dict

logger = logging.getLogger(__name__)


class EventReader:
    """Yields each event of a run once, in order, as it is written.

    With ``attempt=None`` it starts at the newest attempt, if that is later than ``after``, and goes on with the next
    one when that has begun to write.
    """

    def __init__(self, run_dir: Path, attempt: int | None = None, *, after: int = 0) -> None:
        self._after = after
        self._run_dir = run_dir
        self._is_pinned = attempt is not None
        self._attempt = attempt
        self._offset = 0
        self._partial = b""

    @property
    def attempt(self) -> int | None:
        """The attempt that is read; None until there is one."""
        return self._attempt

    def read(self) -> Iterator[Event]:
        """Yields the complete lines written since the last call; nothing when the log is not there yet. Never waits."""
        # What is newest is looked up before reading: an attempt's log is final once the next one exists.
        newest = None if self._is_pinned else max((n for n in attempts(self._run_dir) if n > self._after), default=None)
        if self._attempt is None:
            self._attempt = newest
        if self._attempt is None:
            return
        yield from self._read_lines()
        if newest is not None and newest > self._attempt:
            self._attempt = min(n for n in attempts(self._run_dir) if n > self._attempt)
            self._offset, self._partial = 0, b""

    def _read_lines(self) -> Iterator[Event]:
        path = events_path(self._run_dir, self._attempt or 0)
        try:
            # Opened anew each time: a network filesystem shows another host's writes only after an open.
            with path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            event = parse_event(line)
            if event is not None:
                yield event
            elif line.strip():
                # A node that dies while writing leaves such a line; what comes after it still counts.
                logger.warning("%s: a line is not an event and was left out: %.80r", path, line)


def events_path(run_dir: Path, attempt: int) -> Path:
    """Where an attempt's event log lies."""
    return attempt_dir(run_dir, attempt) / EVENTS


def attempts(run_dir: Path) -> list[int]:
    """The attempts that have an event log, in order."""
    folder = run_dir / "attempts"
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{EVENTS}") if path.parent.name.isdecimal())


def parse_event(line: bytes) -> Event | None:
    """The event of one line; None for a line that its writer could not finish, and for anything else."""
    try:
        data = json.loads(line)
    except ValueError:  # also a UnicodeDecodeError
        return None
    return event_from_dict(data) if isinstance(data, dict) else None


DEADLINES = {
    NODES: "start_timeout_s",
    "preflight": "preflight.timeout_s",
    ENGINE: "inference.ready_timeout_s",
    "wait for engines": "inference.ready_timeout_s",
    "groups": "bridge.timeout_s",
    "first sync": "bridge.timeout_s",
}
"""Setting that limits each phase."""


def new_state(run_dir: Path) -> RunState:
    """An empty state that knows the deadlines and the number of steps in the run's configuration."""
    state = RunState(run_dir=str(run_dir))
    path = run_dir / "config.yaml"
    if path.exists():
        from omegaconf import OmegaConf

        # Not the schema: a run made by another version of the launcher can still be shown.
        config = OmegaConf.load(path)
        found = {phase: OmegaConf.select(config, key) for phase, key in DEADLINES.items()}
        state.deadlines = {phase: float(value) for phase, value in found.items() if value is not None}
        steps = OmegaConf.select(config, "trainer.steps")
        # A user's own trainer need not follow `trainer.steps`.
        if steps is not None and OmegaConf.select(config, "trainer.command") is None:
            state.steps_planned = int(steps)
    return state


def load_attempt(run_dir: Path, attempt: int) -> RunState:
    """The state after everything that one attempt has written so far."""
    state = RunState()
    for event in EventReader(run_dir, attempt).read():
        apply_event(state, event)
    return state


def load_state(run_dir: Path) -> RunState:
    """The state after everything that all attempts have written so far."""
    follower = RunFollower(run_dir)
    follower.read()
    return follower.state


class RunFollower:
    """The state of a run over all of its attempts, as far as they are written."""

    def __init__(self, run_dir: Path) -> None:
        self.attempt = 1
        """The attempt that was read last."""

        self.state = new_state(run_dir)
        self._run_dir = run_dir
        self._reader = EventReader(run_dir, 1)

    def read(self) -> bool:
        """Folds what is new; whether there was something. Never waits."""
        is_news = self._fold()
        for attempt in attempts(self._run_dir):
            if attempt > self.attempt:
                self._reader, self.attempt = EventReader(self._run_dir, attempt), attempt
                is_news = self._fold() or is_news
        return is_news

    def _fold(self) -> bool:
        is_news = False
        for event in self._reader.read():
            is_news = True
            apply_event(self.state, event)
        return is_news
