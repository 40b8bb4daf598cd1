"""How a trainer's tensors map into one engine worker's storage: learned once, replayed as plain copies."""

from __future__ import annotations

from launcher.bridge.weightmap.build import build_weight_map
from launcher.bridge.weightmap.model import BoundParameter, CopyOp, LoadMethod, WeightMap, check_alike, unused_tensors
from launcher.bridge.weightmap.requirements import requirements
from launcher.bridge.weightmap.write import Writer

__all__ = [
    "BoundParameter",
    "CopyOp",
    "LoadMethod",
    "WeightMap",
    "Writer",
    "build_weight_map",
    "check_alike",
    "requirements",
    "unused_tensors",
]
