"""What a person sees of a run: all of it read from the run directory, with pictures and a summary written there."""

from __future__ import annotations

from launcher.view.display import Display, display_for
from launcher.view.follow import follow
from launcher.view.loading import load_state
from launcher.view.pictures import write_pictures
from launcher.view.state import RunState
from launcher.view.summary import summary

__all__ = ["Display", "RunState", "display_for", "follow", "load_state", "summary", "write_pictures"]
