"""Reads a run directory into a state."""

from __future__ import annotations

from pathlib import Path

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
            state.apply(event)
    return state
