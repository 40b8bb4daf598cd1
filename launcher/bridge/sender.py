"""The trainer's side: joins the engines once, then publishes one version after another."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from launcher.bridge.groups import finish, init_process_group, meet
from launcher.bridge.manifest import Entry, Manifest, digest, to_json
from launcher.bridge.parallel import in_parallel
from launcher.bridge.replica import ReplicaClient
from launcher.bridge.state import Weight, gathered, weights
from launcher.control.keys import bridge_key, token_from_environment
from launcher.errors import TransferError
from launcher.inference.client import inference_urls, wait_ready
from launcher.ports import hold_free_port, port_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What one update did, as rank 0 measured it; the same on every rank."""

    version: int
    seconds: float
    """From the call until every replica served the version; includes waiting for the engines."""

    bytes: int
    """Bytes sent to each replica."""

    pause_s: float
    """Longest time for which a replica did not decode."""

    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSettings:
    """How to reach the engines; :func:`connect` reads it from the environment of a run."""

    urls: tuple[str, ...]
    token: str
    rank: int = 0
    address: str = "127.0.0.1"
    backend: str = "gloo"
    dtype: torch.dtype = torch.bfloat16
    timeout_s: float = 300.0
    reset_prefix_cache: bool = True


def connect(settings: BridgeSettings | None = None, *, ready_timeout_s: float = 600.0) -> Bridge:
    """The bridge of the run that this process is a trainer rank of. Every trainer rank calls it.

    Rank 0 waits until all engines are healthy.

    Args:
        settings: for use without the launcher; from the environment if None.
        ready_timeout_s: longest wait for the engines.

    Raises:
        ControlError: an engine is not ready in time.
        LauncherError: this process is not a trainer of a run.
    """
    if settings is None:
        settings = settings_from_environment()
        if settings.rank == 0:
            wait_ready(ready_timeout_s)
    return Bridge(settings)


def settings_from_environment() -> BridgeSettings:
    """The settings that the agent and the run's configuration give."""
    from pathlib import Path

    from launcher.config import load_run_config

    config = load_run_config(Path(os.environ["LAUNCHER_RUN_DIR"]))
    transport = config.bridge.transport
    if transport == "auto":
        transport = "nccl" if config.layout.device == "cuda" else "gloo"
    return BridgeSettings(
        urls=tuple(inference_urls()),
        token=token_from_environment(),
        rank=int(os.environ.get("RANK", "0")),
        address=os.environ.get("LAUNCHER_ADDRESS", "127.0.0.1"),
        backend=transport,
        dtype=getattr(torch, config.model.dtype),
        timeout_s=config.bridge.timeout_s,
        reset_prefix_cache=config.bridge.reset_prefix_cache,
    )


