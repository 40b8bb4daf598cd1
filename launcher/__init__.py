"""One SLURM job with two roles: the first nodes train, the last nodes run vLLM, a bridge carries the weights."""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import Any, SupportsFloat, SupportsIndex

__all__ = ["report"]
__version__ = "0.1.0"


def report(step: SupportsIndex, reward: SupportsFloat | None = None, **metrics: Any) -> None:
    """Tells the run that a step is done. ``launcher status``, the page, pictures, a sweep's metric and the detection of
    a trainer that hangs read it. Does nothing on ranks other than 0, and outside of a run. Any thread may call it.

    Args:
        step: from 1. A step that is reported again, as after a restart, replaces the earlier one.
        reward: mean over the step's completions.
        metrics: further numbers, under any names; scalars of torch and numpy are taken as numbers. These names have a
            meaning of their own: ``steps`` (planned), ``version`` (of the weights published after the step), ``loss``,
            ``tokens_per_s``, ``sync_s``, ``mismatch``.

    Raises:
        TypeError: a metric is no number.
        ValueError: ``step`` is negative.
    """
    number = step.__index__()
    if number < 0:
        raise ValueError(f"`step` ({number}) is negative. HINT: steps count from 1.")
    given = metrics if reward is None else {"reward": reward, **metrics}
    fields = {name: _number(name, value) for name, value in given.items() if value is not None}
    if os.environ.get("RANK", "0") != "0":
        return
    # By name: this package is below all others, which import it first.
    errors = import_module("launcher.common.errors")
    try:
        import_module("launcher.control.emit").emit("step", step=number, **fields)
    except errors.ControlError as error:
        # The run is ending, or its node 0 changes: no reason for a trainer to fail.
        logging.getLogger(__name__).warning("step %d was not reported: %s", number, error)


def _number(name: str, value: Any) -> int | float:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"`{name}` ({value!r}) is no number. HINT: `launcher.report` takes numbers, and scalar tensors."
        )
    return value
