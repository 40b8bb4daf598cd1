"""The kinds of failure, and for each whether to try again and with what change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureKind(StrEnum):
    """What a failure is, as events and ``why --json`` name it; :attr:`text` is for people."""

    GPU_MEMORY = "out_of_gpu_memory"
    HOST_MEMORY = "out_of_memory"
    KILLED = "killed"
    CRASHED = "crashed"
    IMPORT = "import_error"
    NCCL_TIMEOUT = "collective_timed_out"
    HUNG = "hung"
    PORT = "port_in_use"
    DISK = "disk_full"
    CONFIGURATION = "configuration"
    USER_CODE = "user_code"
    NODE_LOST = "node_lost"
    PREEMPTED = "preempted"
    TIMED_OUT = "time_limit"
    CANCELLED = "cancelled"
    PREFLIGHT = "preflight"
    CONNECTION = "connection_lost"
    UNKNOWN = "unknown"

    @property
    def text(self) -> str:
        """``out of GPU memory``, ``import error``, ..."""
        return self.value.replace("_", " ").replace("gpu", "GPU")


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


ADVICE: dict[FailureKind, Advice] = {
    FailureKind.GPU_MEMORY: Advice(
        retry=Retry.CHANGED,
        hint="an engine: lower `inference.gpu_memory_utilization`, `inference.max_num_seqs` or `model.max_length`;"
        " a trainer: fewer sequences per step, or more trainer nodes",
    ),
    FailureKind.HOST_MEMORY: Advice(
        retry=Retry.CHANGED,
        hint="ask for more memory with `cluster.mem`, lower `inference.cpu_kvcache_space_gb`, or put fewer processes on"
        " a node",
    ),
    FailureKind.KILLED: Advice(
        retry=Retry.YES,
        hint="a person or a program outside of the run sent the signal; if it happens again, watch the node's memory",
    ),
    FailureKind.CRASHED: Advice(
        retry=Retry.YES, hint="once; if it crashes again at the same place, its log and a core file help"
    ),
    FailureKind.IMPORT: Advice(retry=Retry.NO, hint="install what is missing in the environment of the nodes"),
    FailureKind.NCCL_TIMEOUT: Advice(
        retry=Retry.YES,
        hint="once; no rank failed before it, so look for one that waits somewhere else, or for a bad link;"
        " `NCCL_DEBUG=INFO` in `trainer.env` shows more",
    ),
    FailureKind.HUNG: Advice(retry=Retry.YES, hint="once; its log shows what it did last"),
    FailureKind.PORT: Advice(
        retry=Retry.CHANGED,
        hint="set `inference.strict_ports=false` or another `inference.base_port`, or free the port",
    ),
    FailureKind.DISK: Advice(retry=Retry.CHANGED, hint="make room, or set `output_dir` to another filesystem"),
    FailureKind.CONFIGURATION: Advice(retry=Retry.NO, hint="correct what the message names"),
    FailureKind.USER_CODE: Advice(retry=Retry.NO, hint="the program raised it; the traceback shows where"),
    FailureKind.NODE_LOST: Advice(
        retry=Retry.YES,
        hint="on other nodes: `cluster.exclude` leaves one out; `layout.spares` lets one take its place",
    ),
    FailureKind.PREEMPTED: Advice(retry=Retry.YES, hint="it resumes from the last checkpoint"),
    FailureKind.TIMED_OUT: Advice(
        retry=Retry.YES, hint="it resumes from the last checkpoint; `cluster.time` gives it longer"
    ),
    FailureKind.CANCELLED: Advice(retry=Retry.YES, hint="a person ended it on purpose"),
    FailureKind.PREFLIGHT: Advice(
        retry=Retry.YES, hint="bad nodes are left out of the next submission; `launcher nodes` lists them"
    ),
    FailureKind.CONNECTION: Advice(
        retry=Retry.YES,
        hint="once; the process at the other end reported nothing, so look at its node and at the network",
    ),
    FailureKind.UNKNOWN: Advice(retry=Retry.YES, hint="once; the logs show nothing else"),
}
