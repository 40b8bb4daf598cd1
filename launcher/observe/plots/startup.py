"""Draws the start-up as a waterfall: one row per process, one bar per phase, from submission to the first step."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from launcher.common.text import by_number, duration
from launcher.events.run_state import ENGINE, FIRST_STEP, JOB, LAUNCH, NODES, QUEUE, RunState, StartupPhase
from launcher.observe.plots.palette import GREY, INK, PALE_GREY, SEQUENCE, clean, text_on

MOST_ROWS_PER_ROLE = 8
"""Of more processes than this, those are drawn that were ready last: the others did not hold the run up."""

BAR = 0.66
WIDTH = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One process, its phases in lanes so that none covers another."""

    label: str
    lanes: tuple[tuple[StartupPhase, ...], ...]


def draw_startup(state: RunState, *, title: str) -> Figure:
    """The waterfall of the last attempt; a phase that never ended is hatched and reaches the end of the record."""
    origin = state.began_at or 0.0
    stop = state.first_step_at if state.first_step_at is not None else state.last_at
    phases = _without_envelopes([phase for phase in state.phases if phase.begin <= stop])
    names = list(dict.fromkeys(phase.name for phase in phases))
    colours = _colours(names)
    rows, notes = _rows(phases, stop)
    figure = Figure(figsize=(WIDTH, 2.0 + 0.34 * sum(len(row.lanes) for row in rows)), layout="constrained")
    axes = figure.add_subplot()
    span = max(stop - origin, 1e-3)
    axes.set_xlim(0, span * 1.06)
    ticks, y = [], 0.0
    for row in rows:
        ticks.append(y + (len(row.lanes) - 1) / 2)
        for lane in row.lanes:
            _draw_lane(axes, lane, y, origin, stop, span, colours)
            y += 1
    axes.set_ylim(y - 0.4, -0.9)
    axes.set_yticks(ticks, [row.label for row in rows])
    clean(axes)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds since submission")
    _draw_end(axes, state, stop - origin)
    ending = "" if state.first_step_at is not None else ", no step was made"
    headline = f"{title}: start-up, {duration(span)}{ending}"
    axes.set_title("\n".join([headline, *notes]), fontsize=11, color=INK, loc="left")
    handles = [Patch(facecolor=colours[name], label=name) for name in names]
    if any(phase.end is None and phase.name != FIRST_STEP for phase in phases):
        handles.append(Patch(facecolor="white", edgecolor=INK, hatch="////", label="did not end"))
    # One line of the legend holds about 120 characters, of which each colour patch takes 6.
    ncols = max(1, min(len(handles), 120 // (6 + max(len(name) for name in [*names, "did not end"]))))
    if sum(6 + len(name) for name in names) < 120:
        ncols = len(handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, fontsize=9, frameon=False)
    return figure


def _colours(names: list[str]) -> dict[str, str]:
    """A colour for each phase; grey where the run only waits for nodes."""
    waits = {name: colour for name, colour in ((QUEUE, PALE_GREY), (LAUNCH, PALE_GREY), (NODES, GREY)) if name in names}
    rest = [name for name in names if name not in waits]
    return waits | {name: SEQUENCE[i % len(SEQUENCE)] for i, name in enumerate(rest)}


def _without_envelopes(phases: list[StartupPhase]) -> list[StartupPhase]:
    """Leaves out the whole start of an engine that reports its stages."""
    detailed = {phase.who for phase in phases if phase.name != ENGINE}
    return [phase for phase in phases if phase.name != ENGINE or phase.who not in detailed]


def _rows(phases: list[StartupPhase], stop: float) -> tuple[list[Row], list[str]]:
    by_who: dict[str, list[StartupPhase]] = {}
    for phase in phases:
        by_who.setdefault(phase.who, []).append(phase)
    by_role: dict[str, list[str]] = {}
    for who in by_who:
        by_role.setdefault(who.rpartition("-")[0] or who, []).append(who)
    order = sorted(by_role, key=lambda role: (role != JOB, min(by_who[w][0].begin for w in by_role[role])))
    rows, notes = [], []
    for role in order:
        # The last phase before the common first step is what differs; all wait for the slowest after it.
        last = {w: max(_end(p, stop) - p.begin for p in by_who[w]) for w in by_role[role]}
        kept = sorted(by_role[role], key=lambda w: (-last[w], w))[:MOST_ROWS_PER_ROLE]
        if len(kept) < len(by_role[role]):
            notes.append(f"{role}: the {len(kept)} slowest of {len(by_role[role])}")
        rows += [Row(label=who, lanes=_lanes(by_who[who], stop)) for who in sorted(kept, key=by_number)]
    return rows, notes


def _lanes(phases: list[StartupPhase], stop: float) -> tuple[tuple[StartupPhase, ...], ...]:
    lanes: list[list[StartupPhase]] = []
    for phase in sorted(phases, key=lambda p: p.begin):
        lane = next((lane for lane in lanes if _end(lane[-1], stop) <= phase.begin + 1e-6), None)
        if lane is None:
            lanes.append([phase])
        else:
            lane.append(phase)
    return tuple(tuple(lane) for lane in lanes)


def _draw_lane(
    axes: Axes,
    lane: tuple[StartupPhase, ...],
    y: float,
    origin: float,
    stop: float,
    span: float,
    colours: dict[str, str],
) -> None:
    for phase in lane:
        begin, end = phase.begin - origin, _end(phase, stop) - origin
        is_cut = phase.end is None and phase.name != FIRST_STEP
        colour = colours[phase.name]
        axes.barh(
            y, end - begin, left=begin, height=BAR, color=colour, edgecolor=INK if is_cut else "white", linewidth=0.6,
            hatch="////" if is_cut else None,
        )  # fmt: skip
        # About 0.0085 of the axis for each character at this size; a label that does not fit inside is left out.
        room = (end - begin) / span / 0.0085 - 1.5
        took = duration(end - begin)
        text = next((text for text in (f"{phase.name} {took}", took) if len(text) < room), "")
        if text:
            ground = {"facecolor": colour, "edgecolor": "none", "pad": 1.0} if is_cut else None
            axes.text(
                (begin + end) / 2, y, text, ha="center", va="center", fontsize=8, color=text_on(colour), bbox=ground
            )  # fmt: skip


def _draw_end(axes: Axes, state: RunState, at: float) -> None:
    if state.first_step_at is not None:
        axes.axvline(at, color=INK, linewidth=1.2, linestyle="--")
        axes.text(at, -0.55, "first step ", ha="right", va="center", fontsize=9, color=INK)
    elif state.failure is not None:
        at = state.failure.time - (state.began_at or 0.0)
        axes.axvline(at, color=INK, linewidth=1.6)
        is_late = at > axes.get_xlim()[1] / 2
        text = f" {state.failure.where} failed " if state.failure.where else " failed "
        axes.text(at, -0.55, text, ha="right" if is_late else "left", va="center", fontsize=9, color=INK, weight="bold")


def _end(phase: StartupPhase, stop: float) -> float:
    return stop if phase.end is None else min(phase.end, stop)
