"""Finds the line of a log that says why its process failed."""

from __future__ import annotations

import json
import re
from pathlib import Path

READ_BYTES = 1 << 18
LONGEST = 400
OWN = "launcher: "
"""How this package's programs begin the one message that they end with."""

# How vLLM begins the lines of its processes.
_PREFIX = re.compile(r"^(\([^()]* pid=\d+\) )?((ERROR|WARNING|INFO|DEBUG) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?")
# The line below a traceback begins with the class; the path of its module tells a reader nothing.
_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Failure|Timeout|Exit))(?:: (.+))?$"
)
_VICTIM = re.compile(r"See root cause above|See stack trace \(above\)|CancelledError")
_NOISE = re.compile(r"resource_tracker|warnings\.warn|Warning: |^\s*\^+\s*$|errors\.pydantic\.dev")


def reason(log: Path, error_file: Path, *, is_exit: bool, begin: int = 0) -> str | None:
    """In one line: the exception that torch's ``@record`` left, else the last one in the log, else its last line.

    Args:
        begin: the byte of the log at which this start of the process begins.
        is_exit: the process ended by itself. The last line of one that was killed says what it did, not why it ended.
    """
    lines = _recorded(error_file) or _last_lines(log, begin)
    spoken = [line.strip() for line in lines if line.strip() and not _NOISE.search(line)]
    if is_exit and spoken and spoken[-1].startswith(OWN):
        # Our own last word; exceptions above it are those that were got over.
        return _shortened(spoken[-1])
    exceptions = [index for index, line in enumerate(lines) if _EXCEPTION.match(line) and not _VICTIM.search(line)]
    if exceptions:
        return _shortened(_exception(lines, exceptions[-1]))
    return _shortened(spoken[-1]) if spoken and is_exit else None


def _recorded(error_file: Path) -> list[str]:
    try:
        message = json.loads(error_file.read_text(encoding="utf-8"))["message"]
        return str(message["message"] if isinstance(message, dict) else message).splitlines()
    except (OSError, ValueError, KeyError):
        return []


def _last_lines(log: Path, begin: int) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(begin, log.stat().st_size - READ_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [_PREFIX.sub("", line) for line in text.splitlines()]


def _exception(lines: list[str], index: int) -> str:
    """``ValueError: text``, with the indented lines below it, where pydantic puts what is wrong."""
    match = _EXCEPTION.match(lines[index])
    assert match is not None
    name, text = match.groups()
    words = [f"{name}: {text}" if text else name]
    for line in lines[index + 1 :]:
        if not line.startswith("  ") or _NOISE.search(line):
            break
        words.append(line.strip())
    return " ".join(words)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
