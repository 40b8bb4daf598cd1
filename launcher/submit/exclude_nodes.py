"""Before a submission: leaves out the nodes that earlier runs found bad, and says so."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from launcher.common.text import duration
from launcher.config.schema import Config, SlurmClusterConfig
from launcher.preflight.bad_nodes import BadNodeCache, BadNodeEntry, default_bad_node_dir
from launcher.slurm.client import ControllerAway, output_of
from launcher.slurm.jobs import cluster_option
from launcher.slurm.nodelist import expand_nodelist
from launcher.slurm.site import cluster_name
from launcher.submit.resources import chosen_cluster


def leave_out_bad_nodes(config: Config) -> tuple[Config, list[str]]:
    """The configuration to submit, and what to tell about it.

    ``cluster.exclude`` gets the remembered nodes of this cluster on top of the user's own, ``preflight.bad_node_dir``
    the directory that the job is to write into. A node that ``cluster.nodelist`` asks for by name is left in.
    """
    cluster, settings = config.cluster, config.preflight
    if not isinstance(cluster, SlurmClusterConfig) or settings.action == "off" or settings.bad_node_ttl_s <= 0:
        return config, []
    root = (Path(settings.bad_node_dir) if settings.bad_node_dir else default_bad_node_dir()).absolute()
    config = replace(config, preflight=replace(settings, bad_node_dir=str(root)))
    memory = BadNodeCache(root)
    if not memory.entries():
        return config, []
    option = cluster_option(chosen_cluster(config))
    try:
        name = cluster_name(chosen_cluster(config))
        wanted = set(expand_nodelist(cluster.nodelist)) if cluster.nodelist else set()
        # The name of a node that is no more would make SLURM refuse the whole job.
        known = set(output_of(["sinfo", "--noheader", "--Node", *option, "--format=%N"]).split())
    except (ControllerAway, ValueError) as error:
        return config, [f"bad nodes of earlier runs are not left out: {error}"]
    bad = [entry for entry in memory.entries(name) if entry.node in known]
    left_out = [entry for entry in bad if entry.node not in wanted]
    told = [_sentence(entry) for entry in left_out]
    told += [f"{e.node} was bad ({e.reason}), but `cluster.nodelist` asks for it" for e in bad if e.node in wanted]
    if left_out:
        names = ",".join(entry.node for entry in left_out)
        exclude = f"{cluster.exclude},{names}" if cluster.exclude else names
        config = replace(config, cluster=replace(cluster, exclude=exclude))
    return config, told


def _sentence(entry: BadNodeEntry) -> str:
    left = duration(max(0.0, entry.expires - time.time()))
    return (
        f"leaving out {entry.node} for another {left}: {entry.reason}."
        f" `launcher nodes forget {entry.node}` uses it again."
    )
