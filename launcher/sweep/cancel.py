"""Ends what is queued or running of a sweep."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Sequence

from launcher.common.errors import LauncherError
from launcher.config.metric import Metric
from launcher.observe.cancel import cancel as cancel_runs
from launcher.observe.run_status import statuses
from launcher.observe.run_summary import summarize
from launcher.sweep.ledger import Ledger
from launcher.sweep.recover import find_lost_jobs
from launcher.sweep.status import Run, run_statuses


def cancel_sweep(ledger: Ledger, metric: Metric, timeout_s: float, tell: Callable[[str], None]) -> list[Run]:
    """Ends the command that works on the sweep, then its runs with one ``scancel``, and says so in the ledger.

    Returns:
        The runs that were ended, as they were before.

    Raises:
        LauncherError: the command works on another host, or something has not ended within ``timeout_s``.
    """
    before = [run for run in run_statuses(ledger, metric) if run.status.is_active]
    _end_holder(ledger, tell)
    with ledger.lock(timeout_s):
        find_lost_jobs(ledger, metric)
        left = [run for run in run_statuses(ledger, metric, is_held=False) if run.status.is_active]
        end_runs(ledger, left, timeout_s, tell)
    ended = {run.entry.identity for run in [*before, *left]}
    return [run for run in run_statuses(ledger, metric) if run.entry.identity in ended]


def end_runs(ledger: Ledger, runs: Sequence[Run], timeout_s: float, tell: Callable[[str], None]) -> None:
    """Ends runs; returns when nothing of them is left.

    Raises:
        LauncherError: some have not ended within ``timeout_s``.
    """
    if not runs:
        return
    found, problem = statuses([summarize(run.entry.run_dir) for run in runs if run.entry.run_dir is not None])
    if problem is not None:
        raise LauncherError(f"{problem} Nothing was cancelled.")
    # Before it happens; of a run that completes in this moment its own log says so, and that counts.
    ledger.append(*({"record": "cancelled", "run": run.entry.identity} for run in runs))
    cancel_runs(found, timeout_s, tell)


def _end_holder(ledger: Ledger, tell: Callable[[str], None]) -> None:
    holder = ledger.holder()
    if holder is None or holder.process is None:
        return
    if holder.host != socket.gethostname():
        raise LauncherError(f"A command works on the sweep: {holder}. HINT: cancel it there.")
    tell(f"ending the command that works on the sweep: {holder}")
    holder.process.send(signal.SIGTERM)
