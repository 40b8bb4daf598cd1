"""The lines of a control connection. Each is one JSON object::

server -> Challenge            client -> ChallengeAnswer       a wrong answer: Refusal, and the connection closes
client -> request, with ``op``, its name in OPERATIONS         server -> its reply, or Refusal
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from launcher.common.codec import from_json, to_json
from launcher.control.protocol import OPERATIONS, ControlRequest, Reply, ReplyT_co


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """First line of a connection; see :mod:`launcher.common.keys`."""

    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChallengeAnswer:
    """Second line of a connection."""

    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The challenge was answered."""

    ok: Literal[True] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The challenge or a request was refused."""

    error: str
    ok: Literal[False] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyHeader:
    """The fields that distinguish a reply from a :class:`Refusal`."""

    ok: bool
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHeader:
    """The name in a request's line."""

    op: str


_NAMES: Mapping[type[ControlRequest[Reply]], str] = {request: name for name, (request, _) in OPERATIONS.items()}


def name_of(request: ControlRequest[Reply]) -> str:
    """The name of a request's operation."""
    return _NAMES[type(request)]


def encode_request(request: ControlRequest[Reply]) -> bytes:
    """The line of a request."""
    return b'{"op":"%s",' % name_of(request).encode() + to_json(request)[1:] + b"\n"


def decode_request(line: bytes) -> ControlRequest[Reply]:
    """The request of a line.

    Raises:
        CodecError: it is none.
        ValueError: there is no such operation.
    """
    name = from_json(line, RequestHeader).op
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}")
    return from_json(line, OPERATIONS[name][0])


def decode_reply(line: bytes, request: ControlRequest[ReplyT_co]) -> ReplyT_co | Refusal:
    """The reply to a request.

    Raises:
        CodecError: it is none.
    """
    outcome = from_json(line, ReplyHeader)
    if not outcome.ok:
        return Refusal(error=outcome.error)
    reply: ReplyT_co = from_json(line, OPERATIONS[name_of(request)][1])  # type: ignore[assignment]
    return reply
