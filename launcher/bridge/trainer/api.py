"""The trainer's side: connects to the engines once, then publishes one version after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from launcher.bridge.protocol import ReplicaStatus
from launcher.bridge.settings import BridgeSettings
from launcher.bridge.trainer.adapter import adapter_of, adapter_weights
from launcher.bridge.trainer.agreement import Call
from launcher.bridge.trainer.check import MOST_CHECKED, Answer, CheckReport, Forward, differences, engine_answers
from launcher.bridge.trainer.discovery import FixedReplicas, ReplicaDiscovery
from launcher.bridge.trainer.module_state import Weight, weights
from launcher.bridge.trainer.publisher import OnPhase, WeightPublisher, device_of
from launcher.bridge.trainer.rank_group import RankGroup
from launcher.bridge.trainer.source import WeightSource
from launcher.bridge.trainer.update import Update, UpdateQueue, UpdateReport
from launcher.common.errors import TransferError
from launcher.common.keys import api_key as engine_key

logger = logging.getLogger(__name__)

CHECK_TOLERANCE = 0.1
"""Mean difference of log-probabilities above which :meth:`Bridge.check` warns: rounding makes less, a forgotten rotary
permutation about 0.5."""

RUN_MODULE = "launcher.inference.bridge_run"
"""Makes the bridge of a run."""


def connect(settings: BridgeSettings | None = None, *, ready_timeout_s: float = 600.0) -> Bridge:
    """A bridge to the engines. Every trainer rank calls it, after ``torch.distributed.init_process_group`` if there is
    more than one, from the main thread.

    In a run, which ``settings=None`` stands for, rank 0 first waits until all engines are ready. Without a run, the
    engines at ``settings.urls`` must be up; nothing is sent to them before the first version.

    Args:
        settings: how to reach the engines without a run; None for the run that this process belongs to.
        ready_timeout_s: in a run, longest wait for the engines.

    Raises:
        ControlError: an engine is not ready in time.
        LauncherError: ``settings`` is None, and this process is not a trainer of a run.
        RendezvousTimeout: not every trainer rank calls it in time.
    """
    if settings is None:
        # By name: the bridge is a library that knows no run; what a run adds lies in a package above it.
        bridge: Bridge = import_module(RUN_MODULE).connect(ready_timeout_s)
    else:
        bridge = Bridge(settings)
    bridge.announce()
    return bridge


class Bridge:
    """Publishes versions of one module's weights to every engine. All trainer ranks make the same calls in step.

    Each trainer rank sends its own shards straight to the engine workers that need them. A version is received beside
    the live weights, compared end to end, and only then written; a replica that fails on the way keeps what it has.

    Threads: one thread of each rank calls it at a time; it does not use the program's process groups after it was made,
    so an update in the background and the program's collectives do not meet. A program that ends without
    :meth:`close` first waits for updates on their way, and logs what becomes of them.

    Memory on a rank: four messages for each worker that it sends to (:attr:`BridgeSettings.round_bytes` bounds what a
    worker gets in a round); with ``delta`` also a copy of the rank's shards, in the type in which they are sent.

    Args:
        settings: how to reach the engines.
        discovery: which replicas there are; those at ``settings.urls`` if None.
        on_phase: called on this rank when a phase of the start-up begins or ends.

    Raises:
        RendezvousTimeout: not every trainer rank makes it in time.
    """

    def __init__(
        self,
        settings: BridgeSettings,
        discovery: ReplicaDiscovery | None = None,
        *,
        on_phase: OnPhase | None = None,
    ) -> None:
        self._settings = settings
        self._discovery = discovery or FixedReplicas(settings.urls, settings.journal)
        self._ranks = RankGroup(settings.address, settings.timeout_s, settings.rank_timeout_s)
        self._queue = UpdateQueue()
        self._weights = WeightPublisher(settings, self._ranks, self._discovery, on_phase=on_phase)
        self._adapters: dict[str, WeightPublisher] = {}
        self._exclude: tuple[str, ...] = ()

    @property
    def version(self) -> int | None:
        """The last version of the model that was published; None before the first."""
        return self._weights.version

    def publish(
        self,
        model: nn.Module | WeightSource,
        version: int,
        *,
        names: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> UpdateReport:
        """Sends the module's weights; when it returns, every engine serves them. Every trainer rank calls it.

        On GPUs it reads what the current stream has enqueued so far, and no tensor after it returns.

        Args:
            model: plain, or sharded with FSDP2 or tensor parallelism over a mesh of all ranks or of some. The names of
                its parameters and persistent buffers must be those of the checkpoint that the engine was started with,
                and each whole tensor must have the checkpoint's shape. Types may differ: each is cast on this rank to
                the engine's, so float32 master weights are sent as bfloat16. Ranks may hold different tensors, as
                pipeline stages do. What several ranks hold must be the same on each; that is compared by checksum
                when it is published for the first time. Where names, orders or places are others, a
                :class:`WeightSource` describes them.
            version: larger than every one published before; the same on every rank.
            names: only these weights, under their names in the module's state dict; all of them if None. The first
                version of a replica is always whole.
            exclude: patterns (``*``, ``?``) of names that no engine has: a value head, multi-token prediction, a
                reference model. What several ranks hold may be excluded on any of them.

        Returns:
            What the update took; the same on every rank.

        Raises:
            BridgeError: on every rank: the ranks disagree about a tensor, hold other values of one that should be the
                same, or an engine has no use for one.
            ControlError: in a run, its control service does not answer.
            TransferError: fewer replicas than ``min_replicas`` took the version; the others serve it all the same. A
                replica that did not take it goes on serving what it had, and is asked to join again the next time.
                Or not every rank made this call within ``rank_timeout_s``: those are named on the ranks that did, and
                the next call that all of them make works.
            ValueError: no rank holds one of ``names``.
        """
        self._queue.drain()
        self._exclude = tuple(exclude)
        return self._weights.publish(self._held(model), names, version)

    def publish_async(
        self,
        model: nn.Module | WeightSource,
        version: int,
        *,
        names: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ) -> Update:
        """Begins to send the module's weights in a thread, and returns; the next forward and backward may go on.

        Nothing may write the weights before :meth:`Update.wait_read` returns; :meth:`guard` sees to that for an
        optimizer. Updates are carried out in order. Every trainer rank makes the same calls.

        Args:
            model: as for :meth:`publish`.
            version: as for :meth:`publish`.
            names: as for :meth:`publish`.
            exclude: as for :meth:`publish`.

        Returns:
            A handle; what :meth:`publish` would raise is raised by :meth:`Update.result`.

        Raises:
            TransferError: the update before has failed, and its :meth:`Update.result` was not called.
        """
        self._exclude = tuple(exclude)
        held = self._held(model)
        # What the optimizer has enqueued comes before what the thread reads.
        device = device_of(held)
        written = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

        def publish(read: Callable[[], None]) -> UpdateReport:
            if written is not None:
                written.synchronize()
            return self._weights.publish(held, names, version, read)

        return self._queue.submit(version, publish)

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on each of the optimizer's steps first waits until no update reads the weights any more."""
        optimizer.register_step_pre_hook(lambda *_: self._queue.wait_read())

    def publish_adapter(
        self,
        name: str,
        adapter: nn.Module | Mapping[str, torch.Tensor],
        version: int,
        *,
        config: Any,
        peft_name: str = "default",
    ) -> UpdateReport:
        """Sends a low-rank adapter's matrices alone; when it returns, every engine serves them under the name.

        The weights that an engine was started with, or that were published, stay as they are. Engines must have been
        started with ``--enable-lora``. A request uses the adapter by giving its name as ``model``.

        Args:
            name: of the adapter; any number of them may be published, each with versions of its own.
            adapter: a model that PEFT has put adapters into, or matrices by PEFT's names, sharded or not: 2-D,
                ``lora_A`` (rank, inputs) and ``lora_B`` (outputs, rank), in any floating type.
            version: larger than every one of this adapter before.
            config: PEFT's ``LoraConfig``, or what is in ``adapter_config.json``.
            peft_name: which of a model's adapters it is, in PEFT's words.

        Raises:
            TransferError: as for :meth:`publish`.
            BridgeError: there is no matrix of an adapter, or no rank in its configuration.
        """
        self._queue.drain()
        described = adapter_of(name, config)
        channel = self._adapters.get(name)
        if channel is None or channel.adapter != described:
            if channel is not None:
                channel.close()
            channel = self._adapters[name] = WeightPublisher(self._settings, self._ranks, self._discovery, described)
        # An engine whose own weights were never replaced waits for nothing else.
        return channel.publish(adapter_weights(adapter, peft_name), None, version, releases=self.version is None)

    def rejoin(self, model: nn.Module | WeightSource | None = None) -> int:
        """Gives the last version to replicas that came back since, and waits until enough replicas serve it.

        Costs a few small messages if there is nothing to do. Every trainer rank calls it, with the weights as they were
        published last: at the start of a step, and whenever no engine is left to answer. Adapters come back as they
        were published, too.

        Args:
            model: as it was given to :meth:`publish`; None if only adapters were published.

        Returns:
            How many replicas took the version now, those of adapters added.

        Raises:
            TransferError: fewer replicas than ``min_replicas`` serve it, and no other comes.
        """
        self._queue.drain()
        taken = 0 if model is None else self._weights.rejoin(self._held(model))
        releases = self.version is None
        return taken + sum(channel.rejoin(channel.held, releases=releases) for channel in self._adapters.values())

    def _held(self, model: nn.Module | WeightSource) -> list[Weight]:
        if isinstance(model, WeightSource):
            return model.weights(self._exclude)
        return weights(model, self._exclude)

    def announce(self) -> None:
        """Announces that weights will be published: replicas that are restarted from now on wait for them."""
        if self._ranks.rank == 0:
            self._discovery.announce()

    def info(self) -> list[ReplicaStatus]:
        """What each replica that answers serves, in the order of their indexes. Rank 0 only; empty on the others.

        Raises:
            ControlError: the run's control service does not answer.
            TransferError: a replica does not answer.
        """
        return self._weights.replicas.statuses() if self._ranks.rank == 0 else []

    def check(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        forward: Forward | None = None,
        api_key: str | None = None,
        tolerance: float = CHECK_TOLERANCE,
    ) -> CheckReport:
        """Compares what the engines compute with the trainer's own forward. The checksum of an update proves that every
        value arrived; this, that it means the same there. Every trainer rank calls it, after :meth:`publish`.

        Args:
            model: as it was published; put into evaluation mode meanwhile.
            prompts: token ids, at least one of each. Engines continue each by their likeliest tokens, whose
                log-probabilities are compared; they must have room for 16 more.
            forward: from token ids, int64 of shape (1, length), to logits of shape (1, length, vocabulary); if None,
                ``model(input_ids=ids).logits``, as models of transformers answer.
            api_key: of the engines' ``/v1`` routes; if None, the one that a run derives from its token.
            tolerance: largest mean difference, in natural log-probabilities. Rounding in bfloat16 makes about 0.03.

        Returns:
            What was found, the same on every rank; a difference is no error.

        Raises:
            TransferError: not every rank calls it, or an engine does not answer.
            ValueError: there is no prompt, or one has no token.
        """
        if not min(map(len, prompts), default=0):
            raise ValueError("`prompts` must be lists of token ids, none of them empty.")
        self._queue.drain()
        self._ranks.meet(Call(name="check()"))
        failure = ""
        answers: dict[int, list[Answer]] = {}
        if self._ranks.rank == 0:
            key = engine_key(self._settings.token) if api_key is None else api_key
            try:
                for replica in self._weights.replicas.ready()[:MOST_CHECKED]:
                    url = str(replica.url)
                    answers[replica.index] = engine_answers(url, key, prompts, self._settings.timeout_s)
            except TransferError as error:
                failure = str(error)
        if failure := self._ranks.broadcast_json(failure):
            raise TransferError(failure)
        answers = self._ranks.broadcast(answers, dict[int, list[Answer]])
        if not answers:
            raise TransferError("No engine is there to be checked.")
        found = {index: differences(model, of_replica, forward) for index, of_replica in answers.items()}
        # Of rank 0 on all: sums over several ranks may round otherwise on another.
        found = self._ranks.broadcast(found, dict[int, tuple[float, float]])
        tokens = sum(len(answer.tokens) for answer in next(iter(answers.values())))
        ok = all(mean <= tolerance for mean, _most in found.values())
        report = CheckReport(ok=ok, tokens=tokens, differences=found, tolerance=tolerance)
        if not ok and self._ranks.rank == 0:
            logger.warning("%s", report.text)
        return report

    def close(self) -> None:
        """Disconnects, after updates that are on their way; the engines go on serving what they have.

        Every trainer rank calls it. Safe to call twice.
        """
        self._queue.close()
        for channel in (self._weights, *self._adapters.values()):
            channel.close()
        self._ranks.leave()
        self._discovery.close()
