"""Waits for the jobs of a sweep, and says of each what it came to."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Collection

from launcher.common.errors import LauncherError, ProcessFailure
from launcher.common.text import number
from launcher.config.metric import Metric
from launcher.node.signals import StopRequest
from launcher.slurm.client import ControllerAway
from launcher.sweep.cancel import end_runs
from launcher.sweep.candidates import RunResult
from launcher.sweep.ledger import Ledger
from launcher.sweep.status import Run, Status, counted, run_statuses

SHORTEST_S, LONGEST_S, GROWTH = 1.0, 30.0, 1.3
"""Between two questions to SLURM: often after a change, seldom while nothing happens."""

FAILED_CODE = 5
END_TIMEOUT_S = 90.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(LauncherError):
    """Somebody ended the sweep."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(f"{signum.name}; the sweep and its runs were ended. The same command goes on with it.")
        self.exit_code = 128 + signum


def wait_for(ledger: Ledger, metric: Metric, wanted: Collection[str]) -> None:
    """Returns when none of the wanted runs is queued or runs; SIGINT and SIGTERM end them.

    Raises:
        Stopped: by a signal.
    """
    stop = StopRequest()
    stop.listen(SIGNALS)
    try:
        _wait(ledger, metric, wanted, stop)
    finally:
        stop.restore()


def outcome_of(run: Run, metric: Metric) -> RunResult:
    """The exit code and the objective of a run that has ended."""
    name = " ".join(run.entry.overrides) or run.entry.identity
    if run.status is not Status.DONE:
        why = f" ({run.why})" if run.why else ""
        return RunResult(
            code=FAILED_CODE,
            error=ProcessFailure(f"The run {name} is {run.status}{why}. Run directory: {run.entry.run_dir}"),
        )
    if run.value is None:
        hint = f"HINT: let the trainer report it, `emit('step', step=..., {metric.name}=...)`, or set `sweep.metric`."
        return RunResult(error=ProcessFailure(f"The run {name} reported no `{metric.name}` (`sweep.metric`). {hint}"))
    return RunResult(value=run.value)


def end_text(run: Run, metric: Metric, left: str) -> str:
    """One line about a run that has ended."""
    value = f", {metric} {number(run.value)}" if run.value is not None else ""
    why = f" ({run.why})" if run.why else ""
    name = " ".join(run.entry.overrides) or run.entry.identity
    return f"{time.strftime('%H:%M:%S')}  {run.status}{why}: {name}{value}   [{left}]"


def _wait(ledger: Ledger, metric: Metric, wanted: Collection[str], stop: StopRequest) -> None:
    seen: set[str] = set()
    interval_s = SHORTEST_S
    while True:
        runs = _look(ledger, metric, wanted)
        ended = [run for run in runs or () if not run.status.is_active and run.entry.identity not in seen]
        for run in ended:
            print(end_text(run, metric, counted(run.status for run in runs or ())), flush=True)
        seen |= {run.entry.identity for run in ended}
        if len(seen) == len(wanted):
            return
        interval_s = SHORTEST_S if ended else min(interval_s * GROWTH, LONGEST_S)
        deadline = time.monotonic() + interval_s
        while time.monotonic() < deadline:
            if stop.signal is not None:
                with ledger.lock(END_TIMEOUT_S):
                    left = [run for run in run_statuses(ledger, metric, is_held=False) if run.entry.identity in wanted]
                    end_runs(ledger, [run for run in left if run.status.is_active], END_TIMEOUT_S, _tell)
                raise Stopped(stop.signal)
            time.sleep(min(0.2, interval_s))


def _look(ledger: Ledger, metric: Metric, wanted: Collection[str]) -> list[Run] | None:
    """The wanted runs; None while SLURM's controller is away, which ends no job."""
    try:
        return [run for run in run_statuses(ledger, metric) if run.entry.identity in wanted]
    except ControllerAway as error:
        _tell(str(error))
        return None


def _tell(text: str) -> None:
    print(f"launcher: {text}", file=sys.stderr, flush=True)
