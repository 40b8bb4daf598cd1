"""Weights from the trainer's shards to the engines' shards: the plan, its proof, and its digest."""

from __future__ import annotations

from launcher.bridge.plan.boxes import Box
from launcher.bridge.plan.plan import Engine, Message, Plan, PlannedTransfer, Receiver, Segment
from launcher.bridge.plan.plan_digest import fingerprints, first_difference, plan_digest
from launcher.bridge.plan.planner import ROUND_BYTES, reshard
from launcher.bridge.plan.requirements import Parameter, Region
from launcher.bridge.plan.sharding import Placement, Shard, Sharding, Source, TensorSpec, place
from launcher.bridge.plan.split import Location
from launcher.bridge.plan.verify import verify_plan

__all__ = [
    "ROUND_BYTES",
    "Box",
    "Engine",
    "Location",
    "Message",
    "Parameter",
    "Placement",
    "Plan",
    "PlannedTransfer",
    "Receiver",
    "Region",
    "Segment",
    "Shard",
    "Sharding",
    "Source",
    "TensorSpec",
    "fingerprints",
    "first_difference",
    "place",
    "plan_digest",
    "reshard",
    "verify_plan",
]
