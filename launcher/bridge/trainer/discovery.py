"""Which replicas the bridge can reach now: as the control service says, or fixed for use without a launcher."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.replica_client import ReplicaClient
from launcher.common.errors import ControlError, TransferError
from launcher.common.keys import bridge_key
from launcher.control.client import ControlClient
from launcher.control.values import CONNECTED
from launcher.inference.pool import Member, Pool

SLICE_S = 20.0
"""Rank 0 waits for engines in slices: the other ranks wait for it in an operation that may have a deadline."""

ASK_EVERY_S = 2.0
TRIES = 2
"""How often one start of a replica is offered the same version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A replica that is healthy, in a form that ranks can share."""

    replica: int
    generation: int
    url: str


class Membership:
    """The replicas, as one trainer rank knows them.

    Args:
        settings: ``urls`` are the replicas if the run has no control service.
        adapter: name of the adapter that they are asked about; None for the model's weights.
    """

    def __init__(self, settings: BridgeSettings, adapter: str | None = None) -> None:
        self._adapter = adapter
        self._settings = settings
        self._key = bridge_key(settings.token)
        self._fixed = [Known(replica=i, generation=0, url=url) for i, url in enumerate(settings.urls)]
        self._lock = threading.Lock()
        self._control: ControlClient | None = None
        self._asked_at = float("-inf")
        self._now: dict[int, Member] = {}

    @property
    def min_replicas(self) -> int:
        """How many must take a version."""
        wanted = self._settings.min_replicas
        return len(self._fixed) if wanted is None else wanted

    def connected(self) -> None:
        """Rank 0: engines that start from now on are told to wait for the trainer's weights."""
        if self._settings.is_live:
            self._client().put(CONNECTED, True)

    def ready(self) -> list[Known]:
        """Rank 0: the replicas that are healthy.

        Raises:
            ControlError: the control service does not answer.
        """
        if not self._settings.is_live:
            return self._fixed
        return _ready(Pool(self._client()).members())

    def client(self, known: Known) -> ReplicaClient:
        """The line to a replica."""
        return ReplicaClient(
            known.replica,
            known.url,
            self._key,
            generation=known.generation,
            incarnation=self._settings.incarnation,
            adapter=self._adapter,
        )

    def wait_for_another(self, served: Mapping[int, int], tries: Mapping[tuple[int, int], int]) -> bool | None:
        """Rank 0: waits a while for a replica that can still be offered the version.

        Args:
            served: generations of the replicas that have it.
            tries: how often each generation of each replica was offered it.

        Returns:
            True if there is one, None if one may still come, False if none will. That takes a while to say when an
            engine does not answer: the run may not have noticed yet that it is gone.
        """
        if not self._settings.is_live:
            return False

        def can_be_asked(members: Collection[Member]) -> bool:
            return any(
                member.is_ready
                and served.get(member.replica) != member.generation
                and tries.get((member.replica, member.generation), 0) < TRIES
                for member in members
            )

        pool = Pool(self._client())
        members = pool.members()
        if not can_be_asked(members) and all(self._has_it_or_refuses(member, served) for member in members):
            return False
        try:
            pool.wait(can_be_asked, timeout_s=SLICE_S, what="another engine")
        except ControlError:
            # A control service that has gone is an error, one that has no news is none.
            return False if all(member.is_ready for member in pool.members()) else None
        return True

    def _has_it_or_refuses(self, member: Member, served: Mapping[int, int]) -> bool:
        if not member.is_ready or served.get(member.replica) == member.generation:
            return member.is_ready
        try:
            for known in _ready([member]):
                self.client(known).call("info", timeout_s=ASK_EVERY_S)
        except TransferError:
            return False
        return True

    def why_gone(self, replica: ReplicaClient) -> str | None:
        """Why a replica that is being talked to will not answer any more; None if it may. Asks only now and then."""
        if not self._settings.is_live:
            return None
        with self._lock:
            if time.monotonic() - self._asked_at > ASK_EVERY_S:
                self._asked_at = time.monotonic()
                try:
                    self._now = {member.replica: member for member in Pool(self._client()).members()}
                except ControlError as error:
                    return str(error)
        member = self._now.get(replica.index)
        if member is not None and member.is_ready and member.generation == replica.generation:
            return None
        return f"Replica {replica.index} is lost" + ("." if member is None else f": it is {member.state}.")

    def published(self, version: int, served: Mapping[int, int], fields: Mapping[str, Any]) -> None:
        """Rank 0: writes down which replicas serve a version, and tells the run of which generation they are.

        The journal of commits is the run's event log: ``published``, for an adapter ``adapter_published``. Without a
        run it is the file of the settings, if they name one, with the same lines.
        """
        said: dict[str, Any] = {"version": version, "replicas": sorted(served), **fields}
        event = "published"
        if self._adapter is not None:
            event, said = "adapter_published", {"adapter": self._adapter, **said}
        if not self._settings.is_live:
            if self._settings.journal is not None:
                with self._settings.journal.open("a") as file:
                    file.write(json.dumps({"time": time.time(), "event": event, **said}) + "\n")
        elif self._adapter is not None:
            self._client().call("event", event=event, fields=said)
        else:
            self._client().call(
                event,
                incarnation=self._settings.incarnation,
                version=version,
                replicas={str(index): generation for index, generation in served.items()},
                fields=dict(fields),
            )

    def close(self) -> None:
        """Ends the connection; the next question opens another one."""
        if self._control is not None:
            self._control.close()

    def _client(self) -> ControlClient:
        if self._control is None:
            self._control = ControlClient.from_environment()
        return self._control


def too_few(version: int, served: int, known: int, wanted: int, failures: Mapping[int, str]) -> TransferError:
    """The error when not enough replicas took a version."""
    return TransferError(
        f"Version {version} was taken by {served} of {known} replicas, but {wanted} must: {' '.join(failures.values())}"
    )


def _ready(members: Collection[Member]) -> list[Known]:
    return [
        Known(replica=member.replica, generation=member.generation, url=member.url)
        for member in members
        if member.is_ready and member.url is not None
    ]
