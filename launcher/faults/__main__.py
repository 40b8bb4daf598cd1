"""The fault matrix: ``python -m launcher.faults [--cases WORDS] [--moments WORDS] [--out DIR] [OVERRIDES ...]``.

Runs a small job for each case and moment, on this machine or, with ``+cluster=slurm``, on the SLURM of the
environment, and prints what followed. Ends with 0 if nothing was a surprise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.faults.cases import CASES, Moment
from launcher.faults.strike import Result, strike, write
from launcher.view.text import aligned

SURPRISED = 1
SMALL = (
    "trainer.command=[python,-m,launcher.faults.trainer]",
    "trainer.steps=4",
    "layout.gpus_per_node=2",
    "inference.replicas_per_node=1",
    "cluster.wait=true",
    "restart.stopped_s=5",
    "inference.max_num_seqs=8",
)
"""A job that reaches every moment soon: two trainer ranks, one engine."""

HEADER = ("case", "moment", "followed", "seconds", "ended", "orphans", "versions", "as the policy says")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the matrix."""
    parser = argparse.ArgumentParser(prog="launcher.faults", description=__doc__)
    parser.add_argument("--cases", default="", help="only cases whose name holds one of these words, comma-separated")
    parser.add_argument("--moments", default="", help=f"some of: {', '.join(Moment)}")
    parser.add_argument("--out", type=Path, default=Path("faults"), help="directory for the table and the runs")
    parser.add_argument("overrides", nargs="*", help="as for a run")
    options = parser.parse_intermixed_args(argv)
    chosen = [word for word in options.cases.split(",") if word]
    cases = [case for case in CASES if not chosen or any(word in case.name for word in chosen)]
    moments = [moment for moment in Moment if not options.moments or moment.value in options.moments.split(",")]
    folder = options.out.absolute()
    words = [*SMALL, *options.overrides]
    results = [_told(strike(case, moment, words, folder)) for case in cases for moment in moments]
    write(results, folder / "faults.jsonl")
    text = table(results)
    (folder / "faults.txt").write_text(text + "\n")
    print(text)
    return SURPRISED if any(result.surprises for result in results) else 0


def table(results: Sequence[Result]) -> str:
    """One line for each fault."""
    rows = [
        (
            result.case,
            result.moment,
            result.followed,
            "-" if result.next_state_s is None else f"{result.next_state_s:.1f}",
            result.outcome,
            str(result.orphans),
            "mixed" if result.is_mixed else "one",
            "; ".join(result.surprises) or "yes",
        )
        for result in results
    ]
    return "\n".join(aligned([HEADER, *rows]))


def _told(result: Result) -> Result:
    ending = f"{result.outcome} after {result.seconds:.0f} s"
    print(f"{result.case}, {result.moment}: {result.followed}; {ending}", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(main())
