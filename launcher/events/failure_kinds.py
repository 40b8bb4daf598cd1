"""The kinds of failure, and for each whether to try again and with what change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a failure is, in the words that ``why`` prints."""

    GPU_MEMORY = "out of GPU memory"
    HOST_MEMORY = "out of memory"
    KILLED = "killed"
    CRASHED = "crashed"
    IMPORT = "import error"
    NCCL_TIMEOUT = "collective timed out"
    HUNG = "hung"
    PORT = "port in use"
    DISK = "disk full"
    CONFIGURATION = "configuration"
    USER_CODE = "user code"
    NODE_LOST = "node lost"
    PREEMPTED = "preempted"
    TIMED_OUT = "time limit"
    CANCELLED = "cancelled"
    PREFLIGHT = "preflight"
    CONNECTION = "connection lost"
    UNKNOWN = "unknown"


class Retry(StrEnum):
    """Whether the same run may be tried again."""

    YES = "yes"
    """As it is."""

    CHANGED = "after a change"
    NO = "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to do about a kind of failure."""

    retry: Retry
    hint: str


ADVICE: dict[Kind, Advice] = {
    Kind.GPU_MEMORY: Advice(
        retry=Retry.CHANGED,
        hint="an engine: lower `inference.gpu_memory_utilization`, `inference.max_num_seqs` or `model.max_length`;"
        " a trainer: fewer sequences per step, or more trainer nodes",
    ),
    Kind.HOST_MEMORY: Advice(
        retry=Retry.CHANGED,
        hint="ask for more memory with `cluster.mem`, lower `inference.cpu_kvcache_space_gb`, or put fewer processes on"
        " a node",
    ),
    Kind.KILLED: Advice(
        retry=Retry.YES,
        hint="a person or a program outside of the run sent the signal; if it happens again, watch the node's memory",
    ),
    Kind.CRASHED: Advice(
        retry=Retry.YES, hint="once; if it crashes again at the same place, its log and a core file help"
    ),
    Kind.IMPORT: Advice(retry=Retry.NO, hint="install what is missing in the environment of the nodes"),
    Kind.NCCL_TIMEOUT: Advice(
        retry=Retry.YES,
        hint="once; no rank failed before it, so look for one that waits somewhere else, or for a bad link;"
        " `NCCL_DEBUG=INFO` in `trainer.env` tells more",
    ),
    Kind.HUNG: Advice(retry=Retry.YES, hint="once; its log shows what it did last"),
    Kind.PORT: Advice(
        retry=Retry.CHANGED,
        hint="set `inference.strict_ports=false` or another `inference.base_port`, or free the port",
    ),
    Kind.DISK: Advice(retry=Retry.CHANGED, hint="make room, or set `output_dir` to another filesystem"),
    Kind.CONFIGURATION: Advice(retry=Retry.NO, hint="correct what the message names"),
    Kind.USER_CODE: Advice(retry=Retry.NO, hint="the program raised it; the traceback shows where"),
    Kind.NODE_LOST: Advice(
        retry=Retry.YES,
        hint="on other nodes: `cluster.exclude` leaves one out; `layout.spares` lets one take its place",
    ),
    Kind.PREEMPTED: Advice(retry=Retry.YES, hint="it resumes from the last checkpoint"),
    Kind.TIMED_OUT: Advice(retry=Retry.YES, hint="it resumes from the last checkpoint; `cluster.time` gives it longer"),
    Kind.CANCELLED: Advice(retry=Retry.YES, hint="somebody ended it on purpose"),
    Kind.PREFLIGHT: Advice(
        retry=Retry.YES, hint="bad nodes are left out of the next submission; `launcher nodes` lists them"
    ),
    Kind.CONNECTION: Advice(
        retry=Retry.YES, hint="once; who was at the other end said nothing, so look at its node and at the network"
    ),
    Kind.UNKNOWN: Advice(retry=Retry.YES, hint="once; the logs say no more"),
}
