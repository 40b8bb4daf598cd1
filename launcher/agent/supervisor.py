"""Watches a node's processes and ends them; in this form any failure ends the whole run."""

from __future__ import annotations

import logging
import os
import signal
import time

from launcher.agent.beats import Beats
from launcher.agent.context import NodeContext
from launcher.agent.proctree import reap_adopted
from launcher.agent.readiness import Readiness
from launcher.agent.reports import Reports
from launcher.agent.starter import MODEL_HELPER, Starter
from launcher.agent.stop_request import StopRequest
from launcher.agent.worker import Worker, stop
from launcher.control.client import ControlClient
from launcher.control.state import ENDED, Phase, replica_key
from launcher.errors import ControlError, ProcessFailure
from launcher.layout import Role

logger = logging.getLogger(__name__)


class Supervisor:
    """One node's part of the run, as a loop over a few questions; each is answered quickly, so that none waits."""

    def __init__(self, context: NodeContext, client: ControlClient, beats: Beats) -> None:
        self._context = context
        self._config = context.config
        self._client = client
        self._beats = beats
        self._reports = Reports(context, client)
        self._starter = Starter(context, client, self._reports)
        self._workers: list[Worker] = []
        self._running: list[Worker] = []
        self._readiness: dict[int, Readiness] = {}
        self._ready: set[int] = set()
        self._is_done = False

    def supervise(self, request: StopRequest, poll_s: float) -> None:
        """Runs until the job has ended, well or badly; nothing that was started here is left then.

        Raises:
            ControlError: node 0 fell silent.
        """
        has_asked = False
        try:
            while True:
                if request.signal is not None and not has_asked:
                    has_asked = True
                    self._ask_for_the_end(request.signal)
                if self._beats.lost is not None:
                    raise ControlError(f"Node 0 is lost: {self._beats.lost}")
                phase = self._beats.phase
                if phase in ENDED:
                    break
                if phase is Phase.DRAINING:
                    self._drain()
                    break
                try:
                    if phase is Phase.RUNNING or self._config.preflight.action == "off":
                        self._watch(self._starter.start_ready(all_nodes_up=phase is Phase.RUNNING))
                    self._check_workers()
                    self._check_engines()
                except ProcessFailure as error:
                    logger.error("%s", error)
                    break
                reap_adopted({worker.pid for worker in self._running})
                time.sleep(poll_s)
        finally:
            stop(self._workers, self._config.stop_grace_s)
            for readiness in self._readiness.values():
                readiness.close()
        self._client.call("gone", node_rank=self._context.node.node_rank)

    def _watch(self, started: list[Worker]) -> None:
        self._workers += started
        self._running += started

    def _ask_for_the_end(self, signum: signal.Signals) -> None:
        if os.getppid() != self._context.guard:
            self._reports.guard_killed()
            return
        hint = ", time limit or preemption" if signum is signal.SIGUSR2 else ""
        self._client.call("cancel", reason=f"{signum.name}{hint}")

    def _check_workers(self) -> None:
        """Notices every end. A trainer or a helper may end with 0; an engine may not end at all before the drain.

        Raises:
            ProcessFailure: a worker ended badly; the run has been told.
        """
        for worker in list(self._running):
            code = worker.poll()
            if code is None:
                continue
            self._running.remove(worker)
            self._reports.ended(worker)
            if code != 0 or worker.process.role is Role.INFERENCE:
                raise self._reports.ended_badly(worker)
            if worker.process.name == MODEL_HELPER:
                self._reports.model_ready(made=True)
        if not self._is_done and self._trainers_have_ended():
            self._is_done = True
            self._client.call("done", node_rank=self._context.node.node_rank)

    def _trainers_have_ended(self) -> bool:
        planned = [process for process in self._context.node.processes if process.role is Role.TRAINER]
        started = [worker for worker in self._workers if worker.process.role is Role.TRAINER]
        return bool(planned) and len(started) == len(planned) and not set(started) & set(self._running)

    def _check_engines(self) -> None:
        """Follows engines that are starting.

        Raises:
            EngineTimeout: one is not ready within ``inference.ready_timeout_s``; the run has been told.
        """
        timeout_s = self._config.inference.ready_timeout_s
        for worker in self._running:
            process = worker.process
            if process.role is not Role.INFERENCE or process.replica_rank != 0 or process.rank in self._ready:
                continue
            readiness = self._readiness.get(process.rank)
            if readiness is None:
                key = replica_key(process.rank, "url")
                if (url := self._client.call("get", keys=[key])["values"].get(key)) is not None:
                    self._readiness[process.rank] = Readiness(url)
            elif readiness.is_ready:
                self._ready.add(process.rank)
                self._reports.engine_ready(worker, readiness.url)
                continue
            if worker.age_s() > timeout_s:
                raise self._reports.not_ready(worker, timeout_s)

    def _drain(self) -> None:
        """The trainer is done: engines end first and by themselves, so that nothing of theirs is cut off."""
        engines = [worker for worker in self._running if worker.process.role is Role.INFERENCE]
        if engines:
            logger.info("the trainer is done; stopping %d engine processes", len(engines))
        stop(engines, self._config.inference.drain_timeout_s)
        for worker in engines:
            self._reports.ended(worker)
