"""How a trainer rank reaches the engines."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from launcher.bridge.mode import Mode, UpdateKind
from launcher.common.keys import token_from_environment

ROUND_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
"""By where the trainer's weights lie. On CPUs small enough for caches; on GPUs so large that what each message costs on
the host, where it is packed, hides behind the copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """How to reach the engines; :func:`launcher.bridge.connect` reads it from the environment of a run."""

    urls: tuple[str, ...]
    token: str
    address: str = "127.0.0.1"
    """Of this host, as the engines reach it."""

    transport: str = "auto"
    """How messages travel; ``auto`` picks for every pair of a trainer rank and a worker."""

    relay: str = "auto"
    """Whether replicas pass weights on to each other: ``auto``, where they are more than the trainer's nodes can feed
    at a time, or ``off``."""

    directory: Path | None = None
    """That trainer and engines share; ``filesystem`` needs it."""

    mode: str = Mode.SHADOW.value
    """Where the engines receive a version: ``shadow``, ``host_shadow`` or ``inplace``."""

    update: str = UpdateKind.FULL.value
    """How much of a version travels: ``full`` or ``delta``."""

    timeout_s: float = 300.0
    """Deadline of joining and of each update."""

    verify: bool = True
    """Compare a digest of what was sent with one of what arrived before any engine commits."""

    min_replicas: int | None = None
    """Replicas that must take a version for it to count as published; all of them if None."""

    round_bytes: int | None = None
    """Most bytes that an engine's worker takes in one round; it stages two rounds at a time. None: what is quick,
    :data:`ROUND_BYTES`."""

    is_live: bool = False
    """The run's control service says which replicas there are; ``urls`` are not looked at."""

    incarnation: int = 0
    """How often the run's trainers have been restarted. Versions are ordered by it first."""

    journal: Path | None = None
    """Without a run, whose event log has them: a file to which rank 0 adds every commit, one JSON object a line."""

    reset_prefix_cache: bool = True
    location: tuple[int, int] = (0, 0)
    """Node and GPU of this rank."""


def settings_from_environment() -> BridgeSettings:
    """The settings that the agent and the run's configuration give."""
    from launcher.config import load_run_config

    config = load_run_config(Path(os.environ["LAUNCHER_RUN_DIR"]))
    return BridgeSettings(
        urls=(),
        is_live=True,
        incarnation=int(os.environ.get("LAUNCHER_RESTART", "0")),
        min_replicas=config.inference.min_replicas,
        token=token_from_environment(),
        address=os.environ.get("LAUNCHER_ADDRESS", "127.0.0.1"),
        transport=config.bridge.transport,
        relay=config.bridge.relay,
        directory=Path(config.bridge.directory or Path(os.environ["LAUNCHER_RUN_DIR"]) / "bridge"),
        mode=config.bridge.mode,
        update=config.bridge.update,
        timeout_s=config.bridge.timeout_s,
        verify=config.bridge.verify,
        reset_prefix_cache=config.bridge.reset_prefix_cache,
        location=(int(os.environ.get("LAUNCHER_NODE_RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))),
    )
