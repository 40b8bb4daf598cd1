"""The fault matrix: ``python -m launcher.testing.chaos +cluster=slurm [--cases WORDS] [--moments WORDS] [--out DIR]``.

With the word ``soak``: one run under random faults, for ``--minutes N``.

Runs a small job for each case and moment on the SLURM of the environment and prints what followed; in a checkout
``python -m tests.chaos`` does so, as root, on a SLURM that it makes on this machine. Further words are overrides of the
runs. Ends with 0 if nothing was a surprise.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from launcher.common.errors import LauncherError, UsageError
from launcher.testing.chaos.cases import CASES, Moment
from launcher.testing.chaos.cluster import ChaosCluster
from launcher.testing.chaos.judge import CaseResult, add, load, table
from launcher.testing.chaos.run_case import Scenario, run_scenario
from launcher.testing.chaos.soak import report, soak

SURPRISED, TERMINATED = 1, 143
SMALL = (
    "trainer.command=[python,-m,launcher.testing.chaos.trainer]",
    "trainer.steps=4",
    "layout.nodes=3",
    "layout.gpus_per_node=1",
    "inference.max_num_seqs=8",
    "cluster.wait=true",
    "cluster.exclusive=true",
    "cluster.time=20",
    "checkpoint.every_steps=1",
    "preflight.bad_node_ttl_s=0",
)
"""A job that reaches every moment soon: two trainer nodes with a rank each, one engine on a third node."""


LocalCluster = Callable[[Path], ChaosCluster]
"""Makes a SLURM on this machine, given a directory for a small disk."""


def main(argv: Sequence[str] | None = None, local_cluster: LocalCluster | None = None) -> int:
    """Runs the matrix, or a soak; the exit code."""
    options = _parser().parse_intermixed_args(argv)
    folder = options.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    cluster = None
    try:
        cluster = _cluster(options, folder, local_cluster)
        words = [f"model.path={_model(folder)}", *(w for w in options.overrides if w not in ("soak", "+cluster=slurm"))]
        if "soak" in options.overrides:
            soaked = soak(options.minutes, options.seed, words, folder, cluster)
            print(report(soaked))
            return SURPRISED if soaked.surprises else 0
        results = _run(_scenarios(options, folder), [*SMALL, *words], folder, cluster, options.parallel)
    except LauncherError as error:
        print(f"launcher.testing.chaos: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if cluster is not None:
            cluster.close()
    print(table(results))
    return SURPRISED if any(result.surprises for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launcher.testing.chaos", description=__doc__)
    parser.add_argument("--cases", default="", help="only cases whose name holds one of these words, comma-separated")
    parser.add_argument("--moments", default="", help=f"some of: {', '.join(Moment)}")
    parser.add_argument("--out", type=Path, default=Path("faults"), help="directory for the table and the runs")
    parser.add_argument(
        "--again", action="store_true", help="also scenarios that are in the directory already, and were no surprise"
    )
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--do", action="append", default=[], metavar="ACTION=COMMAND",
                        help="of the SLURM at hand: how to crash, boot, cut, heal, down, resume, kill_slurmd or"
                        " start_slurmd a {node}")  # fmt: skip
    parser.add_argument("--urgent", help="of the SLURM at hand: a partition whose jobs preempt")
    parser.add_argument("--small-disk", type=Path, help="of the SLURM at hand: a directory that may be filled")
    parser.add_argument("--minutes", type=float, default=30.0, help="of a soak: how long")
    parser.add_argument("--seed", type=int, default=0, help="of a soak: of its random choices")
    parser.add_argument("overrides", nargs="*", help="as for a run")
    return parser


def _scenarios(options: argparse.Namespace, folder: Path) -> list[Scenario]:
    words = [word.strip() for word in options.cases.split(",") if word.strip()]
    moments = options.moments.split(",") if options.moments else list(Moment)
    known = set() if options.again else {scenario for scenario, result in load(folder).items() if not result.surprises}
    return [
        Scenario(case=case, moment=moment)
        for moment in Moment
        for case in CASES
        if moment in case.moments and moment in moments
        if not words or any(word in case.name for word in words)
        if (case.name, moment.value) not in known
    ]


def _cluster(options: argparse.Namespace, folder: Path, local_cluster: LocalCluster | None) -> ChaosCluster:
    if "+cluster=slurm" not in options.overrides:
        if local_cluster is None:
            raise UsageError(
                "`+cluster=slurm` is missing. HINT: add it; in a checkout `python -m tests.chaos` makes a SLURM itself."
            )
        return local_cluster(folder / "small")
    commands = dict(word.partition("=")[::2] for word in options.do)
    return ChaosCluster(commands, options.urgent, options.small_disk)


def _model(folder: Path) -> Path:
    path = folder / "model"
    if not path.exists():
        subprocess.run(
            [sys.executable, "-m", "launcher.trainers.grpo.tiny_model", str(path), "--seed", "0"], check=True
        )
    return path


def _run(
    scenarios: Sequence[Scenario], words: Sequence[str], folder: Path, cluster: ChaosCluster, parallel: int
) -> list[CaseResult]:
    small_disk = threading.Lock()

    def one(scenario: Scenario) -> CaseResult | None:
        if lacking := cluster.lacks(scenario.case.action):
            print(f"{scenario.case.name}, {scenario.moment}: not run, needs {lacking}", flush=True)
            return None
        # There is one small disk: a run that frees it frees it for all.
        with small_disk if scenario.case.action == "fill" else contextlib.nullcontext():
            result = run_scenario(scenario, words, folder, cluster)
        add(result, folder)
        verdict = "; ".join(result.surprises) or "as it should"
        print(
            f"{scenario.case.name}, {scenario.moment}: {result.followed} ({result.seconds:.0f} s): {verdict}",
            flush=True,
        )
        return result

    with ThreadPoolExecutor(parallel) as pool:
        return [result for result in pool.map(one, scenarios) if result is not None]


def run_program(local_cluster: LocalCluster | None = None) -> NoReturn:
    """Runs :func:`main` as this process's program; SIGTERM ends what was started first, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    sys.exit(main(local_cluster=local_cluster))


if __name__ == "__main__":
    run_program()
