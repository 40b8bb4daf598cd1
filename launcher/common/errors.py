"""Every error a person may meet, as one tree; the exit code travels with the class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PREFLIGHT_FAILED = 7
"""Exit code of a run that ended before anything was started, because nodes are bad."""


USAGE_ERROR = 2
"""Exit code of a command line, or of a configuration, that is wrong."""


class LauncherError(Exception):
    """An expected failure: shown as one message, without a traceback."""

    exit_code = 1


class ConfigError(LauncherError):
    """The request is wrong. Nothing was created and nothing was submitted."""

    exit_code = USAGE_ERROR

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem in the configuration" if count == 1 else f"{count} problems in the configuration"
        super().__init__("\n".join([f"{head}; nothing was started:", *(f"  - {p}" for p in self.problems)]))


class UsageError(LauncherError):
    """The command line is wrong."""

    exit_code = USAGE_ERROR


class SubmissionError(LauncherError):
    """``sbatch`` refused the job; nothing is queued."""

    exit_code = 3


class AllocationError(LauncherError):
    """The nodes given are not the nodes planned."""

    exit_code = 4


class ProcessFailure(LauncherError):
    """A process that the launcher started ended badly, or never became ready."""

    exit_code = 5

    def __init__(self, message: str, *, log: Path | None = None, tail: Sequence[str] = ()) -> None:
        self.log = log
        self.tail = tuple(tail)
        lines = [message]
        if log is not None:
            lines.append(f"Log: {log}")
        lines += [f"    {line}" for line in self.tail]
        super().__init__("\n".join(lines))


class EngineRefusal(LauncherError):
    """An engine cannot be started with these settings; another try would fail, too."""

    exit_code = 2


class EngineTimeout(ProcessFailure):
    """An engine was not ready within its deadline."""


class ControlError(LauncherError):
    """The run's control service cannot be reached, or refused a request."""

    exit_code = 6


class ControlRefusal(ControlError):
    """The control service answered that it refuses the request."""


STOPPED = 9
"""Exit code of a run that stopped on request, saved a checkpoint, and can be resumed."""


class BridgeError(LauncherError):
    """Weights did not arrive."""

    exit_code = 8


class RendezvousTimeout(BridgeError):
    """A sender or a receiver did not join the group within the deadline."""


class TransportUnavailable(BridgeError):
    """A pair of processes cannot have a transport, as both of them know; another one may do."""


class TransferError(BridgeError):
    """A version was not, or not wholly, taken by a replica."""
