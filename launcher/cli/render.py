"""``launcher render +cluster=slurm [overrides] [-o FILE]``: a job script to read, edit and submit by hand."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.cli.parser import CommandParser, compose_and_check


def main(arguments: Sequence[str]) -> int:
    """Prints the script, or writes it."""
    from launcher.common.errors import ConfigError
    from launcher.submit.new_run import render_script
    from launcher.submit.prepare import prepared

    parser = CommandParser(
        "render",
        "Writes a job script that stands for itself: each `sbatch` of it is a new run. Submits nothing.",
        examples=[
            "launcher render +cluster=slurm cluster.partition=gpu experiment=qwen3_8b -o job.sbatch",
            "launcher render +cluster=slurm cluster.trainer.gpu_type=h100 cluster.inference.gpu_type=l40s",
        ],
    )
    parser.add_overrides()
    parser.add_argument("--output", "-o", type=Path, metavar="FILE", help="write it there instead of printing it")
    parser.add_argument("--submitit", action="store_true", help="start the nodes through submitit, as a run does")
    parser.add_json("the script's text, file and number of nodes")
    options = parser.parse_intermixed_args(arguments)
    config = compose_and_check(options)
    if config.cluster.kind != "slurm":
        raise ConfigError([f"`cluster` ({config.cluster.kind}) has no job scripts. HINT: add `+cluster=slurm`."])
    result = prepared(config)
    for note in result.notes:
        print(f"launcher: {note}", file=sys.stderr)
    config = result.config
    file: Path | None = options.output
    text = render_script(config, None if file is None else file.absolute(), with_submitit=options.submitit)
    if file is not None:
        _write(file, text)
    if options.json:
        nodes = config.layout.nodes + config.layout.spares
        print(json.dumps({"file": None if file is None else str(file.absolute()), "nodes": nodes, "text": text}))
    elif file is None:
        print(text, end="")
    else:
        print(f"wrote {file}\nnext:\n  {shlex.join(['sbatch', str(file)])}")
    return 0


def _write(file: Path, text: str) -> None:
    from launcher.common.errors import ConfigError

    try:
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)
    except OSError as error:
        raise ConfigError([f"`--output` ({file}) cannot be written: {error.strerror}."]) from error
