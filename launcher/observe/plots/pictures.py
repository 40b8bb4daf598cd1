"""The pictures of a run directory: ``reward.png``, ``startup.png`` and ``layout.png``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.events.reader import load_state
from launcher.events.run_state import RunState
from launcher.observe.layouts import layout_of_attempt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from launcher.layout.model import Layout

MISSING = "No pictures: matplotlib is not installed. HINT: pip install 'launcher[view]'."
DPI = 120

logger = logging.getLogger(__name__)


def write_pictures(run_dir: Path, state: RunState | None = None) -> tuple[Path, ...]:
    """Draws what the run directory has data for, and returns the files written.

    Without matplotlib it logs one line and returns nothing.

    Args:
        state: What ``follow`` returned; read from the event log when None.
    """
    if not has_matplotlib():
        return ()
    from launcher.observe.plots.layout import draw_layout
    from launcher.observe.plots.reward import draw_reward
    from launcher.observe.plots.startup import draw_startup

    state = load_state(run_dir) if state is None else state
    layout = _layout(run_dir, state.attempt)
    written = []
    try:
        if any(step.reward is not None for step in state.steps):
            written.append(save_figure(draw_reward(state, title=run_dir.name), run_dir / "reward.png"))
        if state.phases:
            written.append(save_figure(draw_startup(state, title=run_dir.name), run_dir / "startup.png"))
        if layout is not None:
            written.append(save_figure(draw_layout(layout, title=run_dir.name), run_dir / "layout.png"))
    except OSError as error:
        # How the run ended is more than its pictures.
        logger.warning("a picture cannot be written: %s", error)
    return tuple(written)


def _layout(run_dir: Path, attempt: int | None) -> Layout | None:
    try:
        return layout_of_attempt(run_dir, attempt or 1)
    except FileNotFoundError:
        return None


def has_matplotlib() -> bool:
    """Whether pictures can be drawn; if not, one line in the log names what to install."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        logger.warning(MISSING)
        return False
    return True


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a figure without a window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI)
    return path
