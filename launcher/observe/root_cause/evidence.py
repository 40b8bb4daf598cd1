"""What a run directory holds about one attempt's failures: its folded events, and the ends of its logs."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass, field
from pathlib import Path

from launcher.common.run_dir import attempt_dir
from launcher.events.failure_kinds import FailureKind
from launcher.events.log_rules import EXIT_CODES, SIGNALS, classify
from launcher.events.log_tail import LogFinding, analyze_log, end_of, recorded
from launcher.events.reader import load_attempt
from launcher.events.run_state import RunState
from launcher.events.schema import FailureReported, NodeLost
from launcher.layout.model import Process
from launcher.observe.layouts import layout_of_attempt

MOST_LOGS = 512
"""Logs that are read at most; beyond that only those of processes that are known to have failed."""

POLL_ERROR_S = 0.3
"""An agent polls its processes ten times a second."""

PROGRESS_S = 3.0
"""A step that is reported so much later was made after the failure, not beside it."""

FILE_ERROR_S = 2.0
"""The times of files are another clock's, and a file is written for the last time before its process has ended."""

_STOPPED = frozenset({-signal.SIGTERM, 128 + signal.SIGTERM, 0})
"""Exit codes of processes that the launcher itself stopped."""

_CERTAIN = (FailureKind.KILLED, FailureKind.NODE_LOST, FailureKind.PREFLIGHT)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCandidate:
    """One process, or one node, that failed; times are by node 0's clock."""

    who: str
    """``trainer-0003``, ``inference-1``, ``node 2``, ``job``."""

    kind: FailureKind
    is_symptom: bool
    """It failed because something else did, by what its log shows."""

    line: str
    is_reported: bool = True
    """Its agent reported it; else only its log shows it, and the time is not well known."""

    time: float | None = None
    """When it failed, as unix seconds; None if unknown."""

    error_s: float = 0.2
    """The time may be wrong by so much."""

    role: str | None = None
    rank: int | None = None
    node_rank: int | None = None
    hostname: str | None = None
    how: str | None = None
    """``exit code 1``, ``signal 9 (SIGKILL)``."""

    message: str | None = None
    """The agent's own sentence about it; None if only its log shows it."""

    lines: tuple[str, ...] = ()
    """The end of its traceback."""

    log: str | None = None

    @property
    def where(self) -> str:
        """``trainer 3 on node 1 (gpu-02)``, with what is known."""
        named = " ".join(str(x) for x in (self.role, self.rank) if x is not None)
        parts = [named or self.who]
        if self.node_rank is not None and named:
            parts.append(f"on node {self.node_rank}")
        if self.hostname is not None:
            parts.append(f"({self.hostname})")
        return " ".join(parts)

    @property
    def sentence(self) -> str:
        """What happened to whom, in one line."""
        if self.message:
            return self.message
        how = f" ended with {self.how}" if self.how else ""
        return f"{self.where}{how}: {self.line}"


@dataclass(slots=True, kw_only=True)
class Evidence:
    """One attempt."""

    attempt: int
    state: RunState = field(default_factory=RunState)
    candidates: list[FailureCandidate] = field(default_factory=list)

    @property
    def is_silent(self) -> bool:
        """Node 0 began, and never wrote the attempt's last event."""
        return self.state.outcome is None

    @property
    def end_reason(self) -> str | None:
        """Why the attempt was to end, if it was: the reason of a requeue, a cancellation or a stop."""
        if self.state.requeued is not None:
            return self.state.requeued.reason or ""
        if self.state.stopping is None and self.state.cancelled is None:
            return None
        return self.state.cancel_reason or self.state.stop_reason or ""

    @property
    def has_events(self) -> bool:
        """Whether anything was written at all."""
        return self.state.began_at is not None


def attempts_of(run_dir: Path) -> list[int]:
    """The attempts that left anything."""
    try:
        names = [path.name for path in (run_dir / "attempts").iterdir()]
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def gather(run_dir: Path, attempt: int) -> Evidence:
    """Reads one attempt; files that are missing or half written are passed over."""
    found = Evidence(attempt=attempt, state=load_attempt(run_dir, attempt))
    state = found.state
    named: dict[str, FailureCandidate] = {}
    reports: list[NodeLost | FailureReported] = [*state.node_losses.values(), *state.failures]
    for report in sorted(reports, key=lambda report: report.time):
        candidate = _lost(report) if isinstance(report, NodeLost) else _failed(report, state)
        named.setdefault(candidate.who, candidate)
    _remove_recovered(state, named)
    if named or found.is_silent:
        _read_logs(run_dir, found, named)
    found.candidates = list(named.values())
    return found


def _lost(event: NodeLost) -> FailureCandidate:
    return FailureCandidate(
        who=f"node {event.node_rank}",
        kind=FailureKind.NODE_LOST,
        is_symptom=False,
        line=event.reason or "its agent fell silent",
        message=event.reason,
        time=event.time,
        error_s=POLL_ERROR_S,
        role=event.role,
        node_rank=event.node_rank,
        hostname=event.hostname,
    )


