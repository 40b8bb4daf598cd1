"""Starts a cluster to try things on: ``python -m tests.slurm_cluster --nodes 'rack[0-1]n[01-02]' [--
COMMAND ...]``.

Without a command it opens a shell on the login node, or, when input is no terminal, prints the variables to export
and stays until it is ended by a signal.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys

from tests.slurm_cluster.cluster import SlurmCluster
from tests.slurm_cluster.spec import ClusterError, Isolation


def main() -> int:
    """Returns the command's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.slurm_cluster", description="A real SLURM cluster on this machine."
    )
    parser.add_argument("--nodes", default="rack[0-1]n[01-02]", help="hostlist expression")
    parser.add_argument("--isolation", default="uts", choices=[str(isolation) for isolation in Isolation])
    parser.add_argument("--gpus", type=int, default=8, help="fake GPUs per node")
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and MariaDB")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="a further line of slurm.conf; repeatable"
    )
    parser.add_argument("--programs", default="", metavar="DIRECTORY", help="programs of another release of SLURM")
    parser.add_argument("command", nargs="*", help="what to run on the login node")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cluster = SlurmCluster(
        options.nodes,
        isolation=options.isolation,
        accounting=options.accounting,
        gpus_per_node=options.gpus,
        programs=options.programs,
        options=dict(line.partition("=")[::2] for line in options.option),
    )
    try:
        with cluster:
            return _use(cluster, options.command)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1


def _use(cluster: SlurmCluster, command: list[str]) -> int:
    for name, value in cluster.variables.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f"# on the login node: {shlex.join(cluster.login)} COMMAND", flush=True)
    if not command and not sys.stdin.isatty():
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
        return 0
    shell = [os.environ.get("SHELL", "/bin/bash")]
    return subprocess.run([*cluster.login, *(command or shell)], env=cluster.env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
