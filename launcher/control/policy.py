"""What may fail, and what follows: one table, and how a row of it is chosen."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from launcher.control.model import STORE_HELPER
from launcher.layout.model import Role


class Loss(Enum):
    """What failed."""

    PROCESS = "a process ended, was killed, or hung"
    STEP = "no step was finished in time"
    NODE = "a node is lost: its lease ran out, its agent was killed, or it never reported"
    PREFLIGHT = "preflight found a node bad"


class When(Enum):
    """A circumstance that makes a difference."""

    STOPPING = "the run is stopping after a checkpoint"
    RESTARTS_LEFT = "the limit of restarts within `restart.count_window_s` is not reached"
    REFUSED = "the engine refused its arguments, and no engine of the run was ever ready"
    AT_STARTUP = "the trainer failed by itself, soon after its start and before its first step"
    ONLY_RANK = "there is one trainer rank"
    ENOUGH_REPLICAS = "`inference.min_replicas` are left without the affected ones"
    SPARE = "there is a spare for each of the nodes"
    NODE_0 = "it is node 0, on which the control service runs"
    EVERYWHERE = "all nodes have the same fault"
    WARN_ONLY = "`preflight.action` is `warn`"


class Decision(Enum):
    """What follows."""

    LOG = "the failure is logged, and nothing else follows"
    RESTART_REPLICA = "the replica restarts after a pause that doubles each time"
    DROP_REPLICAS = "the affected replicas are left out, and training goes on"
    RESTART_TRAINERS = "all trainer ranks restart together, from the last checkpoint"
    HOLD = "the failure waits until the other ranks could report the cause"
    REPLACE_NODE = "a spare takes the slot; the trainers or replicas that ran on it restart"
    FAIL = "the run fails"
    REQUEUE = "the run ends, and the job is queued again"


STORE = STORE_HELPER
"""Role of the helper that serves the trainers' rendezvous store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRow:
    """One row of the table."""

    loss: Loss
    role: str
    """Of the process, or of the node."""

    when: frozenset[When]
    """All of these must hold."""

    then: Decision
    settings: tuple[str, ...]
    """What sets the limit."""


def _row(loss: Loss, role: str, *when: When, then: Decision, settings: str = "") -> PolicyRow:
    return PolicyRow(loss=loss, role=role, when=frozenset(when), then=then, settings=tuple(settings.split()))


_P, _S, _N, _F = Loss.PROCESS, Loss.STEP, Loss.NODE, Loss.PREFLIGHT
_ENGINE, _TRAINER, _HELPER, _SPARE = Role.INFERENCE, Role.TRAINER, Role.HELPER, Role.SPARE
_D = Decision
_STEP = "restart.step_timeout_s restart.max_trainer_restarts"

