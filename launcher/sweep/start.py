"""Hands runs of a sweep to their cluster, and finds jobs that a killed command submitted without recording them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.common.errors import LauncherError
from launcher.common.run_dir import last_job, record_job
from launcher.common.text import counted
from launcher.config.compose import load_run_config
from launcher.config.metric import Metric
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.slurm.jobs import JobId, logs_of_own_jobs
from launcher.snapshot.create import Snapshot
from launcher.submit.cluster import Job
from launcher.submit.job_array import submit_array, with_dependency
from launcher.submit.prepare import cluster_of
from launcher.submit.resources import named_clusters
from launcher.submit.run import create, create_and_submit, snapshot_code
from launcher.submit.run_dir import new_run_dir, remove
from launcher.sweep.candidates import Combination
from launcher.sweep.ledger import Ledger, LedgerEntry
from launcher.sweep.status import read_progress


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
    """The limit for jobs that come after ``active``."""
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
            LauncherError: it was refused; the ledger records it.
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
            LauncherError: it was refused, as a whole; the ledger records it.
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
        entries = [_identify(candidate, run_dir) for candidate, run_dir in zip(candidates, run_dirs, strict=True)]
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
                {"record": "job", **_identify(candidate, run_dir), "job_id": job_id}
                for candidate, run_dir, job_id in started
            )
        )

    def _code(self, config: Config) -> Snapshot | None:
        key = (config.snapshot, config.output_dir, *config.secrets)
        if key not in self._snapshots:
            self._snapshots[key] = snapshot_code(config)
        return self._snapshots[key]


def _identify(candidate: Combination, run_dir: Path) -> dict[str, Any]:
    return {"run": candidate.identity, "run_dir": str(run_dir)}


UNDER_WAY_S = 15.0
"""An ``sbatch`` whose caller was killed may queue its job within this time."""

ARRAY = ".array-"


def find_lost_jobs(ledger: Ledger, metric: Metric) -> None:
    """Completes the ledger; returns when every run that was meant to be submitted has a job, or certainly none.

    Call it with the lock held.

    Raises:
        LauncherError: SLURM does not answer.
    """
    open_entries = {entry.run_dir: entry for entry in ledger.entries().values() if entry.is_open and entry.run_dir}
    for run_dir in list(open_entries):
        # The run's own record, or what the job itself wrote when it started.
        job_id = (last_job(run_dir) or {}).get("job_id") or read_progress(run_dir, metric).job_id
        if job_id is not None:
            _found(ledger, open_entries.pop(run_dir), _with_cluster(job_id, run_dir))
    deadline = max((entry.submitted_at or 0.0 for entry in open_entries.values()), default=0.0) + UNDER_WAY_S
    clusters = {name for run_dir in open_entries for name in _clusters(run_dir)}
    is_said = False
    while open_entries:
        for run_dir, job_id in _jobs_by_log(clusters).items():
            if run_dir in open_entries:
                record_job(run_dir, "slurm", {"job_id": job_id})
                _found(ledger, open_entries.pop(run_dir), job_id)
        if time.time() > deadline:
            break
        if open_entries:
            if not is_said:
                many = counted(len(open_entries), "job")
                print(f"launcher: looking for {many} of a command that was killed ...", file=sys.stderr, flush=True)
            is_said = True
            time.sleep(1.0)  # SLURM sends no event for a new job


def _found(ledger: Ledger, entry: LedgerEntry, job_id: str) -> None:
    assert entry.run_dir is not None
    # Files are named after what the job itself calls its id.
    _hand_over(entry.run_dir / "submitit", JobId.parse(job_id).number)
    ledger.append({"record": "job", "run": entry.identity, "run_dir": str(entry.run_dir), "job_id": job_id})


def _hand_over(folder: Path, job_id: str) -> None:
    """Gives the job what it is to run, under the name by which it waits for it: submitit's last step."""
    target = folder / f"{job_id}_submitted.pkl"
    left = [path for path in folder.glob("*.pkl") if not path.stem.endswith(("_submitted", "_result"))]
    if not target.exists() and len(left) == 1:
        left[0].rename(target)


def _clusters(run_dir: Path) -> list[str | None]:
    """Clusters that may have the run's job; None is the one that SLURM's programs use by themselves."""
    try:
        config = load_run_config(run_dir)
    except FileNotFoundError:
        return [None]
    names = named_clusters(config) if isinstance(config.cluster, SlurmClusterConfig) else []
    return [*names] or [None]


def _with_cluster(job_id: str, run_dir: Path) -> str:
    """The id with the cluster that was chosen, which the job itself does not know."""
    names = _clusters(run_dir)
    given = JobId.parse(job_id)
    return str(JobId(given.number, names[0])) if given.cluster is None and len(names) == 1 else job_id


def _jobs_by_log(clusters: Iterable[str | None]) -> dict[Path, str]:
    """This user's jobs by run directory: each writes its log there, which no other job does."""
    found: dict[Path, str] = {}
    for job_id, log in (entry for cluster in clusters for entry in logs_of_own_jobs(cluster)):
        for parent in log.parents:
            found[parent] = job_id
            if parent.name.startswith(ARRAY):
                # An array's log leads through a link to the run directory of each element.
                link = parent / JobId.parse(job_id).number.rpartition("_")[2]
                if link.is_symlink():
                    found[link.readlink()] = job_id
    return found
