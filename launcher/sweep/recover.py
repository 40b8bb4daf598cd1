"""Jobs that were submitted by a command that was killed before it could write down their numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path

from launcher.common.run_dir import last_job, record_job
from launcher.common.text import counted
from launcher.config.compose import load_run_config
from launcher.config.metric import Metric
from launcher.config.schema import SlurmClusterConfig
from launcher.slurm.jobs import JobId, logs_of_own_jobs
from launcher.submit.resources import named_clusters
from launcher.sweep.ledger import Ledger, LedgerEntry
from launcher.sweep.status import read_progress

UNDER_WAY_S = 15.0
"""An ``sbatch`` whose caller was killed may still be on its way for as long."""

ARRAY = ".array-"


def find_lost_jobs(ledger: Ledger, metric: Metric) -> None:
    """Completes the ledger; returns when every run that was meant to be submitted has a job, or certainly none.

    Call it with the lock held.

    Raises:
        LauncherError: SLURM does not answer, so nobody knows.
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
            time.sleep(1.0)  # SLURM tells nobody of a new job


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
