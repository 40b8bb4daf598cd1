"""Everything that a run directory tells of one attempt's failures: its events, and the ends of its logs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.common.run_dir import EVENTS, attempt_dir
from launcher.events.failure_kinds import FailureKind as Kind
from launcher.events.log_rules import EXIT_CODES, MESSAGES, SIGNALS, classify
from launcher.events.log_tail import Trouble, end_of, recorded, trouble_of
from launcher.observe.root_cause.candidate import Suspect

MOST_LOGS = 512
"""Logs that are read at most; beyond that only those of processes that are known to have failed."""

POLL_ERROR_S = 0.3
"""An agent looks at its processes ten times a second."""

PROGRESS_S = 3.0
"""A step that is reported so much later was made after the failure, not beside it."""

FILE_ERROR_S = 2.0
"""The times of files are another clock's, and a file is written for the last time before its process has ended."""

_STOPPED = frozenset({-signal.SIGTERM, 128 + signal.SIGTERM, 0})
"""How processes end that the launcher itself stopped."""


@dataclass(slots=True, kw_only=True)
class Evidence:
    """One attempt."""

    attempt: int
    directory: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    overcome: list[Suspect] = field(default_factory=list)
    """Failures that the run got over."""

    outcome: str | None = None
    """As node 0 wrote it last; None if it did not."""

    stopping: str | None = None
    """Why the run was asked to end, if it was."""

    began: float | None = None
    last: float | None = None

    @property
    def is_silent(self) -> bool:
        """Node 0 began, and never came to a last word."""
        return self.outcome is None


def attempts_of(run_dir: Path) -> list[int]:
    """The attempts that left anything."""
    try:
        names = [path.name for path in (run_dir / "attempts").iterdir()]
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def gather(run_dir: Path, attempt: int) -> Evidence:
    """Reads one attempt; files that are missing or half written are passed over."""
    directory = attempt_dir(run_dir, attempt)
    found = Evidence(attempt=attempt, directory=directory, events=list(_events(directory / EVENTS)))
    skew = _skew(found.events)
    for event in found.events:
        _fold(found, event)
    named: dict[str, Suspect] = {}
    for event in found.events:
        suspect = _suspect(event, skew)
        if suspect is not None and suspect.who not in named:
            named[suspect.who] = suspect
    found.overcome = _overcome(found, named)
    failed = bool(named) or found.is_silent
    if failed:
        _read_logs(found, named, _places(run_dir, directory))
    found.suspects = list(named.values())
    return found


