"""Methods that move weights from one trainer rank into engine workers, measured in one run over the same tensors.

``python -m launcher.testing.bench bridge`` starts its ranks itself, on this machine; with ``--device cuda`` each on a
GPU, or all on the only one. As a trainer's program, one rank per node, it takes the ranks of the job:
``trainer.command=[python,-m,launcher.testing.bench,bridge,--model,llama-8b]``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.common.errors import ConfigError, ProcessFailure
from launcher.common.ports import hold_free_port, port_of
from launcher.testing.bench.models import MODELS

POLL_S = 0.2


def main(arguments: Sequence[str]) -> int:
    """Measures, and prints a table; writes JSON and a picture."""
    options = _options(arguments)
    if "RANK" in os.environ:
        from launcher.testing.bench.bridge.runner import run_rank

        run_rank(options)
        return 0
    if options.device == "cuda":
        _check_gpus(options.workers)
    return _start_ranks(list(arguments), options.workers + 1)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.testing.bench bridge", description=__doc__)
    parser.add_argument("--model", choices=sorted(MODELS), default="small", help="whose tensors; default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--workers", type=int, default=1, help="engine workers, which share the model (tensor parallel)"
    )
    parser.add_argument(
        "--repeats", type=int, default=10, help="measured updates of each method, after one that is not"
    )
    parser.add_argument(
        "--way-seconds",
        type=float,
        default=4.0,
        help="no further update of a method after so long; default: %(default)s",
    )
    parser.add_argument("--only", help="regular expression: only the methods whose name it finds, slow ones too")
    parser.add_argument("--round-mb", type=int, help="most MiB that a worker of ours stages at a time")
    parser.add_argument(
        "--density",
        type=float,
        default=0.01,
        help="share of the elements that change, for the methods that send only those; default: %(default)s",
    )
    parser.add_argument("--out", type=Path, help="directory for bench-bridge.json and bench-bridge.png")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the ways")
    return parser.parse_args(arguments)


def _check_gpus(workers: int) -> None:
    import torch  # here, because it takes seconds

    gpus = torch.cuda.device_count()
    if gpus != 1 and gpus <= workers:
        raise ConfigError(
            [
                f"`--device=cuda` with `--workers={workers}` needs {workers + 1} GPUs, or one that all share; here are"
                f" {gpus}. HINT: `--device=cpu`, fewer workers, or CUDA_VISIBLE_DEVICES=0."
            ]
        )


def _start_ranks(arguments: list[str], count: int) -> int:
    with hold_free_port("127.0.0.1") as held:
        port = port_of(held)
    environ = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environ["LOCAL_WORLD_SIZE"] = str(count)
    environ.setdefault("OMP_NUM_THREADS", "1")
    command = [sys.executable, "-m", "launcher.testing.bench", "bridge", *arguments]
    ranks = [
        subprocess.Popen(command, env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]
    try:
        while any(rank.poll() is None for rank in ranks):
            with contextlib.suppress(subprocess.TimeoutExpired):
                next(rank for rank in ranks if rank.poll() is None).wait(POLL_S)
            failed = next((rank for rank in ranks if rank.poll()), None)
            if failed is not None:
                raise ProcessFailure(f"Rank {ranks.index(failed)} of the measurement ended with {failed.returncode}.")
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGKILL)
                rank.wait()
    return 0
