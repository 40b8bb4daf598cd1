"""What follows from the state of a run at one moment. Nothing here changes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from launcher.control.model import (
    ALL_URLS,
    CONNECTED,
    MODEL_READY,
    Assignment,
    Phase,
    PoolMember,
    ReplicaAssignment,
    TrainerAssignment,
    store_key,
)
from launcher.control.state import ControlState, ReplicaRecord, ReplicaState
from launcher.layout.model import Role


def assignment(state: ControlState, node_rank: int) -> Assignment:
    """What a node is to run."""
    node = state.nodes[node_rank]
    if node.slot is None:
        return Assignment(revision=node.revision, is_fenced=node.is_lost, stop_stage=state.stop.stage)
    return Assignment(
        revision=node.revision,
        slot=node.slot,
        is_fenced=node.is_lost,
        stop_stage=state.stop.stage,
        trainers=_trainer_assignment(state) if node.slot in state.trainers.slots else None,
        replicas={record.index: _replica_assignment(state, record) for record in replicas_on(state, node.slot)},
    )


def _trainer_assignment(state: ControlState) -> TrainerAssignment:
    may_start = trainers_may_start(state)
    return TrainerAssignment(
        restart_count=state.trainers.restart_count,
        may_start=may_start,
        store=state.values.get(store_key(state.trainers.restart_count)),
        urls=tuple(state.values[ALL_URLS]) if may_start else (),
    )


def _replica_assignment(state: ControlState, record: ReplicaRecord) -> ReplicaAssignment:
    return ReplicaAssignment(
        restart_count=record.restart_count,
        may_start=record.runs and bool(state.values.get(MODEL_READY)),
        url=record.url,
        master=record.master,
        awaits_weights=record.restart_count > 0 and bool(state.values.get(CONNECTED)),
    )


def trainers_may_start(state: ControlState) -> bool:
    """Whether everything is there that trainer ranks need to know."""
    needed = (MODEL_READY, store_key(state.trainers.restart_count), ALL_URLS)
    return state.phase is Phase.RUNNING and all(key in state.values for key in needed)


def serves(state: ControlState, record: ReplicaRecord) -> bool:
    """Whether a replica may be sent requests: it is healthy, and no other has newer weights."""
    return record.state is ReplicaState.READY and record.version == state.published


def pool(state: ControlState) -> tuple[PoolMember, ...]:
    """Every replica that is not dropped."""
    return tuple(
        PoolMember(
            replica=record.index,
            restart_count=record.restart_count,
            state=record.state.value,
            url=record.url,
            serves=serves(state, record),
        )
        for record in kept_replicas(state.replicas)
    )


def kept_replicas(records: Iterable[ReplicaRecord]) -> list[ReplicaRecord]:
    """Those that are not dropped: they serve, or will."""
    return [record for record in records if record.state is not ReplicaState.DROPPED]


def replicas_on(state: ControlState, slot: int) -> list[ReplicaRecord]:
    """Replicas that have a part on a slot."""
    return [record for record in state.replicas if slot in record.replica.node_ranks]


def role_of(state: ControlState, slot: int | None) -> Role:
    """The role of the nodes on a slot, or of those that hold none."""
    return Role.SPARE if slot is None else state.settings.layout.nodes[slot].role


def free_spares(state: ControlState) -> list[int]:
    """Nodes that are there and hold no slot, in their order."""
    return [rank for rank, node in enumerate(state.nodes) if node.is_up and not node.has_left and node.slot is None]


def silent_nodes(state: ControlState, now: float) -> list[tuple[int, float]]:
    """Nodes whose lease has run out, with the seconds since their last contact."""
    return [
        (rank, now - node.last_contact)
        for rank, node in enumerate(state.nodes)
        if node.last_contact is not None
        and not (node.is_lost or node.has_left)
        and now - node.last_contact > state.settings.lease_timeout_s
    ]


def missing_slots(state: ControlState) -> Iterator[int]:
    """Slots without a node that has reported; those that only hold parts of dropped replicas are left out."""
    for slot, rank in enumerate(state.slots):
        if (rank is None or not state.nodes[rank].is_up) and (
            slot in state.trainers.slots or kept_replicas(replicas_on(state, slot))
        ):
            yield slot


def trainer_nodes_reported_since(state: ControlState, time: float) -> bool:
    """Whether every node that holds a trainer slot has been in contact later than ``time``."""
    ranks = [state.slots[slot] for slot in state.trainers.slots]
    return all(rank is None or (state.nodes[rank].last_contact or 0.0) > time for rank in ranks)


def all_nodes_left(state: ControlState) -> bool:
    """Whether each node that ever reported has left, or is lost."""
    return all(node.has_left or node.is_lost for node in state.nodes if node.last_contact is not None)


def is_writing(state: ControlState, now: float) -> bool:
    """Whether a checkpoint is being written, and may still be waited for."""
    since = state.stop.writing_since
    return since is not None and now - since <= state.settings.write_timeout_s


def is_step_overdue(state: ControlState, now: float) -> bool:
    """Whether the last step is longer ago than a step may take."""
    trainers, limit_s = state.trainers, state.settings.restart.step_timeout_s
    if limit_s is None or trainers.last_step_at is None or trainers.done:
        return False
    return now - trainers.last_step_at > limit_s
