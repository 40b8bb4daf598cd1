"""Addresses as the earlier single-file bridge handed them out; the launcher itself does not use these fixed ports."""

from __future__ import annotations

import os

FIRST_PORT = 26756

Urls = tuple[str | None, str | None, str | None, list[str] | None]


def get_inference_urls(num_inference_nodes: int = 0) -> Urls:
    """Where trainer and engines of a job would meet: ``(master, master_gloo, master_inference, nodelist)``.

    The addresses are ``host:port`` on the job's first node, ``localhost`` for 0 inference nodes; the port numbers count
    up from ``MASTER_PORT`` if that is set, else from 26756. ``nodelist`` holds the last ``num_inference_nodes``
    hostnames. Four None for a negative number or outside SLURM.

    Raises:
        ValueError: the job has too few nodes for that many inference nodes.
    """
    base = int(os.environ.get("MASTER_PORT") or FIRST_PORT)
    if num_inference_nodes == 0:
        return *_addresses("localhost", base), ["localhost"]
    if num_inference_nodes < 0 or "SLURM_JOB_NODELIST" not in os.environ:
        return None, None, None, None
    from submitit.slurm.slurm import SlurmJobEnvironment

    hostnames = list(SlurmJobEnvironment().hostnames)
    if num_inference_nodes >= len(hostnames):
        raise ValueError(
            f"`num_inference_nodes` ({num_inference_nodes}) leaves no trainer among {len(hostnames)} nodes of the job."
        )
    return *_addresses(hostnames[0], base), hostnames[-num_inference_nodes:]


def _addresses(host: str, base: int) -> tuple[str, str, str]:
    return f"{host}:{base}", f"{host}:{base + 1}", f"{host}:{base + 2}"
