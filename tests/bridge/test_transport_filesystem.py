"""The files that a shared directory carries: readable by anyone, whole, and checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launcher.bridge.transport.filesystem import read, write
from launcher.errors import TransferError

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


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    write(path, MESSAGE)
    with pytest.raises(TransferError, match="holds"):
        read(path, torch.zeros(999, dtype=torch.uint8))
