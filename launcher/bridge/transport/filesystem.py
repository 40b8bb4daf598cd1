"""``filesystem``: a safetensors file for each message, in a directory that both sides share.

For trainers and engines between which there is nothing but HTTP and a shared directory: the engines get a request when
a version comes, and read its files as they appear. A file appears whole, holds a digest of its bytes, and is removed as
soon as it has been read. The directory of a wire is removed with the wire.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from launcher.bridge.codec.checksum import digest
from launcher.bridge.transport.base import Buffers, Meeting, Pair, RecvWire, SendWire, Transfer
from launcher.common.errors import BridgeError, RendezvousTimeout, TransferError
from launcher.common.keys import is_same, new_nonce, proof

HELLO, ANSWER = "hello.json", "answer.json"
POLL_S = 0.002
LONGEST_POLL_S = 0.1
LOOK_AGAIN_S = 1.0
"""Seconds between two calls of :func:`_look_again`."""

ALIGNMENT = 16
TAG_LENGTH = 12
LARGEST_HEADER = 1 << 16
LEFT = "failed: this end has left."


class FileSender(SendWire):
    """The sending end. A message is sent once its file is there; files of a slow receiver accumulate."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._buffers = Buffers(torch.device("cpu"))
        self._posted = 0

    def buffer(self, nbytes: int, deadline: float) -> torch.Tensor:
        return self._buffers.take(nbytes)

    def post_send(self, buffer: torch.Tensor) -> Transfer:
        if self._buffers.cleared:
            raise TransferError(LEFT)
        try:
            write(_file(self._directory, self._posted), buffer)
        except OSError as error:
            raise TransferError(f"failed: {error}.") from error
        self._posted += 1
        return _Written(self._buffers, buffer)

    def abort(self) -> None:
        self._buffers.clear()
        _remove(self._directory)


class _Written(Transfer):
    def __init__(self, buffers: Buffers, buffer: torch.Tensor) -> None:
        self._buffers = buffers
        self._buffer = buffer

    def poll(self, deadline: float) -> torch.Tensor:
        self._buffers.give(self._buffer)
        return self._buffer


class FileReceiver(RecvWire):
    """The receiving end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._buffers = Buffers(torch.device("cpu"))
        self._posted = 0

    def post_recv(self, nbytes: int) -> Transfer:
        if self._buffers.cleared:
            raise TransferError(LEFT)
        self._posted += 1
        return _Awaited(_file(self._directory, self._posted - 1), nbytes, self._buffers)

    def abort(self) -> None:
        self._buffers.clear()
        _remove(self._directory)


class _Awaited(Transfer):
    def __init__(self, path: Path, nbytes: int, buffers: Buffers) -> None:
        self._path = path
        self._nbytes = nbytes
        self._buffers = buffers
        self._buffer: torch.Tensor | None = None

    def poll(self, deadline: float) -> torch.Tensor:
        _await(self._path, deadline, lambda: self._buffers.cleared)
        buffer = self._buffers.take(self._nbytes)
        try:
            read(self._path, buffer)
        except OSError as error:
            raise TransferError(f"failed: {error}.") from error
        self._buffer = buffer
        return buffer

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        if self._buffer is not None:
            self._buffers.give(self._buffer)


def connect_sender(meeting: Meeting, pair: Pair) -> SendWire:
    """Writes a file for the receiver and waits for its answer in the same directory.

    Raises:
        RendezvousTimeout: it does not.
    """
    directory, deadline = _directory(meeting, pair), time.monotonic() + meeting.timeout_s
    nonce = new_nonce()
    _clear(meeting, directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_json(directory / HELLO, {"nonce": nonce, "proof": _proof(meeting, pair, "sender", nonce)})
        content = _await_json(directory / ANSWER, deadline)
        _check(content, meeting, pair, "receiver", nonce)
        for name in (HELLO, ANSWER):
            (directory / name).unlink(missing_ok=True)
    except (OSError, TransferError, BridgeError) as error:
        _remove(directory)
        raise _not_connected(meeting, pair, error) from error
    return FileSender(directory)


def connect_receiver(meeting: Meeting, pair: Pair) -> RecvWire:
    """Waits for the sender's file in the directory.

    Raises:
        RendezvousTimeout: it does not.
    """
    directory, deadline = _directory(meeting, pair), time.monotonic() + meeting.timeout_s
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = _await_json(directory / HELLO, deadline)
        nonce = str(content["nonce"])
        _check(content, meeting, pair, "sender", nonce)
        _write_json(directory / ANSWER, {"proof": _proof(meeting, pair, "receiver", nonce)})
    except (OSError, TransferError, BridgeError) as error:
        _remove(directory)
        raise _not_connected(meeting, pair, error) from error
    return FileReceiver(directory)


def write(path: Path, message: torch.Tensor) -> None:
    """Writes a message as a safetensors file with one tensor, ``message``; it appears whole or not at all.

    Args:
        message: uint8, shape (bytes,).
    """
    header = {
        "__metadata__": {"digest": f"{digest(message):016x}"},
        "message": {"dtype": "U8", "shape": [message.numel()], "data_offsets": [0, message.numel()]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    hidden = path.with_name(f".{path.name}")
    with hidden.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(message.numpy().data)
    hidden.replace(path)


def read(path: Path, message: torch.Tensor) -> None:
    """Reads such a file.

    Args:
        message: uint8, shape (bytes,): where the bytes go.

    Raises:
        TransferError: it is not that long, or its bytes are not those of its digest.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, LARGEST_HEADER)))
            shape, wanted = header["message"]["shape"], header["__metadata__"]["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise TransferError(f"failed: {path} is damaged.") from error
        if shape != [message.numel()]:
            raise TransferError(f"failed: {path} holds {shape} bytes, not {message.numel()}.")
        count = file.readinto(message.numpy().data)
    if count != message.numel() or f"{digest(message):016x}" != wanted:
        raise TransferError(f"failed: {path} is damaged.")


def _await(path: Path, deadline: float, is_over: Callable[[], bool]) -> None:
    pause, looked = POLL_S, time.monotonic()
    while not path.exists():
        now = time.monotonic()
        if is_over():
            raise TransferError(LEFT)
        if not path.parent.exists():
            raise TransferError("failed: the other end is gone.")
        if now > deadline:
            raise TransferError("did not complete within its deadline.")
        if now > looked + LOOK_AGAIN_S:
            _look_again(path.parent)
            looked = now
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_POLL_S)


