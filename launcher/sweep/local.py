"""Runs of a sweep on this machine, so many at a time."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config.metric import Metric
from launcher.node.signals import StopRequest
from launcher.submit.cluster import Job
from launcher.sweep.candidates import Combination
from launcher.sweep.ledger import Ledger
from launcher.sweep.start import RunStarter
from launcher.sweep.status import counted, run_statuses
from launcher.sweep.waiting import SIGNALS, Stopped, end_text

POLL_S = 0.1
END_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    candidate: Combination
    run_dir: Path
    job: Job


def run_here(ledger: Ledger, todo: Sequence[Combination], metric: Metric) -> None:
    """Runs all of ``todo``, one after another or ``sweep.parallel`` at a time; one that fails does not end the others.

    Call it with the lock of the sweep held. Each run chooses free ports and has a directory of its own.

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
                time.sleep(POLL_S)
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
