"""The live display of a run on a terminal, drawn with ``rich``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console, Group, JustifyMethod, OverflowMethod, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from launcher.common.text import clock as ticking
from launcher.common.text import counted, duration, listed, sparkline
from launcher.events.run_state import ENGINE, JOB, NODES, PhaseGroup, RunState
from launcher.observe.terminal.plain import failure_text, step_figures

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
SPINNER_ASCII = "|/-\\"
LABELS = {NODES: "nodes up", ENGINE: "replicas ready"}
ENTRIES_SHOWN = 4
SHORTEST_WAIT_SHOWN_S = 2.0
"""A phase that has lasted this long names the processes it waits for."""


class LiveDisplay:
    """Redraws the whole picture in place at every update."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._console = Console(file=stream, highlight=False)
        # No thread of its own: the follower calls four times a second, and two writers would tear the picture.
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._live.start()

    def update(self, state: RunState) -> None:
        """Draws the state."""
        self._live.update(self._picture(state), refresh=True)

    def close(self) -> None:
        """Leaves the last picture standing and shows the cursor again."""
        self._live.stop()

    def _picture(self, state: RunState) -> RenderableType:
        is_ascii = self._console.options.ascii_only
        return picture(state, now=max(self._clock(), state.last_at), width=self._console.width, ascii_only=is_ascii)


def picture(state: RunState, *, now: float, width: int, ascii_only: bool = False) -> RenderableType:
    """The run at the moment ``now``, in lines no longer than ``width`` characters."""
    if state.finished_at is not None:
        now = state.finished_at
    parts: list[RenderableType] = [_header(state, now, ascii_only)]
    groups = state.groups()
    if state.first_step_at is None:
        parts.append(_phases(groups, state, now, width, ascii_only))
        if groups and not any(group.is_open for group in groups) and state.outcome is None:
            parts.append(Text("  no step was reported yet", style="dim"))
    else:
        parts.append(Text(f"{_mark(True, ascii_only)} started in {duration(state.startup_seconds() or 0.0)}", "green"))
        restarting = [group for group in groups if group.is_open and state.outcome is None]
        if restarting:
            parts.append(_phases(restarting, state, now, width, ascii_only))
    if state.steps:
        parts += _training(state, width, ascii_only)
    parts += _supervised(state, ascii_only)
    parts += _ending(state, ascii_only)
    return Group(*parts)


def _header(state: RunState, now: float, ascii_only: bool) -> RenderableType:
    name = (state.run_dir or "run").rstrip("/").rpartition("/")[2]
    parts = [state.cluster or "", f"job {state.job_id}" if state.job_id else ""]
    if state.attempt is not None and state.attempt > 1:
        parts.append(f"attempt {state.attempt}")
    if state.nodes is not None:
        parts.append(counted(state.nodes, "node"))
    if state.world_size is not None:
        parts.append(counted(state.world_size, "trainer rank"))
    if state.replicas is not None:
        parts.append(counted(state.replicas, "replica"))
    line = Text(name, style="bold", no_wrap=True, overflow=_cut(ascii_only))
    line.append("  " + ", ".join(part for part in parts if part), style="not bold dim")
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1, no_wrap=True, overflow=_cut(ascii_only))
    grid.add_column(justify="right", no_wrap=True, overflow=_cut(ascii_only))
    grid.add_row(line, Text(ticking(state.elapsed(now)), style="bold"))
    return grid


def _phases(groups: list[PhaseGroup], state: RunState, now: float, width: int, ascii_only: bool) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    justifies: tuple[JustifyMethod, ...] = ("left", "left", "right", "right", "left")
    for justify in justifies:
        grid.add_column(justify=justify, no_wrap=True, overflow=_cut(ascii_only))
    for group in groups:
        grid.add_row(*_phase_row(group, state, now, width, ascii_only))
    return grid


