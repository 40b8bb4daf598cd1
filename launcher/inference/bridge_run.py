"""The bridge of a run: its settings come from the run's configuration, its replicas from the control service.

:func:`launcher.bridge.connect` calls :func:`connect` in a trainer process of a run.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.api import Bridge
from launcher.bridge.trainer.discovery import CommitRecord, ReplicaInfo
from launcher.bridge.trainer.rank_group import world
from launcher.common.env import LAUNCHER_ADDRESS, LAUNCHER_NODE_RANK, LAUNCHER_RESTART_COUNT, LAUNCHER_RUN_DIR
from launcher.common.errors import ControlError, LauncherError
from launcher.common.keys import token_from_environment
from launcher.config import load_run_config
from launcher.control import emit as events
from launcher.control.client import ControlClient
from launcher.control.model import CONNECTED, PoolMember
from launcher.control.protocol import EventRequest, PublishedRequest
from launcher.inference.client import Pool, wait_ready

TRAINER = "trainer-0000"
"""Rank 0 marks the phases of the start-up for all trainer ranks, so that events do not grow with the world."""

REFRESH_S = 2.0
"""How old the list of replicas may be from which :meth:`RunReplicas.failure_reason` answers."""


def connect(ready_timeout_s: float) -> Bridge:
    """The bridge of the run that this process is a trainer rank of. Rank 0 waits until all engines are ready.

    Raises:
        ControlError: an engine is not ready in time.
        LauncherError: this process is not a trainer of a run.
    """
    settings = settings_from_environment()
    is_first = world()[0] == 0
    if is_first:
        with events.phase("wait for engines", TRAINER):
            wait_ready(ready_timeout_s)
    return Bridge(settings, RunReplicas(settings.restart_count), on_phase=_phase if is_first else None)


def settings_from_environment() -> BridgeSettings:
    """The settings that the agent's environment and the run's configuration give.

    Raises:
        LauncherError: this process is not a trainer of a run.
    """
    path = os.environ.get(LAUNCHER_RUN_DIR)
    if not path:
        raise LauncherError(
            f"`{LAUNCHER_RUN_DIR}` is not set: this process is not a trainer of a run. HINT: start the program through"
            " `launcher` (`trainer.command`), or, without a run, pass"
            " `BridgeSettings(urls=..., token=...)` to `launcher.bridge.connect`."
        )
    run_dir = Path(path)
    config = load_run_config(run_dir)
    return BridgeSettings(
        restart_count=int(os.environ.get(LAUNCHER_RESTART_COUNT, "0")),
        min_replicas=config.inference.min_replicas,
        token=token_from_environment(),
        address=os.environ.get(LAUNCHER_ADDRESS, "127.0.0.1"),
        transport=config.bridge.transport,
        relay=config.bridge.relay,
        directory=Path(config.bridge.directory or run_dir / "bridge"),
        mode=config.bridge.mode,
        update=config.bridge.update,
        timeout_s=config.bridge.timeout_s,
        rank_timeout_s=config.bridge.rank_timeout_s,
        verify=config.bridge.verify,
        reset_prefix_cache=config.bridge.reset_prefix_cache,
        location=(int(os.environ.get(LAUNCHER_NODE_RANK, "0")), int(os.environ.get("LOCAL_RANK", "0"))),
    )


class RunReplicas:
    """The replicas of the run that this process belongs to, as its control service lists them.

    Implements :class:`launcher.bridge.trainer.discovery.ReplicaDiscovery`.

    Args:
        restart_count: how often the run's trainers were restarted.
    """

    is_dynamic = True

    def __init__(self, restart_count: int = 0) -> None:
        self._restart_count = restart_count
        self._lock = threading.Lock()
        self._control: ControlClient | None = None
        self._latest: dict[int, PoolMember] = {}
        self._latest_at = float("-inf")

    def announce(self) -> None:
        """Engines that start from now on wait for the trainer's weights."""
        self._client().put(CONNECTED, True)

    def replicas(self) -> Sequence[ReplicaInfo]:
        """Every replica that was not given up."""
        return _infos(self._pool().members())

    def wait(self, is_enough: Callable[[Sequence[ReplicaInfo]], bool], timeout_s: float) -> bool:
        """Waits with one RPC that returns when the list changes."""
        try:
            self._pool().wait(lambda members: is_enough(_infos(members)), timeout_s=timeout_s, what="another engine")
        except ControlError:
            # Either the time is up, or the control service is gone: then the next call raises.
            return is_enough(self.replicas())
        return True

    def failure_reason(self, replica: ReplicaInfo) -> str | None:
        """Why the run has given the replica up; None if it has not. An RPC every 2 s at most."""
        with self._lock:
            if time.monotonic() - self._latest_at > REFRESH_S:
                self._latest_at = time.monotonic()
                try:
                    self._latest = {member.replica: member for member in self._pool().members()}
                except ControlError as error:
                    return str(error)
            member = self._latest.get(replica.index)
        if member is not None and member.is_ready and member.restart_count == replica.restart_count:
            return None
        return f"Replica {replica.index} is lost" + ("." if member is None else f": it is {member.state}.")

    def record(self, commit: CommitRecord) -> None:
        """Writes the event, and has the control service list the replicas as serving the version."""
        if commit.adapter is not None:
            self._client().call(EventRequest(event=commit.event, fields=commit.fields))
            return
        self._client().call(
            PublishedRequest(
                restart_count=self._restart_count,
                version=commit.version,
                replicas=commit.replicas,
                fields=commit.measured,
            )
        )

    def close(self) -> None:
        """Ends the connection to the control service."""
        if self._control is not None:
            self._control.close()

    def _pool(self) -> Pool:
        return Pool(self._client())

    def _client(self) -> ControlClient:
        if self._control is None:
            self._control = ControlClient.from_environment()
        return self._control


def _infos(members: Sequence[PoolMember]) -> list[ReplicaInfo]:
    return [
        ReplicaInfo(
            index=member.replica,
            restart_count=member.restart_count,
            url=member.url,
            is_ready=member.is_ready and member.url is not None,
        )
        for member in members
    ]


def _phase(name: str, state: str) -> None:
    events.emit("phase", phase=name, who=TRAINER, state=state)