# fmt: off
POLICY: tuple[PolicyRow, ...] = (
    _row(_P, _ENGINE, When.STOPPING, then=_D.LOG),
    _row(_P, _ENGINE, When.REFUSED, When.ENOUGH_REPLICAS, then=_D.DROP_REPLICAS, settings="inference.min_replicas"),
    _row(_P, _ENGINE, When.REFUSED, then=_D.FAIL, settings="inference.min_replicas"),
    _row(_P, _ENGINE, When.RESTARTS_LEFT, then=_D.RESTART_REPLICA, settings="restart.max_engine_restarts"),
    _row(_P, _ENGINE, When.ENOUGH_REPLICAS, then=_D.DROP_REPLICAS, settings="inference.min_replicas"),
    _row(_P, _ENGINE, then=_D.FAIL, settings="inference.min_replicas"),

    _row(_P, _TRAINER, When.STOPPING, then=_D.FAIL),
    _row(_P, _TRAINER, When.AT_STARTUP, When.ONLY_RANK, then=_D.FAIL, settings="restart.startup_failure_window_s"),
    _row(_P, _TRAINER, When.AT_STARTUP, then=_D.HOLD, settings="restart.startup_failure_window_s"),
    _row(_P, _TRAINER, When.RESTARTS_LEFT, then=_D.RESTART_TRAINERS, settings="restart.max_trainer_restarts"),
    _row(_P, _TRAINER, then=_D.FAIL, settings="restart.max_trainer_restarts"),

    _row(_P, STORE, When.STOPPING, then=_D.LOG),
    _row(_P, STORE, When.RESTARTS_LEFT, then=_D.RESTART_TRAINERS, settings="restart.max_trainer_restarts"),
    _row(_P, STORE, then=_D.FAIL, settings="restart.max_trainer_restarts"),
    _row(_P, _HELPER, When.STOPPING, then=_D.LOG),
    _row(_P, _HELPER, then=_D.FAIL),

    _row(_S, _TRAINER, When.RESTARTS_LEFT, then=_D.RESTART_TRAINERS, settings=_STEP),
    _row(_S, _TRAINER, then=_D.FAIL, settings=_STEP),

    _row(_N, _SPARE, then=_D.LOG),
    _row(_N, _ENGINE, When.SPARE, then=_D.REPLACE_NODE, settings="layout.spares lease_timeout_s"),
    _row(_N, _ENGINE, When.ENOUGH_REPLICAS, then=_D.DROP_REPLICAS, settings="inference.min_replicas lease_timeout_s"),
    _row(_N, _ENGINE, then=_D.REQUEUE, settings="cluster.requeue restart.max_failures"),
    _row(_N, _TRAINER, When.NODE_0, then=_D.FAIL),
    _row(_N, _TRAINER, When.SPARE, When.RESTARTS_LEFT, then=_D.REPLACE_NODE, settings="layout.spares lease_timeout_s"),
    _row(_N, _TRAINER, When.SPARE, then=_D.FAIL, settings="restart.max_trainer_restarts"),
    _row(_N, _TRAINER, then=_D.REQUEUE, settings="cluster.requeue restart.max_failures"),

    _row(_F, _SPARE, then=_D.LOG),
    _row(_F, _ENGINE, When.WARN_ONLY, then=_D.LOG, settings="preflight.action"),
    _row(_F, _ENGINE, When.EVERYWHERE, then=_D.FAIL),
    _row(_F, _ENGINE, When.SPARE, then=_D.REPLACE_NODE, settings="layout.spares"),
    _row(_F, _ENGINE, then=_D.FAIL),
    _row(_F, _TRAINER, When.WARN_ONLY, then=_D.LOG, settings="preflight.action"),
    _row(_F, _TRAINER, When.NODE_0, then=_D.FAIL),
    _row(_F, _TRAINER, When.EVERYWHERE, then=_D.FAIL),
    _row(_F, _TRAINER, When.SPARE, then=_D.REPLACE_NODE, settings="layout.spares"),
    _row(_F, _TRAINER, then=_D.FAIL),
)
"""What follows a loss: the first row for its role of which all circumstances hold.

It applies while the attempt is being started or runs. Once the trainers have finished, or the run has ended, nothing is
restarted. What a person or SLURM requests (a stop, a cancel) and the loss of node 0's agent, which takes the control
service with it, are not decided here.
"""
# fmt: on


def decide(loss: Loss, role: str, holding: frozenset[When]) -> PolicyRow:
    """The row that applies.

    Args:
        role: ``trainer``, ``inference`` or ``spare``; of a process also the name of a helper.
        holding: the circumstances that hold.
    """
    known = role if role in (Role.TRAINER, Role.INFERENCE, Role.SPARE, STORE) else Role.HELPER
    return next(rule for rule in POLICY if rule.loss is loss and rule.role == known and rule.when <= holding)


FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that another process sends; the others are how a program's own error ends it."""

REFUSED = 2
"""Exit code of a program that refuses how it was started; it would refuse again."""


def is_from_outside(exit_code: int | None) -> bool:
    """Whether a process was ended by another: killed, or found hanging (None)."""
    if exit_code is None:
        return True
    # A shell reports a signal's end as 128 + n.
    return (-exit_code if exit_code < 0 else exit_code - 128) in FROM_OUTSIDE


def counted_restarts(times: Sequence[float], now: float, window_s: float) -> list[float]:
    """Those of the restarts that still count."""
    return [time for time in times if now - time < window_s]


def backoff_s(counted: int, first_s: float, longest_s: float) -> float:
    """The pause before a restart; it doubles with each restart that still counts."""
    # The exponent is bounded because a limit may be large, and floats are not.
    return float(min(first_s * 2.0 ** min(counted, 60), longest_s))
