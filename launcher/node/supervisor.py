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
from launcher.node.health import HealthMonitor
from launcher.node.heartbeat import Heartbeat
from launcher.node.monitor import ProcessMonitor
from launcher.node.process import WorkerGroup, WorkerProcess, stop
from launcher.node.reporter import Outbox, Reporter
from launcher.node.signals import StopRequest
from launcher.node.spawn import MODEL_HELPER, Spawner

logger = logging.getLogger(__name__)

FAILING_S = 1.0
"""After a signal to end there is little time: node 0 counts as lost after so long without a reply."""

REFUSED_S = 5.0
"""A server whose engine core has died ends by itself within this, or hangs."""

FLUSH_TIMEOUT_S = 5.0
"""Longest wait, after everything has ended here, until the last reports have been sent."""


class NodeSupervisor:
    """One node's part of the run: a loop of checks, none of which blocks."""

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
        self._health: dict[int, HealthMonitor] = {}
        self._done: int | None = None
        """Restart count of the trainers whose end with exit code 0 has been reported."""

    def supervise(self, request: StopRequest, poll_s: float) -> None:
        """Runs until the job has ended, well or badly; nothing that was started here is left then.

        Raises:
            ControlError: node 0 no longer answers, or counts this node as lost.
        """
        reported: set[signal.Signals] = set()
        grace_s = self._config.stop_grace_s
        try:
            while True:
                for signum in request.signals:
                    if signum not in reported:
                        reported.add(signum)
                        self._report_signal(signum)
                # Before anything is started: an agent that was stopped for long must not go on where it was.
                if (lost := self._heartbeat.lost) is not None:
                    raise ControlError(f"Node 0 is lost: {lost}")
                if reported and self._heartbeat.failing_s > FAILING_S:
                    # SIGKILL follows soon, and without node 0 there is nothing to wait for.
                    names = ", ".join(signum.name for signum in reported)
                    raise ControlError(f"Node 0 does not answer, and the end was requested ({names}).")
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
                self._check_groups()
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
        self._outbox.put(NodeLeftRequest(node_rank=self._context.node_rank))
        self._outbox.flush(FLUSH_TIMEOUT_S)

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
        """Makes the stop file, which the trainers of this node poll; ends the engines once all ranks have seen it."""
        if stage is StopStage.NO:
            return
        if not self._context.stop_file.exists():
            self._context.stop_file.touch()
        if stage is StopStage.ACKNOWLEDGED:
            for group in self._engines.values():
                group.stop(self._config.inference.drain_timeout_s)

    def _apply_assignment(self, assignment: Assignment) -> None:
        """Ends processes with an earlier restart count, and starts those that may start."""
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
        for index, group in self._engines.items():
            assigned = assignment.replicas[index]
            if group.restart_count != assigned.restart_count and index in self._health:
                self._health.pop(index).close()
            if self._may_start(group, assigned):
                self._spawner.start_engine(group, assigned)

    def _take_slot(self, slot: int) -> None:
        processes = self._context.layout.nodes[slot].processes
        trainers = [process for process in processes if process.role is Role.TRAINER]
        self._trainers = WorkerGroup(Role.TRAINER, trainers) if trainers else None
        for process in processes:
            if process.role is Role.INFERENCE:
                self._engines[process.rank] = WorkerGroup(Role.INFERENCE, [process])

    def _may_start(self, group: WorkerGroup, assigned: TrainerAssignment | ReplicaAssignment) -> bool:
        """Whether a group can be started; its processes with an earlier restart count are ended first."""
        if group.restart_count == assigned.restart_count:
            return False
        if group.running:
            group.stop(self._config.stop_grace_s)
            return False
        return assigned.may_start and not self._context.stop_file.exists()

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
                self._helpers.append(self._spawner.start_store(worker.restart_count + 1))

    def _check_groups(self) -> None:
        """Reports every end. A trainer may end with 0; an engine may not end before the drain."""
        for group in self._groups():
            was_stopping = group.is_stopping
            for worker in group.advance():
                self._reporter.ended(worker)
                self._monitor.ended(worker)
                if not was_stopping and (worker.poll() != 0 or group.role is Role.INFERENCE):
                    logger.error("%s", self._reporter.ended_badly(worker))
        trainers = self._trainers
        if trainers is not None and self._done != trainers.restart_count and trainers.has_ended_well:
            self._done = trainers.restart_count
            assert trainers.restart_count is not None
            self._reporter.done(trainers.restart_count)

    def _check_engines(self) -> None:
        """Checks the engines whose HTTP server is on this node."""
        inference, restart = self._config.inference, self._config.restart
        for index, group in self._engines.items():
            assigned = self._heartbeat.assignment.replicas.get(index)
            if assigned is None or group.is_stopping or group.restart_count != assigned.restart_count:
                continue
            for worker in group.running:
                if worker.process.replica_rank != 0:
                    continue
                health = self._health.get(index)
                if health is None and assigned.url is not None:
                    health = self._health[index] = HealthMonitor(assigned.url)
                if health is not None and health.is_ready:
                    if not group.is_ready:
                        group.is_ready = True
                        self._reporter.engine_ready(worker, health.url)
                    if health.silent_s() > restart.engine_health_timeout_s:
                        logger.error("%s", self._reporter.hangs(worker, health.silent_s()))
                        group.stop(0.0)
                    elif health.refused_s() > REFUSED_S:
                        logger.error("%s", self._reporter.refuses(worker, health.refused_s()))
                        group.stop(0.0)
                elif worker.age_s() > inference.ready_timeout_s:
                    logger.error("%s", self._reporter.not_ready(worker, inference.ready_timeout_s))
                    group.stop(0.0)

    def _check_stopped(self) -> None:
        stopped_s = self._config.restart.stopped_process_timeout_s
        for worker in self._monitor.poll(self._running(), stopped_s):
            group = next((group for group in self._groups() if worker in group.running), None)
            if group is None:
                worker.kill()  # a helper; _check_helpers reports its end
            elif not group.is_stopping:
                logger.error("%s", self._reporter.stopped(worker, stopped_s))
                group.stop(0.0)

    def _drain(self) -> None:
        """The trainer is done: engines get SIGTERM first, and finish their requests."""
        engines = [worker for group in self._engines.values() for worker in group.running]
        if engines:
            logger.info("the trainer is done; stopping %d engine processes", len(engines))
        stop(engines, self._config.inference.drain_timeout_s)
        for worker in engines:
            self._reporter.ended(worker)

    def _end_everything(self, grace_s: float) -> None:
        workers = [*(worker for group in self._groups() for worker in group.running), *self._helpers]
        stop(workers, grace_s)
        for worker in workers:
            self._monitor.ended(worker)
        self._monitor.wait_ended()
        for health in self._health.values():
            health.close()

    def _groups(self) -> list[WorkerGroup]:
        return [*([] if self._trainers is None else [self._trainers]), *self._engines.values()]

    def _running(self) -> list[WorkerProcess]:
        return [*(worker for group in self._groups() for worker in group.running), *self._helpers]
