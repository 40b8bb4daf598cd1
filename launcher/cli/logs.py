"""``launcher logs RUN``: what the processes of a run wrote, merged; with ``-f`` as they write it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.cli.parser import CommandParser
from launcher.common.errors import UsageError
from launcher.observe.find import add_run_argument, find_run
from launcher.observe.logs import JOB, ROLES, Choice, Log, LogReader, job_logs, logs_of
from launcher.observe.run_status import RunWatch
from launcher.observe.run_summary import newest_attempt

MOST_UNSELECTED = 16
"""Up to so many logs are shown if none is selected; of more, one of each role."""

TAIL = 20
POLL_S = 0.3
SETTLE_S = 1.0
COLOURS = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)


def main(arguments: Sequence[str]) -> int:
    """Prints, and follows until the run is over or it is interrupted."""
    parser = CommandParser(
        "logs",
        "Shows the logs of a run, each line with the name of its process if there are several. With -f it goes on until"
        " the run is over: through rotated logs, processes that start late, and further attempts.",
        examples=["launcher logs last --role trainer --rank 3 -f", "launcher logs last --node 1 --tail all | less"],
        exit_codes={1: "there is no such log"},
    )
    add_run_argument(parser)
    parser.add_argument("--role", choices=ROLES, help="`job` is what SLURM itself wrote")
    parser.add_argument("--rank", type=int, help="trainer: global rank; inference: replica; agent: node")
    parser.add_argument("--node", type=int, help="all processes of one node")
    parser.add_argument("--attempt", type=int, help="of a run that was requeued or resumed (default: the newest)")
    parser.add_argument("--tail", type=_tail, default=TAIL, metavar="N", help=f"last lines, or `all` (default: {TAIL})")
    parser.add_argument("--follow", "-f", action="store_true", help="go on with what is written")
    parser.add_json("each line, with the name of its log and its attempt,")
    options = parser.parse_args(arguments)
    run = find_run(options.run, options.output_dir)
    choice = Choice(role=options.role, rank=options.rank, node=options.node)
    merger = _Merger(run, choice, options.tail, _printer(options.json))
    if options.follow:
        _follow(run, merger, options.attempt)
        return 0
    attempt = options.attempt or newest_attempt(run)
    merger.look(attempt)
    merger.read()
    merger.end()
    if merger.count == 0:
        print(f"launcher: {_nothing(run, choice, attempt)}", file=sys.stderr)
        return 1
    return 0


def _tail(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"`--tail` ({text}) is neither a number nor `all`.")
    return int(text)


class _Merger:
    """Readers of all the logs that are meant, and the one place where their lines come out."""

    def __init__(self, run: Path, choice: Choice, tail: int | None, write: Callable[[Log, str, bool], None]) -> None:
        self._run = run
        self._choice = choice
        self._tail = tail
        self._write = write
        self._readers: dict[Path, tuple[Log, LogReader]] = {}
        self._has_looked = False

    @property
    def count(self) -> int:
        """How many logs there are so far."""
        return len(self._readers)

    def look(self, attempt: int | None) -> None:
        """Adds the logs that are there now."""
        found = logs_of(self._run, attempt, self._choice) if attempt is not None else []
        if self._choice.role in (None, JOB) and self._choice.rank is None and self._choice.node is None:
            found += job_logs(self._run)
        if self._choice.is_open and len(found) > MOST_UNSELECTED:
            chosen = list({log.role: log for log in reversed(found)}.values())[::-1]
            if not self._has_looked:
                print(
                    f"launcher: {len(chosen)} of {len(found)} logs; --role, --rank and --node choose", file=sys.stderr
                )
            found = chosen
        for log in found:
            if log.path not in self._readers:
                # Of a log that came while we followed, nothing is old.
                tail = self._tail if not self._has_looked else None
                self._readers[log.path] = (log, LogReader(log.path, tail))
        self._has_looked = True

    def read(self) -> bool:
        """Writes what is new; True if there was something."""
        is_news = False
        for log, reader in self._readers.values():
            for line in reader.read():
                is_news = True
                self._write(log, line, len(self._readers) > 1)
        return is_news

    def end(self) -> None:
        """Writes lines that were never ended, and closes."""
        for log, reader in self._readers.values():
            for line in reader.close():
                self._write(log, line, len(self._readers) > 1)
        sys.stdout.flush()


def _follow(run: Path, merger: _Merger, attempt: int | None) -> None:
    watch = RunWatch(run)
    printed, seen, quiet_since = "", None, time.monotonic()
    while True:
        status = watch.status
        current = attempt or newest_attempt(run)
        if seen is not None and current != seen:
            print(f"launcher: attempt {current}", file=sys.stderr, flush=True)
        seen = current
        merger.look(current)
        if merger.count == 0 and not status.is_over and status.state != printed:
            printed = status.state
            print(f"launcher: waiting for logs; {run.name} is {printed}", file=sys.stderr, flush=True)
        is_news = merger.read()
        sys.stdout.flush()
        if is_news:
            quiet_since = time.monotonic()
        # A shared filesystem shows another node's last lines late.
        if status.is_over and time.monotonic() - quiet_since > SETTLE_S:
            merger.end()
            print(f"launcher: {run.name}: {status.state}", file=sys.stderr)
            return
        time.sleep(POLL_S)


def _printer(as_json: bool) -> Callable[[Log, str, bool], None]:
    colours: dict[str, int] = {}
    is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def write(log: Log, line: str, is_prefixed: bool) -> None:
        if as_json:
            print(json.dumps({"log": log.name, "attempt": log.attempt, "line": line}))
        elif not is_prefixed:
            print(line)
        elif is_coloured:
            colour = colours.setdefault(log.name, COLOURS[len(colours) % len(COLOURS)])
            print(f"\x1b[{colour}m{log.name} |\x1b[0m {line}")
        else:
            print(f"{log.name} | {line}")

    return write


def _nothing(run: Path, choice: Choice, attempt: int | None) -> str:
    if attempt is None:
        return f"{run.name} has no logs yet: no node of it has started."
    there = sorted({log.role for log in logs_of(run, attempt, Choice())})
    if choice.is_open or not there:
        return f"attempt {attempt} of {run.name} has no logs."
    return f"attempt {attempt} of {run.name} has no such log. HINT: there are logs of the roles {', '.join(there)}."
