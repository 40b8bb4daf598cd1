"""The messages of one version as they come: round by round, the next one on its way while one is unpacked.

No more than two rounds are ever staged. What comes is given with the call that writes it, unless it came to where it
belongs, and after which its memory goes back to the wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch

from launcher.bridge.codec.delta import HEAD_BYTES, Head
from launcher.bridge.plan import Message
from launcher.bridge.transport.base import Transfer
from launcher.common.errors import TransferError

Rounds = Sequence[Sequence[Message]]
Post = Callable[[Message, int], Transfer]
"""Makes a message's wire ready for so many bytes."""


class Posted(NamedTuple):
    """A message that a wire has been made ready for."""

    transfer: Transfer
    rest: Message | None
    """What of it lies in the bytes that the transfer gives; None if all of it comes to where it belongs."""


PostWhole = Callable[[Message], Posted]

Write = Callable[[Mapping[str, torch.Tensor]], None]
"""Writes a message into parameters."""

Apply = Callable[[Message, Head, torch.Tensor, Mapping[str, torch.Tensor]], None]
"""As :func:`launcher.bridge.codec.delta.apply.apply`."""

Unpack = Callable[[Message, torch.Tensor, Mapping[str, torch.Tensor]], None]
"""As :func:`launcher.bridge.codec.pack.unpack`."""


def whole(rounds: Rounds, post: PostWhole, unpack: Unpack, deadline: float) -> Iterator[tuple[Message, Write]]:
    """Messages that carry all of their elements.

    Raises:
        TransferError: one did not come in time.
    """
    waiting: deque[list[tuple[Message, Posted]]] = deque()
    for number in range(len(rounds) + 1):
        if number < len(rounds):
            waiting.append([(message, _post_whole(post, message)) for message in rounds[number]])
        for message, posted in waiting.popleft() if number > 0 else ():
            yield message, partial(_unpack, unpack, message, posted, _poll(message, posted.transfer, deadline))


def changes(rounds: Rounds, post: Post, apply: Apply, deadline: float) -> Iterator[tuple[Message, Write]]:
    """Messages that carry what has changed, each after its head, which says how much that is.

    Raises:
        TransferError: one did not come in time, or its head is not one.
    """
    heads: list[tuple[Message, Transfer]] = []
    for number in range(len(rounds) + 1):
        bodies: list[tuple[Message, Head, Transfer | None]] = []
        for message, transfer in heads:
            content = _poll(message, transfer, deadline)
            with naming(message):
                head = Head.read(content, message)
            _release(message, transfer)
            bodies.append((message, head, _post(post, message, head.nbytes) if head.nbytes else None))
        heads = (
            [(message, _post(post, message, HEAD_BYTES)) for message in rounds[number]] if number < len(rounds) else []
        )
        for message, head, body in bodies:
            buffer = torch.empty(0, dtype=torch.uint8) if body is None else _poll(message, body, deadline)
            yield message, partial(apply, message, head, buffer)
            if body is not None:
                _release(message, body)


def _unpack(
    unpack: Unpack,
    message: Message,
    posted: Posted,
    buffer: torch.Tensor,
    parameters: Mapping[str, torch.Tensor],
) -> None:
    if posted.rest is not None:
        unpack(posted.rest, buffer, parameters)
    # At once, and not when the next is asked for: the next but one can come while this one's digest is computed.
    _release(message, posted.transfer)


def _post_whole(post: PostWhole, message: Message) -> Posted:
    with naming(message):
        return post(message)


def _post(post: Post, message: Message, nbytes: int) -> Transfer:
    with naming(message):
        return post(message, nbytes)


def _poll(message: Message, transfer: Transfer, deadline: float) -> torch.Tensor:
    with naming(message):
        return transfer.poll(deadline)


def _release(message: Message, transfer: Transfer) -> None:
    with naming(message):
        transfer.release()


@contextmanager
def naming(message: Message) -> Iterator[None]:
    """Says of an error which message it was."""
    try:
        yield
    except TransferError as error:
        whom = "the replica that relays" if message.is_relayed else f"trainer rank {message.sender}"
        raise TransferError(f"receiving round {message.round} from {whom} {error}") from error