def _events(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(errors="replace", encoding="utf-8")
    except OSError:
        return
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the line that its writer could not finish
        if isinstance(event, dict):
            yield event


def _fold(found: Evidence, event: Mapping[str, Any]) -> None:
    time = event.get("time")
    if isinstance(time, int | float):
        found.began = time if found.began is None else found.began
        found.last = time
    if event.get("event") == "finished":
        found.outcome = str(event.get("outcome"))
    elif event.get("event") in ("stopping", "cancelled", "requeued"):
        found.stopping = str(event.get("reason") or event.get("message") or "")


def _skew(events: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """By node: how far its clock is ahead of node 0's, and how well that is known (the preflight measured it)."""
    return {
        int(event["node_rank"]): (float(event["clock_s"]), float(event["clock_error_s"] or 0))
        for event in events
        if event.get("event") == "preflight" and event.get("clock_s") is not None
    }


def _overcome(found: Evidence, named: dict[str, Suspect]) -> list[Suspect]:
    """Takes out what the run got over: nodes that were lost, and whatever steps were made after."""
    last_step = max((e["time"] for e in found.events if e.get("event") == "step" and "time" in e), default=None)
    ends = [e["time"] for e in found.events if e.get("event") == "failure" and e.get("first") and "time" in e]
    over = []
    for who, suspect in list(named.items()):
        if suspect.time is None:
            continue
        has_stepped = last_step is not None and last_step > suspect.time + PROGRESS_S
        # The loss that ends a run is told once more, as its failure.
        is_outlived = suspect.kind is Kind.NODE_LOST and bool(ends) and min(ends) > suspect.time + PROGRESS_S
        if has_stepped or is_outlived:
            over.append(named.pop(who))
    return over


def _suspect(event: Mapping[str, Any], skew: Mapping[int, tuple[float, float]]) -> Suspect | None:
    kind = event.get("event")
    if kind == "node_lost":
        return Suspect(
            who=f"node {event.get('node_rank')}",
            kind=Kind.NODE_LOST,
            is_symptom=False,
            line=str(event.get("reason") or "its agent fell silent"),
            message=event.get("reason"),
            time=event.get("time"),
            error_s=POLL_ERROR_S,
            role=event.get("role"),
            node_rank=event.get("node_rank"),
            hostname=event.get("hostname"),
        )
    if kind != "failure":
        return None
    return _failure(event, skew)


def _failure(event: Mapping[str, Any], skew: Mapping[int, tuple[float, float]]) -> Suspect:
    node_rank, process = event.get("node_rank"), event.get("process")
    tail = event.get("tail") or []
    lines = tuple(tail.splitlines() if isinstance(tail, str) else map(str, tail))
    message = str(event.get("message") or "")
    at, error_s = event.get("time"), POLL_ERROR_S
    if isinstance(event.get("at"), int | float):
        # The node's own clock saw it; node 0 heard of it later, and of some failures much later than of others.
        offset, uncertain = skew.get(node_rank if isinstance(node_rank, int) else -1, (0.0, 0.5))
        at, error_s = float(event["at"]) - offset, POLL_ERROR_S + uncertain
    code = event.get("exit_code")
    trouble = trouble_of("\n".join(lines), is_exit=not (isinstance(code, int) and code < 0))
    kind, is_symptom, line = _kind_of(event, message, code, trouble)
    return Suspect(
        who=str(process) if process else f"node {node_rank}" if node_rank is not None else "job",
        kind=kind,
        is_symptom=is_symptom,
        line=line,
        time=at,
        error_s=error_s,
        role=event.get("role"),
        rank=event.get("rank"),
        node_rank=node_rank,
        hostname=event.get("hostname"),
        how=_how(code),
        message=message or None,
        lines=lines,
        log=event.get("log"),
    )


def _kind_of(event: Mapping[str, Any], message: str, code: object, trouble: Trouble | None) -> tuple[Kind, bool, str]:
    """Kind, whether it blames another, and the line that says most: what the launcher knows before what logs say."""
    own = EXIT_CODES.get(event.get("launcher_exit_code") or 0)
    own = own or next((kind for words, kind in MESSAGES if words.search(message)), None)
    if own is not None:
        return own, False, message
    if trouble is not None and trouble.kind is not Kind.UNKNOWN:
        return trouble.kind, trouble.is_symptom, trouble.line
    if (rule := classify(message)) is not None:
        return rule.kind, rule.is_symptom, message
    if isinstance(code, int) and -code in SIGNALS:
        return SIGNALS[-code], False, message
    return Kind.UNKNOWN, False, trouble.line if trouble is not None else message


def _read_logs(found: Evidence, named: dict[str, Suspect], places: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds what the processes wrote themselves: to suspects that are known, and as suspects that nobody reported."""
    logs = found.directory / "logs"
    paths = sorted(logs.glob("*.log"))
    known = {path for path in paths if path.stem in named or (logs / f"{path.stem}.error.json").exists()}
    chosen = paths if len(paths) <= MOST_LOGS else sorted(known)
    endings = _endings(found.events)
    for path in chosen:
        name = path.stem
        if name.startswith("agent-"):
            continue
        said = recorded(logs / f"{name}.error.json")
        trouble = trouble_of(end_of(path), is_exit=False, at_the_end=name not in named)
        at = None
        if said is not None:
            at = said[1]
            trouble = trouble_of(said[0]) or trouble
        if name in named:
            named[name] = _enriched(named[name], trouble)
        elif trouble is not None and endings.get(name) not in _STOPPED:
            named[name] = _unreported(name, path, trouble, at, places.get(name, {}))


def _enriched(suspect: Suspect, trouble: Trouble | None) -> Suspect:
    """The log's own words are better than the few lines that travelled; a plain kill stays one."""
    is_better = trouble is not None and (suspect.kind in (Kind.UNKNOWN, Kind.USER_CODE) or not suspect.lines)
    if trouble is None or not is_better or suspect.kind in (Kind.KILLED, Kind.NODE_LOST, Kind.PREFLIGHT):
        return suspect
    return Suspect(
        **{
            **{name: getattr(suspect, name) for name in Suspect.__dataclass_fields__},
            "kind": trouble.kind,
            "is_symptom": trouble.is_symptom,
            "line": trouble.line,
            # The cause may stand far above the last lines.
            "lines": suspect.lines if any(trouble.line in line for line in suspect.lines) else trouble.lines,
        }
    )


def _unreported(name: str, path: Path, trouble: Trouble, at: float | None, place: Mapping[str, Any]) -> Suspect:
    return Suspect(
        who=name,
        kind=trouble.kind,
        is_symptom=trouble.is_symptom,
        line=trouble.line,
        is_reported=False,
        time=at if at is not None else path.stat().st_mtime,
        error_s=FILE_ERROR_S,
        role=place.get("role"),
        rank=place.get("rank"),
        node_rank=place.get("node_rank"),
        hostname=place.get("hostname"),
        lines=trouble.lines,
        log=str(path),
    )


def _endings(events: list[dict[str, Any]]) -> dict[str, int]:
    """Exit code by name, of the processes whose end was reported as an event."""
    return {
        str(event.get("name")): int(event["exit_code"])
        for event in events
        if event.get("event") == "process" and event.get("state") == "ended" and event.get("exit_code") is not None
    }


def _places(run_dir: Path, directory: Path) -> dict[str, dict[str, Any]]:
    """By process: its node and role, as the layout says."""
    for path in (directory / "layout.json", run_dir / "layout.json"):
        try:
            layout = json.loads(path.read_text(encoding="utf-8"))
            return {
                process["name"]: {**process, "hostname": node["hostname"]}
                for node in layout["nodes"]
                for process in node["processes"]
            }
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def _how(code: object) -> str | None:
    if not isinstance(code, int):
        return None
    if code >= 0:
        return f"exit code {code}"
    names = {int(signum): signum.name for signum in signal.Signals}
    return f"signal {-code} ({names.get(-code, '?')})"
