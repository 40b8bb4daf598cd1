"""How a trainer rank reaches the engines, and what an update costs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROUND_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
"""By the type of the device that holds the trainer's weights. On CPUs small enough for caches; on GPUs so large that
the cost of a message on the host, where it is packed, hides behind the copy."""


class Mode(StrEnum):
    """Where an engine's worker receives a version: it costs memory, or it costs time."""

    SHADOW = "shadow"
    """Beside the live weights, in a copy on their device. The engine decodes until they are written."""

    HOST_SHADOW = "host_shadow"
    """Beside the live weights, in host memory, pinned if they are on a GPU. As ``shadow``, but writing takes longer."""

    INPLACE = "inplace"
    """Into the live weights. No copy, but the engine is paused from the first byte on, and one that does not get the
    last byte answers nothing until a whole version has arrived.
    """


class UpdateKind(StrEnum):
    """How much of a version is sent."""

    FULL = "full"
    """Every element."""

    DELTA = "delta"
    """What has changed since the version that the replica has committed; everything to one that has none, or another.
    Each trainer rank keeps a copy of its shards, in the type in which they are sent.
    """


MODES = tuple(mode.value for mode in Mode)
UPDATES = tuple(kind.value for kind in UpdateKind)
RELAYS = ("auto", "off")
"""Values of ``relay``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """How to reach the engines. In a run :func:`launcher.bridge.connect` makes it from the run's configuration; without
    one, every trainer rank makes the same, except for ``address`` and ``location``.
    """

    urls: tuple[str, ...] = ()
    """Base URLs of the engines (``http://host:port``), by index of the replica. Unused where a discovery is given."""

    token: str
    """The engines' ``LAUNCHER_TOKEN``. The key of their bridge routes is derived from it; the token itself is never
    sent."""

    address: str = "127.0.0.1"
    """Address of this host, as the engines' hosts and the other trainer ranks reach it."""

    transport: str = "auto"
    """How messages are sent; ``auto`` picks for every pair of a trainer rank and a worker."""

    relay: str = "auto"
    """Whether replicas send weights on to other replicas: ``auto``, where there are more of them than the trainer's
    nodes can feed at a time, or ``off``."""

    directory: Path | None = None
    """A directory that trainer and engines share; the transport ``filesystem`` needs it."""

    mode: str = Mode.SHADOW.value
    """Where the engines receive a version: ``shadow``, ``host_shadow`` or ``inplace``; see :class:`Mode`."""

    update: str = UpdateKind.FULL.value
    """How much of a version is sent: ``full`` or ``delta``; see :class:`UpdateKind`."""

    timeout_s: float = 300.0
    """Deadline in seconds of connecting to a replica, of sending a version, and of a commit."""

    rank_timeout_s: float = 120.0
    """How long a trainer rank waits for the others to make the same call, such as ``publish``. Those that are missing
    are named after 5 s in the log, and by an error on every rank that came once the time is over."""

    verify: bool = True
    """Compare a checksum of what was sent with one of what arrived before any engine commits."""

    min_replicas: int | None = None
    """Replicas that must take a version for it to count as published; one for each URL if None."""

    round_bytes: int | None = None
    """Most bytes that an engine's worker takes in one round; it stages two rounds at a time. None for
    :data:`ROUND_BYTES`."""

    restart_count: int = 0
    """How often the trainers were restarted. An engine orders versions by it first, and refuses requests of trainers
    that were restarted since."""

    journal: Path | None = None
    """A file to which rank 0 adds each commit as one line of JSON. In a run the event log has them."""

    reset_prefix_cache: bool = True
    """Whether a commit drops what the engine computed from the old weights, running requests' keys and values included.
    With False answers may mix versions in a way that no header shows."""

    location: tuple[int, int] = (0, 0)
    """Node and GPU of this rank, as numbers; the planner prefers senders on the node of the receiver."""

    @property
    def wanted_replicas(self) -> int:
        """How many replicas must take a version."""
        return len(self.urls) if self.min_replicas is None else self.min_replicas
