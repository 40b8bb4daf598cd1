"""At most so many jobs of a sweep at a time, without an array and without a process that watches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from launcher.config.schema import Config
from launcher.sweep.combo import with_sbatch


@dataclass(slots=True, kw_only=True)
class Throttle:
    """Makes each job wait for the end of the one that was submitted ``parallel`` jobs before it.

    So of any two jobs whose places differ by a multiple of ``parallel``, one has ended when the other starts.
    """

    parallel: int | None
    jobs: list[str] = field(default_factory=list)
    """Jobs that are queued or run, in the order of their submission."""

    def apply(self, config: Config) -> Config:
        """``config`` with the dependency of the next job, beside those that the user gave it."""
        if self.parallel is None or len(self.jobs) < self.parallel:
            return config
        own = getattr(config.cluster, "sbatch", {}).get("dependency")
        wanted = f"afterany:{self.jobs[-self.parallel]}"
        return with_sbatch(config, dependency=f"{own},{wanted}" if own else wanted)

    def add(self, job_id: str) -> None:
        """The next job was submitted."""
        self.jobs.append(job_id)


def throttled(active: Sequence[str], parallel: int | None) -> Throttle:
    """A throttle for jobs that come after ``active``."""
    return Throttle(parallel=parallel, jobs=list(active))
