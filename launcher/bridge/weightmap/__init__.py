"""How a trainer's tensors map into one engine worker's storage: learned once, replayed as plain copies."""

from __future__ import annotations

from launcher.bridge.weightmap.bind import bind
from launcher.bridge.weightmap.model import Binding, Bound, Copy, Way, never_used
from launcher.bridge.weightmap.needs import needs
from launcher.bridge.weightmap.write import Writer

__all__ = ["Binding", "Bound", "Copy", "Way", "Writer", "bind", "needs", "never_used"]
