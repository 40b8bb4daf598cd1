"""``launcher attach RUN [-- COMMAND]``: a shell, or a command, on a node of a run that goes on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from launcher.cli.parser import CommandParser
from launcher.common.env import LAUNCHER_ATTEMPT, LAUNCHER_ATTEMPT_DIR, LAUNCHER_NODE_RANK, LAUNCHER_RUN_DIR
from launcher.common.errors import LauncherError
from launcher.common.run_dir import attempt_dir
from launcher.config import load_run_config
from launcher.observe.find import add_run_argument, find_run
from launcher.observe.layouts import LayoutTarget, find_rank, find_target, layout_of
from launcher.observe.run_status import RunStatus, statuses
from launcher.observe.run_summary import newest_attempt, summarize
from launcher.submit.cluster import job_environment
from launcher.submit.job_script import apptainer, pyxis


def main(arguments: Sequence[str]) -> int:
    """Becomes the shell; returns only if there is nothing to attach to, or with ``--json``."""
    words = list(arguments)
    command = words[words.index("--") + 1 :] if "--" in words else []
    parser = CommandParser(
        "attach",
        "Opens a shell on a node of a run, inside its allocation and beside its processes (on SLURM with"
        " `srun --overlap`), or runs one command there. It has the environment of the node's first process, or of the"
        " one chosen, without addresses and keys that only running processes have.",
        examples=[
            "launcher attach last",
            "launcher attach last --role inference --rank 0 -- nvidia-smi",
            "launcher attach 4711 --node gpu-07 -- py-spy dump --pid 4242",
        ],
        exit_codes={1: "the run has ended, has not started, or cannot be reached", 3: "and others: the command's own"},
    )
    add_run_argument(parser)
    parser.add_argument("--node", metavar="N", help="node rank or hostname (default: 0)")
    parser.add_argument("--role", choices=("trainer", "inference"), help="with --rank: the node of this process")
    parser.add_argument("--rank", type=int, help="trainer: global rank; inference: replica (default: 0)")
    parser.add_json("the command, and the variables that it would have, and start nothing,")
    parser.usage = f"{parser.prog} RUN [--node N | --role ROLE --rank K] [--output-dir DIR] [--json] [-- COMMAND ...]"
    options = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    if options.node is not None and (options.role is not None or options.rank is not None):
        parser.error("--node and --role/--rank exclude each other")
    run = find_run(options.run, options.output_dir)
    (status,), problem = statuses([summarize(run)])
    if problem is not None:
        print(f"launcher: {problem}", file=sys.stderr)
    _check(status)
    layout = layout_of(run)
    if options.role is not None or options.rank is not None:
        target = find_rank(layout, options.role or "trainer", options.rank or 0)
    else:
        target = find_target(layout, options.node or "0")
    shell = command or [os.environ.get("SHELL", "/bin/bash")]
    there = _srun(run, status.summary.job_id, target.node.hostname, shell) if status.summary.job_id else shell
    variables = _environment(run, target)
    if not options.json:
        _become(there, {**job_environment(), **variables})
    where = {"run_dir": str(run), "node_rank": target.node.node_rank, "hostname": target.node.hostname}
    print(json.dumps({**where, "command": there, "environment": variables}))
    return 0


def _check(status: RunStatus) -> None:
    name = status.summary.path.name
    if status.is_over:
        raise LauncherError(f"{name} has ended ({status.state}); there is nothing to attach to.")
    if status.summary.attempt is None:
        raise LauncherError(f"{name} is {status.state}; it has no nodes yet.")
    if status.summary.job_id is None:
        host = (status.summary.job or {}).get("host")
        if host != socket.gethostname():
            raise LauncherError(f"{name} runs on {host}. HINT: run this command there.")


def _srun(run: Path, job_id: str, hostname: str, shell: list[str]) -> list[str]:
    config = load_run_config(run)
    # --overlap: the run's own step holds everything. No input is taken away from a step that has none.
    options = ["--overlap", f"--jobid={job_id}", f"--nodelist={hostname}", "--nodes=1", "--ntasks=1", "--export=ALL"]
    if sys.stdin.isatty() and sys.stdout.isatty():
        options.append("--pty")
    # Into the same image as the run's own processes.
    return ["srun", "--quiet", *options, *pyxis(config), *apptainer(config), *shell]


def _environment(run: Path, target: LayoutTarget) -> dict[str, str]:
    """The environment of the process by the layout; only running processes know addresses, ports and keys."""
    attempt = newest_attempt(run) or 1
    directory = attempt_dir(run, attempt)
    process = target.processes[0] if target.processes else None
    return {
        **(process.env if process is not None else {}),
        LAUNCHER_RUN_DIR: str(run),
        LAUNCHER_ATTEMPT: str(attempt),
        LAUNCHER_ATTEMPT_DIR: str(directory),
        LAUNCHER_NODE_RANK: str(target.node.node_rank),
        "LOGDIR": str(directory / "logs"),
    }


def _become(command: list[str], environ: dict[str, str]) -> NoReturn:
    """Replaces this process, so that the terminal and its signals are the command's alone."""
    if shutil.which(command[0], path=environ.get("PATH")) is None:
        raise LauncherError(f"`{command[0]}` is not in PATH.")
    sys.stdout.flush()
    os.execvpe(command[0], command, environ)
