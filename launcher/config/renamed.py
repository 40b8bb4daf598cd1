"""Settings that were renamed: their old names are read for one version, with a warning that names the new one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.common.errors import ConfigError

logger = logging.getLogger(__name__)

RENAMED = {
    "cluster.gpus": "cluster.gpu_request",
    "preflight.memory": "preflight.bad_node_dir",
    "preflight.remember_s": "preflight.bad_node_ttl_s",
    "restart.engine_backoff_max_s": "restart.max_engine_backoff_s",
    "restart.engine_hang_s": "restart.engine_health_timeout_s",
    "restart.engine_max": "restart.max_engine_restarts",
    "restart.failure_max": "restart.max_failures",
    "restart.preemption_max": "restart.max_preemptions",
    "restart.stopped_s": "restart.stopped_process_timeout_s",
    "restart.timeout_max": "restart.max_timeouts",
    "restart.trainer_early_s": "restart.startup_failure_window_s",
    "restart.trainer_max": "restart.max_trainer_restarts",
    "restart.window_s": "restart.count_window_s",
}
"""New path by old path. Both are in the same group: only the last part of a path changes."""

_REFERENCE = re.compile(r"\$\{(" + "|".join(map(re.escape, RENAMED)) + r")\}")
_warned: set[str] = set()


def current_name(path: str) -> str:
    """``path``, or the new name of an old one, with a warning."""
    new = RENAMED.get(path)
    if new is None:
        return path
    if path not in _warned:
        _warned.add(path)
        logger.warning("`%s` is called `%s` now. The old name is accepted in this version only.", path, new)
    return new


def check_given_once(paths: Iterable[str]) -> None:
    """Returns if no setting is given under both of its names.

    Raises:
        ConfigError: some are.
    """
    given = set(paths)
    if twice := [_given_twice(old, new) for old, new in RENAMED.items() if {old, new} <= given]:
        raise ConfigError(twice)


def with_current_names(data: Any, prefix: str = "") -> Any:
    """``data``, read from YAML, with every old name replaced; also where a value refers to one: ``${old.name}``.

    Args:
        prefix: path of ``data`` in the configuration; empty for the whole.

    Raises:
        ConfigError: a setting is given under both of its names.
    """
    if isinstance(data, str):
        return _REFERENCE.sub(lambda match: f"${{{current_name(match.group(1))}}}", data) if "${" in data else data
    if isinstance(data, list):
        return [with_current_names(item) for item in data]
    if not isinstance(data, Mapping):
        return data
    paths = {key: f"{prefix}.{key}" if prefix else str(key) for key in data}
    check_given_once(paths.values())
    return {
        _last(current_name(path)) if path in RENAMED else key: with_current_names(data[key], path)
        for key, path in paths.items()
    }


def with_names_of(data: Any, then: Any, prefix: str = "") -> Any:
    """``data`` with the old names where ``then``, an earlier configuration, has them: its code knows no others."""
    if not isinstance(data, Mapping) or not isinstance(then, Mapping):
        return data
    old_names = {_last(new): _last(old) for old, new in RENAMED.items() if old.rpartition(".")[0] == prefix}
    renamed = {}
    for key, value in data.items():
        name = old_names.get(key, key)
        name = name if name in then and key not in then else key
        renamed[name] = with_names_of(value, then.get(name), f"{prefix}.{key}" if prefix else str(key))
    return renamed


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _given_twice(old: str, new: str) -> str:
    return f"`{old}` is the old name of `{new}`, and both are given. HINT: leave out `{old}`."
