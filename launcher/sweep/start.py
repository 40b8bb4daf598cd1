"""Hands one run of a sweep to its cluster, so that the ledger knows of it whatever happens on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.common.errors import LauncherError
from launcher.common.run_dir import record_job
from launcher.config.schema import Config
from launcher.snapshot.take import Taken
from launcher.submit.cluster import Job
from launcher.submit.job_array import submit_array, with_dependency
from launcher.submit.prepare import cluster_of
from launcher.submit.run import create, create_and_submit, take_code
from launcher.submit.run_dir import new_run_dir, remove
from launcher.sweep.combo import Combination
from launcher.sweep.ledger import Ledger


class Starter:
    """Starts runs; call it with the lock of the sweep held. The code is taken once for all of them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._taken: dict[tuple[object, ...], Taken | None] = {}

    def start(self, combo: Combination, dependency: str | None = None) -> tuple[Path, Job]:
        """The run directory and the job.

        Args:
            dependency: what a job on SLURM waits for; it is no part of the run's own configuration.

        Raises:
            LauncherError: it was refused; the ledger says so.
        """
        config = combo.config
        taken = self._code(config)
        submitted_as = config if dependency is None else with_dependency(config, dependency)
        with self._intended([combo]) as (run_dir,):
            _, job = create_and_submit(config, cluster_of(submitted_as), run_dir, taken)
        if job.job_id is not None:
            self._submitted([combo], [run_dir], [job.job_id])
        return run_dir, job

    def start_array(
        self, combos: Sequence[Combination], parallel: int | None, dependency: str | None = None
    ) -> list[str]:
        """The jobs of an array, ``123_0``, ``123_1``, ...

        Raises:
            LauncherError: it was refused, as a whole; the ledger says so.
        """
        taken = self._code(combos[0].config)
        with self._intended(combos) as run_dirs:
            try:
                for combo, run_dir in zip(combos, run_dirs, strict=True):
                    create(combo.config, run_dir, taken)
                jobs = submit_array(run_dirs, parallel=parallel, dependency=dependency)
            except LauncherError:
                for run_dir in run_dirs:
                    remove(run_dir, [])
                raise
        job_ids = [str(job.job_id) for job in jobs]
        for run_dir, job in zip(run_dirs, jobs, strict=True):
            record_job(run_dir, "slurm", job.record())
        self._submitted(combos, run_dirs, job_ids)
        return job_ids

    @contextmanager
    def _intended(self, combos: Sequence[Combination]) -> Iterator[list[Path]]:
        """Directories for runs that are now handed over; the ledger knows of them before anybody else."""
        run_dirs = [new_run_dir(combo.config) for combo in combos]
        entries = [_entry(combo, run_dir) for combo, run_dir in zip(combos, run_dirs, strict=True)]
        kind = combos[0].config.cluster.kind
        self._ledger.append(*({"record": "intent", **entry, "cluster": kind} for entry in entries))
        try:
            yield run_dirs
        except LauncherError as error:
            self._ledger.append(*({"record": "refused", **entry, "message": str(error)} for entry in entries))
            raise

    def _submitted(self, combos: Sequence[Combination], run_dirs: Sequence[Path], job_ids: Sequence[str]) -> None:
        started = zip(combos, run_dirs, job_ids, strict=True)
        self._ledger.append(
            *({"record": "job", **_entry(combo, run_dir), "job_id": job_id} for combo, run_dir, job_id in started)
        )

    def _code(self, config: Config) -> Taken | None:
        key = (config.snapshot, config.output_dir, *config.secrets)
        if key not in self._taken:
            self._taken[key] = take_code(config)
        return self._taken[key]


def _entry(combo: Combination, run_dir: Path) -> dict[str, Any]:
    return {"run": combo.identity, "run_dir": str(run_dir)}
