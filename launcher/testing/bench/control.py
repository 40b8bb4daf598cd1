"""What commands cost on a login node: ``python -m launcher.testing.bench control [--rounds 9] [--json]``.

Every number is a whole program, imports included: wall time, and work (user and system time of the program and of what
it started). The programs take turns, so that a busy moment of the machine meets all of them; medians are shown.
Where a SLURM answers, held jobs are submitted to it, and cancelled at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.common.errors import LauncherError
from launcher.common.run_dir import EVENTS, SUBMISSION, attempt_dir
from launcher.config import compose
from launcher.layout import Layout, plan
from launcher.submit.run_dir import create

EMPTY = """\
import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(config):
    pass


main()
"""
HELD_JOB = "#!/bin/sh\n#SBATCH --hold --job-name=launcher-bench\ntrue\n"
TIMEOUT_S = 120.0
FACTOR = 1.5
"""A submission may cost so many empty Hydra programs, and one ``sbatch``."""

MOST_WORK_S = 1.0
"""Most that any command may cost, for thousands of nodes and runs, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one program: medians over the rounds, in seconds."""

    name: str
    wall_s: float
    work_s: float


def main(arguments: Sequence[str]) -> int:
    """Measures and prints; 0 if what was measured is as cheap as it should be."""
    parser = argparse.ArgumentParser(prog="launcher.testing.bench control", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each program is started (default: 9)")
    parser.add_argument("--nodes", type=int, default=4096, help="nodes of the large run (default: 4096)")
    parser.add_argument("--runs", type=int, default=1000, help="runs in the long list (default: 1000)")
    parser.add_argument("--json", action="store_true", help="print numbers as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="launcher-bench-") as folder:
        programs = _programs(Path(folder), options.nodes, options.runs)
        costs = _measure(programs, options.rounds, Path(folder))
    verdicts = _verdicts(costs)
    if options.json:
        found = {cost.name: {"wall_s": cost.wall_s, "work_s": cost.work_s} for cost in costs}
        print(json.dumps({"rounds": options.rounds, "costs": found, "verdicts": verdicts}, indent=1))
    else:
        print(_table(costs, verdicts, options.rounds))
    return 0 if all(verdict["ok"] for verdict in verdicts.values()) else 1


def _programs(folder: Path, nodes: int, runs: int) -> dict[str, list[str]]:
    """Command lines by name."""
    (folder / "empty.py").write_text(EMPTY, encoding="utf-8")
    launcher = [sys.executable, "-m", "launcher"]
    large = make_runs(folder / "large", runs=1, nodes=nodes)[0]
    large_job = ["+cluster=slurm", "layout=gpu", f"layout.nodes={nodes}", f"layout.inference_nodes={nodes // 4}"]
    make_runs(folder / "many", runs=runs, nodes=2)
    programs = {
        "an empty @hydra.main program": [sys.executable, str(folder / "empty.py"), f"hydra.run.dir={folder}/hydra"],
        f"plan, {nodes} nodes": [
            *launcher,
            "plan",
            "layout=gpu",
            f"layout.nodes={nodes}",
            f"layout.inference_nodes={nodes // 4}",
        ],
        f"render, {nodes} nodes": [*launcher, "render", *large_job, f"output_dir={folder}/rendered"],
        f"status, {nodes} nodes": [*launcher, "status", str(large), "--json"],
        f"runs, {runs} runs": [*launcher, "runs", "--all", "--output-dir", str(folder / "many")],
    }
    if _has_controller():
        (folder / "job.sh").write_text(HELD_JOB, encoding="utf-8")
        words = ["+cluster=slurm", "+cluster.sbatch.hold=true", "name=launcher-bench", f"output_dir={folder}/runs"]
        programs[SBATCH] = ["sbatch", str(folder / "job.sh")]
        programs[SUBMIT] = [*launcher, *words]
        programs[f"{SUBMIT} snapshot=false"] = [*launcher, *words, "snapshot=false"]
    return programs


def _has_controller() -> bool:
    """Whether there is a SLURM to submit to; ``sbatch`` alone may be installed anywhere."""
    if shutil.which("scontrol") is None:
        return False
    ping = subprocess.run(["scontrol", "ping"], capture_output=True, timeout=TIMEOUT_S, check=False)
    return ping.returncode == 0


SBATCH = "sbatch of an empty script"
SUBMIT = "launcher +cluster=slurm"
HYDRA = "an empty @hydra.main program"


def _measure(programs: dict[str, list[str]], rounds: int, folder: Path) -> list[Cost]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    try:
        # The first round only fills caches.
        for number in range(rounds + 1):
            for name, command in programs.items():
                seconds = _once(command, folder)
                if number > 0:
                    found[name].append(seconds)
    finally:
        if SBATCH in programs:
            subprocess.run(["scancel", "--name", "launcher-bench", "--me"], timeout=TIMEOUT_S, check=False)
    return [
        Cost(
            name=name,
            wall_s=statistics.median(wall for wall, _ in seconds),
            work_s=statistics.median(work for _, work in seconds),
        )
        for name, seconds in found.items()
    ]


def _once(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Wall time and work of one start, in seconds.

    Args:
        folder: for its output, and for the modules that it compiles.

    Raises:
        LauncherError: it failed.
    """
    log = folder / "output"
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "modules")}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ
        )
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise LauncherError(
            f"`{' '.join(command)}` ended with {process.returncode}:\n{log.read_text(encoding='utf-8')}"
        )
    return seconds, usage.ru_utime + usage.ru_stime


