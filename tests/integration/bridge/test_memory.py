"""What an update takes of memory besides the weights, in real processes, against the bound that is stated for it."""

from __future__ import annotations

import pytest

from launcher.bridge.plan import Engine, Location, Parameter, Plan, Region, reshard
from launcher.bridge.plan.boxes import Box
from launcher.bridge.plan.sharding import place, replicated
from launcher.testing.bench.models import TensorSpec
from tests.integration.bridge.mini_cluster import MiniCluster
from tests.unit.bridge.memory_bounds import receiver_bytes, sender_bytes

MIB = 1 << 20
SLACK = 32 * MIB
"""Threads with their heaps, sockets, and what libraries load when something is called first: well below the weights, of
which one copy more than stated would be seen."""


def plan_of(scene: MiniCluster, round_bytes: int) -> Plan:
    """What the trainer and the one worker agree on."""
    shape = (scene.rows, scene.columns)
    specs = [TensorSpec(name=name, shape=shape, dtype="float32") for name in scene.shapes["names"]]
    whole = Box.full(shape)
    needed = tuple(
        Parameter(name=s.name, shape=shape, dtype="float32", regions=(Region(source=s.name, box=whole, target=whole),))
        for s in specs
    )
    engine = Engine(parameters=(needed,), locations=(Location(node=1, gpu=0),))
    sources = place(specs, [(".*", replicated(1))])
    return reshard(sources, [engine], [Location(node=0, gpu=0)], round_bytes=round_bytes)


@pytest.mark.parametrize(("mode", "transport"), [("shadow", "shm"), ("inplace", "shm"), ("host_shadow", "gloo")])
def test_no_process_takes_more_than_the_bound_of_its_mode_and_transport(mode: str, transport: str) -> None:
    """128 MiB of weights in rounds of 1 MiB: what is staged is little against the weights."""
    settings = {"mode": mode, "transport": transport, "round_bytes": MIB}
    with MiniCluster(nodes=(1,), tensors=128, rows=1024, columns=256, settings=settings) as scene:
        (trainer,), (replica,) = scene.trainers, scene.replicas
        plan = plan_of(scene, MIB)
        staged_here = sender_bytes(plan, 0, {0: transport})
        staged_there = receiver_bytes(plan, 0, {0: transport})
        assert max(staged_here, staged_there) + SLACK < 64 * MIB
        before = {end: end.call("memory")["now"] for end in (trainer, replica)}
        for version in (1, 2, 3):
            assert scene.publish(version)["replicas"] == 1
        after = {end: end.call("memory") for end in (trainer, replica)}
        assert replica.call("values") == {"values": [3]}
        extra = after[replica]["extra_bytes"]
        assert extra == (0 if mode == "inplace" else 128 * MIB)
        assert after[replica]["most"] - before[replica] <= staged_there + extra + SLACK
        assert after[trainer]["most"] - before[trainer] <= staged_here + SLACK
        scene.close()
