"""What a cluster does for a run: take it, and say later whether it still lives and how it ended."""

from __future__ import annotations

import os
import sysconfig
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import launcher
from launcher.layout.environment import is_protected
from launcher.slurm.client import KEPT as SLURM_KEPT
from launcher.slurm.client import is_slurm_variable
from launcher.snapshot.record import code_location

KEPT = frozenset({*SLURM_KEPT, "CUDA_VISIBLE_DEVICES"})
"""Where SLURM is and who calls it; and which GPUs of this machine may be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """How a job ended, as its cluster tells."""

    exit_code: int
    """0 only for success."""

    text: str
    """In the cluster's own words: ``COMPLETED``, ``TIMEOUT``, ``exit code 1``."""


class Job(ABC):
    """A submitted run."""

    job_id: str | None = None

    @abstractmethod
    def is_alive(self) -> bool:
        """False once nothing of the job runs or waits any more. Quick, and never more often than the cluster likes."""

    @abstractmethod
    def wait(self, timeout_s: float) -> JobOutcome:
        """Waits until the job has ended.

        Raises:
            LauncherError: it has not after ``timeout_s``.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Asks the job to end, and returns without waiting for it."""

    @abstractmethod
    def stop(self) -> None:
        """Asks the job to save a checkpoint and end, and returns without waiting for it."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What another process needs to find the job again, as JSON; kept in the run directory."""

    @abstractmethod
    def logs(self) -> list[Path]:
        """Where the cluster itself writes, for a job that did not get as far as having logs of its own."""


class Cluster(ABC):
    """Takes runs."""

    @abstractmethod
    def check(self) -> list[str]:
        """Problems that only this cluster can know, before anything is created."""

    @abstractmethod
    def submit(self, run_dir: Path) -> Job:
        """Hands over a run directory that is complete.

        Raises:
            SubmissionError: it was refused; nothing is queued.
        """


def job_environment(run_dir: Path | None = None) -> dict[str, str]:
    """The environment that a job starts from: this process's, so that it finds the same programs and packages.

    Without what an enclosing job, run or torchrun would leak into the new one. On ``PYTHONPATH`` is the code of the run
    in ``run_dir``; without one, or with ``snapshot=false``, this package's folder, so that a checkout works from any
    directory.
    """
    environ = {name: value for name, value in os.environ.items() if name in KEPT or not _is_foreign(name)}
    place = code_location(run_dir) if run_dir is not None else None
    if place is not None:
        return place.environment(environ)
    home = str(Path(launcher.__file__).parent.parent)
    if home not in sysconfig.get_paths().values():
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, environ.get("PYTHONPATH")]))
    return environ


def _is_foreign(name: str) -> bool:
    return is_protected(name) or is_slurm_variable(name)
