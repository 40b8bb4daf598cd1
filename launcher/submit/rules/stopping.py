"""Stopping in time: the signal before the time limit, and what must fit between the two."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.config.schema import Config, SlurmClusterConfig
from launcher.slurm.times import parse_limit
from launcher.submit.resources import time_limit


def problems(config: Config) -> Iterator[str]:
    """Times that leave no time."""
    cluster = config.cluster
    if not isinstance(cluster, SlurmClusterConfig):
        return
    limit = time_limit(cluster) or ""
    limit_s, signal_s, wait_s = (
        parse_limit(limit),
        cluster.signal_s,
        config.checkpoint.stop_timeout_s,
    )
    if not limit_s:
        return  # there is none that is known here, or it is refused elsewhere
    if signal_s >= limit_s:
        yield (
            f"`cluster.signal_s` ({signal_s}) is not less than `cluster.time` ({limit}, {limit_s} s): the run"
            f" would be asked to stop as soon as it starts. HINT: set `cluster.signal_s={max(limit_s // 4, 1)}`, or a"
            " longer time."
        )
    elif wait_s >= signal_s:
        yield (
            f"`checkpoint.stop_timeout_s` ({wait_s:g}) is not less than `cluster.signal_s` ({signal_s}): the time limit"
            f" would end the run while it waits for the trainer. HINT: set `cluster.signal_s={int(2 * wait_s)}`, or a"
            " shorter wait."
        )
