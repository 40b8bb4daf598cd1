"""A client of the control service; blocking, with a deadline on every call."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any

from launcher.common.errors import ControlError, ControlRefusal
from launcher.common.keys import control_proof, token_from_environment

ADDRESS_VARIABLE = "LAUNCHER_CONTROL"
CALL_TIMEOUT_S = 10.0
LONGEST_WAIT_S = 5.0


class ControlClient:
    """One connection, made when first needed and made again once if it broke. Safe to share between threads,
    but a call that waits holds the connection: who waits for long uses a client of its own.

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
        address = os.environ.get(ADDRESS_VARIABLE, "")
        if not address:
            raise ControlError(
                f"`{ADDRESS_VARIABLE}` is not set: this process belongs to no run. HINT: start the program through"
                " `launcher` (`trainer.command`), whose agent sets the variable."
            )
        return cls(address, token_from_environment())

    def call(self, op: str, *, timeout_s: float = CALL_TIMEOUT_S, **fields: Any) -> dict[str, Any]:
        """One request, one answer.

        Raises:
            ControlError: no answer within ``timeout_s``, or a refusal.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            try:
                reply = self._exchange(op, fields, deadline)
            except (OSError, EOFError):
                self._drop()
                try:
                    reply = self._exchange(op, fields, deadline)
                except (OSError, EOFError) as error:
                    self._drop()
                    late = isinstance(error, TimeoutError)
                    what = f"did not answer `{op}` within {timeout_s:g} s" if late else f"is gone: {error}"
                    raise ControlError(f"The control service at {self.address} {what}.") from error
        if not reply.get("ok"):
            raise ControlRefusal(f"The control service refused `{op}`: {reply.get('error')}")
        return reply

    def put(self, key: str, value: Any) -> None:
        """Publishes a JSON value to the whole run."""
        self.call("put", key=key, value=value)

    def wait_for(self, keys: list[str], *, timeout_s: float, what: str) -> dict[str, Any]:
        """The values of all ``keys``, as soon as they are all published.

        Raises:
            ControlError: one is still missing after ``timeout_s``; the message says ``what`` was awaited.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            wait_s = max(0.0, min(LONGEST_WAIT_S, deadline - time.monotonic()))
            values: dict[str, Any] = self.call("get", keys=keys, wait_s=wait_s)["values"]
            missing = [key for key in keys if key not in values]
            if not missing:
                return values
            if time.monotonic() >= deadline:
                raise ControlError(f"Waited {timeout_s:g} s for {what}; still missing: {', '.join(missing)}.")

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            self._drop()

    def _exchange(self, op: str, fields: dict[str, Any], deadline: float) -> dict[str, Any]:
        if self._sock is None:
            self._connect(deadline)
        return self._round_trip({"op": op, **fields}, deadline)

    def _connect(self, deadline: float) -> None:
        host, _, port = self.address.rpartition(":")
        self._sock = socket.create_connection((host, int(port)), timeout=_left(deadline))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        nonce = str(self._read_line(deadline).get("nonce", ""))
        reply = self._round_trip({"answer": control_proof(self._token, nonce)}, deadline)
        if not reply.get("ok"):
            self._drop()
            raise ControlRefusal(f"The control service at {self.address} refused this process: {reply.get('error')}")

    def _round_trip(self, message: dict[str, Any], deadline: float) -> dict[str, Any]:
        assert self._sock is not None
        self._sock.settimeout(_left(deadline))
        self._sock.sendall(json.dumps(message).encode() + b"\n")
        return self._read_line(deadline)

    def _read_line(self, deadline: float) -> dict[str, Any]:
        assert self._sock is not None
        while b"\n" not in self._buffer:
            self._sock.settimeout(_left(deadline))
            chunk = self._sock.recv(65536)
            if not chunk:
                raise EOFError("connection closed")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline passed")
    return left
