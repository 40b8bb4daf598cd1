"""What the lines of a log mean, as one table. Order matters: the first row that matches a line counts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.common.errors import PREFLIGHT_FAILED
from launcher.events.failure_kinds import FailureKind as Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRule:
    """One row."""

    kind: Kind
    is_symptom: bool
    """The line reports the failure of another process: a peer that is gone, an engine whose error is in another log."""

    pattern: re.Pattern[str]


def _rule(kind: Kind, *alternatives: str, is_symptom: bool = False) -> LogRule:
    return LogRule(kind=kind, is_symptom=is_symptom, pattern=re.compile("|".join(alternatives)))


RULES: tuple[LogRule, ...] = (
    # How vLLM reports a worker of its own that got a signal.
    _rule(Kind.KILLED, r"Worker proc \S+ died unexpectedly \(exit code: (?:-9|None)\)"),
    _rule(Kind.CRASHED, r"Worker proc \S+ died unexpectedly"),
    _rule(
        Kind.UNKNOWN,
        # vLLM, of the processes above the one that failed.
        r"See root cause above|See stack trace \(above\)|EngineDeadError|RuntimeError: Executor failed",
        r"CancelledError|KeyboardInterrupt|SystemExit",
        is_symptom=True,
    ),
    _rule(
        Kind.GPU_MEMORY,
        r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|HIP out of memory|CUDA error: out of memory",
        r"cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|Cuda failure.*out of memory",
        # vLLM, before it has allocated anything.
        r"No available memory for the cache blocks|Free memory on device .* is less than desired GPU memory",
        r"is larger than the available KV cache memory|which is larger than the available KV cache",
    ),
    _rule(
        Kind.HOST_MEMORY,
        r"\bMemoryError\b|DefaultCPUAllocator: can't allocate|Cannot allocate memory|std::bad_alloc",
        r"[Oo]ut of memory: Killed process|[Oo]om[-_ ][Kk]ill|OUT_OF_MEMORY",
        r"Available memory on node \S+ .* on kv cache allocation is less than requested",
        r"unable to allocate shared memory|Bus error|signal 7 \(SIGBUS\)",
    ),
    _rule(
        Kind.DISK,
        r"No space left on device|ENOSPC|Disk quota exceeded|EDQUOT|\[Errno (?:28|122)\]|os error 28",
        r"inline_container\.cc:\d+\] \. unexpected pos|PytorchStreamWriter failed writing",
    ),
    _rule(
        Kind.PORT,
        r"[Aa]ddress already in use|EADDRINUSE|failed to listen on any local network address",
        r"Port \d+ on \S+ is taken",
    ),
    _rule(
        Kind.IMPORT,
        r"\bModuleNotFoundError\b|\bImportError\b|undefined symbol|cannot open shared object file",
        r"version `(?:GLIBC|GLIBCXX|CXXABI)_\S+' not found",
    ),
    _rule(
        Kind.NCCL_TIMEOUT,
        # The rank that waits is a victim if anybody failed before; alone, it is all there is.
        r"Watchdog caught collective operation timeout|Received a dump signal due to a collective timeout",
        r"Timed out waiting \d+ms for (?:recv|send) operation|monitoredBarrier",
        r"wait timeout after \d+ms, keys|Timed out after \d+ seconds waiting for clients",
        r"client socket has timed out after \d+ms|Waited [\d.]+ s for .*; still missing",
        is_symptom=True,
    ),
    _rule(
        Kind.CONNECTION,
        r"Connection (?:closed|reset) by (?:remote )?peer|Connection refused|Broken pipe|Connection reset",
        r"ncclRemoteError|ncclSystemError|NCCL communicator was aborted|recvValue failed|sendBytes failed",
        r"failed to recv, got 0 bytes|Socket closed|RemoteDisconnected|Server disconnected|ServerDisconnectedError",
        r"ConnectError|ReadError|RemoteProtocolError|The control service at \S+ (?:is gone|did not answer)",
        r"Node 0 is lost|All connection attempts failed|DistNetworkError|RolloutError: no answer",
        is_symptom=True,
    ),
    _rule(
        Kind.CONFIGURATION,
        r"problems? in the configuration|vLLM refuses its arguments|pydantic\S*ValidationError|\bConfigError\b",
        r"error: (?:unrecognized arguments|the following arguments are required|argument )",
        r"launcher: cannot run '|ValidationError: \d+ validation error",
    ),
    _rule(Kind.CRASHED, r"Segmentation fault|Fatal Python error|illegal memory access|device-side assert"),
    _rule(Kind.USER_CODE, r"^\s*(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Failure|Timeout|Exit|Interrupt)\b"),
)

EXIT_CODES: dict[int, Kind] = {
    2: Kind.CONFIGURATION,
    4: Kind.CONFIGURATION,
    PREFLIGHT_FAILED: Kind.PREFLIGHT,
}
"""What the exit code that a failure gives the run means."""

SIGNALS: dict[int, Kind] = {
    9: Kind.KILLED,
    4: Kind.CRASHED,
    6: Kind.CRASHED,
    7: Kind.HOST_MEMORY,
    8: Kind.CRASHED,
    11: Kind.CRASHED,
}
"""What a signal means when the log shows no error."""

SLURM_STATES: dict[str, Kind] = {
    "OUT_OF_MEMORY": Kind.HOST_MEMORY,
    "TIMEOUT": Kind.TIMED_OUT,
    "DEADLINE": Kind.TIMED_OUT,
    "PREEMPTED": Kind.PREEMPTED,
    "NODE_FAIL": Kind.NODE_LOST,
    "BOOT_FAIL": Kind.NODE_LOST,
    "CANCELLED": Kind.CANCELLED,
}
"""What SLURM's state of a job that has ended means."""


def classify(line: str) -> LogRule | None:
    """The row that fits a line; None if no row does."""
    return next((rule for rule in RULES if rule.pattern.search(line)), None)
