"""The proof finds every hole, overlap and wrong sender; digests differ when plans do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.bridge.plan import (
    Engine,
    Location,
    Plan,
    PlannedTransfer,
    Receiver,
    Sharding,
    fingerprints,
    first_difference,
    place,
    plan_digest,
    reshard,
    verify_plan,
)
from launcher.bridge.plan.boxes import Box
from launcher.bridge.plan.plan_digest import FRAME
from launcher.bridge.plan.sharding import fsdp, hsdp
from launcher.bridge.plan.split import Split
from launcher.common.errors import BridgeError
from launcher.testing.bench.engine_layout import Slice
from launcher.testing.bench.models import Model

T = TypeVar("T")

TINY = Model(
    hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, intermediate_size=24, vocab_size=70,
    num_experts=4, moe_intermediate_size=8,
)  # fmt: skip


def tiny_plan(sharding: Sharding | None = None, engines: int = 2, model: Model = TINY) -> Plan:
    """Three FSDP ranks to replicas of two ranks; several transfers go over more than one round."""
    sharding = sharding or fsdp(3)
    parameters = tuple(model.parameters(Slice(rank=r, size=2)) for r in range(2))
    places = [tuple(Location(node=5 + i, gpu=r) for r in range(2)) for i in range(engines)]
    replicas = [Engine(parameters=parameters, locations=at) for at in places]
    trainers = [Location(node=r, gpu=0) for r in range(sharding.world_size)]
    return reshard(place(model.tensors(), [(".*", sharding)]), replicas, trainers, round_bytes=1024)


PLAN = tiny_plan()
VICTIMS = [(receiver, i) for receiver, transfers in PLAN.transfers.items() for i in range(len(transfers))]


def with_transfer(receiver: Receiver, index: int, *transfers: PlannedTransfer) -> Plan:
    whole = PLAN.transfers[receiver]
    return replace(PLAN, transfers={**PLAN.transfers, receiver: (*whole[:index], *transfers, *whole[index + 1 :])})


def test_the_plan_itself_is_proven() -> None:
    verify_plan(PLAN)
    verify_plan(tiny_plan(hsdp(2, 2)))
    assert any(len(t.schedule) > 1 for transfers in PLAN.transfers.values() for t in transfers)


def drop_box(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    i = data.draw(st.integers(0, len(t.split.boxes) - 1))
    return replace(t, split=Split(boxes=_without(t.split.boxes, i), sources=_without(t.split.sources, i)))


def repeat_box(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    i = data.draw(st.integers(0, len(t.split.boxes) - 1))
    return replace(
        t, split=Split(boxes=(*t.split.boxes, t.split.boxes[i]), sources=(*t.split.sources, t.split.sources[i]))
    )


def resize_box(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    i = data.draw(st.integers(0, len(t.split.boxes) - 1))
    box = t.split.boxes[i]
    axis = data.draw(st.integers(0, len(box.start) - 1))
    a, b = data.draw(st.sampled_from([(-1, 0), (1, 0), (0, 1), (0, -1), (1, 1), (-1, -1)]))
    changed = box.narrow(axis, box.start[axis] + a, box.stop[axis] + b)
    return replace(
        t, split=Split(boxes=(*t.split.boxes[:i], changed, *t.split.boxes[i + 1 :]), sources=t.split.sources)
    )


def other_sender(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    i = data.draw(st.integers(0, len(t.split.boxes) - 1))
    other = (t.split.sources[i] + data.draw(st.integers(1, 2))) % 3
    return replace(
        t, split=Split(boxes=t.split.boxes, sources=(*t.split.sources[:i], other, *t.split.sources[i + 1 :]))
    )


def move_target(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    return replace(t, region=replace(t.region, target=_shifted(t.region.target, data)))


def move_box(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    return replace(t, region=replace(t.region, box=_shifted(t.region.box, data)))


def other_parameter(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    return replace(t, parameter=t.parameter + "x")


def lose_chunk(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    return replace(t, chunks=t.chunks + 1)


def lose_round(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    return replace(t, schedule=t.schedule[:-1] or (replace(t.schedule[0], start=1, stop=1),))


def repeat_round(t: PlannedTransfer, data: st.DataObject) -> PlannedTransfer:
    return replace(t, schedule=(*t.schedule, t.schedule[-1]))


DAMAGE: list[Callable[[PlannedTransfer, st.DataObject], PlannedTransfer]] = [
    drop_box, repeat_box, resize_box, other_sender, move_target, move_box, other_parameter,
    lose_chunk, lose_round, repeat_round,
]  # fmt: skip


@given(st.sampled_from(DAMAGE), st.sampled_from(VICTIMS), st.data())
def test_every_damage_to_a_transfer_is_found(
    damage: Callable[[PlannedTransfer, st.DataObject], PlannedTransfer],
    victim: tuple[Receiver, int],
    data: st.DataObject,
) -> None:
    receiver, index = victim
    damaged = with_transfer(receiver, index, damage(PLAN.transfers[receiver][index], data))
    with pytest.raises(BridgeError):
        verify_plan(damaged)
    assert plan_digest(damaged) != plan_digest(PLAN)


@given(st.sampled_from(VICTIMS))
def test_a_lost_or_repeated_transfer_is_found(victim: tuple[Receiver, int]) -> None:
    receiver, index = victim
    transfer = PLAN.transfers[receiver][index]
    for transfers in ((), (transfer, transfer)):
        with pytest.raises(BridgeError, match="on their way"):
            verify_plan(with_transfer(receiver, index, *transfers))


def test_an_engine_whose_own_parts_overlap_or_leave_a_hole_is_found() -> None:
    for change in (-1, 1):
        parameters = list(TINY.parameters(Slice(rank=0, size=1)))
        victim = next(i for i, p in enumerate(parameters) if "qkv" in p.name)
        old = parameters[victim].regions[1]
        moved = replace(
            old,
            box=old.box.narrow(0, 0, 7),
            target=old.target.narrow(0, old.target.start[0] + change, old.target.start[0] + change + 7),
        )
        regions = (parameters[victim].regions[0], moved, *parameters[victim].regions[2:])
        parameters[victim] = replace(parameters[victim], regions=regions)
        engine = Engine(parameters=(tuple(parameters),), locations=(Location(node=3, gpu=0),))
        plan = reshard(place(TINY.tensors(), [(".*", fsdp(3))]), [engine], [Location(node=0, gpu=i) for i in range(3)])
        with pytest.raises(BridgeError, match=r"qkv_proj.*(overlap|written by nobody)"):
            verify_plan(plan)


def test_shards_that_do_not_make_up_the_tensor_are_found() -> None:
    name = "model.norm.weight"
    source = PLAN.sources[name]
    sources = {**PLAN.sources, name: replace(source, shards=source.shards[:-1])}
    with pytest.raises(BridgeError, match=rf"shards of `{name}`.*written by nobody"):
        verify_plan(replace(PLAN, sources=sources))


def test_a_round_over_its_budget_is_found() -> None:
    with pytest.raises(BridgeError, match="in round"):
        verify_plan(replace(PLAN, round_bytes=PLAN.round_bytes // 2))


def test_equal_plans_agree_and_others_name_what_differs() -> None:
    again = tiny_plan()
    assert plan_digest(again) == plan_digest(PLAN)
    assert first_difference(PLAN, again) is None
    assert len(plan_digest(PLAN)) == 64
    wider = tiny_plan(model=replace(TINY, intermediate_size=32))
    assert first_difference(PLAN, wider) is None, "a mixture without dense layers does not use it"
    taller = tiny_plan(model=replace(TINY, vocab_size=69))
    assert first_difference(fingerprints(PLAN), fingerprints(taller)) == "lm_head.weight"
    moved = replace(PLAN, trainers=(*PLAN.trainers[:-1], Location(node=9, gpu=0)))
    assert first_difference(PLAN, moved) == FRAME
    transfer = PLAN.transfers[Receiver(engine=1, rank=1)][-1]
    receiver = Receiver(engine=1, rank=1)
    one = with_transfer(receiver, len(PLAN.transfers[receiver]) - 1, move_wire(transfer))
    assert first_difference(PLAN, one) == "lm_head.weight"


def move_wire(transfer: PlannedTransfer) -> PlannedTransfer:
    return replace(transfer, wire="float16")


def _without(values: tuple[T, ...], index: int) -> tuple[T, ...]:
    return values[:index] + values[index + 1 :]


def _shifted(box: Box, data: st.DataObject) -> Box:
    axis = data.draw(st.integers(0, len(box.start) - 1))
    by = data.draw(st.sampled_from([-1, 1]))
    return box.narrow(axis, box.start[axis] + by, box.stop[axis] + by)
