"""Names of the values that the processes of a run publish to each other through the control service."""

from __future__ import annotations

MODEL_READY = "model/ready"
"""True once the directory of the model is complete."""

STORE_HELPER = "store"
"""Name of the process that serves :data:`STORE`."""

CONNECTED = "bridge/connected"
"""True once a trainer has opened the bridge: from then on engines that start wait for its weights."""

INCARNATION = "trainer/incarnation"
"""Which start of the trainers this is, from 0; each has a store of its own."""

STORE = "trainer/store"
"""``host:port`` of the rendezvous store of the trainers' first start; see :func:`store_key`."""

STOP_SEEN = "trainer/stopping"
"""True once the trainer has seen that the run shall stop, on all of its ranks; the engines may end."""

ALL_URLS = "inference/urls"
"""URLs of all replicas, in their order; one value, so that no node asks for each of them."""


def store_key(incarnation: int) -> str:
    """Key under which the store of one start of the trainers is published."""
    return STORE if incarnation == 0 else f"{STORE}/{incarnation}"


def replica_key(index: int, what: str) -> str:
    """Key of what a replica publishes: its ``url``; that it is ``ready``; the ``master`` of one that spans nodes."""
    return f"replica/{index}/{what}"