def _failed(event: FailureReported, state: RunState) -> FailureCandidate:
    at, error_s = event.time, POLL_ERROR_S
    if event.at is not None:
        # The node's own clock saw it; its report came to node 0 later, and some reports much later than others.
        rank = event.node_rank if event.node_rank is not None else -1
        offset, uncertain = state.clock_offsets.get(rank, (0.0, 0.5))
        at, error_s = event.at - offset, POLL_ERROR_S + uncertain
    kind, is_symptom, line = _classified(event)
    node = f"node {event.node_rank}" if event.node_rank is not None else "job"
    return FailureCandidate(
        who=event.process or node,
        kind=kind,
        is_symptom=is_symptom,
        line=line,
        time=at,
        error_s=error_s,
        role=event.role,
        rank=event.rank,
        node_rank=event.node_rank,
        hostname=event.hostname,
        how=event.how or None,
        message=event.message or None,
        lines=tuple(event.tail),
        log=event.log,
    )


def _classified(event: FailureReported) -> tuple[FailureKind, bool, str]:
    """Kind, whether it is a symptom, and the line that explains most: as its reporter wrote it; else, for the logs of
    earlier versions, from exit codes and the lines that were reported."""
    if event.kind is not None and event.kind is not FailureKind.UNKNOWN:
        return event.kind, event.is_symptom, event.line or event.message
    if (kind := EXIT_CODES.get(event.launcher_exit_code or 0)) is not None:
        return kind, False, event.message
    code = event.exit_code
    found = analyze_log("\n".join(event.tail), is_exit=code is None or code >= 0)
    if found is not None and found.kind is not FailureKind.UNKNOWN:
        return found.kind, found.is_symptom, found.line
    if (rule := classify(event.message)) is not None:
        return rule.kind, rule.is_symptom, event.message
    if code is not None and -code in SIGNALS:
        return SIGNALS[-code], False, event.message
    return FailureKind.UNKNOWN, False, event.line or (found.line if found is not None else event.message)


def _remove_recovered(state: RunState, named: dict[str, FailureCandidate]) -> None:
    """Takes out what the run recovered from: nodes that were lost, and whatever was followed by further steps."""
    last_step = state.last_step.time if state.last_step is not None else None
    first = min((failure.time for failure in state.failures if failure.first), default=None)
    for who, candidate in list(named.items()):
        if candidate.time is None:
            continue
        after = candidate.time + PROGRESS_S
        has_stepped = last_step is not None and last_step > after
        # The loss that ends a run is written once more, as its failure.
        is_outlived = candidate.kind is FailureKind.NODE_LOST and first is not None and first > after
        if has_stepped or is_outlived:
            del named[who]


def _read_logs(run_dir: Path, found: Evidence, named: dict[str, FailureCandidate]) -> None:
    """Adds what the processes wrote themselves: to candidates that are known, and as candidates of their own."""
    logs = attempt_dir(run_dir, found.attempt) / "logs"
    processes = _processes(run_dir, found.attempt)
    paths = sorted(logs.glob("*.log"))
    known = {path for path in paths if path.stem in named or (logs / f"{path.stem}.error.json").exists()}
    for path in paths if len(paths) <= MOST_LOGS else sorted(known):
        name = path.stem
        if name.startswith("agent-"):
            continue
        finding = analyze_log(end_of(path), is_exit=False, at_the_end=name not in named)
        exception = recorded(logs / f"{name}.error.json")
        if exception is not None:
            finding = analyze_log(exception[0]) or finding
        record = found.state.processes.get(name)
        if name in named:
            named[name] = _enriched(named[name], finding)
        elif finding is not None and (record is None or record.exit_code not in _STOPPED):
            at = exception[1] if exception is not None else None
            named[name] = _unreported(path, finding, at, processes.get(name))


def _enriched(candidate: FailureCandidate, finding: LogFinding | None) -> FailureCandidate:
    """Completes a candidate from its whole log, which holds more than the lines that were reported."""
    vague = candidate.kind in (FailureKind.UNKNOWN, FailureKind.USER_CODE)
    if finding is None or candidate.kind in _CERTAIN or not (vague or not candidate.lines):
        return candidate
    return dataclasses.replace(
        candidate,
        kind=finding.kind,
        is_symptom=finding.is_symptom,
        line=finding.line,
        # The cause may stand far above the last lines.
        lines=candidate.lines if any(finding.line in line for line in candidate.lines) else finding.lines,
    )


def _unreported(
    path: Path, finding: LogFinding, at: float | None, found: tuple[Process, str] | None
) -> FailureCandidate:
    process, hostname = found if found is not None else (None, None)
    return FailureCandidate(
        who=path.stem,
        kind=finding.kind,
        is_symptom=finding.is_symptom,
        line=finding.line,
        is_reported=False,
        time=at if at is not None else path.stat().st_mtime,
        error_s=FILE_ERROR_S,
        role=process.role.value if process is not None else None,
        rank=process.rank if process is not None else None,
        node_rank=process.node_rank if process is not None else None,
        hostname=hostname,
        lines=finding.lines,
        log=str(path),
    )


def _processes(run_dir: Path, attempt: int) -> dict[str, tuple[Process, str]]:
    """Process and hostname by the process's name; empty if no layout can be read."""
    try:
        layout = layout_of_attempt(run_dir, attempt)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {process.name: (process, node.hostname) for node in layout.nodes for process in node.processes}
