"""``launcher sweep status|results|cancel DIR``: what has become of a sweep, and an end to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.cli.parser import CommandParser
from launcher.common.errors import UsageError
from launcher.config.metric import REDUCTIONS, Metric
from launcher.sweep.ledger import Ledger

CANCEL_TIMEOUT_S = 120.0


def main(arguments: Sequence[str]) -> int:
    """Looks at a sweep, or ends it."""
    from launcher.sweep.report import open_sweep

    parser = CommandParser(
        "sweep",
        "status: every run with its values, state, steps and metric. results: the same, the best first, and as"
        " results.csv and results.png in DIR. cancel: ends what is queued or running.",
        examples=[
            "launcher -m +cluster=slurm trainer.lr=1e-5,3e-5 layout.nodes=2,4",
            "launcher sweep status runs/sweeps/qwen3-8b-1a2b3c",
            "launcher sweep results runs/sweeps/qwen3-8b-1a2b3c --metric loss.min --json",
            "launcher sweep cancel runs/sweeps/qwen3-8b-1a2b3c",
        ],
    )
    parser.add_argument("what", choices=list(_ACTIONS))
    parser.add_argument("directory", type=Path, metavar="DIR", help="the directory that `launcher -m` printed")
    parser.add_argument(
        "--metric", metavar="NAME.HOW", help=f"instead of the sweep's own; HOW is one of {', '.join(REDUCTIONS)}"
    )
    parser.add_json("the runs")
    options = parser.parse_args(arguments)
    ledger, metric = open_sweep(options.directory, options.metric)
    if metric.reduction not in REDUCTIONS:
        raise UsageError(f"`--metric` ({options.metric}) does not end with one of {', '.join(REDUCTIONS)}.")
    return _ACTIONS[options.what](ledger, metric, options.json)


def _status(ledger: Ledger, metric: Metric, as_json: bool) -> int:
    from launcher.sweep.report import as_data, read, table

    runs = read(ledger, metric)
    print(json.dumps([as_data(run, metric) for run in runs], indent=1) if as_json else table(runs, metric))
    return 0


def _results(ledger: Ledger, metric: Metric, as_json: bool) -> int:
    from launcher.observe.plots.pictures import has_matplotlib, save_figure
    from launcher.sweep.report import as_data, ranked, read, table, write_csv

    runs = ranked(read(ledger, metric), metric)
    path = ledger.directory / "results.csv"
    write_csv(runs, metric, path)
    # The runs that have a value, the best first.
    shown = [run for run in runs if run.value is not None]
    picture = None
    if shown and has_matplotlib():
        from launcher.sweep.report import draw_sweep

        figure = draw_sweep(shown, metric, title=ledger.directory.name)
        picture = save_figure(figure, ledger.directory / "results.png")
    if as_json:
        print(json.dumps([as_data(run, metric) for run in runs], indent=1))
    else:
        print(table(runs, metric))
        print("\n".join(str(file) for file in (path, picture) if file is not None))
    return 0


def _cancel(ledger: Ledger, metric: Metric, as_json: bool) -> int:
    from launcher.sweep.report import as_data, table
    from launcher.sweep.wait import cancel_sweep

    runs = cancel_sweep(ledger, metric, CANCEL_TIMEOUT_S, lambda text: print(f"launcher: {text}", file=sys.stderr))
    if as_json:
        print(json.dumps([as_data(run, metric) for run in runs], indent=1))
    else:
        print(table(runs, metric) if runs else "nothing was queued or running")
    return 0


_ACTIONS: dict[str, Callable[[Ledger, Metric, bool], int]] = {
    "status": _status,
    "results": _results,
    "cancel": _cancel,
}
