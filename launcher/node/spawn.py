"""Starts a node's processes, as its orders say, as soon as what they need to know is known."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from launcher.common.env import (
    LAUNCHER_AWAITS_WEIGHTS,
    LAUNCHER_ENGINE_MASTER,
    LAUNCHER_GENERATION,
    LAUNCHER_INFERENCE_URLS,
    LAUNCHER_PORT,
    LAUNCHER_RESTART,
    LAUNCHER_ROLE,
)
from launcher.common.ports import hold_free_port, port_of
from launcher.control.model import ReplicaAssignment, TrainerAssignment
from launcher.control.values import STORE_HELPER
from launcher.layout import Process, Role
from launcher.node.context import NodeContext
from launcher.node.environment import worker_environment
from launcher.node.process import WorkerGroup, WorkerProcess
from launcher.node.reporter import Reports

logger = logging.getLogger(__name__)

MODEL_HELPER = "model"


class Starter:
    """Starts processes. Engines and trainers load side by side, so nothing waits longer than it must.

    Main thread only, like :class:`~launcher.node.process.WorkerProcess`.
    """

    def __init__(self, context: NodeContext, reports: Reports) -> None:
        self._context = context
        self._reports = reports
        self._masters_told: dict[int, int] = {}

    def start_store(self, start: int) -> WorkerProcess:
        """Node 0 only: the trainers' store."""
        return self._start(self._helper(STORE_HELPER, "launcher.node.store"), {}, start)

    def start_model(self) -> WorkerProcess | None:
        """Node 0 only: what makes the tiny model, if no model was given."""
        config = self._context.config
        # It appears as a whole, so an earlier attempt has made it or not.
        if config.model.path is not None or self._context.model_path.exists():
            self._reports.model_ready(made=False)
            return None
        self._reports.model_begins()
        arguments = (str(self._context.model_path), "--seed", str(config.model.seed))
        return self._start(self._helper(MODEL_HELPER, "launcher.trainers.grpo.tiny_model", *arguments), {}, 0)

    def start_engine(self, unit: WorkerGroup, order: ReplicaAssignment) -> bool:
        """Starts this node's part of a replica; False while the head of a replica over several nodes is not known."""
        (process,) = unit.processes
        replica = self._context.layout.replicas[process.rank]
        runtime = {
            LAUNCHER_PORT: str(replica.port),
            LAUNCHER_GENERATION: str(order.restart_count),
            LAUNCHER_AWAITS_WEIGHTS: str(int(order.awaits_weights)),
        }
        if len(replica.node_ranks) > 1:
            if order.master is None:
                if process.replica_rank == 0 and self._masters_told.get(replica.index) != order.restart_count:
                    self._masters_told[replica.index] = order.restart_count
                    # vLLM binds this port itself, so it can only be held until just before.
                    with hold_free_port(self._context.address) as sock:
                        address = f"{self._context.address}:{port_of(sock)}"
                    self._reports.master(replica.index, order.restart_count, address)
                return False
            runtime[LAUNCHER_ENGINE_MASTER] = order.master
        unit.started(order.restart_count, [self._start(process, runtime, order.restart_count)])
        return True

    def start_trainers(self, unit: WorkerGroup, order: TrainerAssignment) -> None:
        """Starts this node's trainer ranks."""
        assert order.store is not None
        host, _, port = order.store.rpartition(":")
        runtime = {
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": self._context.run_dir.name,
            "TORCHELASTIC_RESTART_COUNT": str(order.restart_count),
            LAUNCHER_RESTART: str(order.restart_count),
            LAUNCHER_INFERENCE_URLS: ",".join(order.urls),
        }
        unit.started(
            order.restart_count, [self._start(process, runtime, order.restart_count) for process in unit.processes]
        )

    def _start(self, process: Process, runtime: Mapping[str, str], start: int) -> WorkerProcess:
        environ = worker_environment(self._context, process, runtime)
        worker = WorkerProcess(process, environ, self._context.log_dir, start)
        logger.info("started %s, pid %d, log %s", process.name, worker.pid, worker.log)
        self._reports.started(worker)
        return worker

    def _helper(self, name: str, module: str, *arguments: str) -> Process:
        return Process(
            name=name,
            role=Role.HELPER,
            node_rank=self._context.node_rank,
            local_rank=0,
            rank=0,
            replica_rank=0,
            gpus=(),
            argv=("python", "-m", module, *arguments),
            env={LAUNCHER_ROLE: Role.HELPER.value, "CUDA_VISIBLE_DEVICES": ""},
        )
