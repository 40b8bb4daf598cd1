"""Runs a node's assigned processes, reports what happens, and leaves nothing behind when it is over."""

from __future__ import annotations

import logging
import os
import signal
import time

from launcher.common.errors import ControlError
from launcher.common.procfs import reap_adopted
from launcher.control.model import ENDED, Assignment, Phase, ReplicaAssignment, StopStage, TrainerAssignment
from launcher.control.protocol import NodeLeftRequest
from launcher.layout import Role
from launcher.node.context import NodeContext
from launcher.node.health import Health
from launcher.node.heartbeat import Heartbeat
from launcher.node.monitor import ProcessMonitor
from launcher.node.process import WorkerGroup, WorkerProcess, stop
from launcher.node.reporter import Outbox, Reporter
from launcher.node.signals import StopRequest
from launcher.node.spawn import MODEL_HELPER, Spawner

logger = logging.getLogger(__name__)

FAILING_S = 1.0
"""So long nobody must answer before it counts, when there is little time."""

REFUSED_S = 5.0
"""An engine whose core has died ends by itself within this, or not soon."""

LAST_WORDS_S = 5.0
"""Longest wait, after everything has ended here, until the last reports have been sent."""


class NodeSupervisor:
    """One node's part of the run, as a loop over a few questions; each is answered quickly, so that none waits."""

    def __init__(self, context: NodeContext, outbox: Outbox, heartbeat: Heartbeat) -> None:
        self._context = context
        self._config = context.config
        self._outbox = outbox
        self._heartbeat = heartbeat
        self._reporter = Reporter(context, outbox)
        self._spawner = Spawner(context, self._reporter)
        self._monitor = ProcessMonitor()
        self._helpers: list[WorkerProcess] = []
        self._has_helpers = False
        self._trainers: WorkerGroup | None = None
        self._engines: dict[int, WorkerGroup] = {}
        self._health: dict[int, Health] = {}
        self._done: int | None = None
        """The incarnation of the trainers whose good end has been reported."""

    def supervise(self, request: StopRequest, poll_s: float) -> None:
        """Runs until the job has ended, well or badly; nothing that was started here is left then.

        Raises:
            ControlError: node 0 fell silent, or counts this node as lost.
        """
        told: set[signal.Signals] = set()
        grace_s = self._config.stop_grace_s
        try:
            while True:
                for signum in request.signals:
                    if signum not in told:
                        told.add(signum)
                        self._report_signal(signum)
                # Before anything is started: an agent that was stopped for long must not go on where it was.
                if (lost := self._heartbeat.lost) is not None:
                    raise ControlError(f"Node 0 is lost: {lost}")
                if told and self._heartbeat.failing_s > FAILING_S:
                    # Whoever requests the end kills soon; without node 0 there is nothing to wait for.
                    names = ", ".join(signum.name for signum in told)
                    raise ControlError(f"Node 0 does not answer, and somebody asked for the end ({names}).")
                phase, assignment = self._heartbeat.phase, self._heartbeat.assignment
                self._apply_stop(assignment.stop_stage)
                if assignment.is_fenced:
                    raise ControlError("The run counts this node as lost, and goes on without it.")
                if phase in ENDED:
                    break
                if phase is Phase.DRAINING:
                    self._drain()
                    break
                if phase is Phase.RUNNING or self._config.preflight.action == "off":
                    self._start_helpers()
                    self._apply_assignment(assignment)
                self._check_helpers()
                self._check_units()
                self._check_engines()
                self._check_stopped()
                reap_adopted({worker.pid for worker in self._running()})
                time.sleep(poll_s)
        except ControlError:
            # Others may have taken this node's place: what runs here must not go on beside them.
            grace_s = 0.0
            raise
        finally:
            self._end_everything(grace_s)
        self._outbox.send(NodeLeftRequest(node_rank=self._context.node_rank))
        self._outbox.flush(LAST_WORDS_S)

    def _start_helpers(self) -> None:
        """Node 0 only, once: the trainers' store, and what makes the model if none was given."""
        if self._has_helpers or self._context.node_rank != 0:
            return
        self._has_helpers = True
        self._helpers.append(self._spawner.start_store(0))
        if (model := self._spawner.start_model()) is not None:
            self._helpers.append(model)

    def _report_signal(self, signum: signal.Signals) -> None:
        if os.getppid() != self._context.shim:
            self._reporter.shim_killed()
            return
        self._reporter.signalled(signum)

    def _apply_stop(self, stage: StopStage) -> None:
        """Tells the trainers of this node that the run shall stop; ends the engines once all trainers know."""
        if stage is StopStage.NO:
            return
        if not self._context.stop_file.exists():
            self._context.stop_file.touch()
        if stage is StopStage.ACKNOWLEDGED:
            for unit in self._engines.values():
                unit.stop(self._config.inference.drain_timeout_s)

    def _apply_assignment(self, assignment: Assignment) -> None:
        """Ends what is of an earlier start, and starts what may be."""
        if assignment.slot is None:
            return
        if self._trainers is None and not self._engines:
            self._take_slot(assignment.slot)
        if (
            self._trainers is not None
            and assignment.trainers is not None
            and self._may_start(self._trainers, assignment.trainers)
        ):
            self._spawner.start_trainers(self._trainers, assignment.trainers)
        for index, unit in self._engines.items():
            order = assignment.replicas[index]
            if unit.start != order.restart_count and index in self._health:
                self._health.pop(index).close()
            if self._may_start(unit, order):
                self._spawner.start_engine(unit, order)

    def _take_slot(self, place: int) -> None:
        processes = self._context.layout.nodes[place].processes
        trainers = [process for process in processes if process.role is Role.TRAINER]
        self._trainers = WorkerGroup(Role.TRAINER, trainers) if trainers else None
        for process in processes:
            if process.role is Role.INFERENCE:
                self._engines[process.rank] = WorkerGroup(Role.INFERENCE, [process])

    def _may_start(self, unit: WorkerGroup, order: TrainerAssignment | ReplicaAssignment) -> bool:
        """Whether a group can be started; an earlier start of it is ended first."""
        if unit.start == order.restart_count:
            return False
        if unit.running:
            unit.stop(self._config.stop_grace_s)
            return False
        return order.may_start and not self._context.stop_file.exists()

    def _check_helpers(self) -> None:
        for worker in list(self._helpers):
            if worker.poll() is None:
                continue
            self._helpers.remove(worker)
            self._reporter.ended(worker)
            if worker.process.name == MODEL_HELPER and worker.poll() == 0:
                self._reporter.model_ready(made=True)
                continue
            logger.error("%s", self._reporter.ended_badly(worker))
            if worker.process.name != MODEL_HELPER:
                self._helpers.append(self._spawner.start_store(worker.start + 1))

    def _check_units(self) -> None:
        """Notices every end. A trainer may end with 0; an engine may not end at all before the drain."""
        for unit in self._units():
            was_stopping = unit.is_stopping
            for worker in unit.advance():
                self._reporter.ended(worker)
                self._monitor.ended(worker)
                if not was_stopping and (worker.poll() != 0 or unit.role is Role.INFERENCE):
                    logger.error("%s", self._reporter.ended_badly(worker))
        trainers = self._trainers
        if trainers is not None and self._done != trainers.start and trainers.has_ended_well:
            self._done = trainers.start
            assert trainers.start is not None
            self._reporter.done(trainers.start)

    def _check_engines(self) -> None:
        """Follows the engines whose HTTP server is on this node."""
        inference, restart = self._config.inference, self._config.restart
        for index, unit in self._engines.items():
            order = self._heartbeat.assignment.replicas.get(index)
            if order is None or unit.is_stopping or unit.start != order.restart_count:
                continue
            for worker in unit.running:
                if worker.process.replica_rank != 0:
                    continue
                health = self._health.get(index)
                if health is None and order.url is not None:
                    health = self._health[index] = Health(order.url)
                if health is not None and health.is_ready:
                    if not unit.is_ready:
                        unit.is_ready = True
                        self._reporter.engine_ready(worker, health.url)
                    if health.silent_s() > restart.engine_health_timeout_s:
                        logger.error("%s", self._reporter.hangs(worker, health.silent_s()))
                        unit.stop(0.0)
                    elif health.refused_s() > REFUSED_S:
                        logger.error("%s", self._reporter.refuses(worker, health.refused_s()))
                        unit.stop(0.0)
                elif worker.age_s() > inference.ready_timeout_s:
                    logger.error("%s", self._reporter.not_ready(worker, inference.ready_timeout_s))
                    unit.stop(0.0)

    def _check_stopped(self) -> None:
        stopped_s = self._config.restart.stopped_process_timeout_s
        for worker in self._monitor.poll(self._running(), stopped_s):
            unit = next((unit for unit in self._units() if worker in unit.running), None)
            if unit is None:
                worker.kill()  # a helper, whose end is noticed
            elif not unit.is_stopping:
                logger.error("%s", self._reporter.stopped(worker, stopped_s))
                unit.stop(0.0)

    def _drain(self) -> None:
        """The trainer is done: engines end first and by themselves, so that nothing of theirs is cut off."""
        engines = [worker for unit in self._engines.values() for worker in unit.running]
        if engines:
            logger.info("the trainer is done; stopping %d engine processes", len(engines))
        stop(engines, self._config.inference.drain_timeout_s)
        for worker in engines:
            self._reporter.ended(worker)

    def _end_everything(self, grace_s: float) -> None:
        workers = [*(worker for unit in self._units() for worker in unit.running), *self._helpers]
        stop(workers, grace_s)
        for worker in workers:
            self._monitor.ended(worker)
        self._monitor.wait_ended()
        for health in self._health.values():
            health.close()

    def _units(self) -> list[WorkerGroup]:
        return [*([] if self._trainers is None else [self._trainers]), *self._engines.values()]

    def _running(self) -> list[WorkerProcess]:
        return [*(worker for unit in self._units() for worker in unit.running), *self._helpers]
