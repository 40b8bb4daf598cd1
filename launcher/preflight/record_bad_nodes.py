"""Node 0, at the end of a run: remembers the nodes that the preflight found bad."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.config.schema import PreflightConfig
from launcher.control.preflight_report import BadNode
from launcher.preflight.bad_nodes import NodeMemory, Remembered, default_memory

logger = logging.getLogger(__name__)

CLUSTER_VARIABLE = "SLURM_CLUSTER_NAME"
"""SLURM tells every job the name of its cluster."""


def remember(bad: Sequence[BadNode], settings: PreflightConfig, run_dir: Path) -> list[str]:
    """Remembers the bad nodes of this cluster; nothing of a local run, nor what is wrong on every node alike.

    Returns:
        The names that are remembered from now on.
    """
    cluster = os.environ.get(CLUSTER_VARIABLE, "")
    if not cluster or settings.bad_node_ttl_s <= 0:
        return []
    memory = NodeMemory(Path(settings.bad_node_dir) if settings.bad_node_dir else default_memory())
    now = time.time()
    names = []
    for node in bad:
        if not node.is_its_own:
            continue
        entry = Remembered(
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
