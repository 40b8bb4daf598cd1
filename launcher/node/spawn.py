"""Starts a node's processes as assigned, each with its complete environment, as soon as what they need is known."""

from __future__ import annotations

# The agent's own; a worker that starts a run of its own must not inherit them.
import logging
import os
from collections.abc import Mapping

from launcher.common import env
from launcher.common.keys import api_key
from launcher.common.ports import hold_free_port, port_of
from launcher.control.model import STORE_HELPER, ReplicaAssignment, TrainerAssignment
from launcher.layout import Process, Role
from launcher.node.context import NodeContext
from launcher.node.devices import CUDA, visible_devices
from launcher.node.process import WorkerGroup, WorkerProcess
from launcher.node.reporter import Reporter

logger = logging.getLogger(__name__)

OWN = (env.LAUNCHER_LOCAL_NODE_RANK, env.LAUNCHER_LOCAL_HOSTNAMES, env.LAUNCHER_SCRATCH, env.LAUNCHER_EXIT_FILE)

# srun's MPI plug-in describes the agent's task in these; every rank of the node would take them for its own.
MPI_PREFIXES = ("PMI_", "PMIX_", "SLURM_PMI_", "SLURM_PMIX_")


def worker_environment(context: NodeContext, process: Process, runtime: Mapping[str, str]) -> dict[str, str]:
    """Environment of one worker.

    Args:
        runtime: what depends on the role: rendezvous of the trainers, URLs of the engines.
    """
    inherited = {name: value for name, value in os.environ.items() if not _is_own(name)}
    environ = {
        **inherited,
        **context.config.cluster.env,
        **process.env,
        env.LAUNCHER_HOSTNAME: context.hostname,
        env.LAUNCHER_RUN_DIR: str(context.run_dir),
        env.LAUNCHER_ATTEMPT: str(context.attempt),
        env.LAUNCHER_ATTEMPT_DIR: str(context.attempt_dir),
        env.LAUNCHER_CONTROL: context.control,
        env.LAUNCHER_ADDRESS: context.address,
        env.LAUNCHER_MODEL_PATH: str(context.model_path),
        env.LAUNCHER_PROCESS: process.name,
        "LOGDIR": str(context.log_dir),
        "TORCHELASTIC_ERROR_FILE": str(context.log_dir / f"{process.name}.error.json"),
        "PYTHONUNBUFFERED": "1",
        env.LAUNCHER_TOKEN: context.token,
        env.LAUNCHER_STOP_FILE: str(context.stop_file),
        **runtime,
    }
    if process.role is Role.INFERENCE:
        environ["VLLM_API_KEY"] = api_key(context.token)
        if "VLLM_HOST_IP" not in process.env:
            environ["VLLM_HOST_IP"] = context.address
        if scratch := os.environ.get(env.LAUNCHER_SCRATCH):
            # vLLM leaves its sockets behind; there they go with the run.
            environ["VLLM_RPC_BASE_PATH"] = scratch
    elif process.role is Role.TRAINER:
        environ[env.LAUNCHER_INFERENCE_API_KEY] = api_key(context.token)
    devices, foreign = visible_devices(process.env.get(CUDA, ""), inherited)
    return {name: value for name, value in (environ | devices).items() if name not in foreign}


def _is_own(name: str) -> bool:
    return name in OWN or name.startswith(MPI_PREFIXES)


MODEL_HELPER = "model"


class Spawner:
    """Starts processes. Engines and trainers load side by side, so nothing waits longer than it must.

    Main thread only, like :class:`~launcher.node.process.WorkerProcess`.
    """

    def __init__(self, context: NodeContext, reporter: Reporter) -> None:
        self._context = context
        self._reporter = reporter
        self._masters_reported: dict[int, int] = {}

    def start_store(self, restart_count: int) -> WorkerProcess:
        """Node 0 only: the trainers' store."""
        return self._start(self._helper(STORE_HELPER, "launcher.node.store"), {}, restart_count)

    def start_model(self) -> WorkerProcess | None:
        """Node 0 only: what makes the tiny model, if no model was given."""
        config = self._context.config
        # It appears as a whole, so an earlier attempt has made it or not.
        if config.model.path is not None or self._context.model_path.exists():
            self._reporter.model_ready(made=False)
            return None
        self._reporter.model_begins()
        arguments = (str(self._context.model_path), "--seed", str(config.model.seed))
        return self._start(self._helper(MODEL_HELPER, "launcher.trainers.grpo.tiny_model", *arguments), {}, 0)

    def start_engine(self, group: WorkerGroup, assigned: ReplicaAssignment) -> bool:
        """Starts this node's part of a replica; False while the head of a replica over several nodes is not known."""
        (process,) = group.processes
        replica = self._context.layout.replicas[process.rank]
        runtime = {
            env.LAUNCHER_PORT: str(replica.port),
            env.LAUNCHER_RESTART_COUNT: str(assigned.restart_count),
            env.LAUNCHER_AWAITS_WEIGHTS: str(int(assigned.awaits_weights)),
        }
        if len(replica.node_ranks) > 1:
            if assigned.master is None:
                if process.replica_rank == 0 and self._masters_reported.get(replica.index) != assigned.restart_count:
                    self._masters_reported[replica.index] = assigned.restart_count
                    # vLLM binds this port itself, so it can only be held until just before.
                    with hold_free_port(self._context.address) as sock:
                        address = f"{self._context.address}:{port_of(sock)}"
                    self._reporter.master(replica.index, assigned.restart_count, address)
                return False
            runtime[env.LAUNCHER_ENGINE_MASTER] = assigned.master
        group.started(assigned.restart_count, [self._start(process, runtime, assigned.restart_count)])
        return True

    def start_trainers(self, group: WorkerGroup, assigned: TrainerAssignment) -> None:
        """Starts this node's trainer ranks."""
        assert assigned.store is not None
        host, _, port = assigned.store.rpartition(":")
        runtime = {
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": self._context.run_dir.name,
            "TORCHELASTIC_RESTART_COUNT": str(assigned.restart_count),
            env.LAUNCHER_RESTART_COUNT: str(assigned.restart_count),
            env.LAUNCHER_INFERENCE_URLS: ",".join(assigned.urls),
        }
        group.started(
            assigned.restart_count,
            [self._start(process, runtime, assigned.restart_count) for process in group.processes],
        )

    def _start(self, process: Process, runtime: Mapping[str, str], restart_count: int) -> WorkerProcess:
        environ = worker_environment(self._context, process, runtime)
        worker = WorkerProcess(process, environ, self._context.log_dir, restart_count)
        logger.info("started %s, pid %d, log %s", process.name, worker.pid, worker.log)
        self._reporter.started(worker)
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
            env={env.LAUNCHER_ROLE: Role.HELPER.value, "CUDA_VISIBLE_DEVICES": ""},
        )
