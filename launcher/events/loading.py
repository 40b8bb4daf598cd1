"""Reads the state of a run from its directory, once or as it grows."""

from __future__ import annotations

from pathlib import Path

from launcher.events.fold import apply_event
from launcher.events.reader import EventReader, attempts
from launcher.events.run_state import ENGINE, NODES, RunState

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
        # To a trainer of one's own `trainer.steps` need not mean anything.
        if steps is not None and OmegaConf.select(config, "trainer.command") is None:
            state.steps_planned = int(steps)
    return state


def load_state(run_dir: Path, attempt: int | None = None) -> RunState:
    """The state after everything written so far, of one attempt or of all of them in order."""
    state = new_state(run_dir)
    for n in [attempt] if attempt is not None else attempts(run_dir):
        for event in EventReader(run_dir, n).read():
            apply_event(state, event)
    return state


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
