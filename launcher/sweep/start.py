"""Hands runs of a sweep to their cluster, at most so many at a time; the ledger knows of each whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.common.errors import LauncherError
from launcher.common.run_dir import record_job
from launcher.config.schema import Config
from launcher.snapshot.create import Snapshot
from launcher.submit.cluster import Job
from launcher.submit.job_array import submit_array, with_dependency
from launcher.submit.prepare import cluster_of
from launcher.submit.run import create, create_and_submit, snapshot_code
from launcher.submit.run_dir import new_run_dir, remove
from launcher.sweep.candidates import Combination
from launcher.sweep.ledger import Ledger


@dataclass(slots=True, kw_only=True)
class Concurrency:
    """Makes each job wait for the end of the one that was submitted ``parallel`` jobs before it.

    So of any two jobs whose places differ by a multiple of ``parallel``, one has ended when the other starts.
    """

    parallel: int | None
    jobs: list[str] = field(default_factory=list)
    """Jobs that are queued or run, in the order of their submission."""

    def dependency(self) -> str | None:
        """What the next job waits for (``--dependency``)."""
        if self.parallel is None or len(self.jobs) < self.parallel:
            return None
        return f"afterany:{self.jobs[-self.parallel]}"

    def dependency_of_all(self) -> str | None:
        """What an array waits for, which limits its own elements: the end of all jobs so far."""
        return None if self.parallel is None or not self.jobs else "afterany:" + ":".join(self.jobs)

    def add(self, *job_ids: str) -> None:
        """The next job, or an array, was submitted."""
        self.jobs += job_ids


def concurrency_after(active: Sequence[str], parallel: int | None) -> Concurrency:
    """A throttle for jobs that come after ``active``."""
    return Concurrency(parallel=parallel, jobs=list(active))


class RunStarter:
    """Starts runs; call it with the lock of the sweep held. The code is copied once for all of them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._snapshots: dict[tuple[object, ...], Snapshot | None] = {}

    def start(self, candidate: Combination, dependency: str | None = None) -> tuple[Path, Job]:
        """The run directory and the job.

        Args:
            dependency: what a job on SLURM waits for; it is no part of the run's own configuration.

        Raises:
            LauncherError: it was refused; the ledger says so.
        """
        config = candidate.config
        snapshot = self._code(config)
        submitted_as = config if dependency is None else with_dependency(config, dependency)
        with self._intended([candidate]) as (run_dir,):
            _, job = create_and_submit(config, cluster_of(submitted_as), run_dir, snapshot)
        if job.job_id is not None:
            self._submitted([candidate], [run_dir], [job.job_id])
        return run_dir, job

    def start_array(
        self, candidates: Sequence[Combination], parallel: int | None, dependency: str | None = None
    ) -> list[str]:
        """The jobs of an array, ``123_0``, ``123_1``, ...

        Raises:
            LauncherError: it was refused, as a whole; the ledger says so.
        """
        snapshot = self._code(candidates[0].config)
        with self._intended(candidates) as run_dirs:
            try:
                for candidate, run_dir in zip(candidates, run_dirs, strict=True):
                    create(candidate.config, run_dir, snapshot)
                jobs = submit_array(run_dirs, parallel=parallel, dependency=dependency)
            except LauncherError:
                for run_dir in run_dirs:
                    remove(run_dir, [])
                raise
        job_ids = [str(job.job_id) for job in jobs]
        for run_dir, job in zip(run_dirs, jobs, strict=True):
            record_job(run_dir, "slurm", job.record())
        self._submitted(candidates, run_dirs, job_ids)
        return job_ids

    @contextmanager
    def _intended(self, candidates: Sequence[Combination]) -> Iterator[list[Path]]:
        """Directories for runs that are now handed over; the ledger knows of them before anybody else."""
        run_dirs = [new_run_dir(candidate.config) for candidate in candidates]
        entries = [_entry(candidate, run_dir) for candidate, run_dir in zip(candidates, run_dirs, strict=True)]
        kind = candidates[0].config.cluster.kind
        self._ledger.append(*({"record": "intent", **entry, "cluster": kind} for entry in entries))
        try:
            yield run_dirs
        except LauncherError as error:
            self._ledger.append(*({"record": "refused", **entry, "message": str(error)} for entry in entries))
            raise

    def _submitted(self, candidates: Sequence[Combination], run_dirs: Sequence[Path], job_ids: Sequence[str]) -> None:
        started = zip(candidates, run_dirs, job_ids, strict=True)
        self._ledger.append(
            *(
                {"record": "job", **_entry(candidate, run_dir), "job_id": job_id}
                for candidate, run_dir, job_id in started
            )
        )

    def _code(self, config: Config) -> Snapshot | None:
        key = (config.snapshot, config.output_dir, *config.secrets)
        if key not in self._snapshots:
            self._snapshots[key] = snapshot_code(config)
        return self._snapshots[key]


def _entry(candidate: Combination, run_dir: Path) -> dict[str, Any]:
    return {"run": candidate.identity, "run_dir": str(run_dir)}
