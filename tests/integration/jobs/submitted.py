"""One ``python -m launcher +cluster=slurm`` on a real SLURM, with what it printed and what its run wrote."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.jobs.launched import ROOT, run_dir_of
from tests.integration.jobs.logged import read_events, select
from tests.slurm_cluster.cluster import SlurmCluster


@dataclass(kw_only=True)
class Submitted:
    """One ``python -m launcher +cluster=slurm`` that has ended."""

    code: int
    output: str
    seconds: float

    @property
    def run_dir(self) -> Path:
        return run_dir_of(self.output)

    @property
    def job_id(self) -> str:
        return self.output.partition("submitted job ")[2].split()[0]

    @property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.run_dir / "attempts" / "1")

    def event(self, name: str, **fields: Any) -> dict[str, Any]:
        return select(self.events, name, **fields)[0]


def submit(cluster: SlurmCluster, folder: Path, *overrides: str, env: Mapping[str, str] | None = None) -> Submitted:
    begin = time.monotonic()
    words = [sys.executable, "-m", "launcher", "+cluster=slurm", f"output_dir={folder / 'runs'}", "cluster.mem=4G"]
    done = cluster.run([*words, *overrides], timeout_s=540, check=False, PYTHONPATH=str(ROOT), **(env or {}))
    return Submitted(code=done.returncode, output=done.stdout + done.stderr, seconds=time.monotonic() - begin)
