"""What a signal to this run means, and what follows: decided by node 0, whoever received it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from launcher.attempts import End
from launcher.clusters.slurm_fate import Fate

logger = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a run is to stop after a checkpoint."""

    TIME_LIMIT = "time limit"
    PREEMPTION = "preemption"
    REQUEUE = "requeue"
    REQUEST = "request"

    @property
    def end(self) -> End:
        """What the attempt counts as."""
        if self is Reason.TIME_LIMIT:
            return End.TIMED_OUT
        return End.STOPPED if self is Reason.REQUEST else End.PREEMPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows a signal."""

    reason: Reason | None
    """Stop after a checkpoint, for this reason; None: end at once."""

    by_slurm: bool = False
    """SLURM queues the job again by itself."""

    is_certain: bool = True
    """False: SLURM could not be asked."""


def decide(name: str, ask_fate: Callable[[], Fate | None] | None) -> Decision:
    """What follows a signal.

    Args:
        name: of the signal: SIGUSR2 asks for a stop with a checkpoint, the others for the end.
        ask_fate: asks SLURM what it is about to do; None outside of SLURM.
    """
    is_wish = name == signal.SIGUSR2.name
    if ask_fate is None:
        return Decision(reason=Reason.REQUEST if is_wish else None)
    fate = ask_fate()
    logger.info("%s; SLURM says %s", name, fate)
    if fate is None:
        # Should it be a preemption, the checkpoint is what matters; should it be the end, SIGKILL comes soon.
        return Decision(reason=Reason.REQUEST if is_wish else Reason.REQUEUE, is_certain=False)
    if fate.is_requeued:
        return Decision(reason=Reason.PREEMPTION if is_wish else Reason.REQUEUE, by_slurm=True)
    if fate.is_preempted:
        return Decision(reason=Reason.PREEMPTION)
    if fate.is_out_of_time:
        return Decision(reason=Reason.TIME_LIMIT)
    return Decision(reason=Reason.REQUEST if is_wish and not fate.is_ending else None)
