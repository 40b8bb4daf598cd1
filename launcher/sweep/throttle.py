"""At most so many jobs of a sweep at a time, without an array and without a process that watches them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Throttle:
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


def throttled(active: Sequence[str], parallel: int | None) -> Throttle:
    """A throttle for jobs that come after ``active``."""
    return Throttle(parallel=parallel, jobs=list(active))
