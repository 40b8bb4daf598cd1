"""What an update costs: where an engine's worker receives it, and how much of it travels."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """What an update costs the engine: memory or time."""

    SHADOW = "shadow"
    """Beside the live weights, in a copy on their device. The engine decodes until they are written."""

    HOST_SHADOW = "host_shadow"
    """Beside the live weights, in host memory, pinned if they are on a GPU. As ``shadow``, but writing takes longer."""

    INPLACE = "inplace"
    """Into the live weights. No copy, but the engine stands still from the first byte on, and one that does not get the
    last byte answers nothing until a whole version has arrived.
    """


class UpdateKind(StrEnum):
    """How much of a version travels."""

    FULL = "full"
    """Every element."""

    DELTA = "delta"
    """What has changed since the version that the replica has committed; everything to one that has none, or another.
    Each trainer rank keeps a copy of its shards, in the type in which they travel.
    """


MODES = tuple(mode.value for mode in Mode)
UPDATES = tuple(kind.value for kind in UpdateKind)
