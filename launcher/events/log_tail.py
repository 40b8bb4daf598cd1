"""The end of a log: why its process failed, as a kind and as the line that explains most."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from launcher.events.failure_kinds import FailureKind
from launcher.events.log_rules import SIGNALS, LogRule, classify

READ_BYTES = 1 << 18
GAP = 12
"""So many lines of ordinary output end the last error output, looking backwards."""

SHOWN = 12
LONGEST = 400

# How vLLM begins the lines of its processes, and torch those of its ranks.
PREFIX = re.compile(
    r"^(\([^()]* pid=\d+\) )?((ERROR|WARNING|INFO|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?(\[rank\d+\]: ?)?"
)
_ERROR_OUTPUT = re.compile(
    r"^\s|^$|^Traceback|^During handling|^The above exception|^Process \S+:|^#\d+ |^frame #|^\[E\d+|^launcher: "
)
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Failure|Timeout|Exit)(?::|$)")
OWN = "launcher: "
"""How this package's programs begin the one message that they end with."""

_MODULE = re.compile(r"^(?:[A-Za-z_]\w*\.)+(?=[A-Z]\w*(?::|$| ))")
_VICTIM = re.compile(r"See root cause above|See stack trace \(above\)|CancelledError")
_NOISE = re.compile(r"resource_tracker|warnings\.warn|Warning: |^\s*\^+\s*$|errors\.pydantic\.dev|^\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFinding:
    """Why a process failed, by the end of its log."""

    kind: FailureKind
    is_symptom: bool
    line: str
    """The line that explains most."""

    lines: tuple[str, ...]
    """That line and those above it."""


def analyze_log(text: str, *, is_exit: bool = True, at_the_end: bool = False) -> LogFinding | None:
    """Reads the end of a log; None if it shows no failure.

    The specific beats the general, and a cause beats what followed from it: of a chain of tracebacks the innermost
    ``No space left on device`` counts, not the ``RuntimeError`` that was raised over it.

    Args:
        is_exit: the process ended by itself. The last lines of a process that was killed may be unrelated.
        at_the_end: only errors after which the process wrote next to nothing. A process that is not known to have
            failed has recovered from any other.
    """
    lines = [PREFIX.sub("", line.rstrip()) for line in text.splitlines()]
    begin = _begin(lines)
    if at_the_end and _ordinary(lines[begin:]) > GAP:
        return None
    found = [(index, rule) for index in range(begin, len(lines)) if (rule := _rule_of(lines[index])) is not None]
    causes = [(index, rule) for index, rule in found if not rule.is_symptom]
    special = [(index, rule) for index, rule in causes if rule.kind is not FailureKind.USER_CODE]
    symptoms = [(index, rule) for index, rule in found if rule is found[-1][1]]
    for chosen in (special[:1], causes[-1:], symptoms[:1]):
        for index, rule in chosen:
            return LogFinding(
                kind=rule.kind,
                is_symptom=rule.is_symptom,
                line=_shortened(_with_details(lines, index)),
                lines=tuple(_shortened(line) for line in lines[max(begin, index - SHOWN + 1) : index + 1]),
            )
    spoken = [line for line in lines if not _NOISE.search(line)]
    if not spoken or not is_exit:
        return None
    return LogFinding(
        kind=FailureKind.UNKNOWN, is_symptom=False, line=_shortened(spoken[-1].strip()), lines=tuple(lines[-SHOWN:])
    )


def recorded(error_file: Path) -> tuple[str, float | None] | None:
    """What torch's ``@record`` left of an exception: its text, and when it was raised, as unix seconds."""
    try:
        message = json.loads(error_file.read_text(encoding="utf-8"))["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(message, dict):
        return str(message), None
    extra = message.get("extraInfo") or {}
    stack, stamp = str(extra.get("py_callstack") or ""), str(extra.get("timestamp") or "")
    text = str(message.get("message") or "")
    return (f"{stack}\n{text}" if text not in stack else stack), float(stamp) if stamp.isdigit() else None


def analyze_failure(log: Path, error_file: Path, *, exit_code: int | None, begin: int = 0) -> LogFinding:
    """Why a process failed: by the exception that torch's ``@record`` left, else by its log, else by how it ended.

    Args:
        exit_code: ``-N`` if signal N ended it; None if it hung and was killed for that.
        begin: the byte of the log at which this start of the process begins.
    """
    exception = recorded(error_file)
    found = analyze_log(exception[0]) if exception is not None else None
    if found is None:
        found = analyze_log(end_of(log, begin), is_exit=exit_code is not None and exit_code >= 0)
    if found is not None and found.kind is not FailureKind.UNKNOWN:
        return found
    line, lines = ("", ()) if found is None else (found.line, found.lines)
    kind = FailureKind.HUNG if exit_code is None else SIGNALS.get(-exit_code, FailureKind.UNKNOWN)
    return LogFinding(kind=kind, is_symptom=False, line=line, lines=lines)


def failure_line(log: Path, error_file: Path, *, is_exit: bool, begin: int = 0) -> str | None:
    """In one line: the exception that torch's ``@record`` left, else the last one in the log, else its last line.

    Args:
        is_exit: the process ended by itself. The last line of one that was killed doesn't show why it ended.
        begin: the byte of the log at which this start of the process begins.
    """
    exception = recorded(error_file)
    text = end_of(log, begin) if exception is None else exception[0]
    lines = [PREFIX.sub("", line) for line in text.splitlines()]
    spoken = [line.strip() for line in lines if not _NOISE.search(line)]
    if is_exit and spoken and spoken[-1].startswith(OWN):
        # Our own message is the last; the program went on after the exceptions above it.
        return _shortened(spoken[-1])
    exceptions = [index for index, line in enumerate(lines) if _EXCEPTION.match(line) and not _VICTIM.search(line)]
    if exceptions:
        # The path of the module in front of the class does not help a reader.
        return _shortened(_MODULE.sub("", _with_details(lines, exceptions[-1])))
    return _shortened(spoken[-1]) if spoken and is_exit else None


def end_of(log: Path, begin: int = 0) -> str:
    """The last part of a log, from the byte ``begin`` at the earliest; empty if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(begin, log.stat().st_size - READ_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _ordinary(lines: list[str]) -> int:
    """How many lines of ordinary output follow the last error output."""
    last = max((index for index, line in enumerate(lines) if _rule_of(line) is not None), default=0)
    return sum(1 for line in lines[last + 1 :] if not _ERROR_OUTPUT.search(line))


def _begin(lines: list[str]) -> int:
    """Index where the last error output begins: behind the last stretch of ordinary output."""
    ordinary = 0
    last = next((i for i in range(len(lines) - 1, -1, -1) if _rule_of(lines[i]) is not None), None)
    if last is None:
        return len(lines)
    begin = last
    for index in range(last, -1, -1):
        if _ERROR_OUTPUT.search(lines[index]) or _EXCEPTION.match(lines[index]) or _rule_of(lines[index]) is not None:
            ordinary, begin = 0, index
        else:
            ordinary += 1
            if ordinary > GAP:
                break
    return begin


def _with_details(lines: list[str], index: int) -> str:
    """The line, and the indented ones below it, where pydantic puts what is wrong."""
    words = [lines[index].strip()]
    for line in lines[index + 1 :]:
        if not line.startswith("  ") or _NOISE.search(line) or line.lstrip().startswith("File "):
            break
        words.append(line.strip())
    return " ".join(words)


def _rule_of(line: str) -> LogRule | None:
    # The frames of a traceback quote code, which holds the names of exceptions; its last line is not indented.
    if line.startswith((" ", "\t")) or _NOISE.search(line):
        return None
    return classify(line)


def _shortened(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
