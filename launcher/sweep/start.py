"""Hands one run of a sweep to its cluster, so that the ledger knows of it whatever happens on the way."""

from __future__ import annotations

from pathlib import Path

from launcher.clusters.base import Job
from launcher.config.schema import Config
from launcher.errors import LauncherError
from launcher.run import cluster_of, create_and_submit, take_code
from launcher.run_dir import new_run_dir
from launcher.snapshot.take import Taken
from launcher.sweep.combo import Combination
from launcher.sweep.ledger import Ledger


class Starter:
    """Starts runs; call it with the lock of the sweep held. The code is taken once for all of them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._taken: dict[tuple[object, ...], Taken | None] = {}

    def start(self, combo: Combination, submitted_as: Config | None = None) -> tuple[Path, Job]:
        """The run directory and the job.

        Args:
            submitted_as: the configuration for the cluster, where it differs from the run's own.

        Raises:
            LauncherError: it was refused; the ledger says so.
        """
        config = combo.config
        taken = self._code(config)
        run_dir = new_run_dir(config)
        entry = {"run": combo.identity, "run_dir": str(run_dir)}
        self._ledger.append({"record": "intent", **entry, "cluster": config.cluster.kind})
        try:
            _, job = create_and_submit(config, cluster_of(submitted_as or config), run_dir, taken)
        except LauncherError as error:
            self._ledger.append({"record": "refused", **entry, "message": str(error)})
            raise
        if job.job_id is not None:
            self._ledger.append({"record": "job", **entry, "job_id": job.job_id})
        return run_dir, job

    def _code(self, config: Config) -> Taken | None:
        key = (config.snapshot, config.output_dir, *config.secrets)
        if key not in self._taken:
            self._taken[key] = take_code(config)
        return self._taken[key]
