"""Starts a node's share of the layout, watches it, and ends it; any failure ends the whole job."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.agent.beats import Beats
from launcher.agent.environment import worker_environment
from launcher.agent.readiness import Readiness
from launcher.agent.worker import Worker, stop, tail
from launcher.config.schema import Config
from launcher.control.client import ControlClient
from launcher.control.state import ENDED, Phase
from launcher.errors import ControlError, EngineTimeout, ProcessFailure
from launcher.layout import Layout, Process, Replica, Role
from launcher.ports import hold_free_port, port_of
from launcher.run_dir import attempt_dir, model_path

if TYPE_CHECKING:
    from launcher.agent.agent import StopRequest

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""Pause between questions to the control service while something is still to be started."""


class Supervisor:
    """One node's part of the run, as a loop over a few questions; each step is quick and the loop never blocks."""

    def __init__(
        self,
        *,
        config: Config,
        layout: Layout,
        node_rank: int,
        run_dir: Path,
        attempt: int,
        address: str,
        token: str,
        client: ControlClient,
        beats: Beats,
    ) -> None:
        self._config = config
        self._layout = layout
        self._node = layout.nodes[node_rank]
        self._run_dir = run_dir
        self._attempt = attempt
        self._attempt_dir = attempt_dir(run_dir, attempt)
        self._address = address
        self._token = token
        self._client = client
        self._beats = beats
        self._trainers: list[Worker] = []
        self._engines: list[Worker] = []
        self._helpers: list[Worker] = []
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._next_look = 0.0
        self._readiness: dict[int, Readiness] = {}
        self._ready: set[int] = set()
        self._done = False

    def supervise(self, request: StopRequest, poll_s: float) -> int:
        """Runs until the job has ended.

        Returns:
            0 when the job ended in an orderly way, even if badly: node 0 answers for the outcome.

        Raises:
            ControlError: node 0 fell silent; everything here has been ended.
        """
        try:
            while True:
                if request.reason is not None:
                    self._client.call("cancel", reason=f"The run was ended: {request.reason}.")
                if self._beats.lost is not None:
                    raise ControlError(f"Node 0 is lost: {self._beats.lost}")
                phase = self._beats.phase
                if phase in ENDED:
                    break
                if phase is Phase.DRAINING:
                    self._drain()
                    break
                try:
                    self._start_what_can_start(phase)
                    self._check_workers()
                    self._check_engines()
                except ProcessFailure as error:
                    logger.error("%s", error)
                    break
                time.sleep(poll_s)
        finally:
            stop(self._workers, self._config.stop_grace_s)
            for readiness in self._readiness.values():
                readiness.close()
        self._client.call("gone", node_rank=self._node.node_rank)
        return 0

    @property
    def _workers(self) -> list[Worker]:
        return [*self._trainers, *self._engines, *self._helpers]

    # -- starting ------------------------------------------------------------------------------------------------

    def _start_what_can_start(self, phase: Phase) -> None:
        """Each node starts what it can as early as it can: engines and trainers load side by side."""
        if self._node.node_rank == 0 and not self._helpers:
            self._start_helpers()
        waiting = [process for process in self._node.processes if process.name not in self._started]
        if not waiting or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        values = self._values()
        if "model/ready" not in values:
            return
        for process in waiting:
            if process.role is Role.INFERENCE:
                runtime = self._engine_runtime(process, values)
            else:
                runtime = self._trainer_runtime(values) if phase is Phase.RUNNING else None
            if runtime is not None:
                self._started.add(process.name)
                (self._engines if process.role is Role.INFERENCE else self._trainers).append(
                    self._start(process, runtime)
                )

    def _start_helpers(self) -> None:
        """Node 0: the trainers' store, and the tiny model if no model was given."""
        self._helpers.append(self._start(self._helper("store", "launcher.agent.store"), {}))
        if self._config.model.path is None:
            target = str(model_path(self._config, self._run_dir))
            arguments = (target, "--seed", str(self._config.model.seed))
            self._helpers.append(self._start(self._helper("model", "launcher.grpo.tiny_model", *arguments), {}))
            self._client.call("event", event="phase", fields={"phase": "make model", "who": "model", "state": "begin"})
        else:
            self._client.put("model/ready", True)

    def _engine_runtime(self, process: Process, values: dict[str, Any]) -> dict[str, str] | None:
        """What an engine learns at run time; None while the head of its replica is not known."""
        replica = self._replica(process)
        runtime = {"LAUNCHER_PORT": str(replica.port)}
        if len(replica.node_ranks) > 1:
            key = f"replica/{replica.index}/master"
            if process.replica_rank == 0 and key not in values:
                # vLLM binds this port itself, so it can only be held until just before.
                with hold_free_port(self._address) as sock:
                    self._client.put(key, f"{self._address}:{port_of(sock)}")
                return None
            if key not in values:
                return None
            runtime["LAUNCHER_ENGINE_MASTER"] = values[key]
        return runtime

    def _trainer_runtime(self, values: dict[str, Any]) -> dict[str, str] | None:
        """What a trainer rank learns at run time; None while engines have not said where they listen."""
        urls = [values.get(f"replica/{replica.index}/url") for replica in self._layout.replicas]
        if "trainer/store" not in values or None in urls:
            return None
        host, _, port = values["trainer/store"].rpartition(":")
        return {
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": self._run_dir.name,
            "LAUNCHER_INFERENCE_URLS": ",".join(str(url) for url in urls),
        }

    def _start(self, process: Process, runtime: dict[str, str]) -> Worker:
        log_dir = self._attempt_dir / "logs"
        environ = worker_environment(
            process,
            cluster_env=self._config.cluster.env,
            run_dir=self._run_dir,
            attempt=self._attempt,
            attempt_dir=self._attempt_dir,
            control=self._client.address,
            token=self._token,
            address=self._address,
            model_path=model_path(self._config, self._run_dir),
            error_file=log_dir / f"{process.name}.error.json",
            runtime=runtime,
        )
        worker = Worker(process, environ, log_dir)
        logger.info("started %s, pid %d, log %s", process.name, worker.pid, worker.log)
        self._process_event(worker, "started")
        return worker

    # -- watching ------------------------------------------------------------------------------------------------

    def _check_workers(self) -> None:
        """Notices every end. A trainer or a helper may end with 0; an engine may not end at all before the drain.

        Raises:
            ProcessFailure: a worker ended badly; the run has been told.
        """
        for worker in self._workers:
            code = worker.poll()
            if code is None or worker.process.name in self._ended:
                continue
            self._ended.add(worker.process.name)
            self._process_event(worker, "ended", exit_code=code)
            if code != 0 or worker in self._engines:
                raise self._fail(worker, f"ended with {worker.describe_end()}")
            if worker.process.name == "model":
                fields = {"phase": "make model", "who": "model", "state": "end"}
                self._client.call("event", event="phase", fields=fields)
                self._client.put("model/ready", True)
        if not self._done and self._trainers and all(worker.process.name in self._ended for worker in self._trainers):
            self._done = True
            self._client.call("done", node_rank=self._node.node_rank)

    def _check_engines(self) -> None:
        """Follows engines that are starting.

        Raises:
            EngineTimeout: one is not ready within ``inference.ready_timeout_s``; the run has been told.
        """
        timeout_s = self._config.inference.ready_timeout_s
        for worker in self._engines:
            replica = self._replica(worker.process)
            if worker.process.replica_rank != 0 or replica.index in self._ready:
                continue
            if replica.index not in self._readiness:
                self._watch_readiness(replica)
            waited = time.monotonic() - worker.started
            if waited > timeout_s:
                what = f"was not ready after `inference.ready_timeout_s` ({timeout_s:g} s)"
                raise self._fail(worker, what, error=EngineTimeout)

    def _watch_readiness(self, replica: Replica) -> None:
        url = self._client.call("get", keys=[f"replica/{replica.index}/url"])["values"].get(f"replica/{replica.index}/url")
        if url is None:
            return

        def on_ready(seconds: float) -> None:
            self._ready.add(replica.index)
            client = ControlClient(self._client.address, self._token)
            fields = {"replica": replica.index, "url": url, "seconds": seconds}
            client.call("event", event="engine_ready", fields=fields)
            client.put(f"replica/{replica.index}/ready", True)
            client.close()

        self._readiness[replica.index] = Readiness(url, on_ready)
        self._readiness[replica.index].start()

    def _fail(self, worker: Worker, what: str, *, error: type[ProcessFailure] = ProcessFailure) -> ProcessFailure:
        """Tells the run who failed and how; the error to raise."""
        process = worker.process
        reason = worker.reason()
        what_it_is = {
            Role.TRAINER: f"trainer rank {process.rank}",
            Role.INFERENCE: f"engine of replica {process.rank}",
            Role.HELPER: "helper of all nodes",
        }[process.role]
        message = (
            f"{process.name} ({what_it_is}) on node {process.node_rank} ({self._node.hostname}) {what}"
            f" after {time.monotonic() - worker.started:.0f} s" + (f": {reason}" if reason else ".")
        )
        failure = error(message, log=worker.log, tail=tail(worker.log))
        code = worker.poll()
        self._client.call(
            "fail",
            failure={
                "message": message,
                "process": process.name,
                "role": process.role.value,
                "node_rank": process.node_rank,
                "hostname": self._node.hostname,
                "rank": process.rank,
                "exit_code": code,
                "log": str(worker.log),
                "tail": list(failure.tail),
                "launcher_exit_code": failure.exit_code,
            },
        )
        return failure

    # -- ending --------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """The trainer is done: engines end first and by themselves, so that nothing of theirs is cut off."""
        logger.info("the trainer is done; stopping %d engine processes", len(self._engines))
        stop(self._engines, self._config.inference.drain_timeout_s)
        for worker in self._engines:
            self._process_event(worker, "ended", exit_code=worker.poll())

    # -- small things --------------------------------------------------------------------------------------------

    def _of_role(self, role: Role) -> list[Process]:
        return [process for process in self._node.processes if process.role is role]

    def _replica(self, process: Process) -> Replica:
        return self._layout.replicas[process.rank]

    def _values(self) -> dict[str, Any]:
        keys = ["model/ready", "trainer/store"]
        for replica in self._layout.replicas:
            keys += [f"replica/{replica.index}/url", f"replica/{replica.index}/master"]
        values: dict[str, Any] = self._client.call("get", keys=keys)["values"]
        return values

    def _process_event(self, worker: Worker, state: str, **fields: Any) -> None:
        process = worker.process
        self._client.call(
            "event",
            event="process",
            fields={
                "name": process.name,
                "role": process.role.value,
                "node_rank": process.node_rank,
                "rank": process.rank,
                "pid": worker.pid,
                "state": state,
                **fields,
            },
        )

    def _helper(self, name: str, module: str, *arguments: str) -> Process:
        return Process(
            name=name,
            role=Role.HELPER,
            node_rank=self._node.node_rank,
            local_rank=0,
            rank=0,
            replica_rank=0,
            gpus=(),
            argv=("python", "-m", module, *arguments),
            env={"LAUNCHER_ROLE": Role.HELPER.value, "CUDA_VISIBLE_DEVICES": ""},
        )
