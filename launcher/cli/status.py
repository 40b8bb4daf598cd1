"""``launcher status RUN``: where a run stands; on a terminal, live until it is over."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from launcher.cli.parser import CommandParser
from launcher.events.reader import RunFollower
from launcher.events.run_state import RunState
from launcher.observe.find import LAST, add_run_argument, find_run
from launcher.observe.run_status import RunWatch
from launcher.observe.terminal.status_lines import replica_states, status_lines

INTERVAL_S = 0.25


def main(arguments: Sequence[str]) -> int:
    """Shows the run."""
    parser = CommandParser(
        "status",
        "Shows where a run stands: the job and its expected start, nodes by role, replicas and the version each serves,"
        " steps, restarts, attempts. On a terminal it stays and redraws until the run is over; Ctrl-C leaves the run"
        " alone.",
        examples=["launcher status", "launcher status 4711 --once", "launcher status last --json | jq .state"],
    )
    add_run_argument(parser, default=LAST)
    parser.add_argument("--once", action="store_true", help="print it once, also on a terminal")
    parser.add_json("it once,")
    options = parser.parse_args(arguments)
    run = find_run(options.run, options.output_dir)
    watch = RunWatch(run)
    reader = RunFollower(run)
    reader.read()
    if options.json:
        print(json.dumps(as_data(watch, reader.state), indent=1))
    elif options.once or watch.status.is_over or not _is_terminal():
        print(run.name)
        for label, text in status_lines(watch.status, reader.state, watch.problem, now=time.time()):
            print(f"  {label:<11} {text}")
        for entry in reader.state.timeline[-4:]:
            at = time.strftime("%b %d %H:%M:%S", time.localtime(entry.time))
            print(f"  {at}  {entry.text}")
    else:
        _live(watch, reader)
    return 0


def as_data(watch: RunWatch, state: RunState) -> dict[str, Any]:
    """Everything that is shown, as JSON; times are unix seconds."""
    from launcher.cli.runs import as_data as run_data

    status = watch.status
    return {
        **run_data(status),
        "problem": watch.problem,
        "reason": status.job.reason if status.job is not None else None,
        "start": status.job.start if status.job is not None else None,
        "nodes_up": {
            node: {"hostname": hostname, "role": state.node_roles.get(node)}
            for node, hostname in sorted(state.nodes_up.items())
        },
        "replicas": [
            {"replica": replica, "state": word, "version": state.versions.get(replica)}
            for replica, word in replica_states(state).items()
        ],
        "step_s": state.step_seconds(),
        "tokens_per_s": state.steps[-1].tokens_per_s if state.steps else None,
        "checkpoint_step": state.checkpoint_step,
        "restarts": state.restarts,
        "lost_nodes": state.lost_nodes,
        "spares": state.spares,
        "preflight": state.preflight,
        "past_attempts": [
            {"attempt": past.attempt, "outcome": past.outcome, "step": past.step} for past in state.past_attempts
        ],
        "failure": state.failure.message if state.failure is not None else None,
    }


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def _live(watch: RunWatch, reader: RunFollower) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    from launcher.observe.terminal.live import picture

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            reader.read()
            state, now = reader.state, time.time()
            if state.outcome is not None:
                watch.refresh()
            status = watch.status
            grid = Table.grid(padding=(0, 2))
            for label, text in status_lines(status, state, watch.problem, now=now):
                grid.add_row(Text(label, style="dim"), Text(text))
            drawn = picture(
                state, now=max(now, state.last_at), width=console.width, ascii_only=console.options.ascii_only
            )
            live.update(Group(drawn, Text(""), grid), refresh=True)
            if status.is_over:
                return
            time.sleep(INTERVAL_S)
