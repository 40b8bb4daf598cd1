"""One cell of the matrix: a real run, one fault at one moment, and what followed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.faults.cases import Case, Moment
from launcher.faults.observe import Event, Observed, processes_of

STRIKE_STEP = 2
START_TIMEOUT_S = 300.0
STATE_TIMEOUT_S = 60.0
END_TIMEOUT_S = 300.0
ORPHAN_GRACE_S = 5.0
STATES = frozenset({"failure", "restart", "replica", "node_lost", "spare", "stopping", "cancelled", "finished"})
"""Events that say that the run has noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What followed one fault."""

    case: str
    moment: str
    followed: str
    """The first events after it."""

    next_state_s: float | None
    """Seconds from the fault to the first of them; None if there was none within a minute."""

    outcome: str
    restarts: tuple[str, ...]
    orphans: int
    is_mixed: bool
    """At some step the replicas did not all serve what was published last."""

    surprises: tuple[str, ...]
    """Where it is not as the policy says; empty when all is well."""

    seconds: float
    run_dir: str

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)


def strike(case: Case, moment: Moment, overrides: Sequence[str], folder: Path) -> Result:
    """Runs a job and strikes it.

    Raises:
        RuntimeError: the job did not come as far as the moment, or there was nothing to strike.
    """
    begin = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{case.name.replace(' ', '-')}-{moment}.txt"
    with output.open("w") as file:
        words = [sys.executable, "-m", "launcher", f"output_dir={folder / 'runs'}", *overrides]
        launched = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:
        return _struck(case, moment, launched, output, begin)
    finally:
        if launched.poll() is None:
            launched.send_signal(signal.SIGTERM)
            launched.wait(END_TIMEOUT_S)


def _struck(case: Case, moment: Moment, launched: subprocess.Popen[bytes], output: Path, begin: float) -> Result:
    run_dir = _run_dir(launched, output)
    observed = Observed(run_dir)
    told = observed.wait(lambda e: _is_moment(e, case, moment), lambda: launched.poll() is not None, START_TIMEOUT_S)
    if told is None:
        raise RuntimeError(f"the run did not come to `{moment}`: {output}")
    before = len(observed.events)
    at = _inject(case, observed, run_dir, launched)
    noticed = observed.wait(
        lambda e: e["event"] in STATES and e["time"] >= at - 0.05 and e not in observed.events[:before],
        lambda: launched.poll() is not None,
        STATE_TIMEOUT_S,
    )
    try:
        launched.wait(END_TIMEOUT_S)
        is_hanging = False
    except subprocess.TimeoutExpired:
        is_hanging = True
    observed.read()
    seconds = time.monotonic() - begin
    return judged(case, moment, run_dir, observed.events, at, noticed, is_hanging=is_hanging, seconds=seconds)


def _run_dir(launched: subprocess.Popen[bytes], output: Path) -> Path:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        found = re.search(r"^run directory (\S+)$", output.read_text(), re.MULTILINE)
        if found is not None:
            return Path(found.group(1))
        if launched.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no run was started: {output.read_text()[-2000:]}")
        time.sleep(0.05)


def _is_moment(event: Event, case: Case, moment: Moment) -> bool:
    if moment is not Moment.START:
        wanted = {"event": "moment", "moment": moment.value, "step": STRIKE_STEP}
        return wanted.items() <= event.items()
    name = case.process or "trainer-0000"
    return bool(event.get("event") == "process" and event.get("state") == "started" and event.get("name") == name)


def _inject(case: Case, observed: Observed, run_dir: Path, launched: subprocess.Popen[bytes]) -> float:
    """Strikes; the time of that."""
    if case.relation == "job":
        launched.send_signal(signal.Signals[f"SIG{case.signal}"])
        return time.time()
    found = observed.pid_of(case.process)
    if found is None:
        raise RuntimeError(f"{case.process} was not started")
    pid, node_rank = found
    words = [sys.executable, "-m", "launcher.faults.inject", str(pid), case.relation, case.signal]
    done = subprocess.run(
        [*_on_node(observed, run_dir, node_rank), *words], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(f"nothing to strike for {case.name}: {done.stderr[-500:]}")
    return float(done.stdout.split()[0])


def _on_node(observed: Observed, run_dir: Path, node_rank: int) -> list[str]:
    """What to put before a command so that it runs on a node of the run."""
    begun = (e for e in observed.events if e["event"] in ("submitted", "attempt") and e.get("job_id"))
    job_id = next((e["job_id"] for e in begun), None)
    if job_id is None:
        return []
    up = next(e for e in observed.events if e["event"] == "node_up" and e["node_rank"] == node_rank)
    one = ["--nodes=1", "--ntasks=1", "--mem=0"]
    return ["srun", "--overlap", f"--jobid={job_id}", f"--nodelist={up['hostname']}", *one]


def judged(
    case: Case, moment: Moment, run_dir: Path, events: Sequence[Event], at: float, noticed: Event | None,
    *, is_hanging: bool, seconds: float,
) -> Result:  # fmt: skip
    """Compares what followed a fault at the time ``at`` with the policy."""
    after = [e for e in events if e["time"] >= at - 0.05]
    finished = next((e for e in events if e["event"] == "finished"), None)
    # Node 0's own end leaves nobody to write; who followed the run says it then.
    outcome = "hangs" if is_hanging else str(finished["outcome"]) if finished else "no last word"
    restarts = tuple(f"{e['what']}" for e in after if e["event"] == "restart")
    is_mixed = any(e["versions"] != [e["wanted"]] for e in events if e["event"] == "served")
    orphans = _orphans(run_dir)
    wanted = set(case.outcomes) | ({"no last word"} if "failed" in case.outcomes else set())
    surprises = []
    if outcome not in wanted:
        surprises.append(f"it {outcome}, not {' or '.join(sorted(case.outcomes))}")
    if case.restart is not None and case.restart not in restarts:
        surprises.append(f"no restart of the {case.restart}")
    if case.restart == "engine" and "trainer" in restarts:
        surprises.append("the trainers were restarted")
    if orphans:
        surprises.append(f"{orphans} processes are left")
    if is_mixed:
        surprises.append("replicas served different versions")
    if noticed is None and finished is None:
        surprises.append("nothing was noticed")
    told = [_word(e) for e in after if e["event"] in STATES]
    return Result(
        case=case.name,
        moment=moment.value,
        followed=", ".join(told[:4]) or "nothing",
        next_state_s=None if noticed is None else max(0.0, noticed["time"] - at),
        outcome=outcome,
        restarts=restarts,
        orphans=orphans,
        is_mixed=is_mixed,
        surprises=tuple(surprises),
        seconds=seconds,
        run_dir=str(run_dir),
    )


def _word(event: Event) -> str:
    more = event.get("what") or event.get("state") or event.get("outcome") or event.get("process") or ""
    return f"{event['event']} {more}".strip()


def _orphans(run_dir: Path) -> int:
    deadline = time.monotonic() + ORPHAN_GRACE_S
    while (left := processes_of(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(left)


def write(results: Sequence[Result], path: Path) -> None:
    """Keeps the results as JSON lines."""
    path.write_text("".join(json.dumps(result.to_json()) + "\n" for result in results))
