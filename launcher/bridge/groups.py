"""Process groups beside those that the program already has, built directly and without torch's private helpers."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

from launcher.common.errors import RendezvousTimeout

DEFAULT_TIMEOUT = timedelta(seconds=300)

ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
NEVER = timedelta(days=365)

_environment = threading.Lock()


def init_process_group(
    backend: str = "gloo",
    init_method: str | None = None,
    timeout: timedelta = DEFAULT_TIMEOUT,
    world_size: int = -1,
    rank: int = -1,
    store: dist.Store | None = None,
    group_name: str = "",
    pg_options: Any = None,
    *,
    address: str | None = None,
    device: torch.device | None = None,
) -> Any:
    """A named group that coexists with the default group and with any other.

    Args:
        backend: ``gloo`` or ``nccl``.
        init_method: ``tcp://host:port``, where rank 0 serves the rendezvous; or give ``store``.
        timeout: deadline of the rendezvous and, with ``gloo``, of every operation. With ``nccl`` operations have none:
            a lost peer must not end the program, as torch's watchdog would.
        store: an existing store; ``group_name`` separates the groups that share it.
        pg_options: ``ProcessGroupNCCL.Options``, for ``nccl``.
        address: address of this host that gloo listens on; without it, what the hostname resolves to.
        device: GPU of this rank, for ``nccl``; the current one if None.

    Returns:
        A ``ProcessGroupGloo`` or ``ProcessGroupNCCL``: both have ``broadcast``, ``send``, ``recv``, ``abort``.

    Raises:
        ValueError: rank or world size are missing, or the backend is unknown.
        RendezvousTimeout: not everybody came within ``timeout``.
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"`rank` ({rank}) and `world_size` ({world_size}) must satisfy 0 <= rank < world_size.")
    try:
        if store is None:
            store = _store(init_method, rank, world_size, timeout)
        prefixed = dist.PrefixStore(f"{group_name}/", store)
        if backend == "gloo":
            return _gloo(prefixed, rank, world_size, timeout, address)
        if backend == "nccl":
            return _nccl(prefixed, rank, world_size, pg_options, device)
    except (dist.DistError, RuntimeError) as error:
        raise RendezvousTimeout(
            f"Group {group_name!r}: rank {rank} of {world_size} could not join within {timeout.total_seconds():g} s:"
            f" {str(error).splitlines()[0]}"
        ) from error
    raise ValueError(f"`backend` ({backend!r}) is not one of: gloo, nccl.")


def _store(init_method: str | None, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    if init_method is None or not init_method.startswith("tcp://"):
        raise ValueError(f"`init_method` ({init_method!r}) must be tcp://host:port when no `store` is given.")
    host, _, port = init_method.removeprefix("tcp://").rpartition(":")
    # Rank 0 always serves, also under torchrun, whose agent's store knows nothing of this group.
    return dist.TCPStore(host, int(port), world_size, is_master=rank == 0, timeout=timeout, wait_for_workers=False)


def _gloo(store: dist.Store, rank: int, world_size: int, timeout: timedelta, address: str | None) -> Any:
    if address is None:
        return dist.ProcessGroupGloo(store, rank, world_size, timeout)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(store, rank, world_size, options)


def _nccl(store: dist.Store, rank: int, world_size: int, options: Any, device: torch.device | None) -> Any:
    options = options or dist.ProcessGroupNCCL.Options()
    options._timeout = NEVER
    torch.cuda.set_device(device if device is not None else torch.cuda.current_device())
    with errors_left_to_us():
        return dist.ProcessGroupNCCL(store, rank, world_size, options)


@contextmanager
def errors_left_to_us() -> Iterator[None]:
    """While a group is made, torch reads from the environment what its watchdog does about errors: here, nothing."""
    with _environment:
        before = os.environ.get(ERROR_HANDLING)
        os.environ[ERROR_HANDLING] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[ERROR_HANDLING]
            else:
                os.environ[ERROR_HANDLING] = before
