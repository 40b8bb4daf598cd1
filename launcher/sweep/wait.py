"""Follows the jobs of a sweep to their ends, runs those of this machine, and ends what is queued or running."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.common.errors import LauncherError, ProcessFailure
from launcher.common.text import number
from launcher.config.metric import Metric
from launcher.node.signals import StopRequest
from launcher.observe.cancel import cancel as cancel_runs
from launcher.observe.run_status import statuses
from launcher.observe.run_summary import summarize
from launcher.slurm.client import ControllerAway
from launcher.submit.cluster import Job
from launcher.sweep.candidates import Combination, RunResult
from launcher.sweep.ledger import Ledger
from launcher.sweep.start import RunStarter, find_lost_jobs
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
        runs = _read(ledger, metric, wanted)
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
                    left = [
                        run for run in run_statuses(ledger, metric, is_locked=False) if run.entry.identity in wanted
                    ]
                    end_runs(ledger, [run for run in left if run.status.is_active], END_TIMEOUT_S, _notify)
                raise Stopped(stop.signal)
            time.sleep(min(0.2, interval_s))


def _read(ledger: Ledger, metric: Metric, wanted: Collection[str]) -> list[Run] | None:
    """The wanted runs; None while SLURM's controller is away, which ends no job."""
    try:
        return [run for run in run_statuses(ledger, metric) if run.entry.identity in wanted]
    except ControllerAway as error:
        _notify(str(error))
        return None


def _notify(text: str) -> None:
    print(f"launcher: {text}", file=sys.stderr, flush=True)


def cancel_sweep(ledger: Ledger, metric: Metric, timeout_s: float, notify: Callable[[str], None]) -> list[Run]:
    """Ends the command that works on the sweep, then its runs with one ``scancel``, and records it in the ledger.

    Returns:
        The runs that were ended, as they were before.

    Raises:
        LauncherError: the command works on another host, or something has not ended within ``timeout_s``.
    """
    before = [run for run in run_statuses(ledger, metric) if run.status.is_active]
    _end_lock_owner(ledger, notify)
    with ledger.lock(timeout_s):
        find_lost_jobs(ledger, metric)
        left = [run for run in run_statuses(ledger, metric, is_locked=False) if run.status.is_active]
        end_runs(ledger, left, timeout_s, notify)
    ended = {run.entry.identity for run in [*before, *left]}
    return [run for run in run_statuses(ledger, metric) if run.entry.identity in ended]


def end_runs(ledger: Ledger, runs: Sequence[Run], timeout_s: float, notify: Callable[[str], None]) -> None:
    """Ends runs; returns when nothing of them is left.

    Raises:
        LauncherError: some have not ended within ``timeout_s``.
    """
    if not runs:
        return
    found, problem = statuses([summarize(run.entry.run_dir) for run in runs if run.entry.run_dir is not None])
    if problem is not None:
        raise LauncherError(f"{problem} Nothing was cancelled.")
    # Before it happens; of a run that completes in this moment its own log counts.
    ledger.append(*({"record": "cancelled", "run": run.entry.identity} for run in runs))
    cancel_runs(found, timeout_s, notify)


def _end_lock_owner(ledger: Ledger, notify: Callable[[str], None]) -> None:
    owner = ledger.lock_owner()
    if owner is None or owner.process is None:
        return
    if owner.host != socket.gethostname():
        raise LauncherError(f"A command works on the sweep: {owner}. HINT: cancel it there.")
    notify(f"ending the command that works on the sweep: {owner}")
    owner.process.send(signal.SIGTERM)


LOCAL_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    candidate: Combination
    run_dir: Path
    job: Job


def run_here(ledger: Ledger, todo: Sequence[Combination], metric: Metric) -> None:
    """Runs all of ``todo``, one after another or ``sweep.parallel`` at a time; one that fails does not end the others.

    Call it with the lock of the sweep held. Each run chooses free ports and has its own directory.

    Raises:
        Stopped: SIGINT or SIGTERM ended the runs.
    """
    stop = StopRequest()
    stop.listen(SIGNALS)
    starter = RunStarter(ledger)
    waiting, running = list(todo), list[_Started]()
    try:
        while (waiting or running) and stop.signal is None:
            while waiting and len(running) < (waiting[0].config.sweep.parallel or 1):
                candidate = waiting.pop(0)
                run_dir, job = starter.start(candidate)
                running.append(_Started(candidate=candidate, run_dir=run_dir, job=job))
                print(f"{time.strftime('%H:%M:%S')}  started: {' '.join(candidate.overrides)}   {run_dir}", flush=True)
            ended = [started for started in running if not started.job.is_alive()]
            running = [started for started in running if started not in ended]
            for started in ended:
                _record(ledger, started, "")
                _show_end(ledger, started, metric)
            if not ended:
                time.sleep(LOCAL_POLL_S)
        if stop.signal is not None:
            raise Stopped(stop.signal)
    finally:
        _end_all(ledger, running)
        stop.restore()


def _record(ledger: Ledger, started: _Started, forced: str) -> None:
    code = started.job.wait(END_TIMEOUT_S).exit_code
    outcome = forced or ("completed" if code == 0 else "failed")
    ledger.append({"record": "ended", "run": started.candidate.identity, "outcome": outcome, "exit_code": code})


def _show_end(ledger: Ledger, started: _Started, metric: Metric) -> None:
    from launcher.observe.plots.pictures import write_pictures
    from launcher.observe.terminal.summary import summary

    write_pictures(started.run_dir)
    text = summary(started.run_dir)
    runs = run_statuses(ledger, metric)
    (run,) = [run for run in runs if run.entry.identity == started.candidate.identity]
    print(end_text(run, metric, counted(run.status for run in runs)), flush=True)
    if "Cause: " in text:
        print(text[text.index("Cause: ") :], file=sys.stderr, flush=True)


def _end_all(ledger: Ledger, running: Sequence[_Started]) -> None:
    if running:
        print("\nlauncher: ending the runs of the sweep ...", file=sys.stderr, flush=True)
    for started in running:
        started.job.cancel()
    for started in running:
        _record(ledger, started, "cancelled")
