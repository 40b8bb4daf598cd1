"""One scenario of the matrix: a real run, one fault at one moment, and what followed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.common.errors import LauncherError
from launcher.events.schema import Event, MomentReached, ProcessChanged
from launcher.testing.chaos.actions import FaultInjector
from launcher.testing.chaos.cases import Case, Moment
from launcher.testing.chaos.cluster import ChaosCluster
from launcher.testing.chaos.judge import CaseResult, evaluate, is_noticed
from launcher.testing.chaos.observe import ObservedRun

FAULT_STEP = 2
START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 420.0
STATE_TIMEOUT_S = 160.0
LEFT_TIMEOUT_S = 15.0
"""Longest wait, after the end of a run, until nothing of it is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One case at one moment."""

    case: Case
    moment: Moment

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.case.name}-{self.moment}".replace(",", "").replace(" ", "-")


def run_scenario(scenario: Scenario, overrides: Sequence[str], folder: Path, cluster: ChaosCluster) -> CaseResult:
    """Runs a job and injects the fault; a result also if the run ended before that."""
    begin = time.monotonic()
    runs = (
        folder / "runs" if scenario.case.action != "fill" or cluster.small_disk is None else cluster.small_disk / "runs"
    )
    run_dir, result = Path(), CaseResult(case=scenario.case.name, moment=scenario.moment.value)
    try:
        launched, run_dir, job_id = start(
            scenario.name, [*overrides, *scenario.case.shape], runs, folder / f"{scenario.name}.txt", cluster
        )
        try:
            result = _inject(scenario, launched, ObservedRun(run_dir), job_id, cluster, folder)
        finally:
            launched.kill()
            launched.wait()
    except (LauncherError, LookupError, subprocess.SubprocessError) as error:
        result = replace(result, surprises=(str(error),))
    return replace(result, seconds=time.monotonic() - begin, run_dir=str(run_dir))


def start(
    name: str, overrides: Sequence[str], runs: Path, output: Path, cluster: ChaosCluster
) -> tuple[subprocess.Popen[bytes], Path, str]:
    """Submits a run and follows it; the following process, the run directory, and the job.

    Raises:
        LauncherError: it was not submitted.
    """
    words = [sys.executable, "-m", "launcher", "+cluster=slurm", f"output_dir={runs}", f"name={name}", *overrides]
    with output.open("w", encoding="utf-8") as file:
        launched = subprocess.Popen(
            [*cluster.login, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=cluster.env
        )
    try:
        return (launched, *_submitted(launched, output))
    except LauncherError:
        launched.kill()
        launched.wait()
        raise


def _submitted(launched: subprocess.Popen[bytes], output: Path) -> tuple[Path, str]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        text = output.read_text(encoding="utf-8")
        run_dir = re.search(r"^run directory (\S+)$", text, re.MULTILINE)
        job = re.search(r"submitted job (\S+)", text)
        if run_dir is not None and job is not None:
            return Path(run_dir.group(1)), job.group(1).rstrip(".,;")
        if launched.poll() is not None or time.monotonic() > deadline:
            raise LauncherError(f"no run was started: {text[-1000:]}")
        time.sleep(0.05)


def _inject(
    scenario: Scenario,
    launched: subprocess.Popen[bytes],
    observed: ObservedRun,
    job_id: str,
    cluster: ChaosCluster,
    folder: Path,
) -> CaseResult:
    case, moment = scenario.case, scenario.moment
    go = folder / f"{scenario.name}.go"
    go.unlink(missing_ok=True)
    injector = FaultInjector(case=case, cluster=cluster, observed=observed, job_id=job_id, go=go)

    def is_over() -> bool:
        return launched.poll() is not None

    try:
        if moment is not Moment.START:
            _reach(observed, lambda e: _is_step(e, Moment.STEP, FAULT_STEP - 1), is_over, moment)
            injector.arm()
        _reach(observed, lambda e: _is_moment(e, scenario), is_over, moment)
        at = injector.inject()
        observed.wait(lambda e: is_noticed(e, at), is_over, STATE_TIMEOUT_S)
        is_hanging = _is_hanging(launched)
        observed.read()
        if cluster.needs_nodes_for_leaks:
            injector.undo()
        leaks = find_leaks(cluster, observed.run_dir, observed.hostnames())
        return evaluate(case, moment, observed.events, at, leaks=leaks, is_hanging=is_hanging)
    finally:
        if not is_over():
            cluster.run("scancel", job_id, check=False)
        injector.undo()
        go.unlink(missing_ok=True)


def _reach(observed: ObservedRun, wanted: Callable[[Event], bool], is_over: Callable[[], bool], moment: Moment) -> None:
    if observed.wait(wanted, is_over, START_TIMEOUT_S) is None:
        raise LauncherError(f"the run did not reach `{moment}`")


def _is_step(event: Event, moment: Moment, step: int) -> bool:
    return isinstance(event, MomentReached) and event.moment == moment and event.step == step


def _is_moment(event: Event, scenario: Scenario) -> bool:
    if scenario.moment is not Moment.START:
        return _is_step(event, scenario.moment, FAULT_STEP)
    return isinstance(event, ProcessChanged) and event.state == "started" and event.name == scenario.case.target


def _is_hanging(launched: subprocess.Popen[bytes]) -> bool:
    try:
        launched.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def find_leaks(cluster: ChaosCluster, run_dir: Path, nodes: Sequence[str]) -> list[str]:
    """What is left of a run that is over, after some time in which it may go."""
    deadline = time.monotonic() + LEFT_TIMEOUT_S
    while (leaks := cluster.leaks(run_dir, nodes)) and time.monotonic() < deadline:
        time.sleep(0.5)
    cluster.forget(leaks)
    return leaks
