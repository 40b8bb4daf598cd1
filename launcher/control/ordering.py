"""Derives from the state of a run what one of its nodes is to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.control.orders import Orders, ReplicaOrder, TrainerOrder
from launcher.control.values import ALL_URLS, CONNECTED, MODEL_READY, store_key

if TYPE_CHECKING:
    from launcher.control.state import JobState


def orders_for(state: JobState, node: int) -> Orders:
    """What a node is to run: which place it holds, and for each of its units which start of it."""
    place = state.members.place_of(node)
    revision, is_fenced = state.revision(node), node in state.members.lost
    if place is None:
        return Orders(revision=revision, is_fenced=is_fenced, stopping=state.stopping.stage)
    trainers = None
    if place in state.trainers.places:
        may_start = state.trainers_may_start()
        trainers = TrainerOrder(
            start=state.trainers.incarnation,
            runs=may_start,
            store=state.values.get(store_key(state.trainers.incarnation)),
            urls=tuple(state.values[ALL_URLS]) if may_start else (),
        )
    has_model = bool(state.values.get(MODEL_READY))
    return Orders(
        revision=revision,
        place=place,
        is_fenced=is_fenced,
        stopping=state.stopping.stage,
        trainers=trainers,
        replicas={
            life.replica.index: ReplicaOrder(
                start=life.generation,
                runs=life.runs and has_model,
                url=life.url,
                master=life.master,
                awaits_weights=life.generation > 0 and bool(state.values.get(CONNECTED)),
            )
            for life in state.replicas.on_place(place)
        },
    )
