"""A connection between two processes of one host: a Unix socket, each end of which has proven that it has the secret.

The socket has an abstract name, not a file, so that nothing is left when a process is killed; the kernel
reports that to the other end at once. Opening, after the connection is made::

    both  -> a nonce
    both  -> the proof (:mod:`launcher.common.keys`) of its role and both nonces; wrong: the connection is closed
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import threading
import time
from typing import Any

from launcher.bridge.transport.base import Meeting, Pair
from launcher.common.errors import BridgeError, RendezvousTimeout, TransferError
from launcher.common.keys import is_proof, new_nonce, proof

PROOF_BYTES = 64
"""Of a proof in hexadecimal."""

LENGTH = struct.Struct("!I")
LONGEST_HELLO = 1 << 16
RETRY_S = 0.02
LARGEST_READ = 4096
GONE = "failed: the other end is gone."
LATE = "did not complete within its deadline."


class UnixConnection:
    """One end. One thread at a time uses it; any thread may close it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._busy = threading.Lock()
        self._closed = False

    def send(self, data: bytes, deadline: float) -> None:
        """Sends a few bytes.

        Raises:
            TransferError: the other end is gone, or has not read for long.
        """
        self._do(lambda: self._sock.sendall(data), deadline)

    def receive(self, deadline: float, *, at_most: int = LARGEST_READ) -> bytes:
        """What has come, at least one byte.

        Raises:
            TransferError: the other end is gone, or nothing comes in time.
        """
        data: bytes = self._do(lambda: self._sock.recv(at_most), deadline)
        if not data:
            raise TransferError(GONE)
        return data

    def receive_waiting(self) -> bytes:
        """What has come already, which may be nothing. Never waits.

        Raises:
            TransferError: the other end is gone.
        """
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return self.receive(time.monotonic()) if poller.poll(0) else b""

    def receive_all(self, size: int, deadline: float) -> bytes:
        """Exactly ``size`` bytes.

        Raises:
            TransferError: the other end is gone, or they do not come in time.
        """
        data = b""
        while len(data) < size:
            data += self.receive(deadline, at_most=size - len(data))
        return data

    def send_json(self, message: dict[str, Any], deadline: float, fds: tuple[int, ...] = ()) -> None:
        """Sends a JSON object and open files.

        Raises:
            TransferError: the other end is gone.
        """
        text = json.dumps(message).encode()
        self._do(lambda: socket.send_fds(self._sock, [LENGTH.pack(len(text))], fds), deadline)
        self.send(text, deadline)

    def recv_json(self, deadline: float, *, fds: int = 0) -> tuple[dict[str, Any], list[int]]:
        """A JSON object and the open files that came with it, which the caller closes.

        Raises:
            TransferError: the other end is gone, or sends nothing in time.
        """
        head, files, _flags, _address = self._do(
            lambda: socket.recv_fds(self._sock, LENGTH.size, fds, socket.MSG_CMSG_CLOEXEC), deadline
        )
        try:
            head += self.receive_all(LENGTH.size - len(head), deadline)
            (size,) = LENGTH.unpack(head)
            if size > LONGEST_HELLO:
                raise TransferError(
                    f"failed: the other end announces a message of {size} bytes, more than {LONGEST_HELLO}."
                )
            message: dict[str, Any] = json.loads(self.receive_all(size, deadline))
        except BaseException:
            for fd in files:
                os.close(fd)
            raise
        return message, list(files)

    def close(self) -> None:
        """Closes the connection; a call that waits at either end fails at once."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with self._busy:  # Wait until no other thread uses the socket.
            self._closed = True
            self._sock.close()

    def _do(self, action: Any, deadline: float) -> Any:
        with self._busy:
            if self._closed:
                raise TransferError("failed: this end has left.")
            left = deadline - time.monotonic()
            self._sock.settimeout(max(0.001, left))
            try:
                return action()
            except TimeoutError:
                raise TransferError(LATE) from None
            except OSError as error:
                raise TransferError(GONE) from error


def connect(meeting: Meeting, pair: Pair) -> UnixConnection:
    """The sender's end: waits until the receiver listens.

    Raises:
        RendezvousTimeout: it does not, or it does not prove that it has the secret.
    """
    deadline = time.monotonic() + meeting.timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.connect(_name(meeting, pair))
            return _proven(UnixConnection(sock), meeting, pair, "sender", "receiver", deadline)
        except OSError as error:
            sock.close()
            if time.monotonic() > deadline:
                raise RendezvousTimeout(_not_connected(meeting, pair)) from error
            time.sleep(RETRY_S)


def accept(meeting: Meeting, pair: Pair) -> UnixConnection:
    """The receiver's end: waits for the sender.

    Raises:
        RendezvousTimeout: it does not connect, or does not prove that it has the secret.
    """
    deadline = time.monotonic() + meeting.timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        try:
            server.bind(_name(meeting, pair))
            server.listen(1)
            server.settimeout(max(0.001, deadline - time.monotonic()))
            sock, _address = server.accept()
        except OSError as error:
            raise RendezvousTimeout(_not_connected(meeting, pair)) from error
    return _proven(UnixConnection(sock), meeting, pair, "receiver", "sender", deadline)


def _name(meeting: Meeting, pair: Pair) -> str:
    return f"\0launcher-{proof(meeting.secret, f'{meeting.group}/{pair}')}"


def _proven(
    connection: UnixConnection, meeting: Meeting, pair: Pair, own_role: str, other_role: str, deadline: float
) -> UnixConnection:
    own = new_nonce()
    try:
        connection.send(own.encode(), deadline)
        other = connection.receive_all(len(own), deadline).decode(errors="replace")
        connection.send(proof(meeting.secret, f"{own_role} {own} {other}").encode(), deadline)
        candidate = connection.receive_all(PROOF_BYTES, deadline).decode(errors="replace")
    except TransferError as error:
        connection.close()
        raise RendezvousTimeout(_not_connected(meeting, pair)) from error
    if not is_proof(candidate, meeting.secret, f"{other_role} {other} {own}"):
        connection.close()
        raise BridgeError(f"Another program answered for wire {pair} of {meeting.group}: it does not have the secret.")
    return connection


def _not_connected(meeting: Meeting, pair: Pair) -> str:
    return (
        f"Trainer rank {pair.sender} and worker {pair.receiver} of one host did not meet within"
        f" {meeting.timeout_s:g} s."
    )
