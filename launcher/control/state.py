"""What the run as a whole is doing: the state machine behind the control service, without any network."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from launcher.config.schema import RestartConfig
from launcher.control.checking import Checking
from launcher.control.deadlines import Deadlines
from launcher.control.ending import Ending
from launcher.control.membership import Membership
from launcher.control.ordering import orders_for
from launcher.control.orders import Orders
from launcher.control.phase import ENDED, Phase
from launcher.control.recovery import Recovery
from launcher.control.replicas import Replicas, ReplicaState
from launcher.control.starting import Starting
from launcher.control.stopping import Stopping, StopStage
from launcher.control.trainers import Trainers
from launcher.control.values import (
    ALL_URLS,
    INCARNATION,
    MODEL_READY,
    STOP_SEEN,
    STORE,
    STORE_HELPER,
    replica_key,
    store_key,
)
from launcher.events.schema import (
    CheckpointChanged,
    EngineReady,
    EnginesDraining,
    Event,
    NodeJoined,
    NodeLost,
    StepFinished,
)
from launcher.events.serialize import make_event
from launcher.layout.model import Layout, Role
from launcher.preflight.aggregate import Gate
from launcher.preflight.model import BadNode, Report

__all__ = ["ALL_URLS", "ENDED", "MODEL_READY", "STOP_SEEN", "STORE", "JobState", "Phase", "replica_key"]

Emit = Callable[[Event], None]


class JobState:
    """The one copy of the truth, kept by the agent of node 0. Not thread-safe: one event loop owns it.

    What each node is to run follows from it, as that node's :meth:`orders`: agents report what happened and do what
    the orders say; they decide nothing.

    Args:
        layout: the attempt's layout; says which places there are and what role each has.
        emit: called with each event, in order.
        start_timeout_s: longest wait for all nodes to report.
        lease_timeout_s: a node silent for longer is lost.
        gate: judges the nodes before anything is started; without one the last node to report starts the run.
        check_timeout_s: longest wait for all nodes' reports to the gate.
        bad_nodes_fail: a bad node may not take part; else it is only reported.
        restart: what is started again, and how often.
        min_replicas: replicas without which training cannot go on.
        stopping: how long is waited for a checkpoint.
        on_signal: called with the name of a signal that a node received.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        layout: Layout,
        emit: Emit,
        *,
        start_timeout_s: float,
        lease_timeout_s: float,
        gate: Gate | None = None,
        check_timeout_s: float = 60.0,
        bad_nodes_fail: bool = True,
        restart: RestartConfig | None = None,
        min_replicas: int = 1,
        stopping: Stopping | None = None,
        on_signal: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        restart = restart or RestartConfig()
        self.phase = Phase.STARTING
        self.values: dict[str, Any] = {INCARNATION: 0}
        self.touched: set[int] = set()
        """Nodes whose orders have changed since somebody cleared this."""

        self.members = Membership(layout, lease_timeout_s)
        self.replicas = Replicas(layout.replicas, restart, self.emit)
        self.trainers = Trainers(
            restart=restart,
            places=frozenset(
                node.node_rank for node in layout.nodes if any(p.role is Role.TRAINER for p in node.processes)
            ),
            world_size=layout.world_size,
        )
        self._checking = (
            None
            if gate is None
            else Checking(layout, gate, timeout_s=check_timeout_s, bad_nodes_fail=bad_nodes_fail, emit=self.emit)
        )
        self.stopping = stopping or Stopping()
        self._on_signal = on_signal
        self._layout = layout
        self._recovery = Recovery(self, min_replicas)
        self._starting = Starting(self, layout, self._recovery, self._checking, start_timeout_s)
        self.ending = Ending(self)
        self._deadlines = Deadlines(
            self, layout, self._starting, self._recovery, start_timeout_s, lease_timeout_s, clock()
        )
        self._url_keys = {replica_key(replica.index, "url"): replica.index for replica in layout.replicas}
        self._urls: dict[int, str] = {}
        self._revisions: dict[int, int] = {}
        self._emit = emit
        self._clock = clock

    def emit(self, event: Event | str, **fields: Any) -> None:
        """Logs one event, given as it is or by the name and the fields of its kind, with the time of this host."""
        event = make_event(event, fields) if isinstance(event, str) else event
        if isinstance(event, StepFinished):
            self.trainers.progress(self._clock(), is_step=True)
        elif isinstance(event, CheckpointChanged):
            self.stopping.checkpoint(event.state, self._clock())
        self._emit(dataclasses.replace(event, time=time.time()))

    def hello(self, node: int, hostname: str, address: str) -> None:
        """A node reports. The one that fills the last place starts the run."""
        self.members.check(node)
        if not self.members.seen(node, self._clock()):
            return
        place = self.members.place_of(node)
        holder = None if place is None else self._layout.nodes[place]
        self.members.hostnames[node] = hostname
        self.values[f"node/{node}/address"] = address
        self.emit(
            NodeJoined(
                node_rank=node,
                hostname=hostname,
                role="spare" if holder is None else holder.role.value,
                role_rank=None if holder is None else holder.role_rank,
                address=address,
            )
        )
        self._starting.start_if_complete(self._clock())

    @property
    def bad_nodes(self) -> tuple[BadNode, ...]:
        """What the look at every node found."""
        return () if self._checking is None else self._checking.bad_nodes

    def preflight(self, report: Report) -> None:
        """A node says what it found. The last one to do so starts the run, or ends it."""
        if self._checking is not None:
            self._checking.add(report)
            self._starting.judge_if_due(self._clock())

    def orders(self, node: int) -> Orders:
        """What a node is to run."""
        return orders_for(self, node)

    def revision(self, node: int) -> int:
        """Rises whenever a node's orders change."""
        return self._revisions.get(node, 0)

    def put(self, key: str, value: Any) -> None:
        """Publishes a value. Once each replica has said where it listens, :data:`ALL_URLS` holds all of them."""
        self.values[key] = value
        if key in self._url_keys:
            index = self._url_keys[key]
            self._urls[index] = str(value)
            self.replicas.lives[index].url = str(value)
            self.touch(self.replicas.lives[index].replica.node_ranks)
            self.gather_urls()
        elif key in (MODEL_READY, store_key(self.trainers.incarnation)):
            self.touch_all()
        elif key == STOP_SEEN:
            self.stopping.seen()
            self.touch_all()

    def master(self, index: int, generation: int, address: str) -> None:
        """The head of a replica over several nodes says where its parts meet."""
        life = self.replicas.lives[index]
        if generation == life.generation:
            life.master = address
            self.touch(life.replica.node_ranks)

    def beat(self, node: int) -> None:
        """A node renews its lease."""
        self.members.check(node)
        self.members.seen(node, self._clock())

    def engine_ready(self, index: int, generation: int, url: str, seconds: float) -> None:
        """An engine answers."""
        if self.replicas.ready(index, generation, url):
            self.emit(EngineReady(replica=index, url=url, seconds=seconds, restart_count=generation))
            self.values[replica_key(index, "ready")] = True

    def published(self, incarnation: int, version: int, replicas: dict[int, int], fields: dict[str, Any]) -> None:
        """The trainers' bridge says which generation of which replicas serves a version."""
        if incarnation != self.trainers.incarnation:
            return
        if self.replicas.published((incarnation, version), list(replicas), list(replicas.values())):
            self.trainers.progress(self._clock(), is_step=False)
            dropped = [life.replica.index for life in self.replicas.lives if life.replica.index not in replicas]
            self.emit("published", **fields, version=version, replicas=sorted(replicas), dropped=dropped)

    def ended(
        self, node: int, role: str, rank: int, start: int, exit_code: int | None, failure: dict[str, Any]
    ) -> None:
        """A process ended that should not have, or not like this.

        Args:
            node: where.
            role: of the process; ``store`` for the trainers' store.
            rank: trainer rank, or index of the replica.
            start: incarnation or generation that it belonged to.
            exit_code: negative for a signal; None if it was found hanging, and killed for that.
            failure: what to say if this is the end of the run.
        """
        if self.phase in ENDED or self.phase is Phase.DRAINING or node in self.members.lost:
            return
        now = self._clock()
        if self.stopping.stage is not StopStage.NO:
            self.ending.process_ended(role, failure, now)
        elif role == Role.INFERENCE:
            life = self.replicas.lives[rank]
            if start == life.generation and life.runs:
                self._recovery.engine_ended(life, failure, exit_code, now)
        elif role == STORE_HELPER:
            self._recovery.store_ended(failure, now)
        elif role != Role.TRAINER:
            self.fail(failure)
        elif start == self.trainers.incarnation:
            self._recovery.trainer_ended(failure, exit_code, now)

    def node_done(self, node: int, incarnation: int) -> None:
        """Every trainer rank of a node ended well."""
        place = self.members.place_of(node)
        if place is None or incarnation != self.trainers.incarnation or self.phase is not Phase.RUNNING:
            return
        self.trainers.done.add(place)
        if self.trainers.are_done:
            self.phase = Phase.DRAINING
            self.emit(EnginesDraining())

    def node_gone(self, node: int) -> None:
        """A node has ended all its processes and leaves."""
        self.members.gone.add(node)
        if self.phase is Phase.DRAINING and self.everybody_gone:
            # A trainer that ended without having seen the wish had finished.
            self.phase = Phase.STOPPED if self.stopping.stage is StopStage.SEEN else Phase.FINISHED

    def node_lost(self, node: int, failure: dict[str, Any]) -> None:
        """A node takes no part any more: it fell silent, or says itself that it cannot go on."""
        self.members.check(node)
        if node in self.members.lost:
            return
        if node == 0:
            # The control service is there: without it nothing goes on.
            self.members.gone.add(node)
            self.fail(failure)
            return
        reason = str(failure["message"])
        place = self.members.lose(node)
        self._touch_nodes([node])
        if self.phase in ENDED:
            self.fail(failure)  # logged as the consequence that it is
            return
        role = "spare" if place is None else self._layout.nodes[place].role.value
        self.emit(NodeLost(node_rank=node, hostname=self.members.hostnames[node], role=role, reason=reason))
        if self.phase is Phase.DRAINING:
            self.node_gone(node)
        elif place is not None:
            self._recovery.refill(place, role, failure, self._clock())
            self._starting.start_if_complete(self._clock())

    def fail(self, failure: dict[str, Any]) -> None:
        """The first failure is the failure; what comes later is logged as a consequence."""
        self.ending.fail(failure, self._clock())

    def signalled(self, name: str) -> None:
        """A node received a signal that asks for the end; what follows is for node 0's agent to find out."""
        if self._on_signal is not None:
            self._on_signal(name)

    def stop(self, reason: str) -> None:
        """Somebody asked for a checkpoint and the end, or will end the run soon. Asked again, it changes nothing."""
        self.ending.stop(reason, self._clock())

    def cancel(self, reason: str) -> None:
        """Somebody asked for the end."""
        self.ending.cancel(reason)

    def tick(self) -> None:
        """Turns silence and hangs into failures, and starts what has waited long enough. Called about once a second."""
        self._deadlines.look(self._clock())

    def touch(self, places: Iterable[int]) -> None:
        """The nodes on these places have new orders."""
        self._touch_nodes(node for place in places if (node := self.members.node_at(place)) is not None)

    def touch_all(self) -> None:
        """Every node that holds a place has new orders."""
        self.touch(range(len(self._layout.nodes)))

    def gather_urls(self) -> None:
        """One value with the URLs of all replicas, as soon as each that is not dropped has said its own."""
        lives = [life for life in self.replicas.lives if life.state is not ReplicaState.DROPPED]
        indices = [life.replica.index for life in lives]
        if indices and all(index in self._urls for index in indices):
            is_new = ALL_URLS not in self.values
            self.values[ALL_URLS] = [self._urls[index] for index in indices]
            if is_new:
                self.touch(self.trainers.places)

    def trainers_may_start(self) -> bool:
        """Whether everything is there that trainer ranks need to know; from then on they count as started."""
        needed = (MODEL_READY, store_key(self.trainers.incarnation), ALL_URLS)
        may = self.phase is Phase.RUNNING and all(key in self.values for key in needed)
        if may and self.trainers.started_at is None:
            self.trainers.started_at = self._clock()
        return may

    @property
    def failure(self) -> dict[str, Any] | None:
        """What ended the run; None while nothing has."""
        return self.ending.failure

    @property
    def everybody_gone(self) -> bool:
        """True once each node that ever reported has left, or is lost."""
        return self.members.everybody_gone

    def _touch_nodes(self, nodes: Iterable[int]) -> None:
        for node in nodes:
            self._revisions[node] = self._revisions.get(node, 0) + 1
            self.touched.add(node)
