"""A sweep's own settings."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.config.metric import REDUCTIONS, Metric
from launcher.config.schema import Config


def problems(config: Config) -> Iterator[str]:
    """A metric that cannot be computed, a name that is no name of a directory."""
    metric = Metric.parse(config.sweep.metric)
    if not metric.name or metric.reduction not in REDUCTIONS:
        yield (
            f"`sweep.metric` ({config.sweep.metric}) does not end with one of {', '.join(REDUCTIONS)}."
            f" HINT: write `sweep.metric={metric.name or 'reward'}.max`."
        )
    name = config.sweep.name
    if name is not None and (not name.strip() or "/" in name or name in (".", "..")):
        yield f"`sweep.name` ({name}) is no name of a directory. HINT: write one word, such as `sweep.name=lr`."