def _look_again(directory: Path) -> None:
    """A network filesystem may remember for half a minute that a file is not there, unless the directory changes."""
    probe = directory / f".look-{os.getpid()}"
    with contextlib.suppress(OSError):
        probe.touch()
        probe.unlink()


def _file(directory: Path, number: int) -> Path:
    return directory / f"{number:09}.safetensors"


def _directory(meeting: Meeting, pair: Pair) -> Path:
    if meeting.directory is None:
        raise BridgeError("`bridge.transport` (filesystem) needs `bridge.directory`, which both sides share.")
    return meeting.directory / f"{meeting.group}-{_tag(meeting)}" / str(pair)


def _tag(meeting: Meeting) -> str:
    """Distinguishes this trainer's files from those of an earlier one whose groups had the same names."""
    return proof(meeting.secret, meeting.group)[:TAG_LENGTH]


def _clear(meeting: Meeting, directory: Path) -> None:
    """Removes the files of an earlier trainer that was killed."""
    pattern = f"{glob.escape(meeting.group)}-{'[0-9a-f]' * TAG_LENGTH}"
    for other in directory.parents[1].glob(pattern):
        if other != directory.parent:
            shutil.rmtree(other, ignore_errors=True)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):  # Others of the group are still there, or have done it.
        directory.parent.rmdir()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    hidden = path.with_name(f".{path.name}")
    hidden.write_text(json.dumps(content), encoding="utf-8")
    hidden.replace(path)


def _await_json(path: Path, deadline: float) -> dict[str, Any]:
    _await(path, deadline, lambda: False)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _proof(meeting: Meeting, pair: Pair, role: str, nonce: str) -> str:
    return proof(meeting.secret, f"{meeting.group}/{pair} {role} {nonce}")


def _check(content: dict[str, Any], meeting: Meeting, pair: Pair, role: str, nonce: str) -> None:
    if not is_same(str(content.get("proof")), _proof(meeting, pair, role, nonce)):
        raise BridgeError(f"Another program answered for wire {pair} of {meeting.group}: it does not have the secret.")


def _not_connected(meeting: Meeting, pair: Pair, error: Exception) -> RendezvousTimeout:
    return RendezvousTimeout(
        f"Trainer rank {pair.sender} and worker {pair.receiver} did not meet in {meeting.directory} within"
        f" {meeting.timeout_s:g} s: {error}"
    )