def _phase_row(group: PhaseGroup, state: RunState, now: float, width: int, ascii_only: bool) -> Iterator[Text]:
    is_stuck = group.is_open and state.outcome is not None
    frames = SPINNER_ASCII if ascii_only else SPINNER
    if is_stuck:
        yield Text(_mark(False, ascii_only), "red")
    elif group.is_open:
        yield Text(frames[int(now * 4) % len(frames)], "cyan")
    else:
        yield Text(_mark(True, ascii_only), "green")
    yield Text(LABELS.get(group.name, group.name), "bold" if group.is_open else "")
    yield Text(f"{group.done}/{group.total}" if group.total > 1 or group.name in (NODES, ENGINE) else "")
    yield Text(duration(group.elapsed(now)))
    waited = group.longest_wait(now)
    deadline = state.deadlines.get(group.name)
    note = f"of {deadline:.0f} s" if group.is_open and deadline is not None else ""
    names = listed(name for name in group.waiting if name != JOB)
    if names and waited >= SHORTEST_WAIT_SHOWN_S and width >= 60:
        note += ("  " if note else "") + f"waiting for {names}"
    is_late = deadline is not None and waited > 0.75 * deadline
    yield Text(note, "yellow" if is_late else "dim")


def _training(state: RunState, width: int, ascii_only: bool) -> Iterator[RenderableType]:
    step = state.steps[-1]
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(no_wrap=True, overflow=_cut(ascii_only))
    if state.steps_planned:
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right", overflow=_cut(ascii_only))
        bar = ProgressBar(total=state.steps_planned, completed=step.step)
        grid.add_row(Text(f"step {step.step}/{state.steps_planned}", "bold"), bar, Text(_eta(state)))
    else:
        grid.add_row(Text(f"step {step.step}", "bold"))
    yield grid
    rewards = [s.reward for s in state.steps if s.reward is not None]
    if rewards:
        label = f"reward {rewards[0]:.3f} "
        room = min(width - len(label) - 8, 60)
        curve = sparkline(rewards, room, ascii_only=ascii_only)
        line = Text(label, no_wrap=True, overflow=_cut(ascii_only))
        yield line.append(curve, "cyan").append(f" {rewards[-1]:.3f}", "bold")
    figures = [figure for figure in step_figures(step) if not figure.startswith("reward")]
    yield from (Text(line, no_wrap=True, overflow=_cut(ascii_only)) for line in _flow(figures, width))


def _supervised(state: RunState, ascii_only: bool) -> Iterator[RenderableType]:
    """The last entries of the timeline."""
    for entry in state.timeline[-ENTRIES_SHOWN:]:
        at = time.strftime("%H:%M:%S", time.localtime(entry.time))
        style = "yellow" if entry.is_bad else "dim"
        yield Text(f"{at}  {entry.text}", style, no_wrap=True, overflow=_cut(ascii_only))


def _eta(state: RunState) -> str:
    seconds = state.step_seconds()
    if state.outcome is not None or seconds is None or not state.steps_planned:
        return ""
    left = state.steps_planned - state.steps[-1].step
    return f"ETA {ticking(left * seconds)}" if left > 0 else "last step done"


def _ending(state: RunState, ascii_only: bool) -> Iterator[RenderableType]:
    for check in state.checks:
        yield Text(f"{_mark(check.ok, ascii_only)} {check.name}: {check.text}", "green" if check.ok else "bold red")
    if state.failure is not None:
        yield Text(f"{_mark(False, ascii_only)} {failure_text(state.failure)}", "bold red")
    if state.outcome is not None:
        style = {"completed": "bold green", "failed": "bold red"}.get(state.outcome, "bold yellow")
        yield Text(state.ending(), style)
    elif state.draining_at is not None:
        yield Text("the trainer has finished; engines are draining", "dim")


def _flow(parts: list[str], width: int) -> Iterator[str]:
    line = ""
    for part in parts:
        if line and len(line) + 3 + len(part) > width:
            yield line
            line = ""
        line = f"{line}   {part}" if line else part
    if line:
        yield line


def _mark(ok: bool, ascii_only: bool) -> str:
    if ascii_only:
        return "ok" if ok else "!!"
    return "✓" if ok else "✗"


def _cut(ascii_only: bool) -> OverflowMethod:
    return "crop" if ascii_only else "ellipsis"
