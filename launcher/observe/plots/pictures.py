"""The pictures of a run directory: ``reward.png``, ``startup.png`` and ``layout.png``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.events.loading import load_state
from launcher.events.run_state import RunState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from launcher.layout.model import Layout
    from launcher.sweep.metric import Metric
    from launcher.sweep.survey import Run

MISSING = "No pictures: matplotlib is not installed. HINT: pip install 'launcher[view]'."
DPI = 120

logger = logging.getLogger(__name__)


def write_pictures(run_dir: Path, state: RunState | None = None) -> tuple[Path, ...]:
    """Draws what the run directory has data for, and returns the files written.

    Without matplotlib it logs one line and returns nothing.

    Args:
        state: What ``follow`` returned; read from the event log when None.
    """
    if not _has_matplotlib():
        return ()
    from launcher.observe.plots.layout import draw_layout
    from launcher.observe.plots.reward import draw_reward
    from launcher.observe.plots.startup import draw_startup

    state = load_state(run_dir) if state is None else state
    layout = _read_layout(run_dir, state.attempt)
    written = []
    try:
        if any(step.reward is not None for step in state.steps):
            written.append(_save(draw_reward(state, title=run_dir.name), run_dir / "reward.png"))
        if state.phases:
            written.append(_save(draw_startup(state, title=run_dir.name), run_dir / "startup.png"))
        if layout is not None:
            written.append(_save(draw_layout(layout, title=run_dir.name), run_dir / "layout.png"))
    except OSError as error:
        # How the run ended is more than its pictures.
        logger.warning("a picture cannot be written: %s", error)
    return tuple(written)


def write_layout_picture(layout: Layout, path: Path) -> Path | None:
    """Draws a layout, as planned, without a run; None without matplotlib, after one line in the log."""
    if not _has_matplotlib():
        return None
    from launcher.observe.plots.layout import draw_layout

    return _save(draw_layout(layout, title=path.parent.name), path)


def write_sweep_picture(runs: Sequence[Run], metric: Metric, path: Path) -> Path | None:
    """Draws the runs of a sweep that have a value, the best first; None if there are none, or no matplotlib."""
    shown = [run for run in runs if run.value is not None]
    if not shown or not _has_matplotlib():
        return None
    from launcher.sweep.picture import draw_sweep

    return _save(draw_sweep(shown, metric, title=path.parent.name), path)


def _read_layout(run_dir: Path, attempt: int | None) -> Layout | None:
    from launcher.layout import layout_from_json

    # The attempt's layout has the real hostnames; before it starts there is only the planned one.
    for path in (run_dir / "attempts" / str(attempt or 1) / "layout.json", run_dir / "layout.json"):
        if path.exists():
            return layout_from_json(path.read_text(encoding="utf-8"))
    return None


def _has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        logger.warning(MISSING)
        return False
    return True


def _save(figure: Figure, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI)
    return path
