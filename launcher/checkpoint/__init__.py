"""Checkpoints of a trainer: model, optimizer, position in the data, random states, step and weight version.

Any torchrun program can use it; every rank calls every method::

    checkpoints = Checkpoints.of_run(model=model, optimizer=optimizer, data=loader)
    start = checkpoints.restore()                  # 0, or the step of the latest complete checkpoint
    for step in range(start + 1, steps + 1):
        ...
        stop = should_stop()                       # launcher.stopping
        if stop or checkpoints.is_due(step):
            checkpoints.save(step)
        if stop:
            break
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.checkpoint.checkpoints import CheckpointError, Checkpoints, Stateful

__all__ = ["CheckpointError", "Checkpoints", "Stateful"]


def __getattr__(name: str) -> Any:
    # Who only looks at checkpoints, on a login node, does not import torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from launcher.checkpoint import checkpoints

    return getattr(checkpoints, name)
