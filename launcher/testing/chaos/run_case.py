"""One cell of the matrix: a real run, one fault at one moment, and what followed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.common.errors import LauncherError
from launcher.testing.chaos.actions import Striker
from launcher.testing.chaos.cases import Case, Moment
from launcher.testing.chaos.cluster import Site
from launcher.testing.chaos.judge import Result, is_noticed, judged
from launcher.testing.chaos.observe import Event, Observed

STRIKE_STEP = 2
START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 420.0
STATE_TIMEOUT_S = 160.0
LEFT_TIMEOUT_S = 15.0
"""Longest wait, after the end of a run, until nothing of it is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A place in the matrix."""

    case: Case
    moment: Moment

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.case.name}-{self.moment}".replace(",", "").replace(" ", "-")


def strike(cell: Cell, overrides: Sequence[str], folder: Path, site: Site) -> Result:
    """Runs a job and strikes it; a result also when it did not come as far."""
    begin = time.monotonic()
    runs = folder / "runs" if cell.case.act != "fill" or site.small_disk is None else site.small_disk / "runs"
    run_dir, result = Path(), Result(case=cell.case.name, moment=cell.moment.value)
    try:
        launched, run_dir, job_id = start(
            cell.name, [*overrides, *cell.case.shape], runs, folder / f"{cell.name}.txt", site
        )
        try:
            result = _struck(cell, launched, Observed(run_dir), job_id, site, folder)
        finally:
            launched.kill()
            launched.wait()
    except (LauncherError, LookupError, subprocess.SubprocessError) as error:
        result = replace(result, surprises=(str(error),))
    return replace(result, seconds=time.monotonic() - begin, run_dir=str(run_dir))


def start(
    name: str, overrides: Sequence[str], runs: Path, output: Path, site: Site
) -> tuple[subprocess.Popen[bytes], Path, str]:
    """Submits a run and follows it; who follows it, its directory, and its job.

    Raises:
        LauncherError: it was not submitted.
    """
    words = [sys.executable, "-m", "launcher", "+cluster=slurm", f"output_dir={runs}", f"name={name}", *overrides]
    with output.open("w", encoding="utf-8") as file:
        launched = subprocess.Popen(
            [*site.login, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=site.env
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


def _struck(
    cell: Cell, launched: subprocess.Popen[bytes], observed: Observed, job_id: str, site: Site, folder: Path
) -> Result:
    case, moment = cell.case, cell.moment
    go = folder / f"{cell.name}.go"
    go.unlink(missing_ok=True)
    striker = Striker(case=case, site=site, observed=observed, job_id=job_id, go=go)

    def is_over() -> bool:
        return launched.poll() is not None

    try:
        if moment is not Moment.START:
            _reach(observed, lambda e: _is_step(e, Moment.STEP, STRIKE_STEP - 1), is_over, moment)
            striker.arm()
        _reach(observed, lambda e: _is_moment(e, cell), is_over, moment)
        at = striker.strike()
        observed.wait(lambda e: is_noticed(e, at), is_over, STATE_TIMEOUT_S)
        is_hanging = _is_hanging(launched)
        observed.read()
        if site.asks_nodes:
            striker.undo()
        nodes = [str(event["hostname"]) for event in observed.events if event["event"] == "node_up"]
        left = left_behind(site, observed.run_dir, sorted(set(nodes)))
        return judged(case, moment, observed.events, at, left=left, is_hanging=is_hanging)
    finally:
        if not is_over():
            site.run("scancel", job_id, check=False)
        striker.undo()
        go.unlink(missing_ok=True)


def _reach(observed: Observed, wanted: object, is_over: object, moment: Moment) -> None:
    assert callable(wanted) and callable(is_over)
    if observed.wait(wanted, is_over, START_TIMEOUT_S) is None:
        raise LauncherError(f"the run did not come to `{moment}`")


def _is_step(event: Event, moment: Moment, step: int) -> bool:
    return {"event": "moment", "moment": moment.value, "step": step}.items() <= event.items()


def _is_moment(event: Event, cell: Cell) -> bool:
    if cell.moment is not Moment.START:
        return _is_step(event, cell.moment, STRIKE_STEP)
    started = {"event": "process", "state": "started", "name": cell.case.target}
    return started.items() <= event.items()


def _is_hanging(launched: subprocess.Popen[bytes]) -> bool:
    try:
        launched.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def left_behind(site: Site, run_dir: Path, nodes: Sequence[str]) -> list[str]:
    """What is left of a run that is over, after some time in which it may go."""
    deadline = time.monotonic() + LEFT_TIMEOUT_S
    while (left := site.left(run_dir, nodes)) and time.monotonic() < deadline:
        time.sleep(0.5)
    site.forget(left)
    return left
