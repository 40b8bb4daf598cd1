"""What the kernel grants: shared memory, locked memory, open files."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from launcher.preflight.model import Finding
from launcher.preflight.site import Site

GB = 1 << 30
SHM = Path("/dev/shm")
INFINIBAND = Path("/sys/class/infiniband")


def check_shm(site: Site) -> Finding:
    """``/dev/shm`` has room: engines and NCCL share memory there, and containers often leave 64 MB."""
    wanted = site.config.preflight.min_shm_gb
    status = os.statvfs(SHM)
    free = status.f_bavail * status.f_frsize / GB
    ok = free >= wanted and os.access(SHM, os.W_OK)
    hint = "" if ok else f", `preflight.min_shm_gb` is {wanted:g}"
    return Finding(name="shm", ok=ok, text=f"{SHM} has {free:.2f} GB free{hint}")


def check_memlock(site: Site) -> Finding:
    """RDMA must lock its buffers; asked only where there is InfiniBand and GPUs use it."""
    if site.config.layout.device != "cuda" or not (INFINIBAND.is_dir() and any(INFINIBAND.iterdir())):
        return Finding(name="memlock", ok=True, text="not needed: no InfiniBand")
    wanted = site.config.preflight.min_memlock_gb
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding(name="memlock", ok=True, text="unlimited")
    ok = soft >= wanted * GB
    hint = "" if ok else f", `preflight.min_memlock_gb` is {wanted:g} (`PropagateResourceLimits` of slurm.conf?)"
    return Finding(name="memlock", ok=ok, text=f"{soft / GB:.3f} GB may be locked{hint}")


def check_nofile(site: Site) -> Finding:
    """Enough open files: an engine under load holds a socket per request."""
    wanted = site.config.preflight.min_nofile
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = soft == resource.RLIM_INFINITY or soft >= wanted
    hint = "" if ok else f", `preflight.min_nofile` is {wanted} (`ulimit -n`)"
    return Finding(name="nofile", ok=ok, text=f"{soft} open files{hint}")