class Bridge:
    """Publishes versions of one module's weights to every engine. All trainer ranks make the same calls in step."""

    def __init__(self, settings: BridgeSettings) -> None:
        self._settings = settings
        key = bridge_key(settings.token)
        self._replicas = [ReplicaClient(index, url, key) for index, url in enumerate(settings.urls)]
        self._groups: list[Any] = []
        self._manifest_digest: str | None = None
        self._store: dist.TCPStore | None = None
        self._generation = 0
        self.version: int | None = None
        """The last version that every engine has taken; None before the first."""

    def publish(self, model: nn.Module, version: int, *, names: Sequence[str] | None = None) -> UpdateReport:
        """Sends the module's weights; when it returns, every engine serves them.

        Args:
            model: plain or sharded with FSDP2 or tensor parallelism.
            version: larger than every one published before.
            names: only these weights, under their names in the module's state dict; all of them if None.

        Raises:
            TransferError: an engine did not take the version. An engine that failed while it wrote is quarantined.
            RendezvousTimeout: an engine's workers did not join.
            ValueError: a name is not in the module.
        """
        held = weights(model)
        selection = _select(held, names)
        report = None
        if self._settings.rank == 0:
            try:
                report = self._publish(held, selection, version, whole=names is None)
            finally:
                # The other ranks wait for this word, so they get it either way.
                self._tell(report)
        else:
            for _ in gathered(selection, self._settings.dtype):
                continue  # each tensor is a collective: this rank contributes its shard
            report = self._hear(version)
        self.version = version
        return report

    def _publish(self, held: list[Weight], selection: list[Weight], version: int, *, whole: bool) -> UpdateReport:
        """Rank 0's part."""
        begin = time.monotonic()
        tensors = gathered(selection, self._settings.dtype)
        try:
            manifest = _manifest(held, self._settings.dtype)
            if digest(manifest) != self._manifest_digest:
                self._join(manifest)
            deadline = begin + self._settings.timeout_s
            body = {"version": version, "names": [weight.name for weight in selection], "whole": whole}
            self._ask("prepare", body, deadline)
            sent = self._send(tensors, deadline)
            self._ask("vote", {"version": version, "timeout_s": max(0.0, deadline - time.monotonic())}, deadline + 5)
            commit = {"version": version, "reset_prefix_cache": self._settings.reset_prefix_cache}
            answers = self._ask("commit", commit, time.monotonic() + self._settings.timeout_s)
        finally:
            for _ in tensors:
                continue  # after a failure too: the other ranks are in these collectives
        return UpdateReport(
            version=version,
            seconds=time.monotonic() - begin,
            bytes=sent,
            pause_s=max(float(answer["pause_s"]) for answer in answers),
            replicas=len(answers),
        )

    def _tell(self, report: UpdateReport | None) -> None:
        """Tells the other trainer ranks how it went, so that none goes on before every engine serves the version."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            words = [0.0] * 5 if report is None else [1.0, report.seconds, report.bytes, report.pause_s, report.replicas]
            dist.broadcast(torch.tensor(words, dtype=torch.float64, device=_collective_device()), src=0)

    def _hear(self, version: int) -> UpdateReport:
        words = torch.zeros(5, dtype=torch.float64, device=_collective_device())
        dist.broadcast(words, src=0)
        succeeded, seconds, sent, pause_s, replicas = words.tolist()
        if not succeeded:
            raise TransferError(f"Version {version} did not reach every engine; rank 0 says why.")
        return UpdateReport(
            version=version, seconds=seconds, bytes=int(sent), pause_s=pause_s, replicas=int(replicas)
        )

    def info(self) -> list[dict[str, Any]]:
        """What each replica says of itself: its version, its state. Rank 0 only; empty elsewhere."""
        if self._settings.rank != 0:
            return []
        timeout_s = self._settings.timeout_s
        return in_parallel([partial(replica.call, "info", timeout_s=timeout_s) for replica in self._replicas])

    def close(self) -> None:
        """Says goodbye; the engines go on serving what they have. Safe to call twice."""
        if self._groups:
            self._ask("disconnect", {}, time.monotonic() + min(10.0, self._settings.timeout_s))
        for group in self._groups:
            group.abort()
        self._groups = []
        self._manifest_digest = None
        self._store = None

    def _join(self, manifest: Manifest) -> None:
        """One group per replica, made anew whenever the manifest changes: its digest is agreed before a byte moves."""
        self.close()
        self._generation += 1
        settings = self._settings
        sock = hold_free_port(settings.address)
        port = port_of(sock)
        timeout = timedelta(seconds=settings.timeout_s)
        self._store = dist.TCPStore(
            settings.address,
            port,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=sock.detach(),
        )
        common = {
            "manifest": to_json(manifest),
            "digest": digest(manifest),
            "store": f"{settings.address}:{port}",
            "backend": settings.backend,
            "timeout_s": settings.timeout_s,
        }
        # Threads start with GPU 0 as their current device, so the caller's is handed to them.
        gpu = settings.backend == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        joined = in_parallel([partial(self._join_one, replica, common, device) for replica in self._replicas])
        self._groups = joined
        self._manifest_digest = digest(manifest)

    def _join_one(self, replica: ReplicaClient, common: dict[str, Any], device: torch.device) -> Any:
        settings = self._settings
        name = f"bridge-{self._generation}-replica-{replica.index}"
        workers = int(replica.call("workers", timeout_s=settings.timeout_s)["workers"])
        body = {**common, "group": name, "world_size": workers + 1}

        def ask() -> Any:
            answer = replica.call("connect", body, timeout_s=settings.timeout_s)
            if answer["digest"] != common["digest"]:
                raise TransferError(f"Replica {replica.index} computed another digest of the manifest.")
            return None

        def join() -> Any:
            return init_process_group(
                settings.backend,
                timeout=timedelta(seconds=settings.timeout_s),
                world_size=workers + 1,
                rank=0,
                store=self._store,
                group_name=name,
                address=settings.address,
                device=device,
            )

        begin = time.monotonic()
        group = in_parallel([join, ask])[0]
        meet(group, device, settings.timeout_s)
        logger.info("joined replica %d (%d workers) in %.2f s", replica.index, workers, time.monotonic() - begin)
        return group

    def _send(self, tensors: Iterator[tuple[str, torch.Tensor]], deadline: float) -> int:
        sent = 0
        for name, tensor in tensors:
            works = [group.broadcast(tensor, 0) for group in self._groups]
            for replica, work in zip(self._replicas, works, strict=True):
                finish(work, deadline, f"sending {name} to replica {replica.index}")
            sent += tensor.numel() * tensor.element_size()
        return sent

    def _ask(self, route: str, body: dict[str, Any], deadline: float) -> list[dict[str, Any]]:
        timeout_s = max(1.0, deadline - time.monotonic())
        calls: list[Callable[[], dict[str, Any]]] = [
            partial(replica.call, route, body, timeout_s=timeout_s) for replica in self._replicas
        ]
        return in_parallel(calls)


def _collective_device() -> torch.device:
    """Where the trainer's default group takes its tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _select(held: list[Weight], names: Sequence[str] | None) -> list[Weight]:
    if names is None:
        return held
    by_name = {weight.name: weight for weight in held}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(f"The module has no weight named {unknown[0]!r}; it has {len(held)}, first: {held[0].name!r}.")
    # A tied weight travels under the name that owns the storage.
    owners = {by_name[name].alias_of or name for name in names}
    return [weight for weight in held if weight.name in owners]


def _manifest(held: list[Weight], dtype: torch.dtype) -> Manifest:
    return tuple(
        Entry(
            name=weight.name,
            shape=tuple(weight.tensor.shape),
            dtype=str(dtype if weight.tensor.is_floating_point() else weight.tensor.dtype).removeprefix("torch."),
            alias_of=weight.alias_of,
        )
        for weight in held
    )
