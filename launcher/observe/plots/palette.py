"""Colours that stay apart for every kind of colour vision (Okabe and Ito), and the look of all axes."""

from __future__ import annotations

from matplotlib.axes import Axes

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
SKY = "#56B4E9"
RED = "#D55E00"
PINK = "#CC79A7"
YELLOW = "#F0E442"
GREY = "#8C8C8C"
PALE_GREY = "#C4C4C4"
PALE = "#E8E8E8"
INK = "#222222"

SEQUENCE = (ORANGE, GREEN, YELLOW, PINK, BLUE, SKY, RED)


def text_on(colour: str) -> str:
    """Black or white, whichever reads better on ``colour``."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else "#FFFFFF"


def clean(axes: Axes) -> None:
    """No box around the data, and a faint grid behind it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(color=PALE, linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=9)
