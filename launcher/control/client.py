"""A client of the control service; blocking, with a deadline on every call."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.common.codec import CodecError, from_json, to_json
from launcher.common.env import LAUNCHER_CONTROL
from launcher.common.errors import ControlError, ControlRefusal
from launcher.common.keys import control_proof, token_from_environment
from launcher.common.run_dir import CONTROL
from launcher.control.protocol import ControlRequest, GetRequest, PutRequest, Reply, ReplyT_co
from launcher.control.wire import (
    Challenge,
    ChallengeAnswer,
    Refusal,
    ReplyHeader,
    decode_reply,
    encode_request,
    name_of,
)

CALL_TIMEOUT_S = 10.0
LONGEST_WAIT_S = 5.0


class ControlClient:
    """One connection, made when first needed and made again once if it broke. Safe to share between threads,
    but a call that waits holds the connection: for long waits use a client of its own.

    Args:
        address: ``host:port``.
        token: the run's token.
    """

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._token = token
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._buffer = b""

    @classmethod
    def from_environment(cls) -> ControlClient:
        """The client for the run that this process belongs to.

        Raises:
            ControlError: this process belongs to no run.
        """
        address = os.environ.get(LAUNCHER_CONTROL, "")
        if not address:
            raise ControlError(
                f"`{LAUNCHER_CONTROL}` is not set: this process belongs to no run. HINT: start the program through"
                " `launcher` (`trainer.command`), whose agent sets the variable."
            )
        return cls(address, token_from_environment())

    @classmethod
    def of_attempt(cls, directory: Path) -> ControlClient:
        """The client for the control service of an attempt, by the address that node 0 wrote into its directory.

        Raises:
            FileNotFoundError: node 0 has not written it yet.
        """
        address = json.loads((directory / CONTROL).read_text(encoding="utf-8"))["control"]
        return cls(str(address), token_from_environment())

    def call(self, request: ControlRequest[ReplyT_co], *, timeout_s: float = CALL_TIMEOUT_S) -> ReplyT_co:
        """Sends one request and returns its reply.

        Raises:
            ControlError: no reply within ``timeout_s``.
            ControlRefusal: the request was refused.
        """
        deadline = time.monotonic() + timeout_s
        name = name_of(request)
        with self._lock:
            try:
                reply = self._exchange(request, deadline)
            except (OSError, EOFError):
                self._drop()
                try:
                    reply = self._exchange(request, deadline)
                except (OSError, EOFError) as error:
                    self._drop()
                    late = isinstance(error, TimeoutError)
                    what = f"did not answer `{name}` within {timeout_s:g} s" if late else f"is gone: {error}"
                    raise ControlError(f"The control service at {self.address} {what}.") from error
        if isinstance(reply, Refusal):
            raise ControlRefusal(f"The control service refused `{name}`: {reply.error}")
        return reply

    def put(self, key: str, value: Any) -> None:
        """Publishes a JSON value to the whole run."""
        self.call(PutRequest(key=key, value=value))

    def get(self, *keys: str) -> Mapping[str, Any]:
        """Those of the values that are published now."""
        return self.call(GetRequest(keys=keys)).values

    def status(self, *, timeout_s: float = CALL_TIMEOUT_S) -> Reply:
        """The phase of the run, and what ended it."""
        return self.call(GetRequest(), timeout_s=timeout_s)

    def wait_for(self, keys: Sequence[str], *, timeout_s: float, what: str) -> Mapping[str, Any]:
        """The values of all ``keys``, as soon as they are all published.

        Raises:
            ControlError: one is still missing after ``timeout_s``; the message says ``what`` was awaited.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            wait_s = max(0.0, min(LONGEST_WAIT_S, deadline - time.monotonic()))
            values = self.call(GetRequest(keys=tuple(keys), wait_s=wait_s)).values
            missing = [key for key in keys if key not in values]
            if not missing:
                return values
            if time.monotonic() >= deadline:
                raise ControlError(f"Waited {timeout_s:g} s for {what}; still missing: {', '.join(missing)}.")

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            self._drop()

    def _exchange(self, request: ControlRequest[ReplyT_co], deadline: float) -> ReplyT_co | Refusal:
        try:
            if self._sock is None:
                self._connect(deadline)
            return decode_reply(self._round_trip(encode_request(request), deadline), request)
        except CodecError as error:
            self._drop()
            raise ControlError(f"{self.address} does not follow the control service's protocol: {error}") from error

    def _connect(self, deadline: float) -> None:
        host, _, port = self.address.rpartition(":")
        self._sock = socket.create_connection((host, int(port)), timeout=_left(deadline))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        nonce = from_json(self._read_line(deadline), Challenge).nonce
        answer = ChallengeAnswer(answer=control_proof(self._token, nonce))
        outcome = from_json(self._round_trip(to_json(answer) + b"\n", deadline), ReplyHeader)
        if not outcome.ok:
            self._drop()
            raise ControlRefusal(f"The control service at {self.address} refused this process: {outcome.error}")

    def _round_trip(self, line: bytes, deadline: float) -> bytes:
        assert self._sock is not None
        self._sock.settimeout(_left(deadline))
        self._sock.sendall(line)
        return self._read_line(deadline)

    def _read_line(self, deadline: float) -> bytes:
        assert self._sock is not None
        while b"\n" not in self._buffer:
            self._sock.settimeout(_left(deadline))
            chunk = self._sock.recv(65536)
            if not chunk:
                raise EOFError("connection closed")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline passed")
    return left
