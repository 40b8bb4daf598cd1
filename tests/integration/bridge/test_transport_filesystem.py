"""The files that a shared directory carries: readable by anyone, whole, and checked."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launcher.bridge.parallel import in_parallel
from launcher.bridge.transport.base import Meeting, Pair, RecvWire, SendWire
from launcher.bridge.transport.filesystem import connect_receiver, connect_sender, read, write
from launcher.common.errors import TransferError

MESSAGE = torch.arange(1000).to(torch.uint8)


def test_a_message_is_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    write(path, MESSAGE)
    assert torch.equal(load_file(path)["message"], MESSAGE)
    assert list(tmp_path.iterdir()) == [path]
    came = torch.zeros_like(MESSAGE)
    read(path, came)
    assert torch.equal(came, MESSAGE)


@pytest.mark.parametrize("at", [0, 9, 60, 400, 1100])
def test_a_byte_that_changed_on_the_way_is_seen(tmp_path: Path, at: int) -> None:
    path = tmp_path / "0.safetensors"
    write(path, MESSAGE)
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    with pytest.raises(TransferError, match="failed"):
        read(path, torch.zeros_like(MESSAGE))


def test_a_file_that_was_cut_off_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    write(path, MESSAGE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TransferError, match="is damaged"):
        read(path, torch.zeros_like(MESSAGE))


def test_nothing_of_an_earlier_trainer_is_taken_for_this_one_s(tmp_path: Path) -> None:
    """Its groups had the same names; it was killed, and has left a message."""
    pair = Pair(sender=0, receiver=0)

    def join(secret: str) -> tuple[SendWire, RecvWire]:
        meeting = Meeting(group="bridge-1-replica-0", secret=secret, directory=tmp_path, timeout_s=20.0)
        ends = in_parallel([partial(connect_sender, meeting, pair), partial(connect_receiver, meeting, pair)])
        assert isinstance(ends[0], SendWire)
        assert isinstance(ends[1], RecvWire)
        return ends[0], ends[1]

    earlier, _receiver = join("one")
    left = earlier.buffer(4, 0.0)
    left.fill_(1)
    earlier.post_send(left)
    sender, receiver = join("two")
    with pytest.raises(TransferError, match="did not complete"):
        receiver.post_recv(4).poll(time.monotonic() + 0.2)
    sender.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    write(path, MESSAGE)
    with pytest.raises(TransferError, match="holds"):
        read(path, torch.zeros(999, dtype=torch.uint8))
