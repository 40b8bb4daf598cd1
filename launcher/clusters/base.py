"""What a cluster does for a run: take it, and say later whether it still lives and how it ended."""

from __future__ import annotations

import os
import sysconfig
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import launcher

SCRUBBED_PREFIXES = ("SLURM_", "SBATCH_", "SRUN_", "PMI_", "PMIX_")
KEPT = frozenset({"SLURM_CONF"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
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
    def wait(self, timeout_s: float) -> Outcome:
        """Waits until the job has ended.

        Raises:
            LauncherError: it has not after ``timeout_s``.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Asks the job to end."""


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


def job_environment() -> dict[str, str]:
    """The environment that a job starts from: this process's, so that it finds the same programs and packages.

    Without what an enclosing job would leak into the new one (but with ``SLURM_CONF``), and with this package's folder on
    ``PYTHONPATH``, so that a checkout works from any directory.
    """
    environ = {
        name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(SCRUBBED_PREFIXES)
    }
    home = str(Path(launcher.__file__).parent.parent)
    if home not in sysconfig.get_paths().values():
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, environ.get("PYTHONPATH")]))
    return environ
