"""The live display fits any terminal."""

from __future__ import annotations

import io
import os
import pty
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from launcher.events.run_state import RunState
from launcher.observe.terminal.follow import display_for
from launcher.observe.terminal.live import LiveDisplay, picture
from launcher.observe.terminal.plain import PlainDisplay
from tests.unit import view_events
from tests.unit.view_events import T0

EVENTS = [
    *view_events.startup(trainer_nodes=2, inference_nodes=2, replicas=2, cluster="slurm"),
    *view_events.steps(60),
    *view_events.ending(180),
]
FAILED = [*[event for event in EVENTS if event["time"] < T0 + 30], *view_events.engine_killed(30)]


def shown(events: view_events.Events, at: float, width: int, *, encoding: str = "utf-8") -> list[str]:
    state = RunState(run_dir="/scratch/someone/runs/rl-20260101-000000-ab12", deadlines={"engine": 600.0})
    for event in events:
        if event["time"] <= T0 + at:
            view_events.apply(state, event)
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=file, width=width, force_terminal=True, color_system=None, highlight=False)
    console.print(picture(state, now=T0 + at, width=width, ascii_only=console.options.ascii_only))
    file.seek(0)
    return file.read().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("events", [EVENTS, FAILED])
def test_no_line_is_longer_than_the_terminal(width: int, events: view_events.Events) -> None:
    for at in (-1, 0, 2, 4.1, 10, 39, 45, 50, 53, 54, 60, 120, 190):
        lines = shown(events, at, width)
        assert lines and max(cell_len(line) for line in lines) <= width


def test_start_up_shows_what_is_waited_for() -> None:
    text = "\n".join(shown(EVENTS, 39.0, 100))
    assert re.search(r"replicas ready +1/2 +31\.4 s of 600 s  waiting for inference-1", text)
    assert re.search(r"✓ nodes up +4/4", text)
    assert "0:39" in text.splitlines()[0]


def test_training_shows_the_figures() -> None:
    text = "\n".join(shown(EVENTS, 114.0, 100))
    assert "step 31/60" in text and "ETA 0:58" in text and "started in 54.0 s" in text
    assert re.search(r"reward 0\.\d{3} [▁-█]{31} 0\.\d{3}", text)
    for word in ("version 31", "tokens/s", "sync 0.1", "mismatch 0.00"):
        assert word in text


def test_failure_names_the_process() -> None:
    assert "✗ inference 0 on node 1 (rack0n02) ended with signal 9 (SIGKILL)" in shown(FAILED, 40.0, 100)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    for at in (39.0, 114.0, 190.0):
        "\n".join(shown(EVENTS, at, 80, encoding="ascii")).encode("ascii")


def test_display_follows_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(display_for(io.StringIO()), PlainDisplay)
    primary, secondary = pty.openpty()
    with os.fdopen(primary, "rb", buffering=0) as screen, os.fdopen(secondary, "w") as stream:
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(display_for(stream), PlainDisplay)
        monkeypatch.setenv("TERM", "xterm-256color")
        display = display_for(stream)
        assert isinstance(display, LiveDisplay)
        state = RunState()
        for event in EVENTS:
            view_events.apply(state, event)
            if event["event"] == "attempt":
                display.update(state)
        display.update(state)
        display.close()
        drawn = b""
        # Ends when the cursor is visible again.
        while not drawn.rstrip().endswith(b"\x1b[?25h"):
            drawn += screen.read(4096)
        assert b"completed after" in drawn
