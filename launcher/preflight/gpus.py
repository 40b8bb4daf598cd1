"""The node's GPUs, as ``nvidia-smi`` sees them: how many, free, unused, without hardware errors."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.control.preflight_report import Finding
from launcher.preflight.context import CheckContext

TOOL = "nvidia-smi"
GPU_FIELDS = (
    *("index", "uuid", "pci.bus_id", "name", "memory.total", "memory.used"),
    *("ecc.errors.uncorrected.volatile.total", "driver_version"),
)
PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")
HARDWARE_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})
"""Errors of the device itself; others are also caused by a program's own faults.
https://docs.nvidia.com/deploy/xid-errors/"""

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; memory in MiB."""

    index: int
    uuid: str
    bus_id: str
    name: str
    total: int
    used: int
    ecc_errors: int | None
    """Uncorrected ones since the driver was loaded; None where the driver does not count them."""

    driver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that computes on a GPU."""

    uuid: str
    pid: str
    name: str
    used: str


def check_gpus(site: CheckContext) -> Finding:
    """The planned GPUs are there, and no other program uses them."""
    if site.config.layout.device != "cuda":
        return Finding(name="gpus", ok=True, text="none planned")
    if shutil.which(TOOL) is None:
        return Finding(name="gpus", ok=True, text=f"not checked: no {TOOL} here")
    timeout_s = site.config.preflight.timeout_s
    gpus = visible(parse_gpus(_query("gpu", GPU_FIELDS, timeout_s)), os.environ.get("CUDA_VISIBLE_DEVICES"))
    processes = parse_processes(_query("compute-apps", PROCESS_FIELDS, timeout_s))
    limit = site.config.preflight.max_gpu_memory_used
    mig = mig_devices(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if mig:
        problems = [*error_problems(gpus, kernel_log())]
        if len(mig) < site.layout.gpus_per_node:
            problems.append(f"{len(mig)} of {site.layout.gpus_per_node} planned MIG devices are there")
        return Finding(name="gpus", ok=not problems, text="; ".join(problems) or f"{len(mig)} MIG devices")
    problems = [
        *count_problems(gpus, site.layout.gpus_per_node),
        *memory_problems(gpus, processes, limit),
        *error_problems(gpus, kernel_log()),
    ]
    names = ", ".join(sorted({gpu.name for gpu in gpus}))
    return Finding(name="gpus", ok=not problems, text="; ".join(problems) or f"{len(gpus)} x {names}, free")


def hardware_facts(timeout_s: float) -> dict[str, str]:
    """Driver and GPU type, which must be the same on every node; nothing where there is no driver."""
    if shutil.which(TOOL) is None:
        return {}
    gpus = parse_gpus(_query("gpu", GPU_FIELDS, timeout_s))
    return {
        "driver": ", ".join(sorted({gpu.driver for gpu in gpus})),
        "gpu": ", ".join(sorted({gpu.name for gpu in gpus})),
    }


def visible(gpus: Sequence[Gpu], chosen: str | None) -> list[Gpu]:
    """Those of the allocation: what ``CUDA_VISIBLE_DEVICES`` names, by index or by (the beginning of) an uuid."""
    words = [word for word in (chosen or "").split(",") if word]
    if not words:
        return list(gpus)
    # Where SLURM confines a job to its devices, the tool counts them anew from 0, and so does the variable.
    return [gpu for gpu in gpus if any(word == str(gpu.index) or gpu.uuid.startswith(word) for word in words)]


def mig_devices(chosen: str | None) -> list[str]:
    """The parts of GPUs (MIG) that ``CUDA_VISIBLE_DEVICES`` names, also in the older form ``MIG-GPU-UUID/1/0``."""
    return [word for word in (chosen or "").split(",") if word.startswith("MIG-")]


def count_problems(gpus: Sequence[Gpu], planned: int) -> Iterable[str]:
    """A GPU that fell off the bus is one that the tool does not show any more."""
    if len(gpus) < planned:
        yield f"{len(gpus)} of {planned} planned GPUs are there"


def memory_problems(gpus: Sequence[Gpu], processes: Sequence[GpuProcess], limit: float) -> Iterable[str]:
    """Who uses them before us.

    Args:
        limit: share of a GPU's memory that may be in use.
    """
    for gpu in gpus:
        users = [process for process in processes if process.uuid == gpu.uuid]
        if users:
            who = ", ".join(f"{process.name} (pid {process.pid})" for process in users[:3])
            yield f"GPU {gpu.index} is used by {who}"
        elif gpu.used > limit * gpu.total:
            yield f"GPU {gpu.index} has {gpu.used} of {gpu.total} MiB in use, by no process that can be seen"


def error_problems(gpus: Sequence[Gpu], log: Iterable[str]) -> Iterable[str]:
    """What the driver says about the hardware."""
    for gpu in gpus:
        if gpu.ecc_errors:
            yield f"GPU {gpu.index} has {gpu.ecc_errors} uncorrected memory errors"
    by_bus = {_bus(gpu.bus_id): gpu.index for gpu in gpus}
    seen = set()
    for line in log:
        match = _XID.search(line)
        if match is None or int(match[2]) not in HARDWARE_XIDS:
            continue
        fault = (by_bus.get(_bus(match[1])), match[2])
        if fault[0] is not None and fault not in seen:
            seen.add(fault)
            yield f"GPU {fault[0]} had Xid {fault[1]}"


def parse_gpus(text: str) -> list[Gpu]:
    """Reads the answer to :data:`GPU_FIELDS`."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if len(row) == len(GPU_FIELDS)]
    return [
        Gpu(
            index=int(index),
            uuid=uuid,
            bus_id=bus_id,
            name=name,
            total=_number(total) or 0,
            used=_number(used) or 0,
            ecc_errors=_number(errors),
            driver=driver,
        )
        for index, uuid, bus_id, name, total, used, errors, driver in rows
    ]


def parse_processes(text: str) -> list[GpuProcess]:
    """Reads the answer to :data:`PROCESS_FIELDS`."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if len(row) == len(PROCESS_FIELDS)]
    return [GpuProcess(uuid=uuid, pid=pid, name=name, used=used) for uuid, pid, name, used in rows]


def kernel_log(path: Path = Path("/dev/kmsg")) -> list[str]:
    """What the kernel said since the start; nothing where it may not be read, which is common."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    lines = []
    try:
        # One record per read; the last one is followed by EAGAIN.
        while record := os.read(descriptor, 8192):
            lines.append(record.decode(errors="replace"))
    except OSError:
        return lines
    finally:
        os.close(descriptor)
    return lines


def _query(what: str, fields: Sequence[str], timeout_s: float) -> str:
    done = subprocess.run(
        [TOOL, f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(f"`{TOOL}` fails: {(done.stdout + done.stderr).strip().splitlines()[-1:] or done.returncode}")
    return done.stdout


def _bus(text: str) -> str:
    """The tool writes ``00000000:1B:00.0`` for what the kernel calls ``0000:1b:00``."""
    return text.lower().partition(".")[0][-10:]


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
