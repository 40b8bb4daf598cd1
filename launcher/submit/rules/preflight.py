"""Settings of the preflight that name checks."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.config.schema import Config
from launcher.preflight.context import NAMES


def problems(config: Config) -> Iterator[str]:
    """Checks to skip that do not exist."""
    for name in config.preflight.skip:
        if name not in NAMES:
            yield f"`preflight.skip` ({name}) is no check. HINT: the checks are {', '.join(NAMES)}."