def _verdicts(costs: Sequence[Cost]) -> dict[str, dict[str, float | bool]]:
    """What should hold, with the number and its limit."""
    by_name = {cost.name: cost for cost in costs}
    hydra = by_name[HYDRA]
    verdicts: dict[str, dict[str, float | bool]] = {}
    for cost in costs:
        if cost.name not in (HYDRA, SBATCH, SUBMIT) and not cost.name.startswith(SUBMIT):
            verdicts[cost.name] = _verdict(cost.work_s, MOST_WORK_S)
    if SUBMIT in by_name:
        for what in ("wall_s", "work_s"):
            limit = FACTOR * getattr(hydra, what) + getattr(by_name[SBATCH], what)
            verdicts[f"{SUBMIT}, {what}"] = _verdict(getattr(by_name[SUBMIT], what), limit)
    return verdicts


def _verdict(value: float, limit: float) -> dict[str, float | bool]:
    return {"value": value, "limit": limit, "ok": value <= limit}


def _table(costs: Sequence[Cost], verdicts: dict[str, dict[str, float | bool]], rounds: int) -> str:
    hydra = next(cost for cost in costs if cost.name == HYDRA)
    lines = [f"medians of {rounds} starts           wall s   work s   x empty hydra (wall, work)"]
    lines += [
        f"{cost.name:<32} {cost.wall_s:6.3f}   {cost.work_s:6.3f}   {cost.wall_s / hydra.wall_s:5.2f}"
        f"  {cost.work_s / hydra.work_s:5.2f}"
        for cost in costs
    ]
    lines.append("")
    lines += [
        f"{'ok      ' if verdict['ok'] else 'TOO MUCH'} {name}: {verdict['value']:.3f} s of {verdict['limit']:.3f} s"
        for name, verdict in verdicts.items()
    ]
    if SUBMIT not in {cost.name for cost in costs}:
        lines.append("no SLURM answers: submissions were not measured")
    return "\n".join(lines)


def make_runs(output_dir: Path, *, runs: int, nodes: int) -> list[Path]:
    """Makes run directories, each with one attempt whose nodes are up; of several, every second one has ended."""
    config = compose(
        ["layout=gpu", f"layout.nodes={nodes}", f"layout.inference_nodes={nodes // 4}", f"output_dir={output_dir}"]
    )
    config = dataclasses.replace(config, snapshot=False)
    layout = plan(config)
    first = create(config, layout)
    submission = json.loads((first / SUBMISSION).read_text(encoding="utf-8"))
    made = [first]
    for number in range(1, runs):
        path = first.with_name(f"{first.name}-{number:04d}")
        path.mkdir()
        for file in first.iterdir():
            if file.is_file():
                shutil.copyfile(file, path / file.name)
        (path / SUBMISSION).write_text(json.dumps({**submission, "run_dir": str(path)}), encoding="utf-8")
        made.append(path)
    for number, path in enumerate(made):
        _write_events(path, layout, is_over=number % 2 == 1)
    return made


def _write_events(run_dir: Path, layout: Layout, *, is_over: bool) -> None:
    now = time.time()
    sizes = {"nodes": len(layout.nodes), "trainer_nodes": len(layout.trainer_nodes)}
    sizes |= {"inference_nodes": len(layout.inference_nodes), "replicas": len(layout.replicas)}
    events = [
        {"time": now, "event": "submitted", "cluster": "local", "run_dir": str(run_dir), "job_id": None},
        {"time": now, "event": "attempt", "attempt": 1, "world_size": layout.world_size, **sizes},
        *(
            {"time": now, "event": "node_up", "node_rank": node.node_rank, "hostname": node.hostname, "role": node.role}
            | {"role_rank": node.role_rank}
            for node in layout.nodes
        ),
        {"time": now, "event": "phase", "phase": "training"},
    ]
    if is_over:
        events.append({"time": now, "event": "finished", "outcome": "completed", "seconds": 1.0})
    directory = attempt_dir(run_dir, 1)
    directory.mkdir(parents=True)
    (directory / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
