"""Starts a node's processes, each as soon as what it needs to know is known."""

from __future__ import annotations

import logging
import time

from launcher.agent.context import NodeContext
from launcher.agent.environment import worker_environment
from launcher.agent.reports import Reports
from launcher.agent.worker import Worker
from launcher.control.client import ControlClient
from launcher.control.state import ALL_URLS, MODEL_READY, STORE, replica_key
from launcher.layout import Process, Role
from launcher.ports import hold_free_port, port_of

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""Pause between questions to the control service while something is still to be started."""

MODEL_HELPER = "model"


class Starter:
    """Knows what is still to be started. Engines and trainers load side by side, so nothing waits longer than it must.

    Main thread only, like :class:`~launcher.agent.worker.Worker`.
    """

    def __init__(self, context: NodeContext, client: ControlClient, reports: Reports) -> None:
        self._context = context
        self._client = client
        self._reports = reports
        self._waiting = list(context.node.processes)
        self._next_look = 0.0
        self._has_helpers = False

    def _start_helpers(self) -> list[Worker]:
        """Node 0 only: the trainers' store, and what makes the tiny model if no model was given."""
        config = self._context.config
        helpers = [self._start(self._helper("store", "launcher.agent.store"), {})]
        if config.model.path is not None:
            self._reports.model_ready(made=False)
            return helpers
        arguments = (str(self._context.model_path), "--seed", str(config.model.seed))
        self._reports.model_begins()
        return [*helpers, self._start(self._helper(MODEL_HELPER, "launcher.grpo.tiny_model", *arguments), {})]

    def start_ready(self, *, all_nodes_up: bool) -> list[Worker]:
        """Starts what can be started now; often nothing."""
        started: list[Worker] = []
        if not self._has_helpers:
            self._has_helpers = True
            started += self._start_helpers() if self._context.node.node_rank == 0 else []
        if not self._waiting or time.monotonic() < self._next_look:
            return started
        self._next_look = time.monotonic() + LOOK_S
        for process in list(self._waiting):
            if process.role is Role.INFERENCE:
                runtime = self._engine_runtime(process)
            else:
                runtime = self._trainer_runtime() if all_nodes_up else None
            if runtime is not None:
                self._waiting.remove(process)
                started.append(self._start(process, runtime))
        return started

    def _engine_runtime(self, process: Process) -> dict[str, str] | None:
        """What an engine learns at run time; None while the head of its replica is not known."""
        replica = self._context.layout.replicas[process.rank]
        master = replica_key(replica.index, "master")
        values = self._client.call("get", keys=[MODEL_READY, master])["values"]
        if MODEL_READY not in values:
            return None
        runtime = {"LAUNCHER_PORT": str(replica.port)}
        if len(replica.node_ranks) == 1:
            return runtime
        if master not in values:
            if process.replica_rank > 0:
                return None
            # vLLM binds this port itself, so it can only be held until just before.
            with hold_free_port(self._context.address) as sock:
                values[master] = f"{self._context.address}:{port_of(sock)}"
            self._client.put(master, values[master])
        return {**runtime, "LAUNCHER_ENGINE_MASTER": values[master]}

    def _trainer_runtime(self) -> dict[str, str] | None:
        """What a trainer rank learns at run time; None while engines have not said where they listen."""
        needed = [MODEL_READY, STORE, ALL_URLS]
        values = self._client.call("get", keys=needed)["values"]
        if len(values) < len(needed):
            return None
        host, _, port = values[STORE].rpartition(":")
        return {
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": self._context.run_dir.name,
            "LAUNCHER_INFERENCE_URLS": ",".join(values[ALL_URLS]),
        }

    def _start(self, process: Process, runtime: dict[str, str]) -> Worker:
        worker = Worker(process, worker_environment(self._context, process, runtime), self._context.log_dir)
        logger.info("started %s, pid %d, log %s", process.name, worker.pid, worker.log)
        self._reports.started(worker)
        return worker

    def _helper(self, name: str, module: str, *arguments: str) -> Process:
        return Process(
            name=name,
            role=Role.HELPER,
            node_rank=self._context.node.node_rank,
            local_rank=0,
            rank=0,
            replica_rank=0,
            gpus=(),
            argv=("python", "-m", module, *arguments),
            env={"LAUNCHER_ROLE": Role.HELPER.value, "CUDA_VISIBLE_DEVICES": ""},
        )
