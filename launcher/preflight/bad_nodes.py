"""Bad nodes that later jobs leave out for a while: a small file per node and cluster in the user's cache directory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.common.jsonio import write_json
from launcher.config.schema import PreflightConfig
from launcher.control.preflight_report import BadNode

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNodeEntry:
    """Why a node is left out, and for how long. Times are unix seconds."""

    cluster: str
    node: str
    reason: str
    time: float
    expires: float
    run_dir: str
    """The run that found it."""


def default_bad_node_dir() -> Path:
    """``launcher`` in the user's cache directory (``XDG_CACHE_HOME``), which clusters share between their nodes."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if cache.startswith("/"):
        return Path(cache) / "launcher"
    try:
        return Path.home() / ".cache" / "launcher"
    except RuntimeError:  # neither HOME nor an entry of the user: then it is remembered on this node alone
        return Path(tempfile.gettempdir()) / f"launcher-cache-{os.getuid()}"


class BadNodeCache:
    """Bad nodes of all clusters. A file each, written whole, so that any number of runs may write at once.

    Args:
        root: made when first needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / "nodes"

    def remember(self, entry: BadNodeEntry) -> None:
        """Writes one; a later one about the same node replaces it.

        Raises:
            OSError: the directory cannot be written.
            ValueError: a name that is no name of a node or a cluster.
        """
        path = self._path(entry.cluster, entry.node)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(entry))

    def entries(self, cluster: str | None = None, *, now: float | None = None) -> list[BadNodeEntry]:
        """Entries of one cluster or of all, by name; those that have expired are removed."""
        now = time.time() if now is None else now
        found = []
        for path, entry in self._read(cluster or "*"):
            if entry.expires > now:
                found.append(entry)
            else:
                with contextlib.suppress(OSError):  # on a read-only home it stays, and counts no more
                    path.unlink(missing_ok=True)
        return sorted(found, key=lambda entry: (entry.cluster, entry.node))

    def forget(self, node: str, cluster: str | None = None) -> int:
        """Forgets a node, on one cluster or on all of them; how many entries that were."""
        entries = [entry for entry in self.entries(cluster) if entry.node == node]
        for entry in entries:
            self._path(entry.cluster, entry.node).unlink(missing_ok=True)
        return len(entries)

    def _read(self, cluster: str) -> Iterator[tuple[Path, BadNodeEntry]]:
        for path in self._root.glob(f"{cluster}/*.json"):
            try:
                yield path, BadNodeEntry(**json.loads(path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                continue  # forgotten just now
            except (ValueError, TypeError):
                continue  # written by another release; it will be replaced or forgotten by that

    def _path(self, cluster: str, node: str) -> Path:
        for name in (cluster, node):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a node or a cluster")
        return self._root / cluster / f"{node}.json"


CLUSTER_VARIABLE = "SLURM_CLUSTER_NAME"
"""Set by SLURM in every job: the name of its cluster."""


def remember(bad: Sequence[BadNode], settings: PreflightConfig, run_dir: Path) -> list[str]:
    """Remembers the bad nodes of this cluster; nothing of a local run, nor what is wrong on every node alike.

    Returns:
        The names that are remembered from now on.
    """
    cluster = os.environ.get(CLUSTER_VARIABLE, "")
    if not cluster or settings.bad_node_ttl_s <= 0:
        return []
    memory = BadNodeCache(Path(settings.bad_node_dir) if settings.bad_node_dir else default_bad_node_dir())
    now = time.time()
    names = []
    for node in bad:
        if not node.is_its_own:
            continue
        entry = BadNodeEntry(
            cluster=cluster,
            node=node.hostname,
            reason=node.reason,
            time=now,
            expires=now + settings.bad_node_ttl_s,
            run_dir=str(run_dir),
        )
        try:
            memory.remember(entry)
        except OSError as error:
            logger.warning("cannot remember that %s is bad: %s", node.hostname, error)
            continue
        names.append(node.hostname)
    return names
