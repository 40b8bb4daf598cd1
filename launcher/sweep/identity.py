"""Which runs of a sweep are the same run: a hash of all settings that can change its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from launcher.config.schema import Config
from launcher.sweep.combine import key_of, swept_keys

LENGTH = 12
"""Hexadecimal digits of an identity: two of a million runs share one with a chance of 0.002."""

NOT_IN_IDENTITY = (
    *("name", "output_dir", "sweep", "snapshot", "secrets", "preflight", "restart", "checkpoint"),
    *("start_timeout_s", "lease_timeout_s", "stop_grace_s", "layout.hostnames", "layout.spares"),
    *("inference.base_port", "inference.strict_ports", "inference.ready_timeout_s", "inference.drain_timeout_s"),
    *("inference.min_replicas", "bridge.timeout_s", "cluster"),
)
"""Settings, and groups of them, that say where, how and under which name a run is done, not what comes out of it."""

KEPT = ("cluster.env", "cluster.setup", "cluster.container")
"""What counts nevertheless: it changes the programs' surroundings."""


def identity(config: Config, swept: Collection[str] = ()) -> str:
    """The hash of ``config`` without :data:`NOT_IN_IDENTITY`; the same on every machine.

    The program itself, which ``trainer.command`` names, is not looked into.

    Args:
        swept: settings that the sweep varies. They count in any case: who sweeps a timeout wants to see its effect.
    """
    leaves = {path: value for path, value in _leaves(asdict(config)) if changes_result(path, swept)}
    text = json.dumps(leaves, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def changes_result(path: str, swept: Collection[str] = ()) -> bool:
    """Whether a setting is part of the identity."""
    return _is_below(path, KEPT) or _is_below(path, swept) or not _is_below(path, NOT_IN_IDENTITY)


def sweep_name(name: str, overrides: Sequence[str]) -> str:
    """The name of a sweep without one of its own: the same for the same command, whatever the order of its words."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    swept = swept_keys(OverridesParser.create().parse_overrides(list(overrides)))
    words = sorted(word.lstrip("+") for word in overrides if changes_result(key_of(word), swept))
    return f"{name}-{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:6]}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _is_below(path: str, places: Collection[str]) -> bool:
    return any(path == place or path.startswith(f"{place}.") for place in places)
