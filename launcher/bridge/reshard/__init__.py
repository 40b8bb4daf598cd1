"""Weights from the trainer's shards to the engines' shards: the plan, its proof, and its execution."""

from __future__ import annotations

from launcher.bridge.reshard.box import Box
from launcher.bridge.reshard.canonical import fingerprints, first_difference
from launcher.bridge.reshard.cut import Location
from launcher.bridge.reshard.need import Parameter, Part, Slice
from launcher.bridge.reshard.placement import Shard, Sharding, Source, TensorSpec, collect, place
from launcher.bridge.reshard.plan import Engine, Message, Plan, Receiver, Segment, Transfer
from launcher.bridge.reshard.planner import ROUND_BYTES, reshard
from launcher.bridge.reshard.relay import Relays

__all__ = [
    "ROUND_BYTES",
    "Box",
    "Engine",
    "Location",
    "Message",
    "Parameter",
    "Part",
    "Plan",
    "Receiver",
    "Relays",
    "Segment",
    "Shard",
    "Sharding",
    "Slice",
    "Source",
    "TensorSpec",
    "Transfer",
    "collect",
    "fingerprints",
    "first_difference",
    "place",
    "reshard",
]
