"""Keys of the values that the processes of a run publish to each other through the control service."""

from __future__ import annotations

MODEL_READY = "model/ready"
"""True once the directory of the model is complete."""

STORE_HELPER = "store"
"""Name of the process that serves :data:`STORE`."""

CONNECTED = "bridge/connected"
"""True once a trainer has opened the bridge: engines that start later wait for its weights."""

TRAINER_RESTART_COUNT = "trainer/restart_count"
"""How often the trainers were restarted in this attempt; each start of them has a store of its own."""

STORE = "trainer/store"
"""``host:port`` of the rendezvous store of the trainers' first start; see :func:`store_key`."""

STOP_ACKNOWLEDGED = "trainer/stop_acknowledged"
"""True once all ranks of the trainer know that the run stops; the engines may end."""

ALL_URLS = "inference/urls"
"""URLs of all replicas, in their order; one value, so that a node needs one request for them."""

REPLICA_PREFIX = "replica/"


def store_key(restart_count: int) -> str:
    """Key under which the store of one start of the trainers is published."""
    return STORE if restart_count == 0 else f"{STORE}/{restart_count}"


def replica_key(index: int, what: str) -> str:
    """Key of a replica's value: its ``url``; that it is ``ready``."""
    return f"{REPLICA_PREFIX}{index}/{what}"
