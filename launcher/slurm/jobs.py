"""This user's jobs: reads their ids, finds them by their logs, sends signals to them and cancels them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launcher.common.errors import LauncherError
from launcher.slurm.client import CALL_TIMEOUT_S, NO_SUCH_JOB, ControllerAway, call, columns, output_of

_PARSABLE = re.compile(r"(\d+)(?:;([\w.-]+))?")
_SENTENCE = re.compile(r"Submitted batch job (\d+)(?: on cluster ([\w.-]+))?")
_ID_WIDTH, _PATH_WIDTH = 60, 1024
ALREADY_ENDING = "already completing"


@dataclass(frozen=True, slots=True)
class JobId:
    """The id of a job, and the cluster that it is on where that was chosen. As text: ``123``, ``123_4;alpha``."""

    number: str
    """``123``, ``123_4`` for an element of an array, ``123+1`` for a component of a heterogeneous job."""

    cluster: str | None = None
    """None for the cluster that SLURM's programs use by themselves."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of ``str()``."""
        number, _, cluster = text.partition(";")
        return cls(number, cluster or None)

    def __str__(self) -> str:
        return self.number if self.cluster is None else f"{self.number};{self.cluster}"

    @property
    def words(self) -> str:
        """As a person types it behind ``squeue``."""
        return " ".join(["--jobs", self.number, *cluster_option(self.cluster)])


def cluster_option(cluster: str | None) -> list[str]:
    """The option that selects another cluster's controller."""
    return [] if cluster is None else [f"--clusters={cluster}"]


def by_cluster(job_ids: Iterable[str]) -> dict[str | None, list[str]]:
    """The numbers of jobs by their cluster: each cluster has a controller of its own."""
    groups: dict[str | None, list[str]] = {}
    for job_id in map(JobId.parse, job_ids):
        groups.setdefault(job_id.cluster, []).append(job_id.number)
    return groups


def read_job_id(output: str, *, keep_cluster: bool) -> JobId:
    """The job that ``sbatch --parsable`` has queued, from its output.

    A site's ``sbatch`` may print lines of its own, or leave ``--parsable`` out. So a line counts only if it is nothing
    but an id, or the whole of SLURM's own sentence, and all such lines must name the same job.

    Args:
        output: of ``sbatch``.
        keep_cluster: whether a cluster was chosen, so that further calls must name it, too.

    Raises:
        ValueError: no line names a job, or several lines name different ones.
    """
    lines = [line.strip() for line in output.splitlines()]
    matches = [_PARSABLE.fullmatch(line) or _SENTENCE.fullmatch(line) for line in lines]
    found = {match[1]: match[2] for match in matches if match is not None}
    if len(found) != 1:
        what = "no job id" if not found else f"several job ids ({', '.join(found)})"
        raise ValueError(f"the output of `sbatch` has {what}: {' '.join(output.split())!r}")
    ((number, cluster),) = found.items()
    return JobId(number, cluster if keep_cluster else None)


def logs_of_own_jobs(cluster: str | None = None) -> list[tuple[str, Path]]:
    """Id and log of each job of this user that SLURM still knows; the id is the text of a :class:`JobId`.

    Raises:
        ControllerAway: the controller does not answer.
    """
    fields = f"--Format=JobArrayID:{_ID_WIDTH},STDOUT:{_PATH_WIDTH}"
    # --array: else the waiting elements of an array share one line.
    options = ["--noheader", "--states=all", "--array", "--me", *cluster_option(cluster), fields]
    found = []
    for line in output_of(["squeue", *options]).splitlines():
        number, log = columns(line, (_ID_WIDTH, _PATH_WIDTH))
        if number and log:
            found.append((str(JobId(number, cluster)), Path(log)))
    return found


def cancel_jobs(job_ids: Sequence[str], *, signal: str | None = None, timeout_s: float = CALL_TIMEOUT_S) -> None:
    """``scancel``; jobs that have ended meanwhile are fine.

    Args:
        signal: name of a signal to send to the tasks instead of cancelling.

    Raises:
        ControllerAway: the controller does not answer within ``timeout_s``.
        LauncherError: ``scancel`` failed.
    """
    options = [] if signal is None else [f"--signal={signal}"]
    for cluster, numbers in by_cluster(job_ids).items():
        command = ["scancel", *options, *cluster_option(cluster), *numbers]
        try:
            done = call(command, timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ControllerAway(f"`scancel` did not answer within {timeout_s:g} s.") from error
        if done.returncode and NO_SUCH_JOB not in done.stderr and ALREADY_ENDING not in done.stderr:
            raise LauncherError(f"`{' '.join(command)}` failed: {' '.join(done.stderr.split())}")
