"""Collectives of the trainer's ranks for an update: small tensors through a gloo group of their own, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from launcher.bridge.groups import init_process_group
from launcher.bridge.trainer.agreement import Agreement, Call
from launcher.common.codec import from_json, to_json
from launcher.common.errors import TransferError

T = TypeVar("T")


def world() -> tuple[int, int]:
    """This trainer rank and the number of ranks; one process without a default group is rank 0 of 1."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class RankGroup:
    """The trainer's ranks among themselves. All of them make it, and make the same calls in the same order.

    The program's default group serves once, to find each other. Afterwards an update may go on in a thread while the
    program uses its own groups as it likes.

    Args:
        address: of this host, as the other ranks reach it.
        timeout_s: deadline of each step of an update. While rank 0 takes two steps with the engines, such as to vote
            and to commit, the other ranks wait; so a call here takes up to three times as long.
        rank_timeout_s: how long a rank waits for the others to make the same call.

    Raises:
        RendezvousTimeout: not every rank came in time.
    """

    def __init__(self, address: str, timeout_s: float, rank_timeout_s: float = 120.0) -> None:
        self.rank, self.size = world()
        self._timeout_s = 3 * timeout_s
        self._group: Any = None
        self._agreement: Agreement | None = None
        if self.size == 1:
            return
        timeout = timedelta(seconds=self._timeout_s)
        served = None
        if self.rank == 0:
            served = dist.TCPStore(address, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        host, port = _from_rank_0(None if served is None else [address, served.port])
        store = served or dist.TCPStore(host, port, is_master=False, timeout=timeout)
        self._agreement = Agreement(store, self.rank, self.size, rank_timeout_s)
        self._group = init_process_group(
            "gloo",
            timeout=timeout,
            world_size=self.size,
            rank=self.rank,
            store=store,
            group_name="bridge",
            address=address,
        )

    def meet(self, call: Call) -> dict[str, list[int]]:
        """Returns once every rank makes the same call; the digest of what each holds, with the ranks that hold this.

        Raises:
            TransferError: on every rank: some are missing after ``rank_timeout_s``, call something else, or cannot.
        """
        if self._agreement is not None:
            return self._agreement.meet(call)
        if call.error:
            raise TransferError(call.error)
        return {call.content: [0]}

    def exchange(self, own: bytes, contents: Mapping[str, list[int]]) -> dict[str, bytes]:
        """What the ranks hold, by its digest.

        Args:
            own: what this rank holds.
            contents: as :meth:`meet` has returned it.

        Raises:
            TransferError: a rank did not take part in time.
        """
        if self._agreement is None or len(contents) == 1:
            return dict.fromkeys(contents, own)
        return self._agreement.exchange(own.decode(), contents)

    def leave(self) -> None:
        """This rank makes no further call."""
        if self._agreement is not None:
            self._agreement.leave()

    def broadcast_json(self, value: Any) -> Any:
        """Rank 0's JSON value, on every rank; the others' argument is ignored.

        Raises:
            TransferError: a rank did not take part in time.
        """
        return value if self.size == 1 else json.loads(self._broadcast_bytes(json.dumps(value).encode()))

    def broadcast(self, value: T, kind: type[T]) -> T:
        """Rank 0's value of a type that :mod:`launcher.common.codec` encodes, on every rank; the others' argument is
        ignored.

        Raises:
            TransferError: a rank did not take part in time.
        """
        return value if self.size == 1 else from_json(self._broadcast_bytes(to_json(value)), kind)

    def _broadcast_bytes(self, value: bytes) -> bytes:
        encoded = _tensor(value) if self.rank == 0 else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([encoded.numel()], dtype=torch.int64)
        self._finish(self._group.broadcast(length, 0))
        content = encoded if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
        self._finish(self._group.broadcast(content, 0))
        return content.numpy().tobytes()

    def all_reduce_sum(self, numbers: torch.Tensor) -> torch.Tensor:
        """int64 sums over all ranks, modulo 2 ** 64, on every rank.

        Raises:
            TransferError: a rank did not take part in time.
        """
        if self.size > 1:
            self._finish(self._group.allreduce(numbers))
        return numbers

    def all_gather(self, pair: tuple[int, int]) -> list[tuple[int, int]]:
        """Each rank's pair of integers, in the order of ranks, on every rank.

        Raises:
            TransferError: a rank did not take part in time.
        """
        table = torch.zeros(self.size, 2, dtype=torch.int64)
        table[self.rank] = torch.tensor(pair)
        return [(int(node), int(gpu)) for node, gpu in self.all_reduce_sum(table).tolist()]

    def _finish(self, work: Any) -> None:
        try:
            if not work.wait(timedelta(seconds=self._timeout_s)):
                raise TransferError(
                    f"An exchange between the trainer's ranks did not end within {self._timeout_s:g} s."
                )
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise TransferError(f"An exchange between the trainer's ranks failed: {reason}") from error


def _from_rank_0(value: Any) -> Any:
    """Rank 0's short JSON value, through the default group."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    content = torch.zeros(256, dtype=torch.uint8)
    if value is not None:
        encoded = _tensor(json.dumps(value).encode())
        content[: encoded.numel()] = encoded
    content = content.to(device)
    dist.broadcast(content, src=0)
    return json.loads(content.cpu().numpy().tobytes().rstrip(b"\0"))


def _tensor(value: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(value), dtype=torch.uint8)
